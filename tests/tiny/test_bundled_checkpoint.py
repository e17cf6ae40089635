"""What the bundled checkpoint knows: 48 prompts whose combinations training never saw. `scripts/tiny/judge.py` asks hundreds."""

import pytest

from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.judge import Verdict, held_out_prompts, judge


@pytest.fixture(scope="module")
def verdicts(engine: ImageEngine) -> list[Verdict]:
    return [
        judge(engine.generate(ImageRequest(prompt=captioned.caption, seed=seed)).image, captioned)
        for seed, captioned in enumerate(held_out_prompts(48))
    ]


def test_the_background_has_the_colour_asked_for(verdicts: list[Verdict]) -> None:
    assert sum(verdict.background for verdict in verdicts) >= 46


def test_most_things_have_the_colours_asked_for(verdicts: list[Verdict]) -> None:
    """The card of this version says how many of 200: 73 %."""
    assert sum(verdict.colour for verdict in verdicts) >= 29
