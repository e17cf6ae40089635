"""Callers that leave, replicas that die, and more work than can be done."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
import ray
import requests
from PIL import Image
from ray import serve

from app import png
from app.client import ImagineClient
from app.routes import ingress
from app.schemas import Facts, ImageRequest, Progress
from scripts import serving
from tests.cluster.test_serving import ROWS_OF_A_STEP, serve_tiny
from tests.engine.together import pixels
from tests.eventually import eventually

LONG: dict[str, Any] = {"prompt": "a star", "num_inference_steps": 150, "seed": 1}
LARGE: dict[str, Any] = {"width": 256, "height": 256}
LITTLE_ROOM = 4096  # bytes that a reader has received and not read
DISCONNECT_DISABLED = "X-Request-Disconnect-Disabled: ?1\r\n"


def get(path: str, head: str = "", **fields: object) -> bytes:
    return f"GET {path}?{urlencode(fields)} HTTP/1.1\r\nHost: here\r\n{head}\r\n".encode()


def post(path: str, head: str = "", **fields: object) -> bytes:
    body = json.dumps(fields)
    head = f"Host: here\r\n{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{head}\r\n{body}".encode()


def generations(**fields: Any) -> bytes:  # noqa: ANN401
    return post("/v1/images/generations", **LONG, **fields, n=2, size="256x256")


def replay() -> bytes:
    """Of a picture that nobody has made: its settings alone decide how long it takes."""
    asked = ImageRequest.model_validate({**LONG, **LARGE, "guidance_scale": 3, "scheduler": "EulerDiscreteScheduler"})
    facts = Facts(request=asked, model="", revision="", pipeline="", scheduler="", dtype="", device="", versions={})
    body = png.encode(Image.new("RGB", (256, 256)), facts)
    return f"POST /replay HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def edits() -> bytes:
    file = BytesIO()
    Image.new("RGB", (256, 256)).save(file, "PNG")
    asked = requests.Request("POST", "http://here/v1/images/edits", data={**LONG, "n": 2, "strength": 1}, files={"image": file.getvalue()})
    prepared = asked.prepare()
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: here\r\nContent-Type: {prepared.headers['Content-Type']}\r\n"
    body = prepared.body if isinstance(prepared.body, bytes) else b""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


ROUTES = {
    "GET /imagine": (get("/imagine", **LONG, **LARGE), 1),
    "GET /imagine, disconnect disabled": (get("/imagine", DISCONNECT_DISABLED, **LONG, **LARGE), 1),
    "POST /imagine": (post("/imagine", **LONG, **LARGE), 1),
    "POST /replay": (replay(), 1),
    "POST /imagine/stream": (post("/imagine/stream", **LONG, **LARGE), 1),
    "GET /imagine/stream": (get("/imagine/stream", previews=True, **LONG, **LARGE), 1),
    "OpenAI": (generations(), 2),
    "OpenAI, edits": (edits(), 2),
    "OpenAI, stream": (generations(stream=True, partial_images=3), 2),
}


def connected(client: ImagineClient, request: bytes, receive_buffer: int | None = None) -> socket.socket:
    host = urlsplit(client.base_url)
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((str(host.hostname), host.port or 80))
    connection.sendall(request)
    return connection


def grows(rows: Callable[[], int], by: int) -> Callable[[], bool]:
    before = rows()
    return lambda: rows() >= before + by


@pytest.mark.parametrize(("request_", "pictures"), ROUTES.values(), ids=ROUTES)
def test_a_closed_connection_stops_the_work_within_a_step_and_a_neighbours_picture_is_right(
    client: ImagineClient, denoiser_rows: Callable[[], int], request_: bytes, pictures: int
) -> None:
    neighbour, steps = ImageRequest(prompt="a neighbour", num_inference_steps=10, seed=1, **LARGE), threading.Semaphore(0)
    alone = client.generate(neighbour).image
    under_way = grows(denoiser_rows, 4 * ROWS_OF_A_STEP * pictures)
    with ThreadPoolExecutor(1) as thread:
        with connected(client, request_):
            eventually(under_way)
            made = thread.submit(client.generate, neighbour, lambda progress: steps.release())
            assert steps.acquire(timeout=60)
        at_the_end = denoiser_rows()  # a step may have begun before the connection was closed, and another before that was known
        assert np.abs(pixels(made.result(60).image) - pixels(alone)).max() <= 1
    assert denoiser_rows() - at_the_end <= ROWS_OF_A_STEP * (10 + 2 * pictures)


def test_those_who_stay_get_the_pictures_they_would_have_had_alone(client: ImagineClient) -> None:
    asked = ImageRequest(prompt="a blue star", num_inference_steps=60, seed=3)
    alone = client.generate(asked).image
    with ThreadPoolExecutor(1) as thread:
        picture = thread.submit(client.generate, asked)
        for seed in range(3):
            with client.stream(ImageRequest.model_validate(LONG | {"seed": seed})) as told:
                next(news for news in told if isinstance(news, Progress) and news.step == 3)
            assert not picture.done(), "they were not made together"
        assert np.abs(pixels(picture.result().image) - pixels(alone)).max() <= 1


def test_a_reader_that_stops_reading_holds_up_nobody(client: ImagineClient, denoiser_rows: Callable[[], int]) -> None:
    asked, pictures, steps = ImageRequest(prompt="a star", num_inference_steps=2, seed=1), 6, 20
    expected = pixels(client.generate(asked, lambda progress: None).image)
    begun, all_made = grows(denoiser_rows, 4 * ROWS_OF_A_STEP), grows(denoiser_rows, (2 + pictures * steps) * ROWS_OF_A_STEP)
    fields: dict[str, Any] = {"prompt": "a star", "n": pictures, "size": "256x256", "num_inference_steps": steps}
    large = post("/v1/images/generations", **fields, stream=True, partial_images=3)
    tasks = serving.tasks_of()
    with connected(client, large, LITTLE_ROOM) as connection:
        eventually(begun)  # and nobody reads what comes
        assert np.abs(pixels(client.generate(asked).image) - expected).max() <= 1
        eventually(all_made)
        eventually(lambda: serving.tasks_of() <= tasks)  # Serve's proxy alone holds what was not read
        connection.settimeout(60)
        read = b""
        while read.count(b"event: image_generation.completed") < pictures:
            read += connection.recv(65536)
    assert len(read) > 10 * LITTLE_ROOM


def metric_lines(word: str) -> list[str]:
    """What Ray's own Prometheus endpoint shows with this in it. It is some seconds old."""
    (node,) = ray.nodes()
    page = requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30).text
    return [line for line in page.splitlines() if word in line]


def metric(name: str, *tags: str, application: str = "imagine") -> float:
    """The sum of what it shows of the app, with these tags."""
    lines = [line for line in metric_lines(f"ray_imagine_{name}{{") if not line.startswith("#")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(tag in line for tag in (f'application="{application}"', *tags)))


def replica_processes(application: str = "imagine") -> set[int]:
    """The process numbers of the model's."""
    return {process.pid for process in serving.processes(f"ServeReplica:{application}:TextToImage")}


def test_pictures_are_made_while_serves_controller_does_not_answer(client: ImagineClient) -> None:
    asked = ImageRequest(prompt="a star", num_inference_steps=4, seed=1)
    expected = pixels(client.generate(asked).image)
    (controller,) = serving.processes("ray::ServeController")
    controller.suspend()
    try:
        assert not requests.get(f"{client.base_url}/readyz", timeout=30).ok
        for on_progress in (None, lambda progress: None):
            made = ImagineClient(client.base_url, retries=0).generate(asked, on_progress)
            assert np.abs(pixels(made.image) - expected).max() <= 1
    finally:
        controller.resume()
    eventually(lambda: requests.get(f"{client.base_url}/readyz", timeout=30).ok)


def test_a_dead_replica_loses_nothing_and_is_replaced(client: ImagineClient, denoiser_rows: Callable[[], int]) -> None:
    asked = [
        ImageRequest(prompt=f"a {colour} star", num_inference_steps=20, seed=seed) for seed, colour in enumerate(["red", "blue", "pink"])
    ]
    expected = [client.generate(one).image for one in asked]
    impatient = ImagineClient(client.base_url, retries=0)

    def ask(number: int) -> float:
        """Every other one in a stream, whose steps must come once each."""
        steps: list[int] = []
        request = asked[number % len(asked)]
        made = impatient.generate(request, (lambda progress: steps.append(progress.step)) if number % 2 else None)
        assert steps == (list(range(1, 21)) if number % 2 else [])
        return float(np.abs(pixels(made.image) - pixels(expected[number % len(asked)])).max())

    killed: set[int] = set()
    over = threading.Event()

    def keep_asking(number: int) -> float:
        worst = ask(number)
        while not over.is_set():
            number += 8
            worst = max(worst, ask(number))
        return worst

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(keep_asking, range(8))
        try:
            for _ in range(3):
                client.wait_until_ready(timeout_s=120)
                eventually(grows(denoiser_rows, 16), within_s=120)
                (process,) = replica_processes() - killed
                os.kill(process, signal.SIGKILL)
                killed.add(process)
                eventually(lambda: not requests.get(f"{client.base_url}/readyz", timeout=30).ok)
        finally:
            over.set()
        assert max(answers) <= 1
    eventually(lambda: metric("retries_total") > 0)


def test_a_deadline_that_passes_in_the_middle_is_a_504(client: ImagineClient) -> None:
    asked = ImageRequest(prompt="a star", num_inference_steps=80, seed=1)
    model = serve.get_deployment_handle("TextToImage", "imagine")  # past the queue, so that nobody can foresee the crowd

    def answer_in_a_crowd() -> tuple[int, str | None]:
        began = time.monotonic()
        client.generate(asked)
        alone = time.monotonic() - began
        crowd = [
            model.generate.remote([asked.model_copy(update={"width": width, "height": 256}).resolved(client.capabilities)], 8 * alone)
            for width in (192, 208, 224, 240, 256)
        ]
        try:
            given = {"X-Request-Timeout-Seconds": str(max(1.0, 2.5 * alone))}
            answer = requests.get(f"{client.base_url}/imagine", asked.model_dump(exclude_none=True), headers=given, timeout=120)
        finally:
            for one in crowd:
                one.cancel()
        is_picture = answer.headers["Content-Type"] == "image/png"
        return answer.status_code, None if is_picture else answer.json()["error"]

    # A machine that stood still while it was alone gives too much time, or has taught the queue to let nobody in.
    eventually(lambda: answer_in_a_crowd() == (504, "deadline_passed"), within_s=120)


def test_who_finds_no_room_even_before_the_door_is_told_when_to_come_back(
    cluster: str, client: ImagineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "SPARE_REQUESTS", 1)
    monkeypatch.setattr(ingress, "MOST_BEFORE_THE_DOOR", 1)
    serve_tiny("crowded", max_batch_size=1, max_queued_requests=1, cpu_threads=1)
    crowded, without_its_body = ImagineClient(f"{cluster}/crowded"), post("/crowded/imagine", prompt="a star")[:-5]

    def answer() -> tuple[int, str]:
        with contextlib.suppress(requests.Timeout):
            told = requests.get(f"{crowded.base_url}/healthz", timeout=5)
            return told.status_code, told.headers.get("Retry-After", "")
        return 0, ""

    try:
        crowded.wait_until_ready(timeout_s=120)
        with contextlib.ExitStack() as open_:
            # One more each time: some may be turned away themselves.
            eventually(lambda: bool(open_.enter_context(connected(crowded, without_its_body))) and answer() == (503, "5"))
        eventually(lambda: answer() == (200, ""))
    finally:
        serve.delete("crowded")
