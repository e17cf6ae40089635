import pickle

import pytest
from pydantic import ValidationError

from app.schemas import MAX_SEED, Capabilities, ErrorDetail, ImageRequest, RefusedRequest

CAPABILITIES = Capabilities(
    model="m",
    revision="r",
    pipeline="P",
    scheduler="S",
    schedulers=("S", "T"),
    width=128,
    height=96,
    size_multiple=16,
    max_pixels=256 * 256,
    num_inference_steps=20,
    guidance_scale=3.0,
    max_prompt_tokens=77,
    version="v",
)


def test_fields_left_out_become_the_models_own_and_a_drawn_seed() -> None:
    resolved = ImageRequest(prompt="a star").resolved(CAPABILITIES)
    assert (resolved.width, resolved.height, resolved.num_inference_steps, resolved.guidance_scale) == (128, 96, 20, 3.0)
    assert resolved.seed is not None
    assert 0 <= resolved.seed <= MAX_SEED


def test_fields_given_stay_even_when_they_are_zero() -> None:
    asked = ImageRequest(prompt="a star", width=64, height=64, num_inference_steps=1, guidance_scale=0, seed=0, scheduler="S")
    assert asked.resolved(CAPABILITIES) == asked


def test_resolving_twice_changes_nothing() -> None:
    once = ImageRequest(prompt="a star").resolved(CAPABILITIES)
    assert once.resolved(CAPABILITIES) == once


def test_two_requests_without_a_seed_draw_different_ones() -> None:
    seeds = {ImageRequest(prompt="a star").resolved(CAPABILITIES).seed for _ in range(20)}
    assert len(seeds) > 15


def test_a_size_the_model_cannot_make_is_refused_with_field_rule_and_value() -> None:
    with pytest.raises(RefusedRequest) as refused:
        ImageRequest(prompt="a star", width=72, height=1024).resolved(CAPABILITIES)
    assert refused.value.details == (
        ErrorDetail(field="width", rule="must be a multiple of 16 for this model", value="72"),
        ErrorDetail(field="width x height", rule="must be at most 65536 pixels for this model", value="72 x 1024"),
    )


def test_a_refusal_survives_the_way_between_processes() -> None:
    refused = pickle.loads(pickle.dumps(RefusedRequest(ErrorDetail.of("width", "must be small", 9))))
    assert refused.details == (ErrorDetail(field="width", rule="must be small", value="9"),)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": "a" * 2001},
        {"negative_prompt": "a" * 2001},
        {"width": 60},
        {"width": 100},
        {"height": 1544},
        {"num_inference_steps": 0},
        {"num_inference_steps": 151},
        {"guidance_scale": -0.1},
        {"guidance_scale": 30.1},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"seed": -1},
        {"seed": 2**32},
        {"img_sise": 128},
    ],
)
def test_a_field_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        ImageRequest.model_validate({"prompt": "a star"} | fields)


@pytest.mark.parametrize(
    ("field", "bounds"),
    [
        ("width", {"minimum": 64, "maximum": 1536, "multipleOf": 8}),
        ("num_inference_steps", {"minimum": 1, "maximum": 150}),
        ("guidance_scale", {"minimum": 0, "maximum": 30}),
        ("seed", {"minimum": 0, "maximum": MAX_SEED}),
    ],
)
def test_the_bounds_are_in_the_schema_that_clients_read(field: str, bounds: dict[str, int]) -> None:
    number = ImageRequest.model_json_schema()["properties"][field]["anyOf"][0]
    assert {name: number.get(name) for name in bounds} == bounds


def test_what_is_no_finite_number_is_refused_by_that_rule() -> None:
    with pytest.raises(ValidationError, match="finite"):
        ImageRequest.model_validate({"prompt": "a star", "guidance_scale": "nan"})


def test_the_bounds_themselves_are_allowed() -> None:
    ImageRequest(
        prompt="a" * 2000, negative_prompt="b" * 2000, width=64, height=1536, num_inference_steps=150, guidance_scale=30, seed=MAX_SEED
    )


def test_a_long_refused_value_is_shortened() -> None:
    shown = ErrorDetail.of("prompt", "is too long", "x" * 5000).value
    assert shown is not None
    assert len(shown) < 120
    assert "5000 characters" in shown
