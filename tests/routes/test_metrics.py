"""How a request is counted that ends without an answer of its own. `tests/cluster` reads the rest where Prometheus does."""

import asyncio

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.engine.engine import ImageEngine
from app.routes.ingress import build_api
from app.routes.metrics import CountRequests, Metrics
from app.settings import Settings
from tests.test_client import EngineBackend


class Noting(Metrics):
    def __init__(self) -> None:
        self.noted: list[tuple[str, str, str]] = []

    def answered(self, route: str, outcome: str, reason: str) -> None:
        self.noted.append((route, outcome, reason))


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


async def fails_half_way(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError


async def is_left(scope: Scope, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("inner", "outcome", "reason"), [(fails, "failed", "failed"), (fails_half_way, "failed", "failed"), (is_left, "left", "")]
)
def test_an_error_before_or_in_the_answer_is_a_failure_and_no_caller_that_left(inner: object, outcome: str, reason: str) -> None:
    counted = Noting()

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        pass

    with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
        asyncio.run(CountRequests(inner, counted, [])({"type": "http", "path": "/made/up"}, receive, send))  # type: ignore[arg-type]  # any of the three above
    assert counted.noted == [("unknown", outcome, reason)]


def test_what_is_refused_at_the_door_is_counted_by_its_route(engine: ImageEngine) -> None:
    counted = Noting()
    api = build_api(EngineBackend(engine), Settings(tokens="a-token-of-a-good-length"), counted)  # type: ignore[arg-type]  # as it is written
    with TestClient(api, root_path="/app") as client:
        for path in ("/app/imagine?prompt=a", "/app/v1/models/tiny", "/app/made/up"):
            assert client.get(path).status_code == 401
    assert counted.noted == [(route, "refused", "unauthorized") for route in ("/imagine", "/v1/models/{model:path}", "unknown")]


@pytest.mark.parametrize(
    ("status", "reason", "outcome"),
    [
        (200, "", "ok"),
        (200, "deadline_passed", "failed"),
        (422, "invalid_request", "refused"),
        (503, "overloaded", "busy"),
        (504, "deadline_passed", "late"),
        (500, "failed", "failed"),
        (401, "unauthorized", "refused"),
    ],
)
def test_an_answer_is_counted_by_its_status_and_a_stream_by_its_last_event(status: int, reason: str, outcome: str) -> None:
    counted = Noting()

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        if reason:
            scope["state"]["reason"] = reason
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        pass

    asyncio.run(CountRequests(answers, counted, [])({"type": "http", "path": "/made/up"}, receive, send))
    assert counted.noted == [("unknown", outcome, reason)]
