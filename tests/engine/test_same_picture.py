"""The promise: in single precision a picture made in a batch is within 1/255 of the one the plain pipeline makes alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.engine import checkpoint
from app.engine.checkpoint import Checkpoint, capabilities_of
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest, Progress
from tests.engine.families import image_to_image, small
from tests.engine.together import DEADLINE_S, alone, compute_as_with_a_gpu, most_shared, pixels, together


def check(loaded: Checkpoint, asked: list[ImageRequest], shared: int, cpu_threads: int = 1, *, lanes: bool = True) -> None:
    """Together they are as alone, and at least `shared` of them really shared calls: with one thread, all that can."""
    expected = [alone(loaded, one) for one in asked]
    assert all(picture.std() > 1 for picture in expected)
    batches: list[Batch] = []
    engine = ImageEngine(loaded, max_batch_size=16, max_pixels=1536 * 1536, cpu_threads=cpu_threads, on_batch=batches.append)
    if not lanes:
        compute_as_with_a_gpu(engine)
    try:
        made = [pixels(generated.image) for generated in together(engine, asked)]
    finally:
        engine.close()
    assert max(int(np.abs(one - other).max()) for one, other in zip(made, expected, strict=True)) <= 1
    assert most_shared(batches) >= shared


def request(number: int, **fields: object) -> ImageRequest:
    """Different in all that may differ inside a call."""
    own = {
        "prompt": f"{'a red star, ' * (number % 3)}picture {number}",
        "negative_prompt": ["", "blue", "green things"][number % 3],
        "seed": number,
        "num_inference_steps": 8 + number % 3,
        "guidance_scale": [3.0, 7.5, 1.0, 5.0][number % 4],
        "width": 64,
        "height": 64,
    }
    return ImageRequest.model_validate(own | fields)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
def test_batches_of_every_size_on_the_bundled_checkpoint(count: int) -> None:
    check(checkpoint.load("tiny"), [request(number) for number in range(count)], shared=count)


def test_two_sizes_at_once_on_the_bundled_checkpoint() -> None:
    asked = [request(number, width=64 + 32 * (number % 2), height=96) for number in range(6)]
    check(checkpoint.load("tiny"), asked, shared=3)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "chroma"])
def test_mixed_requests_of_every_family(family: str) -> None:
    asked = [request(number, width=64 if number < 4 else 96) for number in range(6)]
    check(small(family), asked, shared=4)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "chroma"])
def test_two_cpu_threads_that_compute_a_part_of_the_requests_each(family: str) -> None:
    asked = [request(number, width=64 if number < 4 else 96) for number in range(6)]
    check(small(family), asked, shared=2, cpu_threads=2)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_without_lanes(family: str) -> None:
    check(small(family), [request(number, width=64 if number < 4 else 96) for number in range(6)], shared=4, lanes=False)


def test_every_noise_scheduler_that_is_offered() -> None:
    for scheduler in capabilities_of(small("sd1"), None, "test").schedulers:
        check(small("sd1"), [request(number, scheduler=scheduler) for number in range(2)], shared=2)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_mixed_steps_with_a_noise_scheduler(family: str, scheduler: str) -> None:
    check(small(family), [request(number, scheduler=scheduler) for number in range(3)], shared=3)


def test_different_noise_schedulers_share_calls() -> None:
    kinds = ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "DDIMScheduler"]
    check(small("sd1"), [request(number, scheduler=kinds[number]) for number in range(4)], shared=4)


def test_image_to_image() -> None:
    check(image_to_image(), [request(number, num_inference_steps=6 + number) for number in range(3)], shared=3)


def test_a_request_that_joins_half_way_and_leaves_early() -> None:
    loaded = checkpoint.load("tiny")
    long, short = request(0, num_inference_steps=16), request(1, num_inference_steps=8)
    expected = [alone(loaded, long), alone(loaded, short)]
    batches: list[Batch] = []
    engine = ImageEngine(loaded, cpu_threads=1, on_batch=batches.append)
    half_way, met = threading.Event(), threading.Barrier(2)

    def meet_at_the_fourth(progress: Progress) -> None:
        if progress.step == 4:
            half_way.set()
            met.wait(DEADLINE_S)

    def meet_at_the_first(progress: Progress) -> None:
        if progress.step == 1:
            met.wait(DEADLINE_S)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.generate, long, meet_at_the_fourth)
        assert half_way.wait(DEADLINE_S)
        second = threads.submit(engine.generate, short, meet_at_the_first)
        made = [pixels(future.result(DEADLINE_S).image) for future in (first, second)]
    engine.close()
    assert max(int(np.abs(one - other).max()) for one, other in zip(made, expected, strict=True)) <= 1
    shared = [batch.requests for batch in batches]
    assert shared[:5] == [1] * 5, "four steps of the first and one of the second, each alone"
    assert shared.count(2) >= 3, "then they shared"
    assert shared[-4:] == [1] * 4, "and the first went on alone"
