"""OpenAI's dialect, spoken by OpenAI's own client."""

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import openai
import pytest
import requests
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from app import png
from app.client import ImagineClient
from app.schemas import ImageRequest
from scripts.tiny.captions import Captioned
from scripts.tiny.drawing import Scene, Thing
from scripts.tiny.judge import judge
from tests.engine.together import pixels

RED_HEART = "a red heart on a yellow background"
ASKED = Captioned(RED_HEART, Scene("yellow", (Thing("heart", "red", 0.5, 0.5, 0.5),)))
SHORT: dict[str, Any] = {"prompt": "a star", "model": "tiny", "extra_body": {"num_inference_steps": 2, "seed": 7}}


@pytest.fixture(scope="module")
def spoken(client: ImagineClient) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as spoken:
        yield spoken


def opened(b64_json: str | None) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(b64_json or "")))


def test_a_prompt_becomes_a_picture_of_it(spoken: openai.OpenAI) -> None:
    answer = spoken.images.generate(prompt=RED_HEART, model="tiny", extra_body={"seed": 1})
    assert answer.data is not None
    verdict = judge(opened(answer.data[0].b64_json).convert("RGB"), ASKED)
    assert (verdict.background, verdict.colour) == (True, True)


def test_n_pictures_have_consecutive_seeds_and_each_can_be_had_alone(spoken: openai.OpenAI, client: ImagineClient) -> None:
    answer = spoken.images.generate(n=3, size="64x64", **SHORT)
    assert answer.data is not None
    assert answer.size == "64x64"
    for seed, picture in zip((7, 8, 9), answer.data, strict=True):
        alone = client.generate(ImageRequest(prompt="a star", width=64, height=64, num_inference_steps=2, seed=seed))
        made, facts = png.decode(base64.b64decode(picture.b64_json or ""))
        assert np.abs(pixels(made) - pixels(alone.image)).max() <= 1
        assert facts.request.seed == seed


def test_other_formats_are_encoded_as_asked(spoken: openai.OpenAI, client: ImagineClient) -> None:
    expected = pixels(client.generate(ImageRequest(prompt="a star", num_inference_steps=2, seed=7)).image)

    def off_by(compression: int) -> float:
        answer = spoken.images.generate(output_format="webp", output_compression=compression, **SHORT)
        assert answer.data is not None
        made = opened(answer.data[0].b64_json)
        assert made.format == "WEBP"
        return float(np.abs(pixels(made) - expected).mean())

    assert off_by(100) < off_by(5) < 40, "the same picture, more or less well"


def test_a_url_is_where_the_picture_is(spoken: openai.OpenAI, client: ImagineClient) -> None:
    answer = spoken.images.generate(response_format="url", output_format="jpeg", **SHORT)
    assert answer.data is not None
    fetched = requests.get(str(answer.data[0].url), timeout=60)
    assert Image.open(BytesIO(fetched.content)).format == "JPEG"
    assert fetched.headers["X-Imagine-Seed"] == "7"
    assert "immutable" in fetched.headers["Cache-Control"]


def test_a_url_too_long_for_clients_and_proxies_is_refused(spoken: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="must be b64_json for this prompt") as refused:
        spoken.images.generate(prompt="红" * 1000, response_format="url")
    assert refused.value.param == "response_format"


def test_behind_a_proxy_that_ends_tls_the_url_is_what_its_caller_spoke(client: ImagineClient) -> None:
    body = {"prompt": "a star", "response_format": "url"}
    answer = requests.post(f"{client.base_url}/v1/images/generations", json=body, headers={"X-Forwarded-Proto": "https"}, timeout=60)
    assert answer.json()["data"][0]["url"].startswith(client.base_url.replace("http:", "https:"))


def test_a_stream_shows_the_picture_as_it_forms_in_openais_own_events(spoken: openai.OpenAI, client: ImagineClient) -> None:
    body = {"num_inference_steps": 12, "seed": 1}
    events = list(spoken.images.generate(prompt=RED_HEART, model="tiny", stream=True, partial_images=3, extra_body=body))
    *partial, completed = events
    assert [event.partial_image_index for event in partial if isinstance(event, ImageGenPartialImageEvent)] == [0, 1, 2]
    assert isinstance(completed, ImageGenCompletedEvent)
    final = pixels(opened(completed.b64_json))
    assert np.abs(final - pixels(client.generate(ImageRequest(prompt=RED_HEART, num_inference_steps=12, seed=1)).image)).max() <= 1
    last_partial = opened(partial[-1].b64_json)
    assert last_partial.size == (128, 128)
    assert judge(last_partial.convert("RGB"), ASKED).background


def test_a_stream_of_several_pictures_tells_each_with_its_seed(spoken: openai.OpenAI, client: ImagineClient) -> None:
    fields = {"num_inference_steps": 4, "seed": 7}
    events = list(spoken.images.generate(prompt=RED_HEART, n=2, size="64x64", stream=True, partial_images=1, extra_body=fields))
    done = {event.seed: opened(event.b64_json) for event in events if isinstance(event, ImageGenCompletedEvent)}  # type: ignore[attr-defined]
    partial = [event.seed for event in events if isinstance(event, ImageGenPartialImageEvent)]  # type: ignore[attr-defined]
    assert sorted(done) == sorted(partial) == [7, 8]
    for seed, picture in done.items():
        alone = client.generate(ImageRequest(prompt=RED_HEART, num_inference_steps=4, seed=seed, width=64, height=64))
        assert np.abs(pixels(picture) - pixels(alone.image)).max() <= 1


def test_a_stream_without_partial_images_is_the_picture_alone(spoken: openai.OpenAI) -> None:
    (completed,) = spoken.images.generate(stream=True, **SHORT)
    assert isinstance(completed, ImageGenCompletedEvent)
    assert completed.usage.total_tokens == 0


def test_the_served_model_is_listed(spoken: openai.OpenAI) -> None:
    assert [model.id for model in spoken.models.list()] == ["tiny"]
    assert spoken.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        spoken.models.retrieve("dall-e-2")


BAD_BODIES = [
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1000}, "n", "less than or equal to 10"),
    ({"n": 9}, "n", "at most 8"),
    ({"size": "1024x1024"}, "size", "at most 65536 pixels"),
    ({"size": "100x100"}, "size", "multiples of 8"),
    ({"size": "big"}, "size", "pattern"),
    ({"size": "\uff11\uff12\uff18x128"}, "size", "pattern"),
    ({"seed": 4294967295, "n": 2}, "seed", "at most 4294967294 for 2 pictures"),
    ({"style": "vivid"}, "style", "no parameter"),
    ({"background": "transparent"}, "background", "'auto' or 'opaque'"),
    ({"partial_images": 2}, "partial_images", "together with stream=true (got '2')"),
    ({"output_compression": 50}, "output_compression", "output_format=jpeg or webp (got '50')"),
    ({"response_format": "url", "stream": True}, "response_format", "must be b64_json together with stream=true (got 'url')"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": "5"}, "seed", "valid integer"),
    ({"n": True}, "n", "valid integer"),
]


@pytest.mark.parametrize(("fields", "param", "rule"), BAD_BODIES, ids=[str(fields) for fields, _, _ in BAD_BODIES])
def test_a_bad_field_is_refused_in_openais_shape(spoken: openai.OpenAI, fields: dict[str, Any], param: str, rule: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(rule)) as refused:
        spoken.images.generate(prompt="a star", extra_body=fields)
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", param)


def test_another_model_is_not_found(spoken: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="must be tiny"):
        spoken.images.generate(prompt="a star", model="dall-e-3")


def test_the_documentation_tells_of_every_field_of_openais_whether_it_is_accepted(client: ImagineClient) -> None:
    documented = set(openai.types.image_generate_params.ImageGenerateParamsBase.__annotations__) | {"stream"}
    operation = requests.get(f"{client.base_url}/openapi.json", timeout=30).json()["paths"]["/v1/images/generations"]["post"]
    assert documented - set(re.findall(r"`(\w+)`", operation["description"])) == set()
