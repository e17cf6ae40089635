"""A backend that makes a picture when it is told to, and a service in front of it, for tests of what is in flight."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from app.routes.backend import Job, Made, make
from app.routes.coalescing import Coalescing
from app.schemas import Capabilities, DeadlinePassed, Facts, GeneratedImage, ImageRequest, Queued, Update

STAR = ImageRequest(prompt="a star", seed=1)
FACTS = Facts(request=STAR, model="", revision="", pipeline="", scheduler="", dtype="", device="", versions={})


class Kiln:
    """A backend that holds everybody until `open` is set, and then raises `trouble` or gives each their own seed as bytes."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.open, self.trouble = asyncio.Event(), trouble
        self.begun, self.stopped = 0, 0

    async def ready(self) -> bool:
        return True

    async def capabilities(self) -> Capabilities:
        raise NotImplementedError

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        self.begun += 1
        yield Queued(1, 5.0)
        try:
            await asyncio.wait_for(self.open.wait(), job.seconds_left)
        except TimeoutError:
            raise DeadlinePassed("late") from None
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if self.trouble is not None:
            raise self.trouble
        for index, request in enumerate(job.requests):
            yield Update(index, GeneratedImage(str(request.seed).encode(), FACTS))


class Service:
    def __init__(self, trouble: Exception | None = None, kiln: Kiln | None = None) -> None:
        self.kiln, self.joined = kiln or Kiln(trouble), 0
        self.backend = Coalescing(self.kiln, self._join)

    def _join(self) -> None:
        self.joined += 1

    def ask(self, *requests: ImageRequest, given_s: float = 60.0, steps: bool = False) -> asyncio.Task[Made]:
        return asyncio.create_task(make(self.backend, Job(requests, time.monotonic() + given_s, steps=steps)))


async def turns() -> None:
    """Everybody goes as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Blocked(BaseException):
    """The event loop has come to no other task for too long."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Blocked

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(test: Coroutine[Any, Any, None]) -> None:
    with alarm(60):
        asyncio.run(asyncio.wait_for(test, 30))
