"""Pictures painted over, asked for by OpenAI's own client, through Serve."""

from io import BytesIO

import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent

from app import png
from app.editing import EditRequest
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.captions import Captioned
from scripts.tiny.drawing import Scene, Thing
from scripts.tiny.judge import judge
from tests.cluster.test_openai import RED_HEART, opened, spoken
from tests.engine.together import pixels

__all__ = ["spoken"]

BLUE_HEART = "a blue heart on a yellow background"
ASKED = Captioned(BLUE_HEART, Scene("yellow", (Thing("heart", "blue", 0.5, 0.5, 0.5),)))


@pytest.fixture(scope="module")
def red_heart(engine: ImageEngine) -> bytes:
    return engine.generate(ImageRequest(prompt=RED_HEART, seed=1)).png


def test_the_prompt_decides_what_the_picture_is_painted_over_with(spoken: openai.OpenAI, engine: ImageEngine, red_heart: bytes) -> None:
    answer = spoken.images.edit(
        image=("heart.png", red_heart), prompt=BLUE_HEART, model="tiny", n=2, extra_body={"seed": 2, "strength": 0.6}
    )
    assert answer.data is not None
    asked = ImageRequest(prompt=BLUE_HEART, seed=2).resolved(engine.capabilities)
    for seed, one in zip((2, 3), answer.data, strict=True):
        picture = opened(one.b64_json)
        verdict = judge(picture.convert("RGB"), ASKED)
        assert (verdict.background, verdict.colour) == (True, True)
        here = engine.generate(EditRequest.of(asked.model_copy(update={"seed": seed}), png.decode(red_heart)[0], 0.6))
        assert np.abs(pixels(picture) - pixels(here.image)).max() <= 1


def test_little_strength_changes_little(spoken: openai.OpenAI, red_heart: bytes) -> None:
    def difference(strength: float) -> float:
        answer = spoken.images.edit(image=BytesIO(red_heart), prompt="a green star", extra_body={"seed": 2, "strength": strength})
        assert answer.data is not None
        return float(np.abs(pixels(opened(answer.data[0].b64_json)) - pixels(png.decode(red_heart)[0])).mean())

    assert difference(0.1) < 0.5 * difference(1.0)


def test_a_stream_shows_the_picture_as_it_forms_in_openais_own_events(spoken: openai.OpenAI, red_heart: bytes) -> None:
    *partial, completed = spoken.images.edit(
        image=("heart.png", red_heart), prompt=BLUE_HEART, stream=True, partial_images=2, extra_body={"seed": 1}
    )
    assert [event.partial_image_index for event in partial if isinstance(event, ImageEditPartialImageEvent)] == [0, 1]
    assert isinstance(completed, ImageEditCompletedEvent)
    assert judge(opened(completed.b64_json).convert("RGB"), ASKED).colour


def test_a_mask_is_refused(spoken: openai.OpenAI, red_heart: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="mask: must not be given"):
        spoken.images.edit(image=("heart.png", red_heart), prompt=BLUE_HEART, mask=("mask.png", red_heart))
