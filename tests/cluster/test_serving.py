"""What Serve adds: replicas that come and go, callers that leave, queues that fill."""

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import requests
from PIL import Image
from ray import serve

from app import entrypoint
from app.client import ImagineClient
from app.schemas import GenerationCancelled, ImageRequest, Progress
from app.settings import Settings
from scripts import serving
from tests.engine.together import pixels
from tests.eventually import eventually

ROWS_OF_A_STEP = 2  # with guidance


def is_quiet(name: str = "imagine") -> bool:
    """Whether nothing is computed."""
    before = serving.rows_of(name)
    return all(serving.rows_of(name) == before for _ in range(20))


def serve_tiny(name: str, **settings: object) -> None:
    fields = {"model": "tiny", "device": "cpu", "cpu_threads": 2} | settings
    target = serve.RunTarget(entrypoint(Settings.model_validate(fields)), name=name, route_prefix=f"/{name}")
    serve.run_many([target], wait_for_applications_running=False)


def test_alive_ready_and_capabilities_are_told(client: ImagineClient) -> None:
    assert requests.get(f"{client.base_url}/healthz", timeout=30).json() == {"status": "alive"}
    assert requests.get(f"{client.base_url}/readyz", timeout=30).json() == {"status": "ready"}
    for path in ("/healthz", "/readyz"):
        answer = requests.head(client.base_url + path, timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")
    told = client.capabilities
    assert (told.model, told.width, told.version, told.max_num_images_per_prompt) == ("tiny", 128, "abc123", 8)


def test_requests_at_once_run_at_once_and_get_the_pictures_they_would_have_had_alone(client: ImagineClient) -> None:
    asked = [ImageRequest(prompt=f"a {colour} star", seed=seed) for seed, colour in enumerate(["red", "green", "blue", "pink"])]
    alone = [client.generate(one).image for one in asked]
    told: list[tuple[int | None, int]] = []
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda one: client.generate(one, lambda progress: told.append((one.seed, progress.step))), asked))
    steps = client.capabilities.num_inference_steps
    assert max(told.index((one.seed, 1)) for one in asked) < min(told.index((one.seed, steps)) for one in asked), "they did not overlap"
    for made, expected in zip(together, alone, strict=True):
        assert np.abs(pixels(made.image) - pixels(expected)).max() <= 1


def test_a_replica_that_makes_pictures_still_answers_other_calls(client: ImagineClient) -> None:
    model = serve.get_deployment_handle("TextToImage", "imagine")
    long = ImageRequest(prompt="a star", num_inference_steps=150, width=256, height=256).resolved(client.capabilities)
    before = serving.rows_of()
    pictures = [model.generate.remote([long.model_copy(update={"seed": seed})]) for seed in range(3)]
    eventually(lambda: serving.rows_of() > before)
    told, rate = model.introduction.remote().result(timeout_s=10)
    assert told == client.capabilities
    assert rate > 0
    for picture in pictures:
        with pytest.raises(TimeoutError):
            picture.result(timeout_s=0)  # still being made
        picture.cancel()


def test_a_stream_gives_signs_of_life_between_its_steps(client: ImagineClient) -> None:
    long = ImageRequest(prompt="a star", num_inference_steps=150, width=256, height=256)
    with client.stream(long) as told:
        next(news for news in told if isinstance(news, Progress))
        assert any(news is None for news in told)


def test_progress_and_cancel_reach_across_processes(client: ImagineClient) -> None:
    told, cancel = list[Progress](), threading.Event()

    def cancel_at_the_third(progress: Progress) -> None:
        told.append(progress)
        if progress.step == 3:
            cancel.set()

    rows = serving.rows_of()
    with pytest.raises(GenerationCancelled):
        client.generate(ImageRequest(prompt="a star", num_inference_steps=150), cancel_at_the_third, cancel, previews=True)
    eventually(is_quiet)
    assert serving.rows_of() - rows < 150 * ROWS_OF_A_STEP
    assert [(progress.step, progress.total) for progress in told[:3]] == [(1, 150), (2, 150), (3, 150)]
    assert Image.open(BytesIO(told[0].preview or b"")).size == (16, 16)
    assert len(told) < 150
