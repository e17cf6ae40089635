"""A service with one place: who waits, who is turned away, who may come in."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from ray import serve

from app.client import AccessDenied, ImagineClient
from app.schemas import ErrorAnswer, GeneratedImage, ImageRequest, Progress, Queued
from tests.cluster.test_serving import ROWS_OF_A_STEP, serve_tiny
from tests.cluster.test_worst_day import LARGE, LONG, connected, get, metric, metric_lines, post
from tests.eventually import eventually

TOKENS = ("a-token-of-a-good-length", "another-one-for-rotation")
TOKEN = f"Authorization: Bearer {TOKENS[0]}\r\n"
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
    assert while_loading["picture"].headers["Retry-After"] == "2"
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


def test_those_who_wait_are_told_their_place(narrow: ImagineClient) -> None:
    long = ImageRequest.model_validate(LONG)
    with narrow.stream(long) as first, narrow.stream(long) as second, narrow.stream(long) as third:
        places = [next(one) for one in (first, second, third)]
        assert [place.position for place in places if isinstance(place, Queued)] == [0, 1, 2]
        waits = [place.expected_wait_s for place in places if isinstance(place, Queued)]
        assert waits[0] == 0 < waits[1] < waits[2]


@pytest.mark.parametrize(
    "waiting",
    [
        get("/narrow/imagine", TOKEN, **LONG, **LARGE),
        get("/narrow/imagine/stream", TOKEN, **LONG, **LARGE),
        post("/narrow/imagine", TOKEN, **LONG, **LARGE),
        post("/narrow/v1/images/generations", TOKEN, size="256x256", **LONG),
        post("/narrow/v1/images/generations", TOKEN, size="256x256", stream=True, **LONG),
    ],
    ids=["GET /imagine", "GET /imagine/stream", "POST /imagine", "OpenAI", "OpenAI, stream"],
)
def test_who_leaves_makes_room_at_work_and_in_the_queue(narrow: ImagineClient, waiting: bytes) -> None:
    model = serve.get_deployment_handle("TextToImage", "narrow")
    short, long = ImageRequest(prompt="a star", num_inference_steps=1), ImageRequest.model_validate(LONG | LARGE | {"seed": 2})
    before = model.denoiser_rows.remote().result(timeout_s=60)
    with narrow.stream(long) as at_work:
        assert any(isinstance(news, Progress) for news in at_work)
        with connected(narrow, waiting):
            eventually(lambda: place_of(narrow, long.model_copy(update={"seed": 3})) == 2)
    narrow.generate(short)
    made = model.denoiser_rows.remote().result(timeout_s=60) - before
    assert made < ROWS_OF_A_STEP * LONG["num_inference_steps"], "neither of the two was made to its end"


def place_of(client: ImagineClient, request: ImageRequest) -> int | None:
    with client.stream(request) as told:
        news = next(told)
    return news.position if isinstance(news, Queued) else None


def logs_with(word: str, session_folder: Path) -> list[Path]:
    logs = [path for path in (session_folder / "logs").rglob("*") if path.is_file()]
    return [path for path in logs if word in path.read_text(errors="replace")]


def test_prompts_are_in_no_log_and_no_metric(narrow: ImagineClient, client: ImagineClient, session_folder: Path) -> None:
    too_long = " ".join([SECRET] * 30)  # for the text encoder, of which libraries warn by quoting its end
    bodies: list[dict[str, Any]] = [{"prompt": too_long, "num_inference_steps": 1}, {"prompt": too_long, "seed": "x"}]
    for fields in bodies:
        for path in ("/imagine", "/imagine/stream"):
            requests.get(f"{client.base_url}{path}", fields, timeout=60)
        for path in ("/imagine", "/v1/images/generations"):
            requests.post(f"{client.base_url}{path}", json=fields, timeout=60)
    made = client.generate(ImageRequest(prompt=too_long, num_inference_steps=1, seed=1))
    requests.post(f"{client.base_url}/replay", made.png, headers={"Content-Type": "image/png"}, timeout=60)
    picture = {"image": made.png}
    counted = ("requests_total", 'route="/v1/images/edits"', 'outcome="ok"')
    before = metric(*counted)
    fields = {"prompt": too_long, "num_inference_steps": "2"}
    assert requests.post(f"{client.base_url}/v1/images/edits", fields, files=picture, timeout=60).ok
    eventually(lambda: metric(*counted) > before)  # by then logs and metrics are written
    assert logs_with(SECRET.split()[0], session_folder) == []
    assert metric_lines(SECRET.split()[0]) == []
    assert metric_lines("ray_imagine_requests_total"), "there are metrics"


def test_prompts_are_in_the_log_if_asked_for(narrow: ImagineClient, session_folder: Path) -> None:
    with_token(narrow, prompt="quinces under a lamp", num_inference_steps=1)
    eventually(lambda: bool(logs_with("quinces", session_folder)))
