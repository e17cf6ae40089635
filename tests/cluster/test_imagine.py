"""`GET /imagine` through real Serve and real HTTP."""

import re
from io import BytesIO
from urllib.parse import urlencode

import pytest
import requests
from PIL import Image

from app import png
from app.client import ImagineClient
from app.engine.engine import ImageEngine
from app.schemas import ErrorAnswer, ImageRequest
from scripts.tiny.captions import Captioned
from scripts.tiny.drawing import Scene, Thing
from scripts.tiny.judge import judge

RED_HEART = "a red heart on a yellow background"
SHORT = {"prompt": "a star", "num_inference_steps": "2", "seed": "1"}


def imagine(client: ImagineClient, **query: str) -> requests.Response:
    return requests.get(f"{client.base_url}/imagine", query, timeout=120)


def test_the_picture_has_the_colours_the_prompt_asks_for(client: ImagineClient) -> None:
    answer = imagine(client, prompt=RED_HEART, seed="1")
    assert answer.headers["Content-Type"] == "image/png"
    asked = Captioned(RED_HEART, Scene("yellow", (Thing("heart", "red", 0.5, 0.5, 0.5),)))
    verdict = judge(Image.open(BytesIO(answer.content)), asked)
    assert (verdict.background, verdict.colour) == (True, True)


def test_the_served_picture_is_the_one_the_engine_makes_in_a_notebook(client: ImagineClient, engine: ImageEngine) -> None:
    served = client.generate(ImageRequest(prompt="a star", num_inference_steps=2, seed=1))
    made_here = engine.generate(ImageRequest(prompt="a star", num_inference_steps=2, seed=1))
    assert served.image.tobytes() == made_here.image.tobytes()


def test_the_same_query_with_a_seed_gives_the_same_bytes(client: ImagineClient) -> None:
    assert imagine(client, **SHORT).content == imagine(client, **SHORT).content


def test_a_seed_that_was_drawn_is_told_and_makes_the_same_picture_again(client: ImagineClient) -> None:
    first = imagine(client, prompt="a star", num_inference_steps="2")
    again = imagine(client, prompt="a star", num_inference_steps="2", seed=first.headers["X-Imagine-Seed"])
    assert again.content == first.content


def test_headers_and_text_chunks_tell_the_settings_used(client: ImagineClient) -> None:
    answer = imagine(client, prompt="a blue star", negative_prompt="red", img_size="64", num_inference_steps="3", seed="9")
    told = {name: answer.headers[f"X-Imagine-{name}"] for name in ("Seed", "Width", "Height", "Num-Inference-Steps", "Guidance-Scale")}
    assert told == {"Seed": "9", "Width": "64", "Height": "64", "Num-Inference-Steps": "3", "Guidance-Scale": "3.0"}
    assert answer.headers["X-Imagine-Version"] == "abc123"
    image, facts = png.decode(answer.content)
    assert image.size == (64, 64)
    assert (facts.request.prompt, facts.request.negative_prompt) == ("a blue star", "red")
    assert Image.open(BytesIO(answer.content)).info["parameters"].startswith("a blue star\nNegative prompt: red\nSteps: 3,")


def test_a_header_tells_where_the_time_went(client: ImagineClient) -> None:
    phases = dict(phase.split(";dur=") for phase in imagine(client, **SHORT).headers["Server-Timing"].split(", "))
    assert set(phases) == {"queue", "text", "denoise", "decode", "png"}
    assert float(phases["denoise"]) > 0


def test_both_forms_of_size_mean_the_same(client: ImagineClient) -> None:
    assert imagine(client, **SHORT, img_size="64").content == imagine(client, **SHORT, width="64", height="64").content


def test_a_prompt_longer_than_the_text_encoder_takes_is_said_in_a_header(client: ImagineClient) -> None:
    answer = imagine(client, prompt="star " * 100, num_inference_steps="1")
    assert answer.headers["X-Imagine-Warning"] == "prompt is 102 tokens long and the text encoder takes 77: its end was not read"


@pytest.mark.parametrize("prompt", ["❤️ on green", "قلب أحمر", "\0", "a%20b&c=d", "line\nbreak", "𝕳"])
def test_any_text_is_a_prompt(client: ImagineClient, prompt: str) -> None:
    answer = imagine(client, prompt=prompt, num_inference_steps="1", seed="0")
    assert answer.status_code == 200
    assert png.decode(answer.content)[1].request.prompt == prompt


BAD_QUERIES = [
    ("", "prompt", "must be given"),
    ("prompt=", "prompt", "at least 1 character"),
    ("prompt=%20%09", "prompt", "blank"),
    ("prompt=" + "a" * 2001, "prompt", "at most 2000"),
    ("prompt=a&negative_prompt=" + "a" * 2001, "negative_prompt", "at most 2000"),
    ("prompt=a&img_size=56", "img_size", "greater than or equal to 64"),
    ("prompt=a&img_size=1544", "img_size", "less than or equal to 1536"),
    ("prompt=a&img_size=100", "img_size", "multiple of 8"),
    ("prompt=a&img_size=1536", "width x height", "at most 65536 pixels"),
    ("prompt=a&img_size=128&height=128", "img_size", "together with width or height"),
    ("prompt=a&width=big", "width", "valid integer"),
    ("prompt=a&num_inference_steps=0", "num_inference_steps", "greater than or equal to 1"),
    ("prompt=a&num_inference_steps=151", "num_inference_steps", "less than or equal to 150"),
    ("prompt=a&num_inference_steps=2.5", "num_inference_steps", "valid integer"),
    ("prompt=a&guidance_scale=-1", "guidance_scale", "greater than or equal to 0"),
    ("prompt=a&guidance_scale=31", "guidance_scale", "less than or equal to 30"),
    ("prompt=a&guidance_scale=nan", "guidance_scale", "finite"),
    ("prompt=a&guidance_scale=inf", "guidance_scale", "finite"),
    ("prompt=a&seed=-1", "seed", "greater than or equal to 0"),
    ("prompt=a&seed=4294967296", "seed", "less than or equal to 4294967295"),
    ("prompt=a&seed=1e3", "seed", "valid integer"),
    ("prompt=a&seed=", "seed", "valid integer"),
    ("prompt=a&seed=1_0", "seed", "valid integer"),
    ("prompt=a&guidance_scale=1_0", "guidance_scale", "valid number"),
    ("prompt=a&seed=%201", "seed", "valid integer"),
    ("prompt=a&img_size=128.0", "img_size", "valid integer"),
    ("prompt=a&img_sise=128", "img_sise", "no parameter"),
    ("prompt=a&seed=1&seed=2", "seed", "given once"),
]


@pytest.mark.parametrize(("query", "field", "rule"), BAD_QUERIES, ids=[query[:40] or "nothing" for query, _, _ in BAD_QUERIES])
def test_a_bad_query_is_refused_naming_field_rule_and_value(client: ImagineClient, query: str, field: str, rule: str) -> None:
    answer = requests.get(f"{client.base_url}/imagine?{query}", timeout=30)
    assert answer.status_code == 422
    told = ErrorAnswer.model_validate_json(answer.content)
    (detail,) = told.details
    assert (told.error, detail.field) == ("invalid_request", field)
    assert rule in detail.rule
    assert (detail.value is None) == (query == "")
    assert detail.field in told.message


@pytest.mark.parametrize(
    ("field", "value"), [("seed", "5"), ("seed", False), ("width", True), ("guidance_scale", "3"), ("num_inference_steps", 2.5)]
)
def test_text_and_truth_values_are_no_numbers_in_json(client: ImagineClient, field: str, value: object) -> None:
    answer = requests.post(f"{client.base_url}/imagine", json={"prompt": "a star", field: value}, timeout=30)
    assert answer.status_code == 422
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (detail.field, detail.value) == (field, str(value))
    assert "valid" in detail.rule


def test_several_bad_fields_are_told_at_once(client: ImagineClient) -> None:
    answer = requests.get(f"{client.base_url}/imagine?{urlencode({'seed': 'x', 'num_inference_steps': '0'})}", timeout=30)
    assert {detail["field"] for detail in answer.json()["details"]} == {"prompt", "seed", "num_inference_steps"}


@pytest.mark.parametrize(
    ("method", "path", "status", "field"),
    [("GET", "/imagin", 404, "path"), ("DELETE", "/imagine", 405, "method"), ("POST", "/healthz", 405, "method")],
)
def test_a_wrong_path_or_method_has_the_same_shape(client: ImagineClient, method: str, path: str, status: int, field: str) -> None:
    answer = requests.request(method, client.base_url + path, timeout=30)
    assert answer.status_code == status
    assert ErrorAnswer.model_validate_json(answer.content).details[0].field == field


def test_the_documentation_page_needs_no_network_and_has_an_example_to_try(client: ImagineClient) -> None:
    page = requests.get(f"{client.base_url}/docs", timeout=30).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded
    assert [address for address in loaded if not address.startswith("/")] == []
    assert all(requests.get(client.base_url + address, timeout=30).ok for address in loaded)
    operation = requests.get(f"{client.base_url}/openapi.json", timeout=30).json()["paths"]["/imagine"]["get"]
    prompt = next(parameter for parameter in operation["parameters"] if parameter["name"] == "prompt")
    assert prompt["schema"]["example"] == RED_HEART
