"""A deadline on the routes of OpenAI's dialect, told by OpenAI's own client."""

from collections.abc import AsyncGenerator, Iterator

import openai
import pytest

from app.engine.engine import ImageEngine
from app.routes.admission import DeadlineTooShort
from app.routes.backend import Job
from app.schemas import DeadlinePassed, Queued, Update
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


@pytest.mark.parametrize("seconds", ["0", "soon"])
def test_a_deadline_that_is_none_is_refused_by_name(late: openai.OpenAI, seconds: str) -> None:
    with pytest.raises(openai.BadRequestError, match="x-request-timeout-seconds"):
        late.images.generate(prompt="a star", extra_headers={"X-Request-Timeout-Seconds": seconds})
