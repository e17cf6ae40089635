"""In half precision, where some pipelines cast their autoencoder up for a call and back down after it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.editing import EditRequest
from app.engine.checkpoint import Checkpoint, image_to_image
from app.engine.device import Batch
from app.schemas import GenerationCancelled, Progress
from tests.engine.families import small
from tests.engine.together import DEADLINE_S, Engines, alone, lasting_three_steps, made_until, most_shared, pixels, request, together

TOLERANCE = 8  # of 255, on random weights; rounding depends on the batch size
SOURCE = Image.effect_noise((64, 64), 100).convert("RGB")


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def sdxl(request: pytest.FixtureRequest) -> Checkpoint:
    loaded = small("sdxl")
    loaded.pipe.to(request.param)
    return loaded


def test_pictures_are_the_plain_pipelines_within_the_stated_tolerance(sdxl: Checkpoint, start: Engines, batches: list[Batch]) -> None:
    asked = [request(number) for number in range(4)]
    expected = [alone(sdxl, one) for one in asked]
    made = together(start(sdxl), asked)
    assert most_shared(batches) == 4
    for one, right in zip(made, expected, strict=True):
        assert right.std() > 1
        assert np.abs(pixels(one.image) - right).max() <= TOLERANCE
    assert made[0].facts.dtype == str(sdxl.pipe.unet.dtype).removeprefix("torch.")


def test_pictures_painted_over_are_the_plain_pipelines_too(sdxl: Checkpoint, start: Engines, batches: list[Batch]) -> None:
    editing = image_to_image(sdxl)
    assert editing is not None
    asked = [EditRequest.of(request(number, num_inference_steps=10), SOURCE, 0.6) for number in range(3)]
    plain = replace(editing, arguments={"image": SOURCE, "strength": 0.6})
    expected = [alone(plain, one.plain()) for one in asked]
    made = together(start(sdxl), asked)
    assert most_shared(batches) == 3
    for one, right in zip(made, expected, strict=True):
        assert np.abs(pixels(one.image) - right).max() <= TOLERANCE


def test_the_steps_of_others_go_on_while_a_picture_is_decoded(sdxl: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = SimpleQueue[Progress]()
    expected = alone(sdxl, request(1, num_inference_steps=2))
    monkeypatch.setattr(sdxl.pipe.vae, "decode", lasting_three_steps(sdxl.pipe.vae.decode, steps))
    engine, cancel = start(sdxl), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(engine.generate, request(0, num_inference_steps=150), steps.put, cancel)
        steps.put(steps.get(timeout=DEADLINE_S))  # it has begun
        made = threads.submit(engine.generate, request(1, num_inference_steps=2)).result(DEADLINE_S)
        cancel.set()
        assert isinstance(other.exception(DEADLINE_S), GenerationCancelled)
    assert np.abs(pixels(made.image) - expected).max() <= TOLERANCE


def test_pictures_that_end_together_are_decoded_together(sdxl: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, rows = sdxl.pipe.vae.decode, list[int]()

    def noted(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        rows.append(len(z))
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(sdxl.pipe.vae, "decode", noted)
    made_until(start(sdxl), lambda: sum(number > 1 for number in rows) > 1)  # the first is only tried


def test_previews_are_fitted_on_the_autoencoder_that_is_cast_up(sdxl: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, types = sdxl.pipe.vae.encode, list[torch.dtype]()

    def noted(pictures: torch.Tensor) -> Any:  # noqa: ANN401
        types.append(pictures.dtype)
        return encode(pictures)

    monkeypatch.setattr(sdxl.pipe.vae, "encode", noted)
    start(sdxl)
    assert types == [torch.float32]


def test_an_autoencoder_that_needs_no_casting_stays_in_half_precision(sdxl: Checkpoint, start: Engines) -> None:
    sdxl.pipe.vae.register_to_config(force_upcast=False)
    expected = alone(sdxl, request(1))
    made = start(sdxl).generate(request(1))
    assert sdxl.pipe.vae.dtype == sdxl.pipe.unet.dtype
    assert np.abs(pixels(made.image) - expected).max() <= TOLERANCE


def test_a_closed_engine_leaves_the_checkpoint_as_it_was(sdxl: Checkpoint, start: Engines) -> None:
    dtype, vae = sdxl.pipe.dtype, sdxl.pipe.vae
    before = alone(sdxl, request(0))
    engine = start(sdxl)
    engine.generate(request(0))
    assert np.abs(alone(sdxl, request(0)) - before).max() <= TOLERANCE, "a plain call beside the engine"
    engine.close()
    assert (vae.dtype, vae.config.force_upcast) == (dtype, True)
    assert not {"decode", "encode"} & set(vars(vae))
    assert np.array_equal(alone(sdxl, request(0)), before)
