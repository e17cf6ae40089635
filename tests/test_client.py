"""The client against real HTTP servers that are in trouble. `tests/cluster` has it against the real app."""

import re
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import takewhile

import pytest
import uvicorn
from PIL import Image
from ray.exceptions import ActorDiedError

from app.client import AccessDenied, DeadlineMissed, ImagineClient, ServiceBusy, ServiceFailed, ServiceUnreachable
from app.engine.engine import ImageEngine
from app.routes.backend import Job
from app.routes.errors import NotReady
from app.routes.ingress import build_api
from app.schemas import Capabilities, DeadlinePassed, GenerationCancelled, ImageRequest, Progress, Queued, RefusedRequest, Update
from app.settings import Settings

STAR = ImageRequest(prompt="a star", num_inference_steps=2, seed=1)


class EngineBackend:
    """The routes' backend without Ray; `trouble` is raised in place of a picture."""

    def __init__(self, engine: ImageEngine, trouble: Exception | None = None) -> None:
        self.engine, self.trouble = engine, trouble

    async def ready(self) -> bool:
        return not isinstance(self.trouble, NotReady)

    async def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        yield Queued(0, 0.0)
        if self.trouble is not None and not job.steps:
            raise self.trouble
        told: list[Progress] = []
        generated = self.engine.generate(job.requests[0], told.append, previews=job.previews)
        for progress in told if job.steps else []:
            yield Update(0, progress)
        if self.trouble is not None:
            raise self.trouble
        yield Update(0, generated)


@contextmanager
def serving(backend: EngineBackend, settings: Settings | None = None) -> Iterator[str]:
    api = build_api(backend, settings or Settings(version="test"))
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_picture_comes_with_the_facts_it_was_made_by(engine: ImageEngine) -> None:
    steps: list[Progress] = []
    with serving(EngineBackend(engine)) as url:
        generated = ImagineClient(url).generate(STAR, steps.append)
    assert generated == engine.generate(STAR)
    assert steps == [Progress(1, 2), Progress(2, 2)]


def test_what_a_proxy_adds_to_the_phases_is_no_trouble(engine: ImageEngine) -> None:
    png = engine.generate(STAR).png
    told = b'queue;dur=1500, png;dur=2.5, cfEdge;dur=4,cfOrigin;dur=0, cdn-cache;desc="hit", x;desc="y";dur=1'
    with answering(b"HTTP/1.1 200 OK\r\nServer-Timing: %s\r\nContent-Length: %d\r\n\r\n%s" % (told, len(png), png)) as url:
        assert ImagineClient(url).generate(STAR).timings == {"queue": 1.5, "png": 0.0025, "cfEdge": 0.004, "cfOrigin": 0.0}


def test_previews_come_with_the_steps_if_asked_for(engine: ImageEngine) -> None:
    steps: list[Progress] = []
    with serving(EngineBackend(engine)) as url:
        ImagineClient(url).generate(STAR, steps.append, previews=True)
    assert [Image.open(BytesIO(step.preview)).size for step in steps if step.preview] == [(16, 16), (16, 16)]


def test_a_refused_value_is_told_as_the_service_told_it(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url, pytest.raises(RefusedRequest, match="at most 65536 pixels") as refused:
        ImagineClient(url).generate(ImageRequest(prompt="a star", width=1536, height=1536))
    assert refused.value.details[0].field == "width x height"


@pytest.mark.parametrize(
    ("trouble", "expected", "said"),
    [
        (NotReady(), ServiceBusy, "still loading"),
        (ActorDiedError(), ServiceBusy, "can be sent again"),
        (ZeroDivisionError(), ServiceFailed, "log says why"),
    ],
)
def test_trouble_in_the_service_says_what_to_do(engine: ImageEngine, trouble: Exception, expected: type[Exception], said: str) -> None:
    with serving(EngineBackend(engine, trouble)) as url, pytest.raises(expected, match=said):
        ImagineClient(url, retries=0).generate(STAR)


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [(ActorDiedError(), ServiceBusy), (ZeroDivisionError(), ServiceFailed), (DeadlinePassed("late"), DeadlineMissed)],
)
def test_trouble_in_the_middle_of_a_stream_is_told_like_any_other(
    engine: ImageEngine, trouble: Exception, expected: type[Exception]
) -> None:
    steps: list[Progress] = []
    with serving(EngineBackend(engine, trouble)) as url, pytest.raises(expected):
        ImagineClient(url, retries=0).generate(STAR, steps.append)
    assert steps == [Progress(1, 2), Progress(2, 2)]


def test_a_value_refused_before_a_stream_begins_is_told_as_ever(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url, pytest.raises(RefusedRequest, match="at most 65536 pixels"):
        ImagineClient(url).generate(ImageRequest(prompt="a star", width=1536, height=1536), lambda progress: None)


def test_an_address_where_nothing_listens_names_the_command_that_starts_the_service(free_port: int) -> None:
    with pytest.raises(ServiceUnreachable, match="serve run app:entrypoint"):
        ImagineClient(f"http://127.0.0.1:{free_port}").generate(STAR)


def test_an_address_without_its_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="base_url must begin with http:// or https://, got 'localhost:8000'"):
        ImagineClient("localhost:8000")


@contextmanager
def answering(raw: bytes, heard: list[bytes] | None = None) -> Iterator[str]:
    """A server that gives these bytes to the first who connects, and notes what it was asked in `heard`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as sent:
            head = b"".join(takewhile(lambda line: line != b"\r\n", sent))
            length = re.search(rb"Content-Length: (\d+)", head)
            asked = head + sent.read(int(length[1]) if length else 0)  # or its rest would break the connection
            if heard is not None:
                heard.append(asked)
            connection.sendall(raw)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()


def test_a_wrong_token_says_where_to_put_the_right_one() -> None:
    with answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno") as url, pytest.raises(AccessDenied, match="token="):
        ImagineClient(url, token="wrong").generate(STAR)


def test_a_proxy_that_gave_up_first_has_missed_the_deadline_too() -> None:
    with answering(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 2\r\n\r\nno") as url, pytest.raises(DeadlineMissed):
        ImagineClient(url).generate(STAR)


@pytest.mark.parametrize("on_progress", [None, lambda progress: None], ids=["at once", "in a stream"])
@pytest.mark.parametrize("status", [b"200 OK", b"503 Service Unavailable"])
def test_a_connection_lost_half_way_is_no_picture(status: bytes, on_progress: Callable[[Progress], None] | None) -> None:
    head = b"HTTP/1.1 %s\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n" % status
    with answering(head + b"\x89PNG") as url, pytest.raises(ServiceUnreachable):
        ImagineClient(url).generate(STAR, on_progress)


@pytest.mark.parametrize("body", [b"no", b'{"error": "overloaded", "message": "wait", "retry_after_s": 2.0}'], ids=["a proxy's", "its own"])
def test_a_proxy_may_name_later_seconds_than_the_service(body: bytes) -> None:
    head = b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(body)
    with answering(head + body) as url, pytest.raises(ServiceBusy) as busy:
        ImagineClient(url, retries=0).generate(STAR)
    assert busy.value.retry_after_s == 7


def test_a_connection_closed_without_an_answer_is_not_mistaken_for_a_service_that_is_not_there() -> None:
    with answering(b"") as url, pytest.raises(ServiceUnreachable, match="was lost; the same request can be sent again"):
        ImagineClient(url).generate(STAR)


def test_an_answer_that_is_no_picture_of_ours_is_a_failure_of_the_service() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as url, pytest.raises(ServiceFailed, match="no image"):
        ImagineClient(url).generate(STAR)


def test_a_connection_lost_in_the_middle_of_a_stream_is_said() -> None:
    step = b'event: step\r\ndata: {"step": 1, "total": 2, "preview": null}\r\n\r\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(step)
    steps: list[Progress] = []
    with answering(head + step + b"\r\n") as url, pytest.raises(ServiceUnreachable, match="lost half-way"):
        ImagineClient(url).generate(STAR, steps.append)
    assert steps == [Progress(1, 2)]


def test_a_cancelled_request_ends_at_the_next_sign_of_life(engine: ImageEngine) -> None:
    cancel = threading.Event()
    with serving(EngineBackend(engine)) as url, pytest.raises(GenerationCancelled):
        ImagineClient(url).generate(STAR, lambda progress: cancel.set(), cancel)
