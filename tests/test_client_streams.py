"""What `ImagineClient` makes of streams that go wrong, over real HTTP."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from app.client import ImagineClient, ServiceFailed, ServiceUnreachable
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest, Queued
from tests.test_client import STAR, answering

WHOLE = b'event: queued\ndata: {"position": 1, "expected_wait_s": 2.0}\n\n'


class CutOff(BaseHTTPRequestHandler):
    """As some proxies do, its answer ends with the connection, which ends in the middle of an event."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(WHOLE + WHOLE[:30])


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), CutOff) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_stream_that_is_cut_in_the_middle_of_an_event_was_lost_half_way(url: str) -> None:
    with ImagineClient(url).stream(ImageRequest(prompt="a star")) as told:
        assert next(told) == Queued(1, 2.0)
        with pytest.raises(ServiceUnreachable, match="lost half-way"):
            next(told)


def test_a_page_of_somebody_else_is_no_stream() -> None:
    page = b"<html>Sign in</html>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    with answering(answer) as url, pytest.raises(ServiceFailed, match="not as this app does"):
        ImagineClient(url).generate(STAR, lambda progress: None)


def test_a_picture_that_is_there_when_it_is_cancelled_is_not_lost(engine: ImageEngine) -> None:
    cancel = threading.Event()
    made = engine.generate(STAR)
    done = json.dumps({"png": base64.b64encode(made.png).decode(), "timings": made.timings}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    step = b'event: step\ndata: {"step": 1, "total": 1, "preview": null}\n\n'
    with answering(head + step + b"event: done\ndata: " + done + b"\n\n") as url:
        assert ImagineClient(url).generate(STAR, lambda progress: cancel.set(), cancel) == made
