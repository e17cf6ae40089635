"""Cancelling and deadlines, counted in denoiser rows: none is computed for a request after the step in which it was cancelled."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine import engine as engine_module
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.schemas import DeadlinePassed, GenerationCancelled, Progress
from tests.engine.together import (
    DEADLINE_S,
    Engines,
    Held,
    all_in_the_loop,
    assert_right,
    most_shared,
    one_held_in_the_loop,
    request,
)
from tests.eventually import eventually


def setting(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now sets the event when it is called."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        event.set()
        return function(*args, **kwargs)

    return wrapped


class TestCancelling:
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
            eventually(lambda: len(engine._batcher._tasks) == 2)
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
                eventually(lambda: not engine._batcher._tasks)

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
