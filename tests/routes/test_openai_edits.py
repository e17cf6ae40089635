"""What `POST /v1/images/edits` refuses, over real HTTP on an engine in this process. `tests/cluster` has it through Serve."""

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
import requests
from PIL import Image

from app.engine.engine import ImageEngine
from app.routes.openai_edits import FIELDS
from tests.test_client import EngineBackend, serving

ORIENTATION, TURNED = 0x0112, 6  # of EXIF: turn it clockwise to see it upright


@pytest.fixture(scope="module")
def url(engine: ImageEngine) -> Iterator[str]:
    with serving(EngineBackend(engine)) as url:
        yield f"{url}/v1/images/edits"


def picture(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 64), colour: Any = 128) -> bytes:  # noqa: ANN401
    file = BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def as_png(image: Image.Image) -> bytes:
    """Its pixels and nothing else."""
    file = BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(file, "PNG")
    return file.getvalue()


def edit(url: str, image: bytes | None = None, more: list[tuple[str, bytes]] | None = None, **fields: object) -> requests.Response:
    files = [("image", picture() if image is None else image), *(more or [])]
    data: dict[str, Any] = {"prompt": "a star", "num_inference_steps": 2, "seed": 1} | fields
    return requests.post(url, {name: value for name, value in data.items() if value is not None}, files=files, timeout=60)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")]
)
def test_any_common_picture_can_be_painted_over(url: str, form: str, mode: str) -> None:
    data = picture(form, mode, colour=(9, 9, 9, 255) if mode == "RGBA" else 128)
    answer, plain = edit(url, data), edit(url, as_png(Image.open(BytesIO(data)).convert("RGB")))
    assert (answer.status_code, answer.json()["size"]) == (200, "64x64")
    assert answer.json()["data"] == plain.json()["data"]


def test_the_picture_is_brought_to_the_size_asked_for(url: str) -> None:
    assert edit(url, picture(size=(300, 200)), size="96x64").json()["size"] == "96x64"


def test_the_same_request_gives_the_same_picture_and_another_source_another_one(url: str) -> None:
    one, again, other = (edit(url, picture(colour=colour)).json()["data"] for colour in (10, 10, 200))
    assert one == again != other


@pytest.mark.parametrize("as_list", [False, True])
def test_openais_own_client_may_send_the_picture_alone_or_in_a_list(url: str, as_list: bool) -> None:
    with openai.OpenAI(base_url=url.removesuffix("/images/edits"), api_key="unused", max_retries=0) as client:
        file = ("picture.png", picture(), "image/png")
        more: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
        answer = client.images.edit(image=[file] if as_list else file, prompt="a star", extra_body=more)
    assert answer.data is not None
    assert answer.data[0].b64_json == edit(url).json()["data"][0]["b64_json"]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0II*\0"], ids=["garbage", "cut off"])
def test_a_picture_whose_exif_is_damaged_is_refused(url: str, damage: bytes, form: str) -> None:
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, form, exif=damage)
    answer = edit(url, file.getvalue())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert "EXIF" in answer.json()["error"]["message"]


def test_a_picture_that_a_camera_stored_lying_is_painted_over_upright(url: str) -> None:
    lying, file = Image.new("RGB", (128, 64)), BytesIO()
    lying.paste("red", (0, 0, 64, 64))
    exif = lying.getexif()
    exif[ORIENTATION] = TURNED
    lying.save(file, "JPEG", exif=exif)
    made, upright = edit(url, file.getvalue()).json(), Image.open(file).convert("RGB").rotate(-90, expand=True)
    assert made["size"] == "64x128"
    assert made["data"] == edit(url, as_png(upright)).json()["data"]


def deep_picture() -> bytes:
    """8 x 8 pixels of 16-bit RGB, which Pillow reads but does not write."""
    head, rows = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), (b"\0" + b"\x9c\x40" * 24) * 8
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def animation(form: str) -> bytes:
    file, frames = BytesIO(), [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no picture": ({"image": b"picture"}, "image", "no image in PNG or JPEG or WEBP format"),
    "nothing": ({"image": b""}, "image", "no image in PNG"),
    "cut off": ({"image": picture(size=(64, 64))[:-30]}, "image", "cut off or damaged"),
    "transparent": ({"image": picture(mode="RGBA", colour=(9, 9, 9, 9))}, "image", "must be opaque"),
    "16 bits of gray": ({"image": picture(mode="I;16", colour=40_000)}, "image", "16 bits a channel"),
    "16 bits of colour": ({"image": deep_picture()}, "image", "16 bits a channel"),
    "an animation": ({"image": animation("WEBP")}, "image", "animation"),
    "an animated PNG": ({"image": animation("PNG")}, "image", "animation"),
    "an empty field": ({"seed": ""}, "seed", "must not be empty"),
    "GIF": ({"image": picture("GIF", "L")}, "image", "no image in PNG"),
    "a huge one": ({"image": picture(size=(4000, 4000))}, "image", "larger than"),
    "a side of its own that does not fit": ({"image": picture(size=(100, 64))}, "size", "multiples of 8"),
    "too large a picture of its own": ({"image": picture(size=(512, 512))}, "size", "at most 65536 pixels"),
    "mask": ({"more": [("mask", picture())]}, "mask", "whole picture is painted over"),
    "two pictures": ({"more": [("image", picture())]}, "image", "given once"),
    "a list of pictures": ({"more": [("image[]", picture())]}, "image", "given once"),
    "input_fidelity": ({"input_fidelity": "high"}, "input_fidelity", "no parameter"),
    "a url": ({"response_format": "url"}, "response_format", "b64_json"),
    "strength 0": ({"strength": 0}, "strength", "greater than 0"),
    "strength 2": ({"strength": 2}, "strength", "less than or equal to 1"),
    "no step left": ({"strength": 0.4}, "strength", "at least 1 / 2"),
    "no prompt": ({"prompt": None}, "prompt", "must be given"),
    "a seed not in digits": ({"seed": "1_0"}, "seed", "valid integer"),
    "a strength not in digits": ({"strength": "0_1"}, "strength", "valid number"),
    "a seed twice": ({"seed": [1, 2]}, "seed", "given once"),
    "partial images of no stream": ({"partial_images": 2}, "partial_images", "together with stream=true (got '2')"),
}


@pytest.mark.parametrize(("asked", "param", "rule"), BAD.values(), ids=BAD)
def test_what_breaks_a_rule_is_refused_in_openais_shape(url: str, asked: dict[str, Any], param: str, rule: str) -> None:
    answer = edit(url, **asked)
    told = answer.json()["error"]
    assert (answer.status_code, told["type"], told["param"]) == (400, "invalid_request_error", param)
    assert rule in told["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "param"),
    [
        (b"{}", "application/json", 415, "Content-Type"),
        (b"--a", "multipart/form-data", 400, "body"),
        (b"--a--", "multipart/form-data; boundary=a; charset=foo", 400, "Content-Type"),
        (b"--a--", "multipart/form-data; boundary=a; charset=utf-8; charset=latin-1", 400, "Content-Type"),
        (b"--a--", "multipart/form-data; boundary=a; charset=UTF-8", 400, "prompt"),
        (b"--b", "multipart/form-data; boundary=a", 400, "body"),
        (
            b"--a\r\nContent-Disposition: form-data; name=prompt\r\n\r\nx\r\n--a\r\nContent-Disposition: form-data; name=seed\r\n\r\n7",
            "multipart/form-data; boundary=a",
            400,
            "body",
        ),
        (
            b"--a\r\nContent-Disposition: form-data; name=prompt\r\n\r\ncaf\xe9\r\n--a--",
            "multipart/form-data; boundary=a",
            400,
            "body",
        ),
        (b"a" * 11_000_000, "multipart/form-data; boundary=a", 413, "body"),
        (b"--a\r\nContent-Disposition: form-data; name=image\r\n\r\ntext\r\n--a--", "multipart/form-data; boundary=a", 400, "prompt"),
    ],
)
def test_a_body_that_is_no_such_form_is_refused(url: str, body: bytes, kind: str, status: int, param: str) -> None:
    answer = requests.post(url, body, headers={"Content-Type": kind}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_bytes_of_a_file_are_no_text_whatever_they_look_like(url: str) -> None:
    head = b"--a\r\nContent-Disposition: form-data; name=image; FileName=x.png\r\n\r\n"
    for disguised in (b"\x89--a\xff", b"\xe9\r\n\r\n\xe9"):
        answer = requests.post(
            url, head + disguised + b"\r\n--a--", headers={"Content-Type": "multipart/form-data; boundary=a"}, timeout=30
        )
        assert answer.json()["error"]["param"] == "prompt"


def test_the_documentation_tells_of_every_field_of_openais_whether_it_is_accepted() -> None:
    documented = set(openai.types.image_edit_params.ImageEditParamsBase.__annotations__) | {"stream"}
    assert documented - set(re.findall(r"`(\w+)`", FIELDS)) == set()
