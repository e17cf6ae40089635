"""A service with one place: who waits, who is turned away, who may come in."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from ray import serve

from app.client import AccessDenied, ImagineClient
from app.routes.ingress import running_replicas
from app.schemas import ErrorAnswer, GeneratedImage, ImageRequest, Progress, Queued
from tests.cluster.test_serving import eventually, serve_tiny
from tests.cluster.test_worst_day import LARGE, LONG

TOKENS = ("a-token-of-a-good-length", "another-one-for-rotation")
SECRET = "pomegranates on a velvet sofa"


@pytest.fixture(scope="module")
def while_loading() -> dict[str, requests.Response]:
    """What `narrow` answered before its model had made a picture."""
    return {}


@pytest.fixture(scope="module")
def narrow(cluster: str, client: ImagineClient, while_loading: dict[str, requests.Response]) -> Iterator[ImagineClient]:
    """One picture at a time, two may wait, a token opens it, and it logs prompts."""
    door = {"tokens": ",".join(TOKENS), "max_queued_requests": 2, "max_queue_s": 600}  # a slow machine turns nobody away for the time alone
    serve_tiny("narrow", max_batch_size=1, max_tries=1, log_prompts=True, **door)
    narrow = ImagineClient(f"{cluster}/narrow", TOKENS[1], retries=20)
    eventually(lambda: requests.get(f"{narrow.base_url}/healthz", timeout=30).status_code == 200)
    while_loading["ready"] = requests.get(f"{narrow.base_url}/readyz", timeout=30)
    while_loading["picture"] = with_token(narrow, prompt="a star")
    narrow.wait_until_ready(timeout_s=120)
    yield narrow
    serve.delete("narrow")


def with_token(narrow: ImagineClient, **query: str | int) -> requests.Response:
    return requests.get(f"{narrow.base_url}/imagine", query, headers={"Authorization": f"Bearer {TOKENS[0]}"}, timeout=60)


def test_until_the_model_has_made_a_picture_the_app_is_alive_but_not_ready(
    narrow: ImagineClient, while_loading: dict[str, requests.Response]
) -> None:
    said = {what: (answer.status_code, answer.json()["error"]) for what, answer in while_loading.items()}
    assert said == {"ready": (503, "not_ready"), "picture": (503, "not_ready")}
    assert "Retry-After" in while_loading["picture"].headers
    assert with_token(narrow, prompt="a star", num_inference_steps=1).ok


def test_only_a_token_opens_the_service_and_any_of_them_does(narrow: ImagineClient) -> None:
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKENS[0]}"}, {"Authorization": "Bearer é"}):
        answer = requests.get(f"{narrow.base_url}/capabilities", headers={k: v.encode() for k, v in header.items()}, timeout=30)
        assert (answer.status_code, answer.json()["error"], answer.headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
    assert requests.get(f"{narrow.base_url}/readyz", timeout=30).ok
    assert [ImagineClient(narrow.base_url, token).capabilities.model for token in TOKENS] == ["tiny", "tiny"]
    with pytest.raises(AccessDenied, match="token="):
        ImagineClient(narrow.base_url).generate(ImageRequest(prompt="a star"))
    dialect = requests.get(f"{narrow.base_url}/v1/models", timeout=30)
    assert dialect.json()["error"]["type"] == "authentication_error"


def test_behind_a_token_only_private_caches_may_keep_a_picture(narrow: ImagineClient) -> None:
    answer = with_token(narrow, prompt="a star", num_inference_steps=1, seed=1)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["Content-Location"].startswith("/narrow/imagine?")
    assert narrow.replay(answer.content).match, "below its prefix a picture is let in too"


def test_a_full_queue_says_when_to_come_back_and_who_does_gets_a_picture(narrow: ImagineClient) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "a star", "num_inference_steps": steps, "seed": seed} for seed, steps in enumerate((60, 10, 10, 10))
    ]
    expected = [with_token(narrow, **one).content for one in asked]
    with contextlib.ExitStack() as open_:
        let_in = [open_.enter_context(narrow.stream(ImageRequest.model_validate(one))) for one in asked[:3]]
        assert [type(next(told)) for told in let_in] == [Queued] * 3
        for answer in [with_token(narrow, **asked[0] | {"seed": seed}) for seed in range(4, 9)]:
            error = ErrorAnswer.model_validate_json(answer.content)
            assert (answer.status_code, error.error) == (503, "overloaded")
            assert error.retry_after_s is not None and error.expected_wait_s is not None  # noqa: PT018
            assert 0 < error.retry_after_s < error.expected_wait_s
            assert error.retry_after_s <= int(answer.headers["Retry-After"]) < error.retry_after_s + 2
        with ThreadPoolExecutor(1) as thread:
            patient = thread.submit(narrow.generate, ImageRequest.model_validate(asked[3]))
            made = [last for told in let_in if isinstance(last := list(told)[-1], GeneratedImage)]
            assert [*(one.png for one in made), patient.result().png] == expected
        assert made[2].timings["queue"] > made[1].timings["denoise"], "it waited here for all of the second one"
    assert float(with_token(narrow, **asked[3]).headers["X-Imagine-Expected-Wait"]) == 0


def test_those_who_wait_are_told_their_place_and_those_who_leave_it_make_room(narrow: ImagineClient) -> None:
    long, short = ImageRequest(prompt="a star", num_inference_steps=100), ImageRequest(prompt="a star", num_inference_steps=1)
    with narrow.stream(long) as first, narrow.stream(long) as second, narrow.stream(long) as third:
        places = [next(one) for one in (first, second, third)]
        assert [place.position for place in places if isinstance(place, Queued)] == [0, 1, 2]
        waits = [place.expected_wait_s for place in places if isinstance(place, Queued)]
        assert waits[0] == 0 < waits[1] < waits[2]
    eventually(lambda: place_of(narrow, short) == 0)


def place_of(client: ImagineClient, request: ImageRequest) -> int | None:
    with client.stream(request) as told:
        news = next(told)
    return news.position if isinstance(news, Queued) else None


def test_every_replica_has_its_places_in_the_queue(cluster: str, client: ImagineClient) -> None:
    serve_tiny("two", min_replicas=2, max_replicas=2, max_batch_size=1, cpu_threads=1, max_queue_s=600)
    first, second, third = (ImageRequest.model_validate(LONG | LARGE | {"seed": seed}) for seed in range(3))
    begun, leave = threading.Event(), threading.Event()
    two = ImagineClient(f"{cluster}/two")
    try:
        eventually(lambda: running_replicas("two", "TextToImage") == 2, within_s=180)
        with ThreadPoolExecutor(1) as thread:
            picture = thread.submit(two.generate, first, lambda progress: begun.set(), leave)
            assert begun.wait(60)
            with two.stream(second) as told:
                assert any(isinstance(news, Progress) for news in told)
                assert place_of(two, third) == 1
                assert not picture.done(), "the second one got its place"
            leave.set()
    finally:
        leave.set()
        serve.delete("two")


def logs_with(word: str, session_folder: Path) -> list[Path]:
    logs = [path for path in (session_folder / "logs").rglob("*") if path.is_file()]
    return [path for path in logs if word in path.read_text(errors="replace")]


def test_prompts_are_in_no_log(narrow: ImagineClient, client: ImagineClient, session_folder: Path) -> None:
    bodies: list[dict[str, Any]] = [{"prompt": SECRET, "num_inference_steps": 1}, {"prompt": SECRET, "seed": "x"}]
    for fields in bodies:
        requests.get(f"{client.base_url}/imagine", fields, timeout=60)
        requests.post(f"{client.base_url}/imagine", json=fields, timeout=60)
        requests.get(f"{client.base_url}/imagine/stream", fields, timeout=60)
    assert logs_with("/imagine", session_folder), "the log does tell of requests"
    assert logs_with(SECRET.split()[0], session_folder) == []


def test_prompts_are_in_the_log_if_asked_for(narrow: ImagineClient, session_folder: Path) -> None:
    with_token(narrow, prompt="quinces under a lamp", num_inference_steps=1)
    eventually(lambda: bool(logs_with("quinces", session_folder)))
