"""Who shares the next call. Knows neither tensors nor threads, so it can be tried on a simulated clock."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

FEWEST_PICKS, MOST_PICKS = 32, 128  # from one trial to the next; twice as many after each that changed nothing
SMOOTHING = 0.5  # how much of what is known of a batch size stays when it is measured again
MOST_KINDS = 1000
WORTH = 0.97  # of the highest throughput: a larger batch is taken if it reaches this, since it leaves fewer waiting


class Waiting(Protocol):
    @property
    def since(self) -> float:
        """When the call came, in seconds of any clock."""
        ...


Call = TypeVar("Call", bound=Waiting)


class FairShare:
    """Every call that waits gets the same share of seconds; within a kind the oldest go first, as many as throughput still gains from.

    Shares are counted in seconds of the device from a common start, as in start-time fair queueing (Goyal, Vin and Cheng 1996): whoever was
    away has saved nothing up. Nobody waits for two longer calls in a row.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._sizes: dict[Hashable, BatchSize] = {}
        self._seconds: dict[Hashable, float] = {}  # where each kind stands
        self._now = 0.0  # where that kind stood that was the furthest behind at the last pick
        self._sharing = 1  # calls that waited of the kind picked
        self._passed: set[Hashable] = set()  # the kinds not picked
        self._last_seconds = math.inf  # that the last pick took

    def pick(self, ready: Mapping[Hashable, Sequence[Call]]) -> list[Call]:
        """The calls that go next. `ready` holds those that wait, by signature, and is not empty."""
        ahead = {kind: seconds for kind, seconds in self._seconds.items() if seconds > self._now}
        self._seconds = dict.fromkeys(ready, self._now) | ahead
        shorter = [kind for kind in ready if kind in self._passed and self._size(kind).seconds <= self._last_seconds]
        kind = min(shorter or ready, key=lambda kind: (self._seconds[kind], min(call.since for call in ready[kind])))
        self._now = self._seconds[kind] = min(self._seconds[kind] for kind in ready)
        self._sharing, self._passed = len(ready[kind]), set(ready) - {kind}
        return sorted(ready[kind], key=lambda call: call.since)[: self._size(kind).next(len(ready[kind]))]

    def took(self, kind: Hashable, seconds: float, *, joined: int | None = None) -> None:
        """Calls of this kind were on the device for so long. With `joined`, that many as one: something to learn from."""
        self._seconds[kind] = self._seconds.get(kind, self._now) + seconds / self._sharing
        self._size(kind).seconds = self._last_seconds = seconds
        if joined is not None:
            self._size(kind).took(joined, seconds)

    def lower_limit(self, kind: Hashable, calls: int) -> None:
        """Never more than `calls` of this kind at once from now on: more did not fit, or could not be joined."""
        size = self._size(kind)
        size.limit = max(1, min(calls, size.limit))

    def _size(self, kind: Hashable) -> "BatchSize":
        if len(self._sizes) > MOST_KINDS:
            # Callers choose sizes, so there is no end of kinds. What is in use is soon known again, but for what did not work.
            self._sizes = {kind: size for kind, size in self._sizes.items() if size.limit < self._max_batch_size}
        return self._sizes.setdefault(kind, BatchSize(self._max_batch_size))


class BatchSize:
    """How many calls of one kind to join: as many as have shown the highest throughput, which is tried anew beside its neighbours."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seconds = 0.0  # of the last call
        self._rates: dict[int, float] = {}  # calls in one -> calls a second
        self._picks = 0
        self._pause, self._next_trial = FEWEST_PICKS, FEWEST_PICKS  # picks
        self._tried: dict[int, int] = {}  # calls in one -> the pick at which it was last on trial

    def next(self, waiting: int) -> int:
        """How many of `waiting` calls to take; all of them where that has never been tried."""
        most = min(waiting, self.limit)
        if most not in self._rates:
            return most
        self._picks += 1
        best = self._best(most)
        return self._on_trial(best, most) if self._picks >= self._next_trial else best

    def took(self, calls: int, seconds: float) -> None:
        rate = calls / max(seconds, 1e-9)
        before = self._best(self.limit)
        self._rates[calls] = SMOOTHING * self._rates.get(calls, rate) + (1 - SMOOTHING) * rate
        if self._best(self.limit) != before:
            self._pause, self._next_trial = FEWEST_PICKS, self._picks + FEWEST_PICKS

    def _best(self, most: int) -> int:
        known = {calls: rate for calls, rate in self._rates.items() if calls <= most}
        return max((calls for calls, rate in known.items() if rate >= WORTH * max(known.values())), default=most)

    def _on_trial(self, best: int, most: int) -> int:
        near = {calls for calls in (best - 1, best + 1, best // 2, 2 * best) if 1 <= calls <= most} or {best}
        chosen = min(near, key=lambda calls: (self._tried.get(calls, -1), -calls))
        self._tried[chosen] = self._picks
        self._next_trial = self._picks + self._pause
        self._pause = min(2 * self._pause, MOST_PICKS)
        return chosen
