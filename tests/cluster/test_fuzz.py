"""A public fuzzer over the whole OpenAPI document, briefly. `scripts/fuzz.py` does it ten thousand times."""

import pytest
from ray import serve

from app.client import ImagineClient
from scripts import fuzz, serving
from tests.cluster.test_serving import is_quiet, serve_tiny
from tests.eventually import eventually


def test_every_answer_is_one_the_document_promises_and_nothing_is_left_running(
    cluster: str, client: ImagineClient, capfd: pytest.CaptureFixture[str]
) -> None:
    serve_tiny("fuzzed", **fuzz.LIMITS)
    try:
        ImagineClient(f"{cluster}/fuzzed").wait_until_ready(timeout_s=120)
        assert fuzz.makes_pictures(f"{cluster}/fuzzed")
        rows, tasks = serving.rows_of("fuzzed"), serving.tasks_of("fuzzed")
        code, made = fuzz.fuzz(f"{cluster}/fuzzed", cases=20, seed=1, timeout_s=200)
        told = capfd.readouterr().out
        assert code == 0, told
        assert "14 selected / 14 total" in told
        assert made > 20
        assert serving.rows_of("fuzzed") > rows, "it refused everything"
        eventually(lambda: is_quiet("fuzzed"))
        eventually(lambda: serving.tasks_of("fuzzed") <= tasks)
    finally:
        serve.delete("fuzzed")
