"""What HTTP has words for: forms, bodies, caches, deadlines. Through real Serve."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from PIL import Image

from app import png
from app.client import DeadlineMissed, ImagineClient
from app.schemas import ErrorAnswer, ImageRequest
from tests.cluster.test_imagine import SHORT, imagine

A_MEGABYTE = 1_000_000


def test_a_body_is_the_same_as_a_query(client: ImagineClient) -> None:
    body = {"prompt": "a star", "num_inference_steps": 2, "seed": 1}
    assert requests.post(f"{client.base_url}/imagine", json=body, timeout=60).content == imagine(client, **SHORT).content


@pytest.mark.parametrize(
    ("accept", "kind", "form"),
    [
        ("image/jpeg", "image/jpeg", "JPEG"),
        ("image/png;q=0.2, image/webp", "image/webp", "WEBP"),
        ("text/html,image/avif,*/*;q=0.8", "image/png", "PNG"),
    ],
)
def test_accept_chooses_the_form(client: ImagineClient, accept: str, kind: str, form: str) -> None:
    answer = requests.get(f"{client.base_url}/imagine", SHORT, headers={"Accept": accept}, timeout=60)
    assert (answer.headers["Content-Type"], Image.open(BytesIO(answer.content)).format) == (kind, form)


def test_json_holds_the_picture_and_how_it_was_made(client: ImagineClient) -> None:
    answer = requests.get(f"{client.base_url}/imagine", SHORT, headers={"Accept": "application/json"}, timeout=60).json()
    assert base64.b64decode(answer["png"]) == imagine(client, **SHORT).content
    assert answer["facts"]["request"]["seed"] == 1
    assert answer["timings"]["denoise"] > 0


def test_no_form_that_is_accepted_is_said(client: ImagineClient) -> None:
    answer = requests.get(f"{client.base_url}/imagine", SHORT, headers={"Accept": "text/html"}, timeout=60)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (406, "Accept")


BAD_BODIES = [
    (b'{"prompt": ', "application/json", 422, "body", "must be JSON"),
    (b"[1, 2]", "application/json", 422, "body", "valid dictionary"),
    (b"\xff\xfe", "application/json", 422, "body", "must be JSON"),
    (b"[" * 100_000, "application/json", 422, "body", "must be JSON"),
    (b"prompt=a", "application/x-www-form-urlencoded", 415, "Content-Type", "must be application/json"),
    (b'{"prompt": "a"}', "text/plain", 415, "Content-Type", "must be application/json"),
    (b'{"prompt": "' + b"a" * 10 * A_MEGABYTE + b'"}', "application/json", 413, "body", "at most 1000000 bytes"),
    (b'{"prompt": "\\ud800"}', "application/json", 422, "prompt", "unicode"),
    (b'{"prompt": "a", "\\udfff": 1}', "application/json", 422, "body", "must"),
    (b'{"prompt": "a", "seed": 1e400}', "application/json", 422, "seed", "valid integer"),
    (b'{"prompt": "a", "guidance_scale": 1e400}', "application/json", 422, "guidance_scale", "finite"),
    (b'{"prompt": "a", "seed": NaN}', "application/json", 422, "seed", "valid integer"),
    (b'{"prompt": "a", "seed": 1, "seed": 2}', "application/json", 422, "seed", "must be given once"),
    (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "application/json", 422, "body", "must be JSON"),
]


@pytest.mark.parametrize(
    ("body", "kind", "status", "field", "rule"), BAD_BODIES, ids=[f"{kind} {body[:24]!r}" for body, kind, _, _, _ in BAD_BODIES]
)
def test_a_bad_body_is_refused_naming_what_is_wrong(
    client: ImagineClient, body: bytes, kind: str, status: int, field: str, rule: str
) -> None:
    answer = requests.post(f"{client.base_url}/imagine", body, headers={"Content-Type": kind}, timeout=30)
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (answer.status_code, detail.field) == (status, field)
    assert rule in detail.rule


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ("".join(f', "a{number}": 1, "a{number}": 2' for number in range(30_000)), "must be given once"),
        ("".join(f', "a{number}": 1' for number in range(30_000)), "is no parameter of this request"),
    ],
    ids=["names twice", "names that nobody knows"],
)
def test_a_body_that_breaks_rules_thirty_thousand_times_is_refused_in_brief(client: ImagineClient, fields: str, rule: str) -> None:
    body, kind = f'{{"prompt": "a star"{fields}}}'.encode(), {"Content-Type": "application/json"}
    answer = requests.post(f"{client.base_url}/imagine", body, headers=kind, timeout=30)
    told = ErrorAnswer.model_validate_json(answer.content)
    assert (answer.status_code, {detail.rule for detail in told.details}, len(told.details)) == (422, {rule}, 20)
    assert told.message.endswith("; and 29980 more")


def test_what_is_asked_in_a_body_is_not_asked_in_the_address_too(client: ImagineClient) -> None:
    answer = requests.post(f"{client.base_url}/imagine?seed=5", json={"prompt": "a"}, timeout=30)
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (answer.status_code, detail.field, detail.rule) == (422, "seed", "must be in the body, not in the address")


def test_a_stream_holds_no_other_form_than_png(client: ImagineClient) -> None:
    answer = requests.get(f"{client.base_url}/imagine/stream", SHORT | {"format": "jpeg"}, timeout=30)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, "format")


def test_a_permalink_too_long_for_a_header_is_left_out(client: ImagineClient) -> None:
    body = {"prompt": "红" * 1000, "num_inference_steps": 1, "seed": 1}
    answer = requests.post(f"{client.base_url}/imagine", json=body, timeout=60)
    assert answer.status_code == 200
    assert "Content-Location" not in answer.headers
    assert max(len(value) for value in answer.headers.values()) < 4000


def test_a_prompt_of_ten_megabytes_in_the_address_is_refused(client: ImagineClient) -> None:
    try:
        status = requests.get(f"{client.base_url}/imagine?prompt=" + "a" * 10 * A_MEGABYTE, timeout=30).status_code
    except requests.ConnectionError:  # Serve's proxy hung up before it had read it all
        status = 431
    assert status in (400, 414, 422, 431)
    assert requests.get(f"{client.base_url}/healthz", timeout=30).ok


def test_who_has_the_picture_is_not_sent_it_again(client: ImagineClient, denoiser_rows: Callable[[], int]) -> None:
    first, rows = imagine(client, **SHORT), denoiser_rows()
    again = requests.get(f"{client.base_url}/imagine", SHORT, headers={"If-None-Match": f'"other", {first.headers["ETag"]}'}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    assert denoiser_rows() == rows, "nothing was made for it"
    assert first.headers["ETag"].startswith("W/")
    other = requests.get(
        f"{client.base_url}/imagine", SHORT, headers={"If-None-Match": first.headers["ETag"], "Accept": "image/webp"}, timeout=60
    )
    assert other.status_code == 200


def test_only_the_permalink_may_be_kept_for_ever(client: ImagineClient) -> None:
    seeded = imagine(client, **SHORT)
    assert seeded.headers["Cache-Control"] == "public, no-cache"
    assert seeded.headers["Vary"] == "Accept"
    with_token = requests.get(f"{client.base_url}/imagine", SHORT, headers={"Authorization": "Bearer of-the-platform"}, timeout=60)
    assert with_token.headers["Cache-Control"] == "private, no-cache"
    drawn = imagine(client, prompt="a star", num_inference_steps="2")
    assert drawn.headers["Cache-Control"] == "no-store"
    kept = requests.get(client.base_url + drawn.headers["Content-Location"], timeout=60)
    assert kept.content == drawn.content
    assert kept.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert kept.headers["ETag"] == drawn.headers["ETag"]


@pytest.mark.parametrize("field", ["revision", "version"])
def test_the_permalink_of_another_model_is_refused(client: ImagineClient, field: str) -> None:
    answer = imagine(client, **SHORT, **{field: "other"})
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, field)


def test_the_permalink_pins_model_and_version(client: ImagineClient) -> None:
    pinned = parse_qs(urlsplit(imagine(client, **SHORT).headers["Content-Location"]).query)
    assert (pinned["revision"], pinned["version"]) == ([client.capabilities.revision], ["abc123"])


def test_errors_are_not_kept(client: ImagineClient) -> None:
    assert imagine(client, prompt="").headers["Cache-Control"] == "no-store"


def test_a_picture_made_here_is_made_again_and_matches(client: ImagineClient) -> None:
    told = client.replay(imagine(client, **SHORT).content)
    assert (told.match, told.changed) == (True, [])


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client: ImagineClient, denoiser_rows: Callable[[], int]) -> None:
    before = denoiser_rows()
    long = {"prompt": "a star", "num_inference_steps": "150", "img_size": "256"}
    answer = requests.get(f"{client.base_url}/imagine", long, headers={"X-Request-Timeout-Seconds": "1"}, timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (503, "deadline_too_short")
    assert "Retry-After" not in answer.headers, "waiting would not help"
    with pytest.raises(DeadlineMissed, match="is expected in"):
        ImagineClient(client.base_url, timeout_s=1).generate(ImageRequest(prompt="a star", num_inference_steps=150, width=256, height=256))
    assert denoiser_rows() == before, "nothing was begun"


@pytest.mark.parametrize("seconds", ["0", "-1", "0.9", "nan", "soon"])
def test_a_deadline_that_is_none_is_refused_by_name(client: ImagineClient, seconds: str) -> None:
    answer = requests.get(f"{client.base_url}/imagine", SHORT, headers={"X-Request-Timeout-Seconds": seconds}, timeout=30)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, "x-request-timeout-seconds")


def test_a_stream_tells_the_wait_first(client: ImagineClient) -> None:
    answer = requests.get(f"{client.base_url}/imagine/stream", SHORT, timeout=60)
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in answer.text.strip().split("\r\n\r\n")]
    assert [block["event"] for block in blocks if block["event"] != "waiting"] == ["queued", "step", "step", "done"]
    assert json.loads(blocks[0]["data"]) == {"position": 0, "expected_wait_s": 0.0}
    assert png.decode(base64.b64decode(json.loads(blocks[-1]["data"])["png"]))[0].size == (128, 128)
