"""Addresses that are told to callers behind proxies which end their TLS, and what an address may hold, over real HTTP on an engine here."""

from collections.abc import Iterator

import pytest
import requests

from app.engine.engine import ImageEngine
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


@pytest.mark.parametrize("path", ["/imagine", "/replay", "/v1/images/generations", "/v1/images/edits"])
def test_what_is_asked_in_a_body_is_not_asked_in_the_address_too(url: str, path: str) -> None:
    answer = requests.post(f"{url}{path}?seed=5", timeout=30)
    assert answer.status_code in (400, 422)
    assert "must be in the body, not in the address" in answer.text
