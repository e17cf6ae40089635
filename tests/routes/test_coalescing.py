"""Identical requests in flight, over a backend that makes a picture when it is told to."""

import asyncio
import gc
import signal
import time
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from app.routes.admission import DeadlineTooShort
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


class Strict(Kiln):
    """Refuses at the door who gives it less than a fifth of a second."""

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if job.seconds_left < 0.2:
            raise DeadlineTooShort(5.0, job.seconds_left, 0.0, None)
        async for told in super().run(job):
            yield told


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


def test_identical_requests_share_one_generation_and_each_gets_its_answer() -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR) for _ in range(4)]
        await turns()
        service.kiln.open.set()
        made = await asyncio.gather(*asked)
        assert [one.pictures[0].png for one in made] == [b"1"] * 4
        assert (service.kiln.begun, service.joined) == (1, 3)
        assert made[0].expected_wait_s == pytest.approx(5, abs=1)

    run(scenario())


OTHERWISE: dict[str, object] = {
    "prompt": "a heart",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_inference_steps": 3,
    "guidance_scale": 1.5,
    "seed": 2,
    "scheduler": "HeunDiscreteScheduler",
}


def test_requests_that_differ_in_any_field_do_not() -> None:
    async def scenario() -> None:
        service = Service()
        service.kiln.open.set()
        others = [STAR.model_copy(update={name: value}) for name, value in OTHERWISE.items()]
        await asyncio.gather(service.ask(STAR), service.ask(STAR, others[0]), *map(service.ask, others))
        assert (service.kiln.begun, service.joined) == (2 + len(others), 0)

    assert OTHERWISE.keys() == ImageRequest.model_fields.keys()
    run(scenario())


def test_once_it_is_made_it_is_made_anew() -> None:
    async def scenario() -> None:
        service = Service()
        service.kiln.open.set()
        for _ in range(2):
            await service.ask(STAR)
        assert service.kiln.begun == 2

    run(scenario())


@pytest.mark.parametrize("leaving", [0, 1], ids=["the first", "another"])
def test_one_leaving_does_not_stop_the_others_the_last_one_does(leaving: int) -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR) for _ in range(2)]
        await turns()
        asked[leaving].cancel()
        await turns()
        assert service.kiln.stopped == 0
        asked[1 - leaving].cancel()
        await turns()
        assert service.kiln.stopped == 1
        again = service.ask(STAR)
        service.kiln.open.set()
        assert (await again).pictures[0].png == b"1"
        assert service.kiln.begun == 2

    run(scenario())


def test_an_error_reaches_all() -> None:
    async def scenario() -> None:
        service = Service(trouble=ZeroDivisionError("broken"))
        asked = [service.ask(STAR) for _ in range(3)]
        await turns()
        service.kiln.open.set()
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in errors] == [ZeroDivisionError] * 3
        assert service.kiln.begun == 1

    run(scenario())


def test_the_first_ones_deadline_is_not_the_others() -> None:
    async def scenario() -> None:
        service = Service()
        hasty = service.ask(STAR, given_s=0.05)
        await turns()
        patient = service.ask(STAR)
        with pytest.raises(DeadlinePassed):
            await hasty
        service.kiln.open.set()
        assert (await patient).pictures[0].png == b"1"
        assert service.kiln.begun == 2

    run(scenario())


def test_a_shorter_deadline_is_judged_on_its_own() -> None:
    async def scenario() -> None:
        service = Service()
        patient = service.ask(STAR)
        await turns()
        with pytest.raises(DeadlinePassed):
            await service.ask(STAR, given_s=0.05)
        service.kiln.open.set()
        await patient
        assert (service.kiln.begun, service.joined) == (2, 0)

    run(scenario())


def test_streams_stay_outside() -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR), service.ask(STAR, steps=True)]
        await turns()
        service.kiln.open.set()
        await asyncio.gather(*asked)
        assert (service.kiln.begun, service.joined) == (2, 0)

    run(scenario())


def test_who_has_waited_until_the_deadline_is_late_and_not_refused() -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict())
        asked = [service.ask(STAR, given_s=1.0 + 0.02 * number) for number in range(4)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(end) for end in ends] == [DeadlinePassed] * 4

    run(scenario())


@pytest.mark.parametrize("turns_later", range(8))
def test_who_comes_just_as_a_generation_has_failed_begins_another(turns_later: int) -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict())
        service.kiln.open.set()
        hasty = service.ask(STAR, given_s=0.1)
        for _ in range(turns_later):
            await asyncio.sleep(0)
        patient = service.ask(STAR, given_s=60.0)
        with pytest.raises(DeadlineTooShort):
            await hasty
        assert (await patient).pictures[0].png == b"1"

    run(scenario())


def test_the_refusal_of_who_gives_too_little_time_is_not_that_of_others() -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict())
        service.kiln.open.set()
        hasty, patient = service.ask(STAR, given_s=0.1), service.ask(STAR, given_s=60.0)
        with pytest.raises(DeadlineTooShort):
            await hasty
        assert (await patient).pictures[0].png == b"1"

    run(scenario())


def test_an_error_keeps_nothing_of_what_was_asked_until_the_garbage_is_collected() -> None:
    async def scenario() -> None:
        service, request = Service(trouble=RuntimeError("broken")), STAR.model_copy()
        asked, asker = weakref.ref(request), service.ask(request)
        del request
        await turns()
        service.kiln.open.set()
        with pytest.raises(RuntimeError):
            await asker
        del asker
        service.kiln.trouble = None
        await turns()
        assert asked() is None

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
