"""OpenAI's fields in the words of a request. `tests/cluster` has OpenAI's own client on real Ray Serve."""

from typing import Any

import pytest

from app.engine.engine import ImageEngine
from app.routes.openai_fields import GenerationsBody

OWN = 20  # steps of the bundled model, if nobody says how many


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, OWN),
        ({"quality": "auto"}, OWN),
        ({"quality": "low"}, OWN / 2),
        ({"quality": "high"}, 2 * OWN),
        ({"quality": "hd"}, 2 * OWN),
        ({"quality": "medium"}, OWN),
        ({"quality": "low", "num_inference_steps": 7}, 7),
    ],
    ids=str,
)
def test_quality_is_a_number_of_steps_and_a_number_that_is_given_wins(engine: ImageEngine, fields: dict[str, Any], steps: float) -> None:
    (asked,) = GenerationsBody(prompt="a star", **fields).to_requests(engine.capabilities, most=8)
    assert asked.num_inference_steps == steps
