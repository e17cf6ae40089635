"""Cancelling, errors and ends: every request ends with its right picture or one clear error, and never hangs."""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.engine import batching
from app.engine import engine as engine_module
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.schemas import DeadlinePassed, EngineStopped, GeneratedImage, GenerationCancelled, Progress
from tests.engine.together import (
    DEADLINE_S,
    Engines,
    Held,
    all_in_the_loop,
    alone,
    assert_right,
    break_calls,
    most_shared,
    one_held_in_the_loop,
    pixels,
    request,
)

ROWS_OF_ONE = 2  # with guidance


def setting(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now sets the event when it is called."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        event.set()
        return function(*args, **kwargs)

    return wrapped


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


class TestCancelling:
    """Counted in denoiser rows: none is computed for a request after the step in which it was cancelled."""

    def test_before_it_starts(self, loaded: Checkpoint, start: Engines, batches: list[Batch]) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(GenerationCancelled):
            start(loaded).generate(request(0), cancel=cancel)
        assert batches == []

    def test_while_it_waits_for_a_place(self, loaded: Checkpoint, start: Engines, batches: list[Batch]) -> None:
        engine, cancel = start(loaded, max_batch_size=1), threading.Event()
        with one_held_in_the_loop(engine) as first, ThreadPoolExecutor(1) as thread:
            second = thread.submit(engine.generate, request(1), cancel=cancel)
            cancel.set()
            assert isinstance(second.exception(DEADLINE_S), GenerationCancelled)
        assert_right(loaded, first.result(DEADLINE_S))
        assert sum(batch.rows for batch in batches) == 5 * 2

    def test_while_its_text_is_encoded(
        self, loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cancel, engine = threading.Event(), start(loaded)
        encoder = loaded.pipe.text_encoder
        monkeypatch.setattr(encoder, "forward", setting(cancel, encoder.forward))
        with pytest.raises(GenerationCancelled):
            engine.generate(request(0), cancel=cancel)
        assert batches == []

    @pytest.mark.parametrize("step", [1, 3, 5])
    def test_in_the_loop_while_the_others_go_on(self, loaded: Checkpoint, start: Engines, batches: list[Batch], step: int) -> None:
        engine, cancel, meet = start(loaded), threading.Event(), all_in_the_loop(3)

        def cancel_at_the_step(progress: Progress) -> None:
            meet(progress)
            if progress.step == step:
                cancel.set()

        with ThreadPoolExecutor(3) as threads:
            gone = threads.submit(engine.generate, request(0), cancel_at_the_step, cancel)
            others = [threads.submit(engine.generate, request(number), meet) for number in (1, 2)]
            assert isinstance(gone.exception(DEADLINE_S), GenerationCancelled)
            for other in others:
                assert_right(loaded, other.result(DEADLINE_S))
        assert sum(batch.rows for batch in batches) == (step + 5 + 5) * 2
        assert step == 1 or most_shared(batches) >= 2

    def test_a_deadline_that_passes_in_the_loop(
        self, loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, told, late = start(loaded), list[Progress](), threading.Event()
        monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 900 * late.is_set()))

        def let_it_pass(progress: Progress) -> None:
            told.append(progress)
            if progress.step == 2:
                late.set()
                deadline = time.monotonic() + DEADLINE_S
                while engine._batcher._tasks:
                    assert time.monotonic() < deadline, "its place was never free"
                    time.sleep(0.001)

        with pytest.raises(DeadlinePassed, match="not ready after 600 s"):
            engine.generate(request(0), let_it_pass, timeout_s=600)
        assert told[-1].step == 2
        assert sum(batch.rows for batch in batches) == 2 * 2

    def test_while_its_decoding_waits_for_that_of_another(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decode = Held(loaded.pipe.vae.decode)
        monkeypatch.setattr(loaded.pipe.vae, "decode", decode)
        engine, cancel, denoised = start(loaded), threading.Event(), threading.Event()
        with one_held_in_the_loop(engine) as held, ThreadPoolExecutor(2) as threads:
            first = threads.submit(engine.generate, request(1))
            assert decode.begun.wait(DEADLINE_S)
            second = threads.submit(engine.generate, request(2, num_inference_steps=1), lambda progress: denoised.set(), cancel)
            assert denoised.wait(DEADLINE_S)
            cancel.set()
            assert isinstance(second.exception(DEADLINE_S), GenerationCancelled)
            decode.go_on.set()
            made = first.result(DEADLINE_S)
        monkeypatch.undo()
        for one in (made, held.result(DEADLINE_S)):
            assert_right(loaded, one)

    def test_while_it_is_decoded(self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
        cancel, engine = threading.Event(), start(loaded)
        monkeypatch.setattr(loaded.pipe.vae, "decode", setting(cancel, loaded.pipe.vae.decode))
        with pytest.raises(GenerationCancelled):
            engine.generate(request(0), cancel=cancel)
        monkeypatch.undo()
        assert_right(loaded, engine.generate(request(1)))

    def test_after_its_end(self, loaded: Checkpoint, start: Engines) -> None:
        cancel, engine = threading.Event(), start(loaded)
        made = engine.generate(request(0), cancel=cancel)
        cancel.set()
        assert_right(loaded, made)
        assert_right(loaded, engine.generate(request(1)))

    def test_its_place_is_taken_by_the_next(self, loaded: Checkpoint, start: Engines) -> None:
        engine, cancel = start(loaded, max_batch_size=1), threading.Event()
        with ThreadPoolExecutor(2) as threads:
            gone = threads.submit(engine.generate, request(0, num_inference_steps=150), lambda progress: cancel.set(), cancel)
            assert_right(loaded, threads.submit(engine.generate, request(1)).result(DEADLINE_S))
            assert isinstance(gone.exception(DEADLINE_S), GenerationCancelled)


def test_those_who_wait_go_on_in_the_order_they_came(loaded: Checkpoint, start: Engines) -> None:
    engine, order = start(loaded, max_batch_size=1), list[int]()

    def note(number: int, progress: Progress) -> None:
        order.append(number)

    deadline = time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(3) as threads, one_held_in_the_loop(engine):
        for number in (1, 2, 3):
            threads.submit(engine.generate, request(number), functools.partial(note, number))
            while len(engine._batcher._tasks) < number + 1:
                assert time.monotonic() < deadline, "it never came"
                time.sleep(0.01)
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
