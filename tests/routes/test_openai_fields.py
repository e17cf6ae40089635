"""OpenAI's fields in the words of a request. `tests/cluster` has OpenAI's own client on real Ray Serve."""

import re
from typing import Any

import pytest

from app.engine.engine import ImageEngine
from app.routes import openai_edits, openai_fields
from app.routes.openai import Partials
from app.routes.openai_edits import LIST_OF_IMAGES, EditsBody
from app.routes.openai_fields import GenerationsBody
from app.schemas import Progress

OWN = 20  # steps of the bundled model, if nobody says how many


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, OWN),
        ({"quality": "auto"}, OWN),
        ({"quality": "low"}, OWN / 2),
        ({"quality": "high"}, 2 * OWN),
        ({"quality": "hd"}, 2 * OWN),
        ({"quality": "xhigh"}, 2 * OWN),
        ({"quality": "max"}, 2 * OWN),
        ({"quality": "medium"}, OWN),
        ({"quality": "low", "num_inference_steps": 7}, 7),
    ],
    ids=str,
)
def test_quality_is_a_number_of_steps_and_a_number_that_is_given_wins(engine: ImageEngine, fields: dict[str, Any], steps: float) -> None:
    (asked,) = GenerationsBody(prompt="a star", **fields).to_requests(engine.capabilities)
    assert asked.num_inference_steps == steps


def test_a_high_quality_takes_no_more_steps_than_the_service_allows(engine: ImageEngine) -> None:
    few = engine.capabilities.model_copy(update={"max_num_inference_steps": OWN + 1})
    (asked,) = GenerationsBody(prompt="a star", quality="high").to_requests(few)
    assert asked.num_inference_steps == OWN + 1


@pytest.mark.parametrize(("number", "steps"), [(0, []), (1, [6]), (3, [3, 6, 9])])
def test_partial_images_are_evenly_spread(number: int, steps: list[int]) -> None:
    partials, due = Partials(number), list[int]()
    for step in range(1, 13):
        if partials.is_due(Progress(step, 12, b"preview")):
            partials.shown += 1
            due.append(step)
    assert due == steps


@pytest.mark.parametrize(
    ("table", "body"), [(openai_fields.FIELDS, GenerationsBody), (openai_edits.FIELDS, EditsBody)], ids=["generations", "edits"]
)
def test_a_field_is_taken_if_and_only_if_the_table_says_so(table: str, body: type[GenerationsBody]) -> None:
    rows = [re.findall(r"\| (`.+`) \| (.+) \|", line) for line in table.splitlines()]
    taken, refused = set[str](), set[str]()
    for names, said in (row[0] for row in rows if row):
        (refused if said.startswith("refused") else taken).update(re.findall(r"`(\w+)`", names))
    fields = {field.alias or name for name, field in body.model_fields.items()} - {LIST_OF_IMAGES}
    assert (taken, refused & fields) == (fields, set())
    assert refused, "and what is no field is refused"
    assert body.model_config["extra"] == "forbid"
