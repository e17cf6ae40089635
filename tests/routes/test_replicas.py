"""A job goes on to the next replica when one dies. Here they die when they are told to; `tests/cluster` kills real ones."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from app.routes.backend import Job
from app.routes.replicas import Replicas, before
from app.schemas import DeadlinePassed, EngineStopped, Facts, GeneratedImage, ImageRequest, Progress, Update

STAR = ImageRequest(prompt="a star", seed=1, num_inference_steps=3)
FACTS = Facts(request=STAR, model="", revision="", pipeline="", scheduler="", dtype="", device="", versions={})
PICTURE = GeneratedImage(b"a picture", FACTS)
UNAVAILABLE = DeploymentUnavailableError(DeploymentID("TextToImage"))
FROM_ANOTHER_PROCESS = RayTaskError("generate", "", EngineStopped("died")).as_instanceof_cause()
LOST = [OutOfMemoryError("of the node"), NodeDiedError("gone"), UNAVAILABLE, EngineStopped("died"), FROM_ANOTHER_PROCESS]


class Answer:
    """What a handle gives: a response, or a stream whose replica may die or hang after the second step, or only after the last picture."""

    def __init__(self, *, dies: Exception | None, hangs: bool, last: bool) -> None:
        self._dies, self._hangs, self._last, self._news, self.cancelled = dies, hangs, last, self._stream(), False

    def __await__(self) -> Generator[Any, Any, list[GeneratedImage]]:
        return self._response().__await__()

    async def __anext__(self) -> Update:
        return await anext(self._news)

    def cancel(self) -> None:
        self.cancelled = True

    async def _response(self) -> list[GeneratedImage]:
        await self._trouble()
        return [PICTURE]

    async def _stream(self) -> AsyncGenerator[Update]:
        yield Update(1, PICTURE)
        for step in (1, 2):
            yield Update(0, Progress(step, 3))
        if not self._last:
            await self._trouble()
        yield Update(0, Progress(3, 3))
        yield Update(0, PICTURE)
        if self._last:
            await self._trouble()

    async def _trouble(self) -> None:
        if self._dies:
            raise self._dies
        if self._hangs:
            await asyncio.Event().wait()


class Model:
    """A handle of a deployment. The first `dying` replicas that are asked die of `error`."""

    def __init__(self, dying: int = 0, *, error: Exception | None = None, hangs: bool = False, last: bool = False) -> None:
        self.dying, self.error, self.hangs, self.last, self.answers = dying, error or ActorDiedError(), hangs, last, list[Answer]()
        self.generate = self.stream = self

    def options(self, *, stream: bool) -> "Model":
        return self

    def remote(self, requests: list[ImageRequest], *how: float | bool) -> Answer:
        dies = self.error if len(self.answers) < self.dying else None
        self.answers.append(Answer(dies=dies, hangs=self.hangs, last=self.last))
        return self.answers[-1]


def told(model: Model, max_tries: int, *, steps: bool = False, given_s: float = 60.0) -> tuple[list[Update], int]:
    """All that a job tells, and how often another replica was asked. A stream is of two pictures."""
    retries: list[None] = []

    async def run() -> list[Update]:
        job = Job((STAR,) * (2 if steps else 1), time.monotonic() + given_s, steps=steps)
        return [update async for update in Replicas(model, max_tries, lambda: retries.append(None)).run(job)]

    return asyncio.run(asyncio.wait_for(run(), 30)), len(retries)


@pytest.mark.parametrize("dying", [0, 1, 2])
def test_the_next_replica_is_asked_for_what_a_dead_one_was(dying: int) -> None:
    assert told(Model(dying), max_tries=3) == ([Update(0, PICTURE)], dying)


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("steps", [False, True], ids=["at once", "in a stream"])
def test_whatever_a_replica_is_lost_to_the_next_one_is_asked(error: Exception, steps: bool) -> None:
    updates, retries = told(Model(1, error=error), max_tries=3, steps=steps)
    assert (updates[-1], retries) == (Update(0, PICTURE), 1)


def test_an_error_of_the_request_is_told_and_not_tried_again() -> None:
    model = Model(100, error=ValueError("of the request"))
    with pytest.raises(ValueError, match="of the request"):
        told(model, max_tries=3)
    assert len(model.answers) == 1


def test_in_a_stream_every_step_and_picture_is_told_once_however_often_it_was_made() -> None:
    updates, retries = told(Model(dying=2), max_tries=3, steps=True)
    assert updates == [Update(1, PICTURE), *(Update(0, Progress(step, 3)) for step in (1, 2, 3)), Update(0, PICTURE)]
    assert retries == 2


@pytest.mark.parametrize("model", [Model(dying=1, last=True), Model(hangs=True, last=True)], ids=["it dies", "it hangs"])
def test_a_replica_that_dies_or_hangs_after_the_last_picture_is_no_error(model: Model) -> None:
    updates, retries = told(model, max_tries=1, steps=True, given_s=1.0)
    assert (updates[-1], retries) == (Update(0, PICTURE), 0)


@pytest.mark.parametrize("steps", [False, True], ids=["at once", "in a stream"])
def test_no_more_replicas_are_asked_than_agreed(steps: bool) -> None:
    model = Model(dying=100)
    with pytest.raises(ActorDiedError):
        told(model, max_tries=3, steps=steps)
    assert len(model.answers) == 3


def test_at_the_deadline_no_further_replica_is_asked() -> None:
    model = Model(dying=100)
    with pytest.raises(DeadlinePassed):
        told(model, max_tries=1000, given_s=0.5)
    assert 1 <= len(model.answers) < 10


@pytest.mark.parametrize("steps", [False, True], ids=["at once", "in a stream"])
def test_a_replica_that_has_not_answered_by_the_deadline_is_told_to_stop(steps: bool) -> None:
    model = Model(dying=1, hangs=True)
    with pytest.raises(DeadlinePassed):
        told(model, max_tries=3, steps=steps, given_s=1.0)
    assert [answer.cancelled for answer in model.answers] == [True, True]


@pytest.mark.parametrize("turns", range(8))
def test_a_caller_that_leaves_just_as_an_answer_comes_has_left(turns: int) -> None:
    """Whatever turn of the event loop it leaves in: nothing further is begun for it that nobody would end."""

    async def scenario() -> None:
        comes = asyncio.Event()

        async def caller() -> None:
            await before(Job((STAR,), time.monotonic() + 60), comes.wait())
            await asyncio.Event().wait()  # what would be begun for it

        asks = asyncio.create_task(caller())
        for _ in range(5):
            await asyncio.sleep(0)
        comes.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        asks.cancel()
        await asyncio.wait({asks}, timeout=5)
        assert asks.cancelled()

    asyncio.run(scenario())
