"""What the routes need of the model, whatever it runs on."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from app.schemas import Capabilities, GeneratedImage, ImageRequest, Queued, Update


@dataclass(frozen=True, slots=True)
class Job:
    """Resolved requests that are made together, in one batch if it has room. `deadline` is on this process's monotonic clock.

    Steps are told only if `steps` says so, and with a small picture each if `previews` does.
    """

    requests: tuple[ImageRequest, ...]
    deadline: float
    steps: bool = False
    previews: bool = False

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


class Backend(Protocol):
    async def ready(self) -> bool:
        """Whether a replica is up, which means that it has made a picture."""
        ...

    async def capabilities(self) -> Capabilities:
        """Raises `NotReady`."""
        ...

    def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        """Have a replica make the pictures. `Queued` comes first, and again while the job waits; each picture comes once.

        Raises `Overloaded`, `DeadlineTooShort` (both before anything is told) and `DeadlinePassed`. Closing the iterator stops the work.
        """
        ...


@dataclass(frozen=True, slots=True)
class Made:
    """The pictures of a job, in the order of its requests, and the seconds it was expected to wait when it came."""

    pictures: tuple[GeneratedImage, ...]
    expected_wait_s: float


async def make(backend: Backend, job: Job) -> Made:
    made: dict[int, GeneratedImage] = {}
    expected: float | None = None
    async with aclosing(backend.run(job)) as told:
        async for news in told:
            if isinstance(news, Queued):
                expected = news.expected_wait_s if expected is None else expected
            elif isinstance(news.payload, GeneratedImage):
                made[news.index] = news.payload
    return Made(tuple(made[index] for index in sorted(made)), expected or 0.0)
