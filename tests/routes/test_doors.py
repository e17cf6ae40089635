"""What is turned away before a route sees it, through real HTTP. `tests/cluster` has the rest of it on real Ray Serve."""

import asyncio
import gc
import http.client
import socket
import weakref
from urllib.parse import urlsplit

import pytest
import requests
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from app.engine.engine import ImageEngine
from app.routes import doors
from app.routes.errors import NotReady
from app.schemas import ErrorAnswer, ImageRequest
from tests.test_client import EngineBackend, serving

DEADLINE_S = 30.0


@pytest.mark.parametrize("sent", [b"", b'{"prompt": '], ids=["nothing of it", "a part of it"])
def test_a_body_that_does_not_come_is_not_waited_for_for_ever(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(doors, "BODY_WITHIN_S", 0.2)
    head = b"POST /imagine HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with serving(EngineBackend(engine)) as url:
        host = urlsplit(url)
        with socket.create_connection((str(host.hostname), host.port or 80), timeout=DEADLINE_S) as connection:
            connection.sendall(head + sent)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))  # to its end: the connection is closed behind it
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    told = ErrorAnswer.model_validate_json(body)
    assert (told.error, told.message) == ("too_slow", "the body was not there in 0.2 s")


def test_an_unexpected_error_names_the_version_too(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine, ZeroDivisionError())) as url:
        answer = requests.get(f"{url}/imagine?prompt=a+star&num_inference_steps=1", timeout=DEADLINE_S)
    assert (answer.status_code, answer.json()["error"], answer.headers["X-Imagine-Version"]) == (500, "failed", "test")


def test_an_error_keeps_nothing_of_its_request_until_the_garbage_is_collected() -> None:
    held, sent = list[weakref.ref[ImageRequest]](), list[Message]()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        request = ImageRequest(prompt="a star")
        held.append(weakref.ref(request))
        raise NotReady  # one that is not logged: pytest keeps what is

    async def receive() -> Message:
        await asyncio.Event().wait()  # the caller stays
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await doors.Doors(route, "test", (), 1000, 1000)(scope, receive, send)
        assert (sent[0]["status"], held[0]()) == (503, None)

    gc.disable()
    try:
        asyncio.run(ask())
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/imagine", "/v1/images/generations"])
def test_json_nested_to_the_limits_of_its_parser_is_refused_whichever_limit_it_meets(engine: ImageEngine, path: str) -> None:
    with serving(EngineBackend(engine)) as url, requests.Session() as session:
        session.headers["Content-Type"] = "application/json"
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            for depth in range(900, 1010):
                body = f'{{"prompt": "a star", "x": {opening * depth}1{closing * depth}}}'
                answer = session.post(url + path, body, timeout=DEADLINE_S)
                assert answer.status_code in (400, 422), (opening, depth)


def test_an_accept_header_of_any_length_is_answered_at_once(engine: ImageEngine) -> None:
    """The time to read this one grows with the square of its length: minutes, for everybody."""
    with serving(EngineBackend(engine)) as url:
        asked = {"Accept": 'a/b;"' + ";" * 60_000}
        answer = requests.get(f"{url}/imagine?prompt=a+star&num_inference_steps=1", headers=asked, timeout=DEADLINE_S)
    assert (answer.status_code, answer.json()["error"]) == (406, "not_acceptable")


def test_what_is_accepted_may_be_said_in_capitals(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url:
        asked = {"Accept": "Image/JPEG"}
        answer = requests.get(f"{url}/imagine?prompt=a+star&num_inference_steps=1", headers=asked, timeout=DEADLINE_S)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")


def test_what_is_accepted_may_be_said_in_several_lines(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url:
        host = urlsplit(url)
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=DEADLINE_S)
        connection.putrequest("GET", "/imagine?prompt=a+star&num_inference_steps=1")
        for kind in ("text/html", "image/webp"):
            connection.putheader("Accept", kind)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/webp")
        connection.close()


def test_a_caller_that_leaves_in_the_middle_of_its_body_never_reaches_a_route() -> None:
    reached: list[str] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    told: list[Message] = [{"type": "http.request", "body": b"a part", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return told.pop(0)

    async def send(message: Message) -> None:
        raise ConnectionError("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/replay", "headers": [(b"content-type", b"image/png")]}
    asyncio.run(doors.Doors(route, "test", (), 1000, 1000)(scope, receive, send))
    assert reached == []


def test_serves_own_error_when_a_caller_leaves_is_no_error_of_the_service() -> None:
    heard: list[Message] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())

    async def receive() -> Message:
        raise TaskCancelledError

    async def send(message: Message) -> None:
        raise ConnectionError("nobody is there")

    asyncio.run(doors.Doors(route, "test", (), 1000, 1000)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    assert heard == [{"type": "http.disconnect"}]


def test_a_caller_that_cannot_be_heard_any_more_gets_its_answer() -> None:
    sent, asked = list[Message](), asyncio.Event()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await asked.wait()
        for _ in range(10):  # turns of the event loop, in which it could be cancelled
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        asked.set()
        raise ConnectionError("to the proxy, for a moment")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(doors.Doors(route, "test", (), 1000, 1000)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    assert [message["status"] for message in sent] == [200]


def test_a_body_that_does_not_say_how_long_it_is_is_not_read_to_its_end_if_it_is_too_long() -> None:
    reached, sent = list[str](), list[Message]()
    told: list[Message] = [{"type": "http.request", "body": b"x" * 600, "more_body": True} for _ in range(9)]

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])

    async def receive() -> Message:
        return told.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/imagine", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(doors.Doors(route, "test", (), 1000, 1000)(scope, receive, send))
    assert (sent[0]["status"], len(told), reached) == (413, 7, [])


def test_a_name_that_comes_twice_is_refused_however_deep_its_values_are(engine: ImageEngine) -> None:
    deep = '{"a":' * 700 + "1" + "}" * 700
    with serving(EngineBackend(engine)) as url:
        body, kind = f'{{"prompt": "a star", "x": 1, "x": {deep}}}', {"Content-Type": "application/json"}
        answer = requests.post(f"{url}/imagine", body, headers=kind, timeout=DEADLINE_S)
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (answer.status_code, detail.field, detail.rule) == (422, "x", "must be given once")
