"""How long work will take: measured rates, and a simulation of the queue. Knows no clock but the seconds it is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from app.schemas import Capabilities, ImageRequest

NEWEST_WEIGHS = 0.25
OF_EVERY_STEP = 0.5  # what a step costs at any size, as a share of the model's own: 0.2 in a full batch to 0.9 alone, for the bundled one


def work_of(request: ImageRequest, capabilities: Capabilities) -> float:
    """The pixel-steps of a resolved request, and as many more as its steps would cost if they had no pixels."""
    pixels, native = (request.width or 0) * (request.height or 0), capabilities.width * capabilities.height
    return request.pixel_steps * (1 + OF_EVERY_STEP * native / pixels)


class Rates:
    """Work a second of one replica, by how many pictures it makes at once. `first` is what a single picture showed."""

    def __init__(self, first: float) -> None:
        self._known = {1: first}
        self._guessed = True

    def learn(self, at_once: float, rate: float) -> None:
        number = max(1, round(at_once))
        known = None if self._guessed and number == 1 else self._known.get(number)
        self._guessed = self._guessed and number != 1
        self._known[number] = rate if known is None else known + NEWEST_WEIGHS * (rate - known)

    def at(self, at_once: float) -> float:
        """The rate at the nearest number that was seen; the lower one, which promises less, if two are as near."""
        return self._known[min(self._known, key=lambda number: (abs(number - at_once), number))]


@dataclass(slots=True, eq=False)
class Load:
    """Work that is left, the pictures it is shared by, and whether it counts as large."""

    work: float
    pictures: int
    large: bool = False


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from now."""

    start: float
    end: float


def fits(load: Load, running: Sequence[Load], places: int, places_for_large: int) -> bool:
    """Whether there is room beside those that run. More pictures than there are places start when nothing else runs."""
    taken = sum(other.pictures for other in running)
    taken_by_large = sum(other.pictures for other in running if other.large)
    return taken == 0 or (
        taken + load.pictures <= places and (not load.large or taken_by_large == 0 or taken_by_large + load.pictures <= places_for_large)
    )


L = TypeVar("L", bound=Load)


def next_to_start(waiting: Sequence[L], running: Sequence[Load], places: int, places_for_large: int) -> L | None:
    """The first that fits; only those that find too many large ones running are passed by."""
    for load in waiting:
        if fits(load, running, places, places_for_large):
            return load
        if not load.large or not fits(Load(load.work, load.pictures), running, places, places_for_large):
            return None
    return None


def simulate(
    running: Sequence[Load], waiting: Sequence[Load], places: int, places_for_large: int, rate: Callable[[int], float]
) -> list[Times]:
    """When each of `waiting` starts and ends, if nothing else comes. `rate` is of all replicas, by the number of pictures at once."""
    now, inside = 0.0, [Load(load.work, load.pictures, load.large) for load in running]
    queue = [Load(load.work, load.pictures, load.large) for load in waiting]
    starts, ends = {id(load): 0.0 for load in queue}, {id(load): 0.0 for load in queue}
    left = list(queue)
    while left or any(id(load) in starts for load in inside):
        while chosen := next_to_start(left, inside, places, places_for_large):
            left.remove(chosen)
            starts[id(chosen)] = now
            inside.append(chosen)
        share = rate(sum(load.pictures for load in inside)) / sum(load.pictures for load in inside)  # work a second for a picture
        passes = min(load.work / (load.pictures * share) for load in inside)
        now += passes
        for load in inside:
            load.work -= passes * load.pictures * share
        for load in [load for load in inside if load.work <= 1e-6 * share]:
            ends[id(load)] = now
            inside.remove(load)
    return [Times(starts[id(load)], ends[id(load)]) for load in queue]
