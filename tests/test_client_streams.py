"""What `ImagineClient` makes of streams that go wrong, over real HTTP."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from app.client import ImagineClient, ServiceUnreachable
from app.schemas import ImageRequest, Queued

WHOLE = b'event: queued\ndata: {"position": 1, "expected_wait_s": 2.0}\n\n'


class CutOff(BaseHTTPRequestHandler):
    """As some proxies do, its answer ends with the connection, which ends in the middle of an event."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(WHOLE + WHOLE[:30])


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), CutOff) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_stream_that_is_cut_in_the_middle_of_an_event_was_lost_half_way(url: str) -> None:
    with ImagineClient(url).stream(ImageRequest(prompt="a star")) as told:
        assert next(told) == Queued(1, 2.0)
        with pytest.raises(ServiceUnreachable, match="lost half-way"):
            next(told)
