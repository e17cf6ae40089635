"""The queue in front of the replicas: who may wait, who is next, and how long it will take.

Everybody waits here and not in Ray Serve, whose queues tell neither positions nor times. A request is refused at once if the wait or the
number of those that wait is too large, or if its deadline cannot be met.

The next one is who came earliest, each handicapped by the seconds of work it brings: a small request passes large ones that came a little
before it, and nobody is passed for longer than their own work takes. Pictures much larger than the model's own never take all places
where there are more than two, but for those that one request asks for together; while they wait for one of theirs, small ones pass them.
"""

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from app.autoscaling import places_for_large
from app.routes.estimate import Load, Rates, Room, Times, next_to_start, simulate
from app.schemas import Queued

LARGE = 2.0  # times the work of the model's own default picture
LEAST_LEFT = 0.08  # of a picture, until it has left: with less, waits were promised too short in recorded loads, with more too long
MOST_OVERDUE = 3.0  # times what a picture should take: what takes longer hangs, which says nothing of the others


class Overloaded(Exception):
    """The queue is full. There should be room again in `retry_after_s`; now the wait would be `expected_wait_s`."""

    def __init__(self, retry_after_s: float, expected_wait_s: float, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; there should be room in {retry_after_s:.1f} s")
        self.retry_after_s, self.expected_wait_s = retry_after_s, expected_wait_s


class DeadlineTooShort(Exception):
    """The picture is not expected in the time it was given. `retry_after_s` is None if it would not be on an idle service either."""

    def __init__(self, expected_s: float, given_s: float, expected_wait_s: float, retry_after_s: float | None) -> None:
        super().__init__(f"the picture is expected in {expected_s:.1f} s, later than the {given_s:.1f} s it was given")
        self.expected_wait_s, self.retry_after_s = expected_wait_s, retry_after_s


@dataclass(slots=True, eq=False)
class Ticket(Load):
    """A request that waits or runs. `turn` decides the order, in seconds of the queue's clock; `work` is what is left of `whole`, and
    `due` what should have been done of it at the rate that was measured."""

    whole: float = 0.0
    due: float = 0.0
    turn: float = 0.0
    expected_wait_s: float = 0.0  # as it was told on entering
    started: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float | None = None
    picture_seconds_before: float = 0.0  # of everybody, when it started
    rates: Rates | None = None  # that it teaches, if any


class Line:
    """The queue. Used from one event loop; only its clock is read, so it can be tried on a simulated one.

    `batch` pictures are made at once by each of `replicas`. `native_work` is that of the model's own default picture.
    """

    def __init__(
        self,
        *,
        batch: int,
        rates: Rates,
        native_work: float,
        max_queued: int,
        max_queue_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replicas = 1
        self._batch, self._rates, self._native_work = batch, rates, native_work
        self._max_queued, self._max_queue_s, self._clock = max_queued, max_queue_s, clock
        self._running: list[Ticket] = []
        self._waiting: list[Ticket] = []
        self._seen = clock()  # until when progress and crowd are accounted for
        self._picture_seconds = 0.0  # of everybody
        self._slowdown = 1.0
        self._forecast: dict[Ticket, Times] = {}
        self._forecast_at = -1.0

    def enter(self, work: float, pictures: int, given_s: float) -> Ticket:
        """Raises `Overloaded` and `DeadlineTooShort`; `given_s` is the time until the deadline."""
        self._catch_up()
        ticket = Ticket(work, pictures, large=work > LARGE * pictures * self._native_work, whole=work)
        ticket.turn = self._clock() + work / self._rate(pictures)
        order = sorted([*self._waiting, ticket], key=lambda other: other.turn)
        times = dict(zip(order, self._simulate(order), strict=True))
        self._refuse_if_full(times, ticket)
        self._refuse_if_late(times[ticket], given_s, work, pictures)
        ticket.expected_wait_s = times[ticket].start
        insort(self._waiting, ticket, key=lambda other: other.turn)
        self._start_next()
        return ticket

    def leave(self, ticket: Ticket, *, done: bool, at_work: bool = True) -> None:
        """The request is over; `done` says that its pictures were made. Those that had to wait before they were `at_work` teach nothing."""
        self._catch_up()
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket in self._running:
            self._running.remove(ticket)
            if at_work:
                self._learn(ticket, done)
        self._start_next()

    def outlook(self, ticket: Ticket) -> Queued:
        if ticket not in self._waiting:
            return Queued(0, 0.0)
        if self._clock() - self._forecast_at > 0.25:
            self._catch_up()
            self._forecast = dict(zip(self._waiting, self._simulate(self._waiting), strict=True))
            self._forecast_at = self._clock()
        return Queued(self._waiting.index(ticket) + 1, self._forecast[ticket].start if ticket in self._forecast else ticket.expected_wait_s)

    def changed_replicas(self, replicas: int) -> None:
        self._catch_up()
        before, self.replicas = self.replicas, max(1, replicas)  # with none, requests wait for the next one at Serve's router
        if self.replicas != before:
            for ticket in self._running:
                ticket.rates = None  # how many share its replica is not known any more
        self._start_next()

    def changed_model(self, native_work: float, rate: float) -> None:
        """What was learned of the one before says nothing about it."""
        self._catch_up()
        self._native_work, self._rates = native_work, Rates(rate)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def _places(self) -> int:
        return self._batch * self.replicas

    def _room(self) -> Room:
        return Room(self._places, places_for_large(self._places))

    def _rate(self, pictures: int, *, best: bool = False) -> float:
        """Work a second of all replicas together; the most there ever was if `best`."""
        busy = min(pictures, self.replicas)
        return busy * self._rates.at(min(pictures, self._places) / busy, best=best)

    def _simulate(self, order: list[Ticket]) -> list[Times]:
        return simulate(self._running, order, self._room(), lambda pictures: self._rate(pictures) / self._slowdown)

    def _refuse_if_full(self, times: dict[Ticket, Times], ticket: Ticket) -> None:
        wait = times[ticket].start
        if wait <= 0:
            return
        too_many = len(self._waiting) >= self._max_queued
        if too_many or wait > self._max_queue_s:
            first_place = min(times[other].start for other in self._waiting) if too_many else 0.0
            raise Overloaded(max(first_place, wait - self._max_queue_s), wait, len(self._waiting))

    def _refuse_if_late(self, times: Times, given_s: float, work: float, pictures: int) -> None:
        if times.end <= given_s:
            return
        alone = work / self._rate(pictures)
        if not self._running and not self._waiting and work / self._rate(pictures, best=True) <= given_s:
            return  # else one slow picture could shut out for ever what nothing but another try would show to be fast enough
        raise DeadlineTooShort(times.end, given_s, times.start, None if alone > given_s else times.end - given_s)

    def _start_next(self) -> None:
        self._forecast_at = -1.0
        room = self._room()
        for running in self._running:
            room.take(running)
        while ticket := next_to_start(self._waiting, room):
            room.take(ticket)
            self._waiting.remove(ticket)
            ticket.started_at, ticket.picture_seconds_before, ticket.rates = self._clock(), self._picture_seconds, self._rates
            self._running.append(ticket)
            ticket.started.set()

    def _catch_up(self) -> None:
        """Work that was done since the last look, shared by the pictures that run. Whoever is overdue shows that all are slower now."""
        now = self._clock()
        passed, self._seen = now - self._seen, now
        pictures = sum(ticket.pictures for ticket in self._running)
        self._picture_seconds += passed * pictures
        for ticket in self._running:
            ticket.due += passed * self._rate(pictures) * ticket.pictures / pictures
        overdue = [ticket.due / ticket.whole for ticket in self._running if ticket.rates is self._rates]
        self._slowdown = max([1.0, *(times for times in overdue if times <= MOST_OVERDUE)])
        for ticket in self._running:
            ticket.work = max(ticket.whole - ticket.due / self._slowdown, LEAST_LEFT * ticket.whole)

    def _learn(self, ticket: Ticket, done: bool) -> None:
        took = self._clock() - (ticket.started_at or 0.0)
        if took <= 0 or ticket.rates is None:
            return
        at_once = max((self._picture_seconds - ticket.picture_seconds_before) / took, 1.0)
        busy = min(at_once, self.replicas)
        learn = ticket.rates.learn if done else ticket.rates.bound
        learn(at_once / busy, ticket.whole / took * at_once / ticket.pictures / busy)
