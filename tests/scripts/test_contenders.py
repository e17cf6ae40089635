"""The other ways to serve that the benchmark measures: they make the same pictures, and batch as they are said to."""

import asyncio
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.contenders import BATCH, Batched, Lit, OneAtATime, Plain, Rows
from scripts.load import Asked, numbered
from tests.engine.together import pixels

STEPS = 2
ASKED = list(numbered(BATCH, 64, STEPS))


def rows_of_calls(plain: Plain) -> list[int]:
    """Grows by the rows of every call of the denoiser."""
    rows: list[int] = []
    plain.pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def assert_right(engine: ImageEngine, asked: list[Asked], made: list[bytes]) -> None:
    for one, data in zip(asked, made, strict=True):
        side, steps = one["img_size"], one["num_inference_steps"]
        request = ImageRequest(
            prompt=one["prompt"], seed=one["seed"], width=side, height=side, num_inference_steps=steps, guidance_scale=3.0
        )
        assert np.abs(pixels(Image.open(BytesIO(data))) - pixels(engine.generate(request).image)).max() <= 1


def test_the_template_makes_one_picture_at_a_time(engine: ImageEngine, tmp_path: Path) -> None:
    template = OneAtATime(tmp_path / "rows")
    rows = rows_of_calls(template)

    async def all_at_once() -> list[bytes]:
        return await asyncio.wait_for(asyncio.gather(*(template.generate(one) for one in ASKED)), 60)

    assert_right(engine, ASKED, asyncio.run(all_at_once()))
    assert rows == [2] * (STEPS * BATCH)
    assert Rows(tmp_path / "rows").value == 2 * STEPS * BATCH


def test_a_batch_is_one_call(engine: ImageEngine, tmp_path: Path) -> None:
    batched = Batched(tmp_path / "rows")
    rows = rows_of_calls(batched)
    assert_right(engine, ASKED, batched.make_grouped(ASKED))
    assert rows == [2 * BATCH] * STEPS


def test_litserve_makes_up_to_eight_pictures_in_a_call_and_those_of_one_size_together(engine: ImageEngine, tmp_path: Path) -> None:
    lit = Lit(tmp_path / "rows")
    assert lit.max_batch_size == BATCH == 8
    lit.setup("cpu")
    rows = rows_of_calls(lit._plain)
    mixed = list(numbered(4, 128, STEPS, mixed=True))
    assert_right(engine, mixed, lit.predict(mixed))
    assert rows == [4, 4] * STEPS
