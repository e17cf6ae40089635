"""The metrics, as Ray's own Prometheus endpoint shows them."""

from collections.abc import Iterator

import pytest
import requests
from ray import serve

from app.client import ImagineClient
from tests.cluster.test_serving import ROWS_OF_A_STEP, eventually, serve_tiny
from tests.cluster.test_worst_day import LARGE, LONG, connected, get, metric

STEPS = 2
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
def counted(cluster: str) -> Iterator[ImagineClient]:
    """An app of which nobody else has asked anything."""
    serve_tiny("counted", cpu_threads=1)
    counted = ImagineClient(f"{cluster}/counted")
    counted.wait_until_ready(timeout_s=120)
    yield counted
    serve.delete("counted")


def counts() -> dict[str, float]:
    return {what: metric(*where, application="counted") for what, where in COUNTED.items()}


def test_everything_is_counted_once(counted: ImagineClient) -> None:
    address, short = f"{counted.base_url}/imagine", {"prompt": "a star", "num_inference_steps": str(STEPS), "seed": "1"}
    eventually(lambda: metric("denoiser_rows_total", application="counted") > 0)  # of the warm-up
    assert requests.get(address, short, timeout=60).ok
    requests.get(address, LONG | LARGE, headers={"X-Request-Timeout-Seconds": "1"}, timeout=60)
    requests.get(address, short | {"seed": "x"}, timeout=60)
    with connected(counted, get("/counted/imagine/stream", **LONG)) as reader:
        reader.recv(1)
    with connected(counted, get("/counted/imagine", **LONG)), connected(counted, get("/counted/imagine", **LONG)):
        eventually(lambda: counts()["shared a picture"] == 1)
    eventually(lambda: counts() == dict.fromkeys(COUNTED, 1))
    assert metric("denoiser_rows_total", application="counted") >= ROWS_OF_A_STEP * STEPS
    assert metric("batch_size_count", application="counted") > 0
