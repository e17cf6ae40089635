"""How `ImagineClient` reaches a service: addresses, tokens, and services newer than itself."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL.PngImagePlugin import PngInfo

from app import png
from app.client import AccessDenied, ImagineClient, ServiceBusy, ServiceFailed, ServiceMoved
from app.engine.engine import ImageEngine
from app.schemas import Progress
from tests.test_client import STAR, EngineBackend, answering, serving


@pytest.mark.parametrize("address", ["http://", "http://127.0.0.1:80O0", "https://:8000", "http://127.0.0.1:80000"])
def test_an_address_that_leads_nowhere_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="base_url must have a host"):
        ImagineClient(address)


@pytest.mark.parametrize("token", ["schlüssel", "two\nlines"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^token must be printable ASCII$"):
        ImagineClient(token=token)


def test_the_token_is_sent_without_the_end_of_its_line_and_in_place_of_what_a_netrc_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    heard: list[bytes] = []
    with answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", heard) as url, pytest.raises(AccessDenied):
        ImagineClient(url, token="right\n").generate(STAR)
    assert b"\r\nAuthorization: Bearer right\r\n" in heard[0]


@pytest.mark.parametrize("on_progress", [None, lambda progress: None], ids=["at once", "in a stream"])
def test_a_prompt_is_in_no_address_which_logs_keep_and_proxies_limit(on_progress: Callable[[Progress], None] | None) -> None:
    heard: list[bytes] = []
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", heard) as url, pytest.raises(ServiceFailed):
        ImagineClient(url).generate(STAR, on_progress)
    first, rest = heard[0].split(b"\r\n", 1)
    assert b"star" not in first
    assert b'"prompt": "a star"' in rest


def test_an_address_that_leads_on_to_another_names_it() -> None:
    moved = b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://imagine.example/imagine\r\nContent-Length: 0\r\n\r\n"
    with (
        answering(moved) as url,
        pytest.raises(ServiceMoved, match=r"leads on to https://imagine\.example/imagine; give the service's own"),
    ):
        ImagineClient(url).wait_until_ready(timeout_s=60)


def test_a_proxy_of_the_environment_is_not_asked_for_what_this_machine_serves(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    with serving(EngineBackend(engine)) as url, answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", heard) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ImagineClient(url).capabilities.model == "tiny"
        with pytest.raises(AccessDenied):
            ImagineClient("http://imagine.example").generate(STAR)
    assert [request.split(b" ")[1].partition(b"?")[0] for request in heard] == [b"http://imagine.example/imagine"]


def test_what_a_newer_service_tells_of_a_picture_does_not_cost_the_picture(engine: ImageEngine) -> None:
    made = engine.generate(STAR)
    facts = json.loads(made.facts.model_dump_json())
    facts["mood"] = facts["request"]["guidance_rescale"] = 0.5
    info, file = PngInfo(), BytesIO()
    info.add_itxt(png.FACTS_CHUNK, json.dumps(facts))
    made.image.save(file, "PNG", pnginfo=info)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(file.getvalue()) + file.getvalue()) as url:
        assert ImagineClient(url).generate(STAR).facts == made.facts
    with pytest.raises(png.NotOurPNG, match="guidance_rescale"):
        png.decode(file.getvalue())


def test_a_page_of_somebody_else_is_no_replay() -> None:
    page = b"<html>Sign in</html>"
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page) as url,
        pytest.raises(ServiceFailed, match="not as this app does"),
    ):
        ImagineClient(url).replay(b"a picture")


@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_nobody_waits_a_day_because_a_proxy_says_so(timeout_s: float | None) -> None:
    with (
        answering(b"HTTP/1.1 503 Later\r\nRetry-After: 86400\r\nContent-Length: 2\r\n\r\nno") as url,
        pytest.raises(ServiceBusy),
    ):
        ImagineClient(url, timeout_s=timeout_s).generate(STAR)
