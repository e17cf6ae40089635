"""Who shares the next call. Knows neither tensors nor threads, so it can be tried on a simulated clock."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    @property
    def since(self) -> float:
        """When the call came, in seconds of any clock."""
        ...


Call = TypeVar("Call", bound=Waiting)


class FairShare:
    """Every kind of call gets the same share of seconds; within a kind the oldest go first, up to `max_batch_size` at once."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._limits: dict[Hashable, int] = {}
        self._seconds: dict[Hashable, float] = {}

    def pick(self, ready: Mapping[Hashable, Sequence[Call]]) -> list[Call]:
        """The calls that go next. `ready` holds those that wait, by signature, and is not empty."""
        known = [self._seconds[kind] for kind in ready if kind in self._seconds]
        for kind in ready:
            # A newcomer starts where the least served one stands, or it would have the device to itself until it caught up.
            self._seconds[kind] = max(self._seconds.get(kind, 0.0), min(known, default=0.0))
        kind = min(ready, key=lambda kind: (self._seconds[kind], min(call.since for call in ready[kind])))
        return sorted(ready[kind], key=lambda call: call.since)[: self.limit(kind)]

    def took(self, kind: Hashable, seconds: float) -> None:
        """A call of this kind was on the device for so long."""
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds

    def lower_limit(self, kind: Hashable, calls: int) -> None:
        """Never more than `calls` of this kind at once from now on: more did not fit, or could not be joined."""
        self._limits[kind] = max(1, min(calls, self.limit(kind)))

    def limit(self, kind: Hashable) -> int:
        return self._limits.get(kind, self._max_batch_size)
