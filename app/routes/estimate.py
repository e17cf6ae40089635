"""How long work will take: measured rates, and a simulation of the queue. Knows no clock but the seconds it is given."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from app.schemas import STEPS_WORTH_OF_THE_REST, Capabilities, ImageRequest

NEWEST_WEIGHS = 0.25
SLOWER = 0.9  # than what was just missed
SAME = 1 + 1e-9  # apart by rounding alone
CALLED_TWICE = (  # in every step but the last
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
OF_EVERY_STEP = 0.5  # what a step costs at any size, as a share of the model's own: 0.2 in a full batch to 0.9 alone, for the bundled one


def work_of(request: ImageRequest, capabilities: Capabilities) -> float:
    """The pixel-steps of a resolved request, and as many more as its steps would cost if they had no pixels."""
    pixels, native = (request.width or 0) * (request.height or 0), capabilities.width * capabilities.height
    steps = request.denoising_steps + STEPS_WORTH_OF_THE_REST
    more = (request.denoising_steps - 1) / steps if request.scheduler in CALLED_TWICE else 0.0
    return request.pixel_steps * (1 + more) * (1 + OF_EVERY_STEP * native / pixels)


class Rates:
    """Work a second of one replica, by how many pictures it makes at once. `first` is what a single picture showed."""

    def __init__(self, first: float) -> None:
        self._known = {1: first}
        self._best = {1: first}
        self._guessed = True

    def learn(self, at_once: float, rate: float) -> None:
        number = max(1, round(at_once))
        known = None if self._guessed and number == 1 else self._known.get(number)
        self._guessed = self._guessed and number != 1
        self._known[number] = rate if known is None else known + NEWEST_WEIGHS * (rate - known)
        self._best[number] = max(self._best.get(number, 0.0), rate)

    def bound(self, at_once: float, rate: float) -> None:
        """Nothing was done yet at this rate, so it is not as fast as that, and those who give as little time again would miss it too."""
        number = max(1, round(at_once))
        self._best[number] = min(self.at(number, best=True), SLOWER * rate)

    def at(self, at_once: float, *, best: bool = False) -> float:
        """The rate at the nearest number that was seen; the lower one, which promises less, if two are as near."""
        rates = self._best if best else self._known
        return rates[min(rates, key=lambda number: (abs(number - at_once), number))]


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


@dataclass(slots=True)
class Room:
    """Places for pictures, how many of them may be large, and how many are taken."""

    places: int
    places_for_large: int
    taken: int = 0
    taken_by_large: int = 0

    def fits(self, load: Load) -> bool:
        """More pictures than there are places start when nothing else runs, more large ones than may be when no other large one does."""
        fits_large = not load.large or self.taken_by_large == 0 or self.taken_by_large + load.pictures <= self.places_for_large
        return self.taken == 0 or (self.has_places_for(load) and fits_large)

    def has_places_for(self, load: Load) -> bool:
        return self.taken + load.pictures <= self.places

    def take(self, load: Load) -> None:
        self.taken += load.pictures
        self.taken_by_large += load.large * load.pictures

    def leave(self, load: Load) -> None:
        self.taken -= load.pictures
        self.taken_by_large -= load.large * load.pictures


L = TypeVar("L", bound=Load)


def next_to_start(waiting: Iterable[L], room: Room) -> L | None:
    """The first that fits; only those that find too many large ones running are passed by, and by small ones alone."""
    passed = False
    for load in waiting:
        if passed and load.large:
            continue
        if room.fits(load):
            return load
        if not (load.large and room.has_places_for(load)):
            return None
        passed = True
    return None


def simulate(running: Iterable[Load], waiting: Iterable[Load], room: Room, rate: Callable[[int], float]) -> list[Times]:
    """When each of `waiting` starts and ends, if nothing else comes to `room`, which is empty yet. `rate` is of all replicas, by the number
    of pictures at once.

    Each picture that runs gets the same share of the rate, so in what each has had since now, the order of the ends is known from the start
    (the virtual time of fair queueing).
    """
    now = had = 0.0  # seconds, and the work that each picture has had
    number = itertools.count()  # who came first, among equals
    inside: list[tuple[float, int, Load]] = []  # a heap: what each will have had at its end
    left = deque(waiting)
    times = {id(load): Times(0.0, 0.0) for load in left}
    to_end = len(left)

    def start(load: Load) -> None:
        room.take(load)
        heapq.heappush(inside, (had + load.work / load.pictures, next(number), load))

    for load in running:
        start(load)
    order = list(left)
    while to_end:
        while chosen := next_to_start(left, room):
            left.remove(chosen)
            times[id(chosen)] = Times(now, now)
            start(chosen)
        now += (inside[0][0] - had) * room.taken / rate(room.taken)
        had = inside[0][0]
        while inside and inside[0][0] <= had * SAME:
            _, _, load = heapq.heappop(inside)
            room.leave(load)
            if id(load) in times:
                times[id(load)] = Times(times[id(load)].start, now)
                to_end -= 1
    return [times[id(load)] for load in order]
