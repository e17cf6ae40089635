"""What would take an engine's places or memory for long, and does not."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from app.engine import batching, task
from app.engine import engine as engine_module
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.schemas import EngineStopped, GenerationCancelled, Progress
from tests.engine.families import small
from tests.engine.together import DEADLINE_S, Engines, Held, assert_right, break_calls, one_held_in_the_loop, request


def test_a_caller_that_is_interrupted_while_it_is_told_of_a_step_leaves_its_place(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(SimpleQueue[Any]):
        def get(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            super().get(*args, **kwargs)
            raise KeyboardInterrupt

    engine = start(loaded, max_batch_size=1)
    monkeypatch.setattr(task, "SimpleQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(request(0), lambda progress: None)
    monkeypatch.undo()
    with ThreadPoolExecutor(1) as thread:
        assert_right(loaded, thread.submit(engine.generate, request(1)).result(DEADLINE_S))


def test_the_place_of_a_cancelled_request_is_free_although_its_caller_is_still_busy_with_a_step(
    loaded: Checkpoint, start: Engines, batches: list[Batch]
) -> None:
    engine, cancel, hold = start(loaded, max_batch_size=1), threading.Event(), Held(lambda progress: None)
    with ThreadPoolExecutor(2) as threads:
        gone = threads.submit(engine.generate, request(0), hold, cancel)
        assert hold.begun.wait(DEADLINE_S)
        cancel.set()
        assert_right(loaded, threads.submit(engine.generate, request(1)).result(DEADLINE_S))
        assert not gone.done()
        hold.go_on.set()
        assert isinstance(gone.exception(DEADLINE_S), GenerationCancelled)
    assert sum(batch.rows for batch in batches) == (1 + 5) * 2


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_an_error_shows_where_it_came_from_and_holds_no_tensors(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    samples, breaks = list[weakref.ref[torch.Tensor]](), threading.Event()

    def broken(sample: torch.Tensor) -> None:
        if breaks.is_set():
            samples.append(weakref.ref(sample))
            raise ZeroDivisionError

    break_calls(monkeypatch, loaded, broken)
    engine = start(loaded)
    with one_held_in_the_loop(engine) if beside else nullcontext():
        breaks.set()
        gc.disable()
        try:
            with pytest.raises(ZeroDivisionError) as raised:
                engine.generate(request(1))
            deadline = time.monotonic() + DEADLINE_S
            while [sample() for sample in samples] != [None]:  # the thread that computed it may not be through yet
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert raised.traceback[-1].name == "broken"
        finally:
            gc.enable()
            breaks.clear()


@pytest.mark.parametrize("way", ["it is cancelled", "its caller fails", "its denoiser fails"])
def test_a_request_that_ends_early_is_gone_at_once_although_its_error_is_kept(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    cancel, breaks = threading.Event(), threading.Event()

    def end(progress: Progress) -> None:
        if progress.step == 2:
            {"it is cancelled": cancel, "its denoiser fails": breaks}[way].set()

    def broken(sample: torch.Tensor) -> None:
        if breaks.is_set():
            raise ZeroDivisionError

    break_calls(monkeypatch, loaded, broken)
    engine, deadline = start(loaded), time.monotonic() + DEADLINE_S
    gc.collect()
    gc.disable()
    try:
        with pytest.raises((GenerationCancelled, KeyError, ZeroDivisionError)) as raised:
            engine.generate(request(1), end, cancel)
        while any(isinstance(one, task.Task) for one in gc.get_objects()):  # the batching thread may not be through yet
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert raised.traceback
    finally:
        gc.enable()


def test_a_trial_picture_that_has_to_wait_for_others_is_no_sign_of_illness(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    tried = engine_module.TRIAL_S
    monkeypatch.setattr(engine_module, "TRIAL_S", 0.1)
    engine = start(loaded, max_batch_size=1)
    with pytest.raises(ZeroDivisionError):
        engine.generate(request(0), fail)
    with one_held_in_the_loop(engine):
        engine.check_health()
    assert tried < 30, "Serve gives a check no more"


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "pixart"])
def test_every_kind_of_pipeline_can_make_the_trial_picture(start: Engines, family: str) -> None:
    engine = start(small(family, **{"use_resolution_binning": False} if family == "pixart" else {}))
    engine._in_doubt = True
    engine.check_health()
    assert not engine._in_doubt


def test_a_decoding_beside_the_steps_that_never_ends_fails_the_health_check(
    loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Held(loaded.pipe.vae.decode)
    monkeypatch.setattr(loaded.pipe.vae, "decode", decode)
    engine = start(loaded)
    with ThreadPoolExecutor(1) as thread:
        with one_held_in_the_loop(engine) as held:
            made = thread.submit(engine.generate, request(1))
            assert decode.begun.wait(DEADLINE_S)
            engine.check_health()
            monkeypatch.setattr(batching, "STUCK_AFTER_S", 0.0)
            monkeypatch.setattr(engine._batcher, "_busy_since", None)
            with pytest.raises(EngineStopped, match="taken more than"):
                engine.check_health()
            decode.go_on.set()
            made.result(DEADLINE_S)
        held.result(DEADLINE_S)


def test_a_pipeline_that_keeps_state_between_its_steps_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    from app.engine.engine import ImageEngine

    loaded = small("flux")
    loaded.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="step caches keep state"):
        ImageEngine(loaded)


def test_an_engine_that_cannot_be_made_leaves_no_thread(loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AttributeError("no decode")

    monkeypatch.setattr(engine_module, "shared", refuse)
    with pytest.raises(AttributeError, match="no decode"):
        start(loaded)
