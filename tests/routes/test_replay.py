"""`POST /replay` over real HTTP, on an engine in this process. `tests/cluster` has it through Serve."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from app import png
from app.client import ImagineClient
from app.engine.engine import ImageEngine
from app.routes.replay import compared
from app.schemas import MAX_SIDE, Edit, ErrorAnswer, GeneratedImage, ImageRequest
from app.settings import Settings
from tests.test_client import EngineBackend, serving

STAR = ImageRequest(prompt="a star", num_inference_steps=2, seed=1, width=64, height=64)


@pytest.fixture(scope="module")
def client(engine: ImageEngine) -> Iterator[ImagineClient]:
    with serving(EngineBackend(engine)) as url:
        yield ImagineClient(url)


@pytest.fixture(scope="module")
def made(engine: ImageEngine) -> GeneratedImage:
    return engine.generate(STAR)


def with_facts(made: GeneratedImage, **fields: object) -> bytes:
    return png.encode(made.image, made.facts.model_copy(update=fields))


def with_settings(made: GeneratedImage, **fields: object) -> bytes:
    return with_facts(made, request=made.facts.request.model_copy(update=fields))


def test_a_picture_made_here_matches(client: ImagineClient, made: GeneratedImage) -> None:
    told = client.replay(made.png)
    assert (told.match, told.largest_difference, told.differing_pixels, told.changed, told.why) == (True, 0, 0, [], None)
    assert told.facts == made.facts


def test_pixels_that_were_painted_over_are_told(client: ImagineClient, made: GeneratedImage) -> None:
    painted = made.image.convert("RGB")
    draw = ImageDraw.Draw(painted)
    for x in range(16):
        for y in range(16):
            colour = painted.getpixel((x, y))
            assert isinstance(colour, tuple)
            draw.point((x, y), (colour[0], (colour[1] + 100) % 200, colour[2]))
    told = client.replay(png.encode(painted, made.facts))
    assert not told.match
    assert 56 <= told.largest_difference <= 156
    assert told.differing_pixels == 16 * 16 / (64 * 64)
    assert told.changed == []
    assert "changed afterwards" in (told.why or "")


@pytest.mark.parametrize(
    ("dtype", "by", "match"), [("float32", 1, True), ("float32", 2, False), ("float16", 8, True), ("float16", 9, False)]
)
def test_pictures_match_up_to_the_rounding_of_their_precision(made: GeneratedImage, dtype: str, by: int, match: bool) -> None:
    near = np.asarray(made.image.convert("RGB")).copy()
    near[0, 0, 0] = near[0, 0, 0] + by if near[0, 0, 0] < 128 else near[0, 0, 0] - by
    again = replace(made, facts=made.facts.model_copy(update={"dtype": dtype}))
    told = compared(Image.fromarray(near), made.facts, again)
    assert (told.match, told.largest_difference, told.differing_pixels) == (match, by, 1 / (64 * 64))


def test_settings_that_were_changed_make_another_picture(client: ImagineClient, made: GeneratedImage) -> None:
    told = client.replay(with_settings(made, seed=2))
    assert (told.match, told.facts.request.seed) == (False, 2)


def test_what_has_changed_since_is_told_whether_it_matters_or_not(client: ImagineClient, made: GeneratedImage) -> None:
    old = {"revision": "an older one", "versions": made.facts.versions | {"torch": "1.0"}}
    told = client.replay(with_facts(made, **old))
    assert told.match
    assert {one.fact: one.then for one in told.changed} == {"revision": "an older one", "versions.torch": "1.0"}
    told = client.replay(with_facts(made, request=made.facts.request.model_copy(update={"seed": 2}), **old))
    assert not told.match
    assert f"revision (an older one, now {made.facts.revision})" in (told.why or "")


def jpeg(made: GeneratedImage) -> bytes:
    file = BytesIO()
    made.image.save(file, "JPEG")
    return file.getvalue()


def plain(made: GeneratedImage) -> bytes:
    file = BytesIO()
    made.image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def of_facts(made: GeneratedImage, facts: str) -> bytes:
    file, chunks = BytesIO(), PngInfo()
    chunks.add_itxt(png.FACTS_CHUNK, facts)
    made.image.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def deep(made: GeneratedImage) -> bytes:
    return png.encode(Image.new("I;16", (64, 64)), made.facts)


BAD: dict[str, tuple[Callable[[GeneratedImage], bytes], str, str]] = {
    "nothing": (lambda made: b"", "body", "no image in PNG format"),
    "no picture": (lambda made: b"PNG", "body", "no image in PNG format"),
    "JPEG": (jpeg, "body", "no image in PNG format"),
    "cut off": (lambda made: made.png[:-200], "body", "cut off or damaged"),
    "no settings": (plain, "body", "not made here"),
    "settings that are no JSON": (lambda made: of_facts(made, "{"), "imagine", "must be JSON"),
    "settings that are no facts": (lambda made: of_facts(made, '{"request": []}'), "request", "must be"),
    "far too large": (lambda made: png.encode(Image.new("L", (4000, 4000)), made.facts), "body", "larger than"),
    "no seed": (lambda made: with_settings(made, seed=None), "request.seed", "must be given"),
    "another size": (lambda made: with_settings(made, width=128), "body", "128 x 64 pixels, as its settings say"),
    "a size out of bounds": (lambda made: with_settings(made, width=10_000), "request.width", "less than or equal to 1536"),
    "steps out of bounds": (lambda made: with_settings(made, num_inference_steps=0), "request.num_inference_steps", "greater than"),
    "a scheduler there is not": (lambda made: with_settings(made, scheduler="Guess"), "scheduler", "must be one of"),
    "painted over": (lambda made: with_facts(made, edit=Edit(image_sha256="0", strength=0.5)), "edit", "must be null"),
    "16 bits": (deep, "body", "16 bits a channel"),
}


@pytest.mark.parametrize(("data", "field", "rule"), BAD.values(), ids=BAD)
def test_what_was_not_made_here_is_refused_by_name(
    client: ImagineClient, made: GeneratedImage, data: Callable[[GeneratedImage], bytes], field: str, rule: str
) -> None:
    answer = requests.post(f"{client.base_url}/replay", data(made), headers={"Content-Type": "image/png"}, timeout=30)
    told = ErrorAnswer.model_validate_json(answer.content)
    assert (answer.status_code, told.error) == (422, "invalid_request")
    assert field in [detail.field for detail in told.details]
    assert rule in told.message


@pytest.mark.parametrize(
    ("kind", "length", "status", "field"), [("application/json", 100, 415, "Content-Type"), ("image/png", 11_000_000, 413, "body")]
)
def test_another_kind_or_too_many_bytes_are_refused(client: ImagineClient, kind: str, length: int, status: int, field: str) -> None:
    answer = requests.post(f"{client.base_url}/replay", b"x" * length, headers={"Content-Type": kind}, timeout=30)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (status, field)


def test_the_largest_picture_that_is_made_here_may_be_sent(made: GeneratedImage) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (MAX_SIDE, MAX_SIDE, 3), dtype=np.uint8)
    assert noise.nbytes < len(png.encode(Image.fromarray(noise), made.facts)) < Settings().max_picture_bytes
