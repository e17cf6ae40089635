"""Which thread computes what, with how many CPU threads, and what is computed together beside the steps."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch

from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.schemas import EngineStopped, GenerationCancelled, Progress
from tests.engine.together import (
    DEADLINE_S,
    Engines,
    Held,
    alone,
    assert_right,
    break_calls,
    lasting_three_steps,
    made_until,
    most_shared,
    one_held_in_the_loop,
    pixels,
    request,
    together,
)

Computed = list[tuple[str, str, int]]


@pytest.fixture
def seen(loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Computed:
    """What was computed outside of the loop, the name of the thread that did it, and of how many rows."""
    computed: Computed = []

    def noting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            rows = len(args[0] if args else next(iter(kwargs.values())))
            computed.append((what, threading.current_thread().name, rows))
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(loaded.pipe.text_encoder, "forward", noting("text", loaded.pipe.text_encoder.forward))
    monkeypatch.setattr(loaded.pipe.vae, "decode", noting("decode", loaded.pipe.vae.decode))
    return computed


def test_steps_are_computed_with_all_cpu_threads_and_the_caller_keeps_its_own(loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    break_calls(monkeypatch, loaded, lambda sample: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    engine = ImageEngine(loaded, cpu_threads=3)
    try:
        engine.generate(request(0))
    finally:
        engine.close()
    assert set(threads) == {3}
    assert torch.get_num_threads() == before


def test_text_and_decoding_are_computed_where_the_steps_are_while_no_loop_is_under_way(
    loaded: Checkpoint, seen: Computed, start: Engines
) -> None:
    made = start(loaded).generate(request(0))
    assert [what for what, _, _ in seen] == ["text", "text", "decode"]
    assert {thread for _, thread, _ in seen} == {"batching"}
    assert_right(loaded, made)


def test_beside_a_loop_under_way_they_are_computed_in_a_lane(loaded: Checkpoint, seen: Computed, start: Engines) -> None:
    engine = start(loaded)
    with one_held_in_the_loop(engine) as held, ThreadPoolExecutor(1) as thread:
        seen.clear()
        assert_right(loaded, thread.submit(engine.generate, request(1)).result(DEADLINE_S))
        assert [(what, thread[:4]) for what, thread, _ in seen[:3]] == [("text", "lane"), ("text", "lane"), ("decode", "lane")]
    assert_right(loaded, held.result(DEADLINE_S))


def test_cpu_threads_compute_the_calls_of_several_requests_at_the_same_time(
    loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, threads = threading.Barrier(2), set[tuple[str, int]]()

    def meet(sample: torch.Tensor) -> None:
        if threading.current_thread().name.startswith("lane") and len(threads) < 2:
            threads.add((threading.current_thread().name, torch.get_num_threads()))
            both.wait(DEADLINE_S)

    break_calls(monkeypatch, loaded, meet)
    for made in together(start(loaded, cpu_threads=2), [request(number) for number in range(4)]):
        assert_right(loaded, made)
    assert threads == {("lane_0", 1), ("lane_1", 1)}
    assert most_shared(batches) == 2, "half of the four"


def test_a_module_that_casts_its_weights_at_every_call_is_in_one_thread_at_a_time(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, threads = [request(number) for number in range(4)], set[str]()
    loaded.pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    expected = [alone(loaded, one) for one in asked]
    break_calls(monkeypatch, loaded, lambda sample: threads.add(threading.current_thread().name))
    made = together(start(loaded, cpu_threads=2), asked)
    assert threads == {"batching"}
    assert max(np.abs(pixels(one.image) - other).max() for one, other in zip(made, expected, strict=True)) <= 1


def test_a_lane_that_dies_leaves_nobody_waiting(loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(sample: torch.Tensor) -> None:
        if threading.current_thread().name.startswith("lane"):
            raise SystemExit

    break_calls(monkeypatch, loaded, die)
    engine = start(loaded, cpu_threads=2)
    with one_held_in_the_loop(engine) as held, ThreadPoolExecutor(1) as thread:
        assert isinstance(thread.submit(engine.generate, request(1)).exception(DEADLINE_S), EngineStopped)
    assert isinstance(held.exception(DEADLINE_S), EngineStopped)
    with pytest.raises(EngineStopped):
        engine.check_health()


def test_the_steps_of_others_go_on_while_a_long_decoding_is_computed(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = SimpleQueue[Progress]()
    monkeypatch.setattr(loaded.pipe.vae, "decode", lasting_three_steps(loaded.pipe.vae.decode, steps))
    engine, cancel = start(loaded), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(engine.generate, request(0, num_inference_steps=150), steps.put, cancel)
        steps.put(steps.get(timeout=DEADLINE_S))  # it has begun
        assert threads.submit(engine.generate, request(1, num_inference_steps=2)).result(DEADLINE_S)
        cancel.set()
        assert isinstance(other.exception(DEADLINE_S), GenerationCancelled)


def test_an_error_beside_a_loop_under_way_ends_that_request_alone(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = loaded.pipe.vae.decode

    def broken_in_a_lane(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if threading.current_thread().name.startswith("lane"):
            raise ZeroDivisionError
        return decode(*args, **kwargs)

    monkeypatch.setattr(loaded.pipe.vae, "decode", broken_in_a_lane)
    engine = start(loaded)
    with one_held_in_the_loop(engine) as held, ThreadPoolExecutor(1) as thread:
        assert isinstance(thread.submit(engine.generate, request(1)).exception(DEADLINE_S), ZeroDivisionError)
    engine.check_health()
    assert_right(loaded, held.result(DEADLINE_S))


def test_pictures_that_end_together_are_decoded_together(loaded: Checkpoint, seen: Computed, start: Engines) -> None:
    for made in made_until(start(loaded), lambda: sum(what == "decode" and rows > 1 for what, _, rows in seen) > 1):
        assert_right(loaded, made)


def test_decodings_that_wait_for_one_beside_the_loop_are_computed_together_once_nobody_is_in_it(
    loaded: Checkpoint, seen: Computed, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, hold = Held(loaded.pipe.vae.decode), Held(lambda progress: None)
    monkeypatch.setattr(loaded.pipe.vae, "decode", decode)
    engine, denoised, deadline = start(loaded), threading.Semaphore(0), time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(engine.generate, request(0), hold)]
        assert hold.begun.wait(DEADLINE_S)
        futures.append(threads.submit(engine.generate, request(1)))
        assert decode.begun.wait(DEADLINE_S)
        for number in (2, 3):
            asked = request(number, num_inference_steps=1)
            futures.append(threads.submit(engine.generate, asked, lambda progress: denoised.release()))
        for _ in range(2):
            assert denoised.acquire(timeout=DEADLINE_S)
        hold.go_on.set()
        while any(task.step_kind for task in engine._batcher._tasks):
            assert time.monotonic() < deadline, "the loop never ended"
            time.sleep(0.01)
        decode.go_on.set()
        made = [future.result(DEADLINE_S) for future in futures]
    decoded = [(thread, rows) for what, thread, rows in seen if what == "decode"]
    assert (decoded[0][0][:4], decoded[0][1]) == ("lane", 1)
    assert max(decoded[1:], key=lambda one: one[1]) in {("batching", 2), ("batching", 3)}
    for one in made:
        assert_right(loaded, one)


def test_pictures_that_cannot_be_decoded_together_are_decoded_apart(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, rows = loaded.pipe.vae.decode, list[int]()

    def one_at_a_time(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        rows.append(len(z))
        if len(z) > 1:
            raise torch.OutOfMemoryError
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(loaded.pipe.vae, "decode", one_at_a_time)
    made = made_until(start(loaded), lambda: max(rows) > 1)
    assert not loaded.pipe.vae.use_tiling
    for one in made:
        assert_right(loaded, one)
