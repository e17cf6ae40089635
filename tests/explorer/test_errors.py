"""Each thing that can go wrong has its sentence, in the panel. The sources are real: the client on real sockets, the engine."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.client import ImagineClient
from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer
from app.explorer.words import sentence, together
from app.routes.admission import Overloaded
from app.routes.errors import LOADING, LOST, overloaded
from app.schemas import DeadlinePassed, ErrorAnswer, ErrorDetail, RefusedRequest
from tests.explorer.conftest import PATIENCE_S

STEP = b'event: step\r\ndata: {"step": 1, "total": 2, "preview": null}\r\n\r\n'


class Service:
    """Says what the engine can do, and answers a wish for a picture with `status`, `headers` and `body`."""

    def __init__(self, engine: ImageEngine) -> None:
        self.capabilities = engine.capabilities.model_dump_json().encode()
        self.status, self.headers, self.body = 200, {"Content-Type": "text/event-stream"}, STEP

    def refuses(self, status: int, answer: ErrorAnswer, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers, self.body = status, headers or {}, answer.model_dump_json().encode()

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                wants_picture = not handler.path.startswith("/capabilities")
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                handler.send_response(self.status if wants_picture else 200)
                for name, value in (self.headers if wants_picture else {}).items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(self.body if wants_picture else self.capabilities)

            do_POST = do_GET  # noqa: N815

            def log_message(handler, *args: object) -> None:  # noqa: N805
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)
            server.server_close()


@pytest.fixture
def service(engine: ImageEngine) -> Service:
    return Service(engine)


def said_by(panel: PromptExplorer) -> str:
    panel.generate_button.click()
    assert panel.wait(PATIENCE_S)
    assert panel.problem in panel.message.value.replace("&#x27;", "'")
    assert panel.images == []
    assert not panel.generate_button.disabled
    return panel.problem


def test_a_service_that_is_not_running_is_said_and_can_be_tried_again(service: Service, free_port: int) -> None:
    panel = PromptExplorer(ImagineClient(f"http://127.0.0.1:{free_port}"))
    assert panel.problem == f"Nothing answers at http://127.0.0.1:{free_port}; start it with `serve run app:entrypoint`."
    with service.running(free_port):
        panel.retry.click()
        assert panel.problem == ""
        assert panel.form.num_inference_steps.value == 20


def test_a_service_that_stopped_is_said(service: Service) -> None:
    with service.running() as url:
        panel = PromptExplorer(ImagineClient(url))
    assert said_by(panel) == f"Nothing answers at {url}; start it with `serve run app:entrypoint`."


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b'{"detail": "hello"}'])
def test_an_address_where_something_else_answers_is_said(service: Service, page: bytes) -> None:
    service.capabilities = page
    with service.running() as url:
        panel = PromptExplorer(ImagineClient(url))
        assert panel.problem == f"{url} answers, but not as this app does; check the address."


def test_an_overloaded_service_is_said_with_the_wait_it_named(service: Service) -> None:
    service.refuses(503, overloaded(Overloaded(7.0, 9.0, 3)), {"Retry-After": "7"})
    with service.running() as url:
        said = said_by(PromptExplorer(ImagineClient(url)))
    assert "requests are waiting already" in said
    assert said.endswith(". Try again in 7 s.")


def test_a_model_that_is_still_loading_is_said(service: Service) -> None:
    service.refuses(503, LOADING, {"Retry-After": "2"})
    with service.running() as url:
        said = said_by(PromptExplorer(ImagineClient(url)))
    assert said.startswith("The model is still loading")
    assert said.endswith("Try again in 2 s.")


def test_a_replica_that_was_lost_is_said(service: Service) -> None:
    service.body = STEP + b"event: error\r\ndata: " + LOST.model_dump_json().encode() + b"\r\n\r\n"
    with service.running() as url:
        assert "can be sent again" in said_by(PromptExplorer(ImagineClient(url)))


def test_a_value_that_only_the_service_refuses_is_said(service: Service) -> None:
    detail = ErrorDetail.of("num_inference_steps", "must be at most 10 here", 20)
    service.refuses(422, ErrorAnswer(error="invalid_request", message=str(detail), details=[detail]))
    with service.running() as url:
        assert said_by(PromptExplorer(ImagineClient(url))) == "Steps must be at most 10 here."


def test_a_connection_lost_half_way_is_said(service: Service) -> None:
    with service.running() as url:
        said = said_by(PromptExplorer(ImagineClient(url)))
    assert said == f"{url} closed the connection before the picture was ready; the same request can be sent again."


def test_a_missing_token_is_said(service: Service) -> None:
    service.refuses(401, ErrorAnswer(error="unauthorized", message="who are you"))
    with service.running() as url:
        assert "token=" in said_by(PromptExplorer(ImagineClient(url)))


def test_a_service_that_fails_is_said(service: Service) -> None:
    service.refuses(500, ErrorAnswer(error="failed", message="the picture could not be made; the service's log says why"))
    with service.running() as url:
        assert said_by(PromptExplorer(ImagineClient(url))) == "The picture could not be made; the service's log says why."


def test_an_engine_that_was_closed_is_said() -> None:
    engine = ImageEngine(checkpoint.load("tiny"))
    engine.close()
    assert "load the model anew" in said_by(PromptExplorer(engine))


def test_one_sentence_stands_for_several_pictures(service: Service) -> None:
    service.refuses(503, overloaded(Overloaded(7.0, 9.0, 3)), {"Retry-After": "7"})
    with service.running() as url:
        panel = PromptExplorer(ImagineClient(url))
        panel.form.count.value = 3
        assert said_by(panel).startswith("3 of 3 pictures: ")


def test_a_problem_goes_away_with_the_next_try(service: Service, engine: ImageEngine) -> None:
    panel = PromptExplorer(engine)
    panel.message.say("something")
    panel.form.num_inference_steps.value = 1
    panel.generate()
    assert panel.wait(PATIENCE_S)
    assert (panel.problem, panel.message.value) == ("", "")


def test_a_deadline_says_what_would_be_quicker() -> None:
    assert sentence(DeadlinePassed("not ready after 3 s")) == (
        "The picture was given up: not ready after 3 s. Ask for fewer steps or a smaller size."
    )


def test_several_different_errors_are_all_told() -> None:
    errors = [RefusedRequest(ErrorDetail.of("seed", "must be odd", 2)), ZeroDivisionError("x"), ZeroDivisionError("x")]
    said = together(errors, 4)
    assert said.startswith("1 of 4 pictures: Seed must be odd. 2 of 4 pictures: ")


def test_an_address_that_is_no_service_of_ours_is_said() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")

    thread = threading.Thread(target=answer)
    thread.start()
    panel = PromptExplorer(ImagineClient(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    thread.join(10)
    listener.close()
    assert "answered 404" in panel.problem
    assert json.dumps(panel.children[-1].description) == '"Try again"'
