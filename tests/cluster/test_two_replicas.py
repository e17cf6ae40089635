"""A service with two replicas, which make one picture each at a time."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ray import serve

from app.client import ImagineClient
from app.routes.ingress import running_replicas
from app.schemas import GeneratedImage, ImageRequest, Progress
from tests.cluster.test_serving import serve_tiny
from tests.cluster.test_waiting import place_of
from tests.cluster.test_worst_day import LARGE, LONG, replica_processes
from tests.engine.together import pixels
from tests.eventually import eventually


@pytest.fixture(scope="module")
def two(cluster: str, client: ImagineClient) -> Iterator[ImagineClient]:
    serve_tiny("two", min_replicas=2, max_replicas=2, max_batch_size=1, cpu_threads=1, max_queue_s=600)
    eventually(lambda: running_replicas("two", "TextToImage") == 2, within_s=180)
    two = ImagineClient(f"{cluster}/two", retries=0)
    two.wait_until_ready()
    yield two
    serve.delete("two")


def test_every_replica_has_its_places_in_the_queue(two: ImagineClient) -> None:
    first, second, third = (ImageRequest.model_validate(LONG | LARGE | {"seed": seed}) for seed in range(3))
    begun, leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as thread:
        picture = thread.submit(two.generate, first, lambda progress: begun.set(), leave)
        try:
            assert begun.wait(60)
            with two.stream(second) as told:
                assert any(isinstance(news, Progress) for news in told)
                assert place_of(two, third) == 1
                assert not picture.done(), "the second one got its place"
        finally:
            leave.set()


def test_the_one_that_is_left_makes_what_a_dead_one_was_asked_for(two: ImagineClient) -> None:
    asked = [ImageRequest(prompt="a star", num_inference_steps=30, seed=seed) for seed in range(2)]
    expected = [two.generate(one).image for one in asked]
    both_begun = threading.Barrier(3)

    def ask(one: ImageRequest) -> GeneratedImage:
        steps: list[int] = []

        def note(progress: Progress) -> None:
            steps.append(progress.step)
            if progress.step == 1:
                both_begun.wait(60)

        made = two.generate(one, note)
        assert steps == list(range(1, 31))
        return made

    before = replica_processes("two")
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(ask, one) for one in asked]
        both_begun.wait(60)
        os.kill(min(before), signal.SIGKILL)
        made = [future.result(120) for future in futures]
        new = replica_processes("two") - before
        assert not new or running_replicas("two", "TextToImage") == 1, "its successor may have made it"
    for one, other in zip(made, expected, strict=True):
        assert np.abs(pixels(one.image) - pixels(other)).max() <= 1
