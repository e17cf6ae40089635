from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app import png
from app.schemas import Facts, ImageRequest

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def facts(prompt: str = "a red heart", negative_prompt: str = "") -> Facts:
    asked = ImageRequest(
        prompt=prompt, negative_prompt=negative_prompt, width=64, height=64, num_inference_steps=20, guidance_scale=3, seed=7
    )
    return Facts(
        request=asked, model="tiny", revision="abc", pipeline="P", scheduler="EulerDiscreteScheduler", dtype="float32", device="cpu",
        versions={"torch": "2"},
    )  # fmt: skip


@pytest.mark.parametrize("prompt", ["a red heart", "ein schönes Herz ❤️", "قلب أحمر", "two\nlines", "NUL \0 inside", "Steps: 3, Seed: 4"])
def test_pixels_and_facts_come_back_as_they_went_in(prompt: str) -> None:
    image, read = png.decode(png.encode(PICTURE, facts(prompt)))
    assert read == facts(prompt)
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


def test_the_same_image_and_facts_give_the_same_bytes() -> None:
    assert png.encode(PICTURE, facts()) == png.encode(PICTURE, facts())


def test_the_parameters_text_has_the_form_other_tools_read() -> None:
    text = Image.open(BytesIO(png.encode(PICTURE, facts(negative_prompt="blue")))).info["parameters"]
    assert text.splitlines() == [
        "a red heart",
        "Negative prompt: blue",
        "Steps: 20, Sampler: EulerDiscreteScheduler, CFG scale: 3.0, Seed: 7, Size: 64x64, Model: tiny, Model hash: abc",
    ]


def without_facts() -> bytes:
    file = BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("data", "said"), [(b"no image", "no image"), (without_facts(), "not made here")])
def test_other_bytes_are_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(png.NotOurPNG, match=said):
        png.decode(data)
