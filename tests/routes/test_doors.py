"""What is turned away before a route sees it, through real HTTP. `tests/cluster` has the rest of it on real Ray Serve."""

import socket
from urllib.parse import urlsplit

import pytest

from app.engine.engine import ImageEngine
from app.routes import doors
from app.schemas import ErrorAnswer
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
