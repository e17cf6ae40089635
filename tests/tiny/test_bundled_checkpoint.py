"""What the bundled checkpoint knows: 48 prompts whose combinations training never saw. `scripts/tiny/judge.py` asks hundreds."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.free_form import FREE_FORM
from scripts.tiny.judge import AT_ONCE, Verdict, held_out_prompts, judge

HEART = ImageRequest(prompt="a red heart on a yellow background", num_inference_steps=10)


@pytest.fixture(scope="module")
def verdicts(engine: ImageEngine) -> list[Verdict]:
    asked = held_out_prompts(48)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        made = threads.map(engine.generate, [ImageRequest(prompt=one.caption, seed=seed) for seed, one in enumerate(asked)])
        return [judge(generated.image, one) for generated, one in zip(made, asked, strict=True)]


def test_the_background_has_the_colour_asked_for(verdicts: list[Verdict]) -> None:
    assert sum(verdict.background is True for verdict in verdicts) >= 46


def test_things_have_the_colours_asked_for(verdicts: list[Verdict]) -> None:
    assert sum(verdict.colour is True for verdict in verdicts) >= 41


def test_seeds_give_different_pictures_of_the_same_prompt(engine: ImageEngine) -> None:
    pictures = [np.asarray(engine.generate(HEART.model_copy(update={"seed": seed})).image, dtype=int) for seed in range(3)]
    assert min(np.abs(one - other).mean() for one, other in itertools.pairwise(pictures)) > 1


@pytest.mark.parametrize("size", [64, 192])
def test_other_sizes_than_its_own_keep_the_colours(engine: ImageEngine, size: int) -> None:
    sized = engine.generate(HEART.model_copy(update={"seed": 1, "width": size, "height": size})).image
    verdict = judge(sized, next(one for one in FREE_FORM if one.caption == "red heart"))
    assert verdict.colour
    assert np.asarray(sized)[2, 2, 2] < 120, "the background is not yellow"
