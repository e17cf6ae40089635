"""Who shares the next call. Knows neither tensors nor threads, so it can be tried on a simulated clock."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

PICKS_PER_TRIAL = 32  # one of so many is of a batch size that was not the best
SMOOTHING = 0.8  # how much of what is known of a batch size stays when it is measured again
MOST_KINDS = 1000
MUCH_LONGER = 2.0  # times one's own call: nobody waits for two such calls
PICKS_UNTIL_MORE = 500  # one of so many sees whether there is memory for a larger batch again: others use it, too
WORTH = 0.9  # of the highest throughput: a larger batch is taken if it reaches this, since it leaves fewer waiting


Call = TypeVar("Call")


class FairShare:
    """Every call that waits gets the same share of seconds; within a kind the oldest go first, as many as throughput still gains from.

    Shares are counted in seconds of the device from a common start, as in start-time fair queueing (Goyal, Vin and Cheng 1996): whoever was
    away has saved nothing up. But for this: whoever has waited for a call much longer than their own goes next, however few they are.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._kinds: dict[Hashable, Known] = {}
        self._now = 0.0  # where that kind stood that was the furthest behind at the last pick

    def pick(self, ready: Mapping[Hashable, Sequence[Call]], most: int | None = None) -> list[Call]:
        """The calls that go next, at `most` so many. `ready` holds all that wait by signature, the oldest and its kind first; not empty."""
        known = {kind: self._known(kind) for kind in ready}
        for kind, one in known.items():
            one.stands = max(one.stands + one.owed / max(len(ready[kind]), one.calls_in_last), self._now)
            one.owed = 0.0
        due = [kind for kind in ready if known[kind].passed_by > MUCH_LONGER * known[kind].seconds]
        kind = min(due or ready, key=lambda kind: known[kind].stands)
        picked, waiting = known[kind], len(ready[kind])
        self._now = picked.stands = min(one.stands for one in known.values())
        for one in known.values():
            one.passed_by = 0.0 if one is picked else max(one.passed_by, picked.seconds)
        picked.calls_in_last = picked.next(min(waiting, most or waiting))
        return list(ready[kind][: picked.calls_in_last])

    def took(self, kind: Hashable, seconds: float, *, joined: int | None = None) -> None:
        """Calls of this kind were on the device for so long. With `joined`, that many as one: something to learn from."""
        known = self._known(kind)
        known.owed += seconds
        known.seconds = seconds
        if joined is not None:
            rate = joined / max(seconds, 1e-9)
            known.rates[joined] = SMOOTHING * known.rates.get(joined, rate) + (1 - SMOOTHING) * rate

    def limit(self, kind: Hashable) -> int:
        """How many calls of this kind can be one."""
        return self._known(kind).limit

    def lower_limit(self, kind: Hashable, calls: int, *, for_good: bool = True) -> None:
        """Not more than `calls` of this kind at once from now on: they cannot be joined or, not `for_good`, did not fit into memory."""
        known = self._known(kind)
        known.limit = max(1, min(calls, known.limit))
        if for_good:
            known.largest = known.limit

    def _known(self, kind: Hashable) -> "Known":
        known = self._kinds.pop(kind, None) or Known(self._max_batch_size)
        if len(self._kinds) >= MOST_KINDS:
            # Callers choose sizes, so there is no end of kinds. What is in use is soon known again, but for those that did not work.
            limited = [(kind, known) for kind, known in self._kinds.items() if known.limit < self._max_batch_size]
            self._kinds = dict(limited[-MOST_KINDS // 2 :])
        self._kinds[kind] = known  # the last: they are in the order of their use
        return known


class Known:
    """What calls of one kind have shown: their seconds, and how many to join for the highest throughput, tried anew now and then."""

    def __init__(self, limit: int) -> None:
        self.limit = self.largest = limit
        self.seconds = 0.0  # of the last call
        self.stands = 0.0  # at how many seconds of the device for each call
        self.owed = 0.0  # seconds of the device that are not counted in it yet
        self.calls_in_last = 1
        self.passed_by = 0.0  # what calls took that went before one that waited: the longest, as its kind took the last time
        self.rates: dict[int, float] = {}  # calls in one -> calls a second
        self._picks = 0

    def next(self, waiting: int) -> int:
        """How many of `waiting` calls to take; all of them where that has never been tried."""
        self._picks += 1
        if self._picks % PICKS_UNTIL_MORE == 0:
            self.limit = min(2 * self.limit, self.largest)
        most = min(waiting, self.limit)
        if most not in self.rates:
            return most
        rates = {calls: rate for calls, rate in self.rates.items() if calls <= most}
        best = max(calls for calls, rate in rates.items() if rate >= WORTH * max(rates.values()))
        if self._picks % PICKS_PER_TRIAL:
            return best
        near = [calls for calls in (best - 1, best + 1, best // 2, 2 * best) if 1 <= calls <= most] or [best]
        return near[self._picks // PICKS_PER_TRIAL % len(near)]
