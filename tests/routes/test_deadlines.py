"""Deadlines: how they are asked for, and how OpenAI's own client is told of one that passed."""

import asyncio
import http.client
import time
from collections.abc import AsyncGenerator, Iterator
from urllib.parse import urlsplit

import openai
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.engine.engine import ImageEngine
from app.routes import doors, imagine, stream
from app.routes.admission import DeadlineTooShort, Line
from app.routes.backend import Job
from app.routes.estimate import Rates
from app.routes.ingress import wait_for_turn
from app.schemas import DeadlinePassed, ErrorAnswer, ImageRequest, Queued, Update
from app.settings import Settings
from tests.test_client import EngineBackend, serving

FIELDS = {"seed": 1, "num_inference_steps": 2}


@pytest.fixture
def late(engine: ImageEngine) -> Iterator[openai.OpenAI]:
    """A service whose pictures are never ready in time."""
    with serving(EngineBackend(engine, DeadlinePassed("late"))) as url, spoken_to(url) as client:
        yield client


def spoken_to(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def test_a_deadline_that_passes_is_a_504_in_openais_shape(late: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as told:
        late.images.generate(prompt="a star", extra_body=FIELDS)
    assert (told.value.status_code, told.value.code, told.value.type) == (504, "deadline_passed", "server_error")


def test_a_client_that_tries_again_by_itself_is_told_that_it_need_not(engine: ImageEngine) -> None:
    asked: list[Job] = []

    class Late(EngineBackend):
        async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
            asked.append(job)
            raise DeadlinePassed("late")
            yield Queued(0, 0.0)

    with serving(Late(engine)) as url, spoken_to(url) as client, pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=2).images.generate(prompt="a star", extra_body=FIELDS)
    assert len(asked) == 1


def test_a_deadline_that_passes_in_a_stream_is_its_last_event(late: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="not ready in the time") as told:
        list(late.images.generate(prompt="a star", stream=True, extra_body=FIELDS))
    assert told.value.code == "deadline_passed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_cannot_be_met_is_a_503_also_for_a_stream(engine: ImageEngine, stream: bool) -> None:
    class Busy(EngineBackend):
        async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
            raise DeadlineTooShort(9.0, 2.0, 5.0, 7.0)
            yield Queued(0, 0.0)

    with serving(Busy(engine)) as url, spoken_to(url) as client, pytest.raises(openai.InternalServerError) as told:
        client.images.generate(prompt="a star", stream=stream, extra_body=FIELDS)
    assert (told.value.status_code, told.value.code) == (503, "deadline_too_short")
    assert told.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, 20.0), (60.0, 20.0), (20.2, 19.7), (10.0, 9.5), (2.0, 1.7), (1.0, 0.7)])
def test_a_caller_can_only_shorten_the_time_of_the_service(asked_s: float | None, given_s: float) -> None:
    """Serve's proxy cuts off at the same header, so a little is kept for the answer."""
    raw = Request({"type": "http", "headers": [], "state": {"arrived": 100.0}})

    async def until() -> float:
        return await imagine.deadline_of(Settings(request_timeout_s=20))(raw, asked_s)

    assert asyncio.run(until()) - 100.0 == pytest.approx(given_s)


def test_a_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    line = Line(batch=1, rates=Rates(1000), native_work=20, max_queued=9, max_queue_s=9)
    line.enter(20, 1, 60)  # and never leaves

    async def scenario() -> list[Queued]:
        job = Job((ImageRequest(prompt="a star"),), time.monotonic() + 0.2)
        ticket = line.enter(20, 1, job.seconds_left)
        return [told async for told in wait_for_turn(line, ticket, job)]

    with pytest.raises(DeadlinePassed, match="in the queue"):
        asyncio.run(asyncio.wait_for(scenario(), 30))


def test_those_who_wait_are_told_again_and_again_and_at_last_that_a_replica_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SECONDS_BETWEEN_SIGNS_OF_LIFE", 0.01)
    line = Line(batch=1, rates=Rates(1000), native_work=20, max_queued=9, max_queue_s=9)
    first = line.enter(20, 1, 60)

    async def scenario() -> list[int]:
        job = Job((ImageRequest(prompt="a star"),), time.monotonic() + 60)
        told = wait_for_turn(line, line.enter(20, 1, 60), job)
        while_waiting = [(await anext(told)).position for _ in range(3)]
        line.leave(first, done=False)
        return [*while_waiting, *[one.position async for one in told]]

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [1, 1, 1, 0]


def test_the_time_that_a_body_takes_to_come_counts() -> None:
    """Serve's proxy counts it too. When a request arrived is what its deadline is counted from."""
    asked, arrived = list[float](), list[float]()

    async def body() -> Message:
        asked.append(time.monotonic())
        return {"type": "http.request", "body": b"{}"} if len(asked) == 1 else {"type": "http.disconnect"}

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.append(scope["state"]["arrived"])

    async def send(message: Message) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/imagine", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(doors.Doors(route, "test", (), 1000, 1000)(scope, body, send))
    assert arrived[0] <= asked[0]


def test_a_deadline_that_is_given_twice_is_refused_by_name(engine: ImageEngine) -> None:
    """Serve's proxy goes by the last one."""
    with serving(EngineBackend(engine)) as url:
        host = urlsplit(url)
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
        connection.putrequest("GET", "/imagine?prompt=a+star&num_inference_steps=1")
        for seconds in ("30", "1"):
            connection.putheader("X-Request-Timeout-Seconds", seconds)
        connection.endheaders()
        answer = connection.getresponse()
        (detail,) = ErrorAnswer.model_validate_json(answer.read()).details
        assert (answer.status, detail.field, detail.rule) == (422, "x-request-timeout-seconds", "must be given once")
        connection.close()


@pytest.mark.parametrize("seconds", ["0", "soon"])
def test_a_deadline_that_is_none_is_refused_by_name(late: openai.OpenAI, seconds: str) -> None:
    with pytest.raises(openai.BadRequestError, match="x-request-timeout-seconds"):
        late.images.generate(prompt="a star", extra_headers={"X-Request-Timeout-Seconds": seconds})
