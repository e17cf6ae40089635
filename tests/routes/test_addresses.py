"""Addresses that are told to callers behind proxies which end their TLS, and what an address may hold, over real HTTP on an engine here."""

from collections.abc import Iterator

import pytest
import requests

from app.engine.engine import ImageEngine
from app.schemas import ErrorAnswer
from app.settings import UNNAMED_VERSION, Settings
from tests.test_client import EngineBackend, serving


@pytest.fixture(scope="module")
def url(engine: ImageEngine) -> Iterator[str]:
    with serving(EngineBackend(engine)) as url:
        yield url


@pytest.mark.parametrize(("forwarded", "scheme"), [(None, "http"), ("https", "https"), ("https, http", "https"), ("http,https", "http")])
def test_a_permalink_is_reached_as_the_caller_reached_the_first_proxy(url: str, forwarded: str | None, scheme: str) -> None:
    body = {"prompt": "a star", "seed": 1, "response_format": "url"}
    headers = {} if forwarded is None else {"X-Forwarded-Proto": forwarded}
    answer = requests.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=30)
    assert answer.json()["data"][0]["url"].startswith(f"{scheme}://127.0.0.1:")


def test_nobody_is_sent_on_to_another_address(url: str) -> None:
    answer = requests.get(f"{url}/imagine/", {"prompt": "a star"}, allow_redirects=False, timeout=30)
    assert (answer.status_code, "Location" in answer.headers) == (404, False)


@pytest.mark.parametrize(
    ("method", "path", "offered"),
    [("DELETE", "/imagine", {"GET", "POST"}), ("PUT", "/healthz", {"GET", "HEAD"}), ("GET", "/replay", {"POST"})],
)
def test_a_wrong_method_is_told_all_that_are_right(url: str, method: str, path: str, offered: set[str]) -> None:
    answer = requests.request(method, url + path, timeout=30)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == offered


def test_what_is_asked_in_the_address_is_not_asked_in_a_body_too(url: str) -> None:
    answer = requests.get(f"{url}/imagine?prompt=a+star", json={"seed": 7}, timeout=30)
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (answer.status_code, detail.field) == (422, "body")


@pytest.mark.parametrize(
    ("encoding", "status"), [("utf-8", 200), ("utf-8-sig", 200), ("utf-16", 422), ("utf-16-le", 422), ("utf-32", 422), ("latin-1", 422)]
)
def test_json_is_in_utf8(url: str, encoding: str, status: int) -> None:
    body = '{"prompt": "é", "num_inference_steps": 1}'.encode(encoding)
    answer = requests.post(f"{url}/imagine", body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == status
    assert status == 200 or answer.json()["details"][0]["rule"] == "must be JSON in UTF-8, not too deeply nested"


@pytest.mark.parametrize(("asked", "varies"), [({}, True), ({"format": "png"}, False)], ids=["by Accept", "by format="])
def test_an_answer_says_whether_accept_decides_its_form(url: str, asked: dict[str, str], varies: bool) -> None:
    answer = requests.get(f"{url}/imagine?prompt=a+star&num_inference_steps=1", asked, timeout=30)
    assert ("Vary" in answer.headers) == varies


def test_a_prompt_in_other_bytes_than_those_of_utf8_is_refused_and_not_repaired(url: str) -> None:
    answer = requests.get(f"{url}/imagine?prompt=caf%E9&num_inference_steps=1", timeout=30)
    (detail,) = ErrorAnswer.model_validate_json(answer.content).details
    assert (answer.status_code, detail.field, detail.rule) == (422, "query", "must be UTF-8, percent-encoded")
    assert requests.get(f"{url}/imagine?prompt=caf%C3%A9&num_inference_steps=1", timeout=30).ok


@pytest.mark.parametrize(("version", "kept"), [("1.2", True), (UNNAMED_VERSION, False)])
def test_nothing_that_an_unnamed_version_made_is_kept_for_ever(engine: ImageEngine, version: str, kept: bool) -> None:
    with serving(EngineBackend(engine), Settings(version=version)) as url:
        first = requests.get(f"{url}/imagine?prompt=a+star&num_inference_steps=1&seed=1", timeout=30)
        permalink = requests.get(url + first.headers["Content-Location"], timeout=30)
    assert permalink.ok
    assert ("immutable" in permalink.headers["Cache-Control"]) == kept


@pytest.mark.parametrize("path", ["/imagine", "/replay", "/v1/images/generations", "/v1/images/edits"])
def test_what_is_asked_in_a_body_is_not_asked_in_the_address_too(url: str, path: str) -> None:
    answer = requests.post(f"{url}{path}?seed=5", timeout=30)
    assert answer.status_code in (400, 422)
    assert "must be in the body, not in the address" in answer.text
