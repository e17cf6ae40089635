"""Errors and ends: every request ends with its right picture or one clear error, and never hangs."""

import functools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.engine import batching
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.schemas import EngineStopped, GeneratedImage, Progress
from tests.engine.together import (
    DEADLINE_S,
    Engines,
    all_in_the_loop,
    alone,
    assert_right,
    break_calls,
    most_shared,
    one_held_in_the_loop,
    pixels,
    request,
)
from tests.eventually import eventually

ROWS_OF_ONE = 2  # with guidance


def test_one_step_is_a_loop_too(loaded: Checkpoint, start: Engines) -> None:
    assert_right(loaded, start(loaded).generate(request(0, num_inference_steps=1)))


def test_a_hundred_requests_at_once_into_an_engine_of_eight(loaded: Checkpoint, start: Engines, batches: list[Batch]) -> None:
    engine = start(loaded)
    with ThreadPoolExecutor(100) as threads:
        futures = [threads.submit(engine.generate, request(number)) for number in range(100)]
        made = [future.result(2 * DEADLINE_S) for future in futures]
    assert 2 <= most_shared(batches) <= 8
    for one in made[::10]:
        assert_right(loaded, one)


def test_those_who_wait_go_on_in_the_order_they_came(loaded: Checkpoint, start: Engines) -> None:
    engine, order = start(loaded, max_batch_size=1), list[int]()

    def note(number: int, progress: Progress) -> None:
        order.append(number)

    with ThreadPoolExecutor(3) as threads, one_held_in_the_loop(engine):
        for number in (1, 2, 3):
            threads.submit(engine.generate, request(number), functools.partial(note, number))
            eventually(lambda: len(engine._batcher._tasks) == number + 1)  # noqa: B023  it is waited for here
    assert list(dict.fromkeys(order)) == [1, 2, 3]


class TestFaults:
    def test_an_error_in_one_callback_reaches_nobody_else(self, loaded: Checkpoint, start: Engines) -> None:
        engine, meet = start(loaded), all_in_the_loop(3)

        def fail(progress: Progress) -> None:
            meet(progress)
            raise ZeroDivisionError

        with ThreadPoolExecutor(3) as threads:
            broken = threads.submit(engine.generate, request(0), fail)
            others = [threads.submit(engine.generate, request(number), meet) for number in (1, 2)]
            assert isinstance(broken.exception(DEADLINE_S), ZeroDivisionError)
            for other in others:
                assert_right(loaded, other.result(DEADLINE_S))

    def test_an_error_in_a_joined_call_reaches_only_the_request_whose_rows_cause_it(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        poison = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))[0, :, 0, 0]
        expected, rows = alone(loaded, request(1)), list[int]()

        def poisoned(sample: torch.Tensor) -> None:
            scaled = sample[:, :, 0, 0] / sample[:, :1, 0, 0]
            if torch.isclose(scaled, poison / poison[0], rtol=1e-3).all(dim=1).any():
                rows.append(len(sample))
                raise ZeroDivisionError("this row")

        break_calls(monkeypatch, loaded, poisoned)
        engine, deadline = start(loaded), time.monotonic() + DEADLINE_S
        with ThreadPoolExecutor(4) as threads:
            while max(rows, default=0) <= ROWS_OF_ONE:  # until those of others were beside them
                assert time.monotonic() < deadline, "they never met"
                futures: list[Future[GeneratedImage]] = [threads.submit(engine.generate, request(number)) for number in range(4)]
                assert isinstance(futures[2].exception(DEADLINE_S), ZeroDivisionError)
                assert np.abs(pixels(futures[1].result(DEADLINE_S).image) - expected).max() <= 1
                for future in futures[:2] + futures[3:]:
                    future.result(DEADLINE_S)

    def test_an_error_in_every_call_ends_every_request(self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(sample: torch.Tensor) -> None:
            raise ZeroDivisionError("always")

        break_calls(monkeypatch, loaded, broken)
        engine = start(loaded)
        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(engine.generate, request(number)) for number in range(4)]
            assert [type(future.exception(DEADLINE_S)) for future in futures] == [ZeroDivisionError] * 4
        with pytest.raises(ZeroDivisionError):  # an error of a GPU may stay until its process ends: so another picture is tried
            engine.check_health()
        monkeypatch.undo()
        engine.check_health()
        assert_right(loaded, engine.generate(request(9)))

    def test_a_callback_that_blocks_does_not_hold_up_the_others(self, loaded: Checkpoint, start: Engines) -> None:
        engine, go_on = start(loaded), threading.Event()

        def block(progress: Progress) -> None:
            assert go_on.wait(DEADLINE_S)

        with ThreadPoolExecutor(3) as threads:
            blocked = threads.submit(engine.generate, request(0), block)
            for number in (1, 2):
                assert_right(loaded, threads.submit(engine.generate, request(number)).result(DEADLINE_S))
            assert not blocked.done()
            go_on.set()
            assert_right(loaded, blocked.result(DEADLINE_S))

    def test_a_denoiser_thread_that_dies_fails_every_request_and_the_health_check(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def killed(sample: torch.Tensor) -> None:
            raise SystemExit

        break_calls(monkeypatch, loaded, killed)
        engine = start(loaded)
        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(engine.generate, request(number)) for number in range(4)]
            assert [type(future.exception(DEADLINE_S)) for future in futures] == [EngineStopped] * 4
        with pytest.raises(EngineStopped):
            engine.check_health()
        with pytest.raises(EngineStopped):
            engine.generate(request(9))

    def test_a_call_that_never_ends_fails_the_health_check(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck, go_on = threading.Event(), threading.Event()

        def hang(sample: torch.Tensor) -> None:
            stuck.set()
            assert go_on.wait(DEADLINE_S)

        break_calls(monkeypatch, loaded, hang)
        engine = start(loaded)
        with ThreadPoolExecutor(1) as threads:
            made = threads.submit(engine.generate, request(0))
            assert stuck.wait(DEADLINE_S)
            engine.check_health()
            monkeypatch.setattr(batching, "STUCK_AFTER_S", 0.0)
            with pytest.raises(EngineStopped, match="taken more than"):
                engine.check_health()
            go_on.set()
            made.result(DEADLINE_S)

    @pytest.mark.parametrize("max_batch_size", [8, 1], ids=["all of them run", "two of them wait"])
    def test_closing_ends_requests_that_run_or_wait(self, loaded: Checkpoint, start: Engines, max_batch_size: int) -> None:
        engine, inside = start(loaded, max_batch_size=max_batch_size), threading.Event()
        with ThreadPoolExecutor(3) as threads:
            futures = [
                threads.submit(engine.generate, request(number, num_inference_steps=150), lambda progress: inside.set())
                for number in range(3)
            ]
            assert inside.wait(DEADLINE_S)
            engine.close()
            assert [type(future.exception(DEADLINE_S)) for future in futures] == [EngineStopped] * 3
