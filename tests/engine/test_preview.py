import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from app.engine.engine import ImageEngine
from app.engine.preview import Preview
from app.schemas import ImageRequest, Progress
from tests.engine.families import small
from tests.engine.together import Engines


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BOX), dtype=float).ravel()


@pytest.mark.parametrize(
    "prompt",
    [
        "a red heart on a yellow background",
        "a large orange sun on a blue background",
        "a small white star in the top left corner on a black background",
        "a red house under a yellow sun",
        "a gray cat on a pink background",
        "zebra quartz",
    ],
)
def test_previews_look_like_the_picture_in_the_second_half_of_the_steps(engine: ImageEngine, prompt: str) -> None:
    shown: list[Progress] = []
    final = engine.generate(ImageRequest(prompt=prompt, seed=1), shown.append, previews=True).image
    second_half = [
        Image.open(io.BytesIO(progress.preview)) for progress in shown if progress.preview and progress.step > progress.total / 2
    ]
    assert len(second_half) == 10
    assert min(np.corrcoef(thumbnail(preview), thumbnail(final))[0, 1] for preview in second_half) > 0.8


def test_without_asking_there_is_no_preview(engine: ImageEngine) -> None:
    shown: list[Progress] = []
    engine.generate(ImageRequest(prompt="a star", num_inference_steps=2), shown.append)
    assert [progress.preview for progress in shown] == [None, None]


def test_previews_do_not_change_the_picture(engine: ImageEngine) -> None:
    asked = ImageRequest(prompt="a star", num_inference_steps=3, seed=1)
    shown: list[Progress] = []
    assert engine.generate(asked, shown.append, previews=True).png == engine.generate(asked).png
    assert all(progress.preview for progress in shown)


def test_the_warm_up_makes_previews_too(start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    monkeypatch.setattr(Preview, "__call__", lambda preview, latents: made.append(latents))
    start(small("sd1")).warm_up()
    assert len(made) == 2 * 3  # steps of three pictures


def test_a_family_that_packs_its_latents_into_a_sequence_has_no_previews(start: Engines) -> None:
    engine, shown = start(small("flux")), list[Progress]()
    engine.warm_up()
    engine.generate(ImageRequest(prompt="a star", num_inference_steps=2, width=64, height=64), shown.append, previews=True)
    assert [progress.preview for progress in shown] == [None, None]


def test_latents_of_another_form_give_no_preview() -> None:
    preview = Preview(small("sd1").pipe)
    assert preview(torch.zeros(1, 16, 16)) is None
    assert preview(torch.zeros(1, 4, 16, 16)) is not None
