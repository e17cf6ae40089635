import threading

import numpy as np
import pytest
import torch
from PIL import Image

from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.schemas import GenerationCancelled, ImageRequest, Progress, RefusedRequest
from tests.engine.families import small
from tests.engine.together import Engines

HEART = ImageRequest(prompt="a red heart on a yellow background", num_inference_steps=4, seed=5)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def test_the_picture_is_the_one_the_plain_pipeline_makes(engine: ImageEngine) -> None:
    plain = checkpoint.load("tiny").pipe(
        HEART.prompt, negative_prompt="", num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)
    )
    assert np.array_equal(pixels(engine.generate(HEART).image), pixels(plain.images[0]))


def test_the_same_request_gives_the_same_bytes_and_another_seed_another_picture(engine: ImageEngine) -> None:
    first = engine.generate(HEART)
    assert engine.generate(HEART).png == first.png
    other = engine.generate(HEART.model_copy(update={"seed": 6}))
    assert np.abs(pixels(other.image) - pixels(first.image)).max() > 20


def test_the_facts_alone_make_the_picture_again(engine: ImageEngine) -> None:
    first = engine.generate(ImageRequest(prompt="a star", num_inference_steps=3))
    assert engine.generate(first.facts.request).png == first.png


@pytest.mark.parametrize("steps", [1, 3])
def test_every_scheduler_that_is_told_makes_a_picture(engine: ImageEngine, steps: int) -> None:
    assert len(engine.capabilities.schedulers) > 5
    for scheduler in engine.capabilities.schedulers:
        told: list[Progress] = []
        asked = ImageRequest(prompt="a star", width=64, height=64, num_inference_steps=steps, scheduler=scheduler)
        assert engine.generate(asked, told.append).facts.scheduler == scheduler
        assert told[-1].step == told[-1].total


def test_every_step_is_told_in_order(engine: ImageEngine) -> None:
    told: list[Progress] = []
    engine.generate(HEART, told.append)
    assert told == [Progress(step, 4) for step in (1, 2, 3, 4)]


def test_a_cancelled_request_runs_no_further_step(engine: ImageEngine) -> None:
    cancel, told = threading.Event(), list[Progress]()

    def cancel_at_the_second(progress: Progress) -> None:
        told.append(progress)
        if progress.step == 2:
            cancel.set()

    with pytest.raises(GenerationCancelled):
        engine.generate(HEART.model_copy(update={"num_inference_steps": 150}), cancel_at_the_second, cancel)
    assert told[-1].step == 2


def test_an_error_in_one_request_leaves_the_next_one_alone(engine: ImageEngine) -> None:
    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    expected = engine.generate(HEART).png
    with pytest.raises(ZeroDivisionError):
        engine.generate(HEART, fail)
    assert engine.generate(HEART).png == expected


@pytest.mark.parametrize(("width", "height"), [(64, 64), (192, 128), (72, 200)])
def test_the_picture_has_the_size_asked_for(engine: ImageEngine, width: int, height: int) -> None:
    image = engine.generate(ImageRequest(prompt="a star", width=width, height=height, num_inference_steps=1)).image
    assert image.size == (width, height)


def test_more_pixels_than_the_model_takes_are_refused(engine: ImageEngine) -> None:
    with pytest.raises(RefusedRequest, match="at most 65536 pixels"):
        engine.generate(ImageRequest(prompt="a star", width=1536, height=1536))


@pytest.mark.parametrize("change", [{"negative_prompt": "yellow"}, {"guidance_scale": 0.0}, {"num_inference_steps": 3}])
def test_every_setting_reaches_the_picture(engine: ImageEngine, change: dict[str, object]) -> None:
    changed = engine.generate(HEART.model_copy(update=change)).image
    assert np.abs(pixels(changed) - pixels(engine.generate(HEART).image)).max() > 5


def test_a_prompt_longer_than_the_text_encoder_takes_is_said(engine: ImageEngine) -> None:
    generated = engine.generate(ImageRequest(prompt="star " * 100, num_inference_steps=1))
    assert generated.facts.warnings == ("prompt is 102 tokens long and the text encoder takes 77: its end was not read",)
    assert engine.generate(HEART).facts.warnings == ()
    assert engine.generate(ImageRequest(prompt="\U0001d160" * 10, num_inference_steps=1)).facts.warnings, "more tokens than bytes"


@pytest.mark.parametrize(("family", "limit"), [("sd1", 77), ("sdxl", 77), ("sd3", 256), ("flux", 512), ("pixart", 120)])
def test_the_text_encoder_that_reads_the_most_counts(start: Engines, family: str, limit: int) -> None:
    engine = start(small(family, **({"use_resolution_binning": False} if family == "pixart" else {})))
    assert engine.capabilities.max_prompt_tokens == limit
    for words, warnings in ((limit // 2 - 5, 0), (limit + 10, 1)):
        asked = ImageRequest(prompt="a " * words, num_inference_steps=2, width=64, height=64)
        assert len(engine.generate(asked).facts.warnings) == warnings


@pytest.mark.parametrize("prompt", ["zebra quartz", "ein Herz ❤️", "قلب", "\0", "!!!", "<|endoftext|> star"])
def test_words_the_checkpoint_never_saw_still_give_a_picture(engine: ImageEngine, prompt: str) -> None:
    image = engine.generate(ImageRequest(prompt=prompt, num_inference_steps=2, seed=0)).image
    assert pixels(image).std() > 1


def test_a_limit_below_the_models_own_size_becomes_the_default_size() -> None:
    small = ImageEngine(checkpoint.load("tiny"), max_pixels=64 * 64)
    small.warm_up()
    assert (small.capabilities.width, small.capabilities.height) == (64, 64)
    small.close()
