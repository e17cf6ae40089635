"""A service that grows with its load, by Ray Serve's own autoscaler."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from ray import serve

from app.client import ImagineClient
from app.routes.ingress import running_replicas
from app.schemas import GenerationCancelled, ImageRequest, Progress
from tests.cluster.test_serving import serve_tiny
from tests.cluster.test_worst_day import LARGE, LONG
from tests.eventually import eventually

CALLERS = 3


@pytest.fixture
def growing(cluster: str, client: ImagineClient, request: pytest.FixtureRequest) -> Iterator[ImagineClient]:
    begins_with = getattr(request, "param", {})
    serve_tiny("growing", min_replicas=1, max_replicas=2, max_batch_size=1, cpu_threads=1, max_queue_s=600, **begins_with)
    growing = ImagineClient(f"{cluster}/growing", retries=0)
    try:
        growing.wait_until_ready()
        yield growing
    finally:
        serve.delete("growing")


def test_a_replica_that_is_full_for_long_gets_a_second_one_that_makes_pictures_too(growing: ImagineClient) -> None:
    making, enough = set[int](), threading.Event()

    def keep_asking(number: int) -> None:
        request = ImageRequest.model_validate(LONG | LARGE | {"seed": number})

        def note(progress: Progress) -> None:
            making.add(number)

        with suppress(GenerationCancelled):
            while not enough.is_set():
                growing.generate(request, note, enough)
                making.discard(number)

    assert running_replicas("growing", "TextToImage") == 1
    with ThreadPoolExecutor(CALLERS) as threads:
        callers = [threads.submit(keep_asking, number) for number in range(CALLERS)]
        try:
            eventually(lambda: len(making) == 2 and running_replicas("growing", "TextToImage") == 2, within_s=240)
        finally:
            enough.set()
        for caller in callers:
            caller.result(60)


@pytest.mark.parametrize("growing", [{"initial_replicas": 2}], indirect=True)
def test_a_version_can_begin_with_more_replicas_than_it_keeps(growing: ImagineClient) -> None:
    eventually(lambda: running_replicas("growing", "TextToImage") == 2)
