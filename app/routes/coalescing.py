"""Identical requests that are in flight at the same time share one generation.

A picture is a pure function of its resolved fields, so whoever asks for what is being made already waits for that and gets the same bytes,
each in the form asked for. It is let in, queued, made, retried and counted as work once, and its errors reach all. Streams stay outside:
each tells its own steps; and so does who gives less time than the first, or much more: whether less is enough must be found out at the
door, and nobody should lose place and picture at the deadline of somebody else.
"""

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from app.routes.admission import DeadlineTooShort, Overloaded
from app.routes.backend import Backend, Job, Made, make
from app.schemas import Capabilities, DeadlinePassed, ImageRequest, Queued, Update

MUCH_MORE = 1.1  # times as long as the first


@dataclass(slots=True, eq=False)
class Flight:
    """Work that `callers` wait for, until it is `over`. It ends at the deadline of the first of them, who gave it `given_s`."""

    work: asyncio.Task[Made]
    deadline: float
    began: float
    given_s: float
    callers: int = 0
    over: bool = False

    def suits(self, job: Job) -> bool:
        """Whether it ends neither after the job's own deadline nor long before it. One whose work is done is forgotten only in the event
        loop's next turn, until which asking it again and again would never end."""
        return not self.work.done() and self.deadline <= job.deadline and job.seconds_left <= MUCH_MORE * self.given_s


class Coalescing:
    """A `Backend` in front of another one. `on_join` is told of every caller that got the pictures of an earlier one."""

    def __init__(self, backend: Backend, on_join: Callable[[], None] = lambda: None) -> None:
        self._backend = backend
        self._on_join = on_join
        self._flights: dict[tuple[ImageRequest, ...], list[Flight]] = {}

    async def ready(self) -> bool:
        return await self._backend.ready()

    async def capabilities(self) -> Capabilities:
        return await self._backend.capabilities()

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if job.steps:
            async with aclosing(self._backend.run(job)) as told:
                async for news in told:
                    yield news
            return
        made = await self._made(job)
        yield Queued(0, made.expected_wait_s)
        for index, picture in enumerate(made.pictures):
            yield Update(index, picture)

    async def _made(self, job: Job) -> Made:
        late = False  # it has waited for a flight already, so if there is no time left, that is late
        while True:
            flight = next((one for one in self._flights.get(job.requests, ()) if one.suits(job)), None)
            until = job.deadline if flight is None else flight.deadline
            try:
                made = await self._join(flight or self._begin(job), job.requests)
            except (DeadlinePassed, DeadlineTooShort, Overloaded) as error:
                if job.deadline > until and not isinstance(error, Overloaded):
                    late |= isinstance(error, DeadlinePassed)  # the first caller's; there may be time for another try
                    continue
                if late:
                    raise DeadlinePassed("the picture was not ready at its deadline") from error
                raise
            if flight is not None:
                self._on_join()
            return made

    async def _join(self, flight: Flight, requests: tuple[ImageRequest, ...]) -> Made:
        waited = time.monotonic() - flight.began
        made = await self._wait(flight, requests)
        return replace(made, expected_wait_s=max(made.expected_wait_s - waited, 0.0))

    def _begin(self, job: Job) -> Flight:
        """In a context of its own: Serve cancels what was begun in that of a request once its caller leaves, others or not."""
        work = asyncio.get_running_loop().create_task(make(self._backend, job), context=contextvars.Context())
        flight = Flight(work, job.deadline, time.monotonic(), job.seconds_left)
        self._flights.setdefault(job.requests, []).append(flight)
        work.add_done_callback(lambda work: self._end(flight, job.requests))
        return flight

    async def _wait(self, flight: Flight, requests: tuple[ImageRequest, ...]) -> Made:
        flight.callers += 1
        try:
            return await asyncio.shield(flight.work)
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.over:
                flight.work.cancel()
                self._forget(flight, requests)

    def _end(self, flight: Flight, requests: tuple[ImageRequest, ...]) -> None:
        self._forget(flight, requests)
        flight.over = True
        flight.work.cancelled() or flight.work.exception()  # looked at, or asyncio complains that nobody did
        del flight.work  # the frames of its error hold the flight: both would stay, pictures too, until the garbage is collected

    def _forget(self, flight: Flight, requests: tuple[ImageRequest, ...]) -> None:
        same = self._flights.get(requests, [])
        if flight in same:
            same.remove(flight)
        if not same:
            self._flights.pop(requests, None)
