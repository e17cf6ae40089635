"""The metrics, as Ray's own Prometheus endpoint shows them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from ray import serve

from app.client import ImagineClient
from scripts import serving
from tests.cluster.test_serving import serve_tiny
from tests.cluster.test_worst_day import LARGE, LONG, connected, get, metric
from tests.eventually import eventually

EXPECTED = {"made": 3, "denoised": 2, "shared a picture": 1, "bad": 1, "hasty": 1, "turned away": 1, "left": 1}
COUNTED = {
    "made": ("requests_total", 'route="/imagine"', 'outcome="ok"'),
    "bad": ("requests_total", 'route="/imagine"', 'outcome="refused"', 'reason="invalid_request"'),
    "hasty": ("requests_total", 'route="/imagine"', 'outcome="busy"', 'reason="deadline_too_short"'),
    "turned away": ("refusals_total", 'reason="deadline_too_short"'),
    "left": ("cancellations_total", 'route="/imagine/stream"'),
    "shared a picture": ("coalesced_total",),
    "denoised": ("phase_seconds_count", 'phase="denoise"'),
}


@pytest.fixture
def unasked(cluster: str) -> Iterator[ImagineClient]:
    """An app of which nobody else has asked anything."""
    serve_tiny("counted", cpu_threads=1)
    unasked = ImagineClient(f"{cluster}/counted")
    unasked.wait_until_ready(timeout_s=120)
    yield unasked
    serve.delete("counted")


def counts() -> dict[str, float]:
    return {what: metric(*where, application="counted") for what, where in COUNTED.items()}


def test_everything_is_counted_once(unasked: ImagineClient) -> None:
    address, short = f"{unasked.base_url}/imagine", {"prompt": "a star", "num_inference_steps": "1", "seed": "1"}
    assert requests.get(address, short, timeout=60).ok
    requests.get(address, LONG | LARGE, headers={"X-Request-Timeout-Seconds": "1"}, timeout=60)
    requests.get(address, short | {"seed": "x"}, timeout=60)
    with connected(unasked, get("/counted/imagine/stream", **LONG)) as reader:
        reader.recv(1)
    with ThreadPoolExecutor(2) as threads:
        assert all(answer.ok for answer in threads.map(lambda asked: requests.get(address, asked, timeout=60), [LONG, LONG]))
    eventually(lambda: counts() == EXPECTED)
    eventually(lambda: metric("denoiser_rows_total", application="counted") == serving.rows_of("counted"))
    assert metric("batch_size_count", application="counted") > 0
