"""What the bundled checkpoint knows: 48 prompts whose combinations training never saw. `scripts/tiny/judge.py` asks hundreds."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.judge import AT_ONCE, Verdict, held_out_prompts, judge

HEART = ImageRequest(prompt="a red heart on a yellow background", num_inference_steps=10)


@pytest.fixture(scope="module")
def verdicts(engine: ImageEngine) -> list[Verdict]:
    asked = held_out_prompts(48)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        made = threads.map(engine.generate, [ImageRequest(prompt=one.caption, seed=seed) for seed, one in enumerate(asked)])
        return [judge(generated.image, one) for generated, one in zip(made, asked, strict=True)]


@pytest.mark.parametrize(("asked", "share"), [("background", 0.97), ("colour", 0.95), ("thing", 0.9), ("place", 0.9), ("relation", 0.8)])
def test_the_picture_shows_what_was_asked_for(verdicts: list[Verdict], asked: str, share: float) -> None:
    right = [getattr(verdict, asked) for verdict in verdicts if getattr(verdict, asked) is not None]
    assert len(right) >= 10
    assert sum(right) / len(right) >= share


def test_seeds_give_different_pictures_of_the_same_prompt(engine: ImageEngine) -> None:
    pictures = [np.asarray(engine.generate(HEART.model_copy(update={"seed": seed})).image, dtype=int) for seed in range(3)]
    assert min(np.abs(one - other).mean() for one, other in itertools.pairwise(pictures)) > 1


@pytest.mark.parametrize(("size", "share"), [(64, 0.6), (96, 0.8), (160, 0.8), (192, 0.8)])
def test_at_other_sizes_than_its_own_a_thing_is_whole_and_drawn_once(engine: ImageEngine, size: int, share: float) -> None:
    asked = [one for one in held_out_prompts(40) if not one.relation][:16]
    requests = [
        ImageRequest(prompt=one.caption, seed=seed, width=size, height=size, num_inference_steps=10) for seed, one in enumerate(asked)
    ]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        verdicts = [judge(made.image, one) for made, one in zip(threads.map(engine.generate, requests), asked, strict=True)]
    assert all(verdict.background for verdict in verdicts)
    assert sum(bool(verdict.thing) for verdict in verdicts) / len(verdicts) >= share
