"""What Serve adds: replicas that come and go, callers that leave, queues that fill."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import requests
from PIL import Image
from ray import serve

from app import entrypoint
from app.client import ImagineClient, ServiceBusy
from app.schemas import GenerationCancelled, ImageRequest, Progress
from app.settings import Settings
from tests.engine.together import pixels


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def serve_tiny(name: str, **settings: object) -> None:
    fields = {"model": "tiny", "device": "cpu"} | settings
    target = serve.RunTarget(entrypoint(Settings.model_validate(fields)), name=name, route_prefix=f"/{name}")
    serve.run_many([target], wait_for_applications_running=False)


def test_alive_ready_and_capabilities_are_told(client: ImagineClient) -> None:
    assert requests.get(f"{client.base_url}/healthz", timeout=30).json() == {"status": "alive"}
    assert requests.get(f"{client.base_url}/readyz", timeout=30).json() == {"status": "ready"}
    assert (client.capabilities.model, client.capabilities.width, client.capabilities.version) == ("tiny", 128, "abc123")


def test_until_the_model_has_made_a_picture_the_app_is_alive_but_not_ready(cluster: str, client: ImagineClient) -> None:
    serve_tiny("loading")
    try:
        loading = ImagineClient(f"{cluster}/loading", retries=0)
        eventually(lambda: requests.get(f"{cluster}/loading/healthz", timeout=30).status_code == 200)
        answer = requests.get(f"{cluster}/loading/readyz", timeout=30)
        assert (answer.status_code, answer.json()["error"]) == (503, "not_ready")
        with pytest.raises(ServiceBusy, match="still loading"):
            loading.generate(ImageRequest(prompt="a star"))
        loading.wait_until_ready(timeout_s=120)
        assert loading.generate(ImageRequest(prompt="a star", num_inference_steps=1)).image.size == (128, 128)
    finally:
        serve.delete("loading")


def test_a_model_that_cannot_be_loaded_says_so_in_one_sentence(cluster: str) -> None:
    serve_tiny("broken", model="nobody/nothing")
    try:
        eventually(lambda: serve.status().applications["broken"].status == "DEPLOY_FAILED", within_s=120)
        message = serve.status().applications["broken"].deployments["TextToImage"].message
        assert "model=tiny" in message
    finally:
        serve.delete("broken")


def test_requests_at_once_run_at_once_and_get_the_pictures_they_would_have_had_alone(client: ImagineClient) -> None:
    asked = [ImageRequest(prompt=f"a {colour} star", seed=seed) for seed, colour in enumerate(["red", "green", "blue", "pink"])]
    alone = [client.generate(one).image for one in asked]
    start = time.monotonic()
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(
            threads.map(lambda one: requests.get(f"{client.base_url}/imagine", one.model_dump(exclude_none=True), timeout=60), asked)
        )
    elapsed = time.monotonic() - start
    in_their_loops = sum(
        float(part) / 1000 for answer in answers for part in re.findall(r"denoise;dur=([\d.]+)", answer.headers["Server-Timing"])
    )
    assert in_their_loops > 1.5 * elapsed, "their loops did not overlap"
    for answer, expected in zip(answers, alone, strict=True):
        assert np.abs(pixels(Image.open(BytesIO(answer.content))) - pixels(expected)).max() <= 1


def test_a_replica_that_makes_pictures_still_answers_other_calls(client: ImagineClient) -> None:
    model = serve.get_deployment_handle("TextToImage", "imagine")
    long = ImageRequest(prompt="a star", num_inference_steps=150, width=256, height=256).resolved(client.capabilities)
    pictures = [model.generate.remote([long.model_copy(update={"seed": seed})]) for seed in range(3)]
    told, rate = model.introduction.remote().result(timeout_s=10)
    assert told == client.capabilities
    assert rate > 0
    for picture in pictures:
        with pytest.raises(TimeoutError):
            picture.result(timeout_s=0)  # still being made
        picture.cancel()


def test_progress_and_cancel_reach_across_processes(client: ImagineClient) -> None:
    told, cancel = list[Progress](), threading.Event()

    def cancel_at_the_third(progress: Progress) -> None:
        told.append(progress)
        if progress.step == 3:
            cancel.set()

    with pytest.raises(GenerationCancelled):
        client.generate(ImageRequest(prompt="a star", num_inference_steps=150), cancel_at_the_third, cancel, previews=True)
    assert [(progress.step, progress.total) for progress in told[:3]] == [(1, 150), (2, 150), (3, 150)]
    assert Image.open(BytesIO(told[0].preview or b"")).size == (16, 16)
    assert len(told) < 150
