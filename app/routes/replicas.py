"""The model's replicas: a job runs on one of them, and on another if that one dies."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.routes.backend import Job
from app.schemas import DeadlinePassed, EngineStopped, GeneratedImage, Update

logger = logging.getLogger("ray.serve")

# What asking a replica ends in that is gone, killed for the node's memory, lost with its node, or up with an engine that is not.
REPLICA_LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, DeploymentUnavailableError, EngineStopped)
SECONDS_BEFORE_SECOND_TRY, LONGEST_PAUSE_S = 0.05, 2.0
Answer = TypeVar("Answer")


class Replicas:
    """Pictures are pure functions of their requests, so what a dead replica was asked for is asked of the next. `on_retry` is told."""

    def __init__(self, model: DeploymentHandle, max_tries: int, on_retry: Callable[[], None]) -> None:
        self._model = model
        self._max_tries = max_tries
        self._on_retry = on_retry

    async def run(self, job: Job) -> AsyncGenerator[Update]:
        """Every step and picture once, however many replicas it takes. Raises what the last one died of, and `DeadlinePassed`."""
        heard = Heard()
        for tries in range(1, self._max_tries + 1):
            try:
                async with aclosing(self._once(job)) as updates:
                    async for update in updates:
                        if heard.is_new(update):
                            yield update
                return
            except (DeadlinePassed, *REPLICA_LOST) as error:
                if heard.pictures == len(job.requests):
                    return
                if tries == self._max_tries or isinstance(error, DeadlinePassed):
                    raise
            logger.warning("a replica went away while it made a picture; asking another one")
            self._on_retry()
            pause = min(SECONDS_BEFORE_SECOND_TRY * 2**tries, LONGEST_PAUSE_S)
            await before(job, asyncio.sleep(pause))

    async def _once(self, job: Job) -> AsyncGenerator[Update]:
        asked, seconds = list(job.requests), max(job.seconds_left, 0.001)
        if job.steps:
            stream = self._model.options(stream=True).stream.remote(asked, job.previews, seconds)
            try:
                while True:
                    try:
                        update = await before(job, anext(stream))
                    except StopAsyncIteration:
                        return
                    yield update
            finally:
                stream.cancel()
        answer = self._model.generate.remote(asked, seconds)
        try:
            pictures = await before(job, answer)
        except BaseException:
            answer.cancel()
            raise
        for index, generated in enumerate(pictures):
            yield Update(index, generated)


class Heard:
    """What was told already: another replica begins from the first step."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._finished: set[int] = set()

    @property
    def pictures(self) -> int:
        return len(self._finished)

    def is_new(self, update: Update) -> bool:
        index, payload = update.index, update.payload
        if isinstance(payload, GeneratedImage):
            new = index not in self._finished
            self._finished.add(index)
        else:
            new = payload.step > self._steps.get(index, 0)
            self._steps[index] = max(payload.step, self._steps.get(index, 0))
        return new


async def before(job: Job, something: Awaitable[Answer]) -> Answer:
    """Waits until the job's deadline at most. Raises `DeadlinePassed`."""
    try:
        async with asyncio.timeout(max(job.seconds_left, 0)):  # `wait_for` may lose a cancellation that comes with the answer
            return await something
    except TimeoutError as error:
        raise DeadlinePassed("the picture was not ready at its deadline") from error
