"""The deployment's own class in this process, without Ray Serve around it. `tests/cluster` has the rest of it on real Ray Serve."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from app import deployment
from app.autoscaling import PICTURES
from app.deployment import TextToImage, text_to_image
from app.engine import checkpoint
from app.schemas import EngineStopped, GeneratedImage, ImageRequest
from app.settings import Settings

BATCH = 3


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests shared each call of the denoiser."""
    sizes: list[int] = []
    monkeypatch.setattr(deployment.Counts, "add", lambda self, requests, rows: sizes.append(requests))
    return sizes


@pytest.fixture
def settings() -> Settings:
    # Several threads would share the pictures out among them, one has them all share a call.
    return Settings(model="tiny", device="cpu", cpu_threads=1, max_batch_size=BATCH).decided(lambda: 0, lambda: 2)


@pytest.fixture
def model(settings: Settings, together: list[int]) -> Iterator[TextToImage]:
    model = TextToImage(settings)
    together.clear()
    yield model
    model._engine.close()


def made(model: TextToImage, jobs: list[list[ImageRequest]]) -> list[list[GeneratedImage]]:
    async def all_at_once() -> list[list[GeneratedImage]]:
        return await asyncio.wait_for(asyncio.gather(*map(model.generate, jobs)), 60)

    return asyncio.run(all_at_once())


def requests(model: TextToImage, count: int) -> list[ImageRequest]:
    asked = [ImageRequest(prompt="a star", seed=seed, num_inference_steps=20, width=64, height=64) for seed in range(count)]
    return [one.resolved(model._capabilities) for one in asked]


@pytest.mark.parametrize(("here", "nodes", "expected"), [(4.0, None, 4), (0.5, None, 1), (8.0, [0, 2], 2), (4.0, [16], 4), (4.0, [0], 4)])
def test_a_replica_asks_for_no_more_cpus_than_ray_offers_on_a_node(
    monkeypatch: pytest.MonkeyPatch, here: float, nodes: list[int] | None, expected: int
) -> None:
    monkeypatch.setattr(deployment, "get_num_cpus", lambda: here)
    monkeypatch.setattr(ray, "is_initialized", lambda: nodes is not None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes or []])
    assert deployment.visible_cpus() == expected


def test_the_pictures_of_a_job_share_the_denoisers_calls(model: TextToImage, together: list[int]) -> None:
    (pictures,) = made(model, [requests(model, BATCH)])
    assert [one.facts.request.seed for one in pictures] == [0, 1, 2]
    assert sum(together) == BATCH * 20
    assert max(together) == BATCH


def test_a_stream_that_nobody_reads_is_made_to_its_end(model: TextToImage, together: list[int]) -> None:
    async def scenario() -> None:
        stream = model.stream(requests(model, 1), False)
        await anext(stream)  # and no more
        async with asyncio.timeout(60):
            while sum(together) < 20:
                await asyncio.sleep(0.01)
        await stream.aclose()

    asyncio.run(scenario())


def test_a_replica_tells_how_many_pictures_it_is_making(model: TextToImage) -> None:
    """What the autoscaling policy counts."""

    async def scenario() -> list[dict[str, float]]:
        work = asyncio.create_task(model.generate(requests(model, BATCH)))
        await asyncio.sleep(0)  # it has begun with all of them
        busy = await model.record_autoscaling_stats()
        await asyncio.wait_for(work, 60)
        return [busy, await model.record_autoscaling_stats()]

    assert asyncio.run(scenario()) == [{PICTURES: BATCH}, {PICTURES: 0}]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_job_of_which_one_picture_fails_keeps_none_of_the_others_until_the_garbage_is_collected(
    model: TextToImage, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    generate, first_is_made = model._engine.generate, threading.Event()

    def fail_second(request: ImageRequest, *args: Any, **kwargs: Any) -> GeneratedImage:  # noqa: ANN401
        if request.seed == 1:
            assert first_is_made.wait(60)
            raise ZeroDivisionError
        made = generate(request, *args, **kwargs)
        first_is_made.set()
        return made

    async def ask() -> None:
        if not streamed:
            await model.generate(requests(model, 2))
        async for _ in model.stream(requests(model, 2), previews=False):
            pass

    def pictures() -> int:
        return sum(isinstance(one, GeneratedImage) for one in gc.get_objects())

    async def until_it_fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await ask()

    monkeypatch.setattr(model._engine, "generate", fail_second)
    gc.collect()
    gc.disable()
    try:
        before = pictures()
        asyncio.run(until_it_fails())
        deadline = time.monotonic() + 10
        while pictures() != before:  # the threads may not be through yet
            assert time.monotonic() < deadline
    finally:
        gc.enable()


def test_a_replica_whose_engine_has_stopped_is_unhealthy(model: TextToImage) -> None:
    asyncio.run(model.check_health())
    model._engine.close()
    with pytest.raises(EngineStopped):
        asyncio.run(model.check_health())


def test_what_the_settings_say_of_the_model_reaches_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    load = checkpoint.load

    def noted(model: str, **how: Any) -> checkpoint.Checkpoint:  # noqa: ANN401
        asked.update(how)
        return load(model, **how | {"compile_repeated_blocks": False})  # which takes half a minute

    monkeypatch.setattr(checkpoint, "load", noted)
    fields = {
        "compile_repeated_blocks": True,
        "dtype": "bfloat16",
        "revision": "pinned",
        "max_pixels": 64 * 64,
        "max_num_inference_steps": 3,
    }
    model = TextToImage(Settings.model_validate({"model": "tiny", "device": "cpu", "cpu_threads": 1, **fields}))
    capabilities, _ = asyncio.run(model.introduction())
    (made,) = asyncio.run(model.generate([ImageRequest(prompt="a star", seed=1).resolved(capabilities)]))
    model._engine.close()
    assert (asked["compile_repeated_blocks"], asked["revision"], made.facts.dtype) == (True, "pinned", "bfloat16")
    assert (capabilities.max_pixels, capabilities.max_num_inference_steps) == (64 * 64, 3)
    assert (made.image.size, made.facts.request.num_inference_steps) == ((64, 64), 3)


def test_serve_sends_a_replica_as_many_requests_as_its_engine_runs_at_once(
    settings: Settings, model: TextToImage, together: list[int]
) -> None:
    made(model, [[one] for one in requests(model, 3 * BATCH)])
    assert max(together) == text_to_image(settings)._bound_deployment.max_ongoing_requests
