"""Cancelling, errors, memory and ends: every request ends with its right picture or one clear error, and never hangs."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch

from app.engine import batching
from app.engine.batching import Batch, EngineStopped
from app.engine.checkpoint import Checkpoint
from app.engine.engine import ImageEngine
from app.schemas import DeadlinePassed, GeneratedImage, GenerationCancelled, ImageRequest, Progress
from tests.engine.families import small
from tests.engine.together import DEADLINE_S, all_in_the_loop, alone, most_shared, pixels, together

Engines = Callable[..., ImageEngine]


@pytest.fixture
def batches() -> list[Batch]:
    return []


@pytest.fixture
def loaded() -> Checkpoint:
    return small("sd1")


@pytest.fixture
def start(batches: list[Batch]) -> Iterator[Engines]:
    """Makes engines; at the end they are closed, and no thread of theirs is left."""
    before = set(threading.enumerate())
    engines: list[ImageEngine] = []

    def make(loaded: Checkpoint, max_batch_size: int = 8) -> ImageEngine:
        engines.append(ImageEngine(loaded, max_batch_size=max_batch_size, on_batch=batches.append))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    left = {thread for thread in set(threading.enumerate()) - before if not thread.name.startswith(("tqdm", "Thread-"))}
    assert left == set()


def request(number: int, **fields: Any) -> ImageRequest:  # noqa: ANN401
    own = {"prompt": f"picture {number}", "seed": number, "num_inference_steps": 5, "guidance_scale": 3.0, "width": 64, "height": 64}
    return ImageRequest.model_validate(own | fields)


def assert_right(loaded: Checkpoint, made: GeneratedImage) -> None:
    assert np.abs(pixels(made.image) - alone(loaded, made.facts.request)).max() <= 1


def setting(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now sets the event when it is called."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        event.set()
        return function(*args, **kwargs)

    return wrapped


def break_calls(monkeypatch: pytest.MonkeyPatch, loaded: Checkpoint, breaks: Callable[[torch.Tensor], None]) -> None:
    """`breaks` sees the sample of every call of the denoiser before it is computed, and may raise."""
    original = type(loaded.pipe.unet).forward

    @functools.wraps(original)
    def forward(self: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        breaks(sample)
        return original(self, sample, *args, **kwargs)

    monkeypatch.setattr(loaded.pipe.unet, "forward", MethodType(forward, loaded.pipe.unet))


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
        engine, cancel, inside, go_on = start(loaded, max_batch_size=1), threading.Event(), threading.Event(), threading.Event()

        def hold(progress: Progress) -> None:
            inside.set()
            assert go_on.wait(DEADLINE_S)

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(engine.generate, request(0), hold)
            assert inside.wait(DEADLINE_S)
            second = threads.submit(engine.generate, request(1), cancel=cancel)
            cancel.set()
            assert isinstance(second.exception(DEADLINE_S), GenerationCancelled)
            go_on.set()
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

    def test_a_deadline_that_passes_in_the_loop(self, loaded: Checkpoint, start: Engines, batches: list[Batch]) -> None:
        engine, told = start(loaded), list[Progress]()

        def hold_until_it_has_passed(progress: Progress) -> None:
            told.append(progress)
            if progress.step == 2:
                threading.Event().wait(2)

        with pytest.raises(DeadlinePassed, match="not ready after 2 s"):
            engine.generate(request(0), hold_until_it_has_passed, timeout_s=2)
        assert told[-1].step == 2
        assert sum(batch.rows for batch in batches) == 2 * 2

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
        self, loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        poison = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))[0, :, 0, 0]
        expected = alone(loaded, request(1))

        def poisoned(sample: torch.Tensor) -> None:
            scaled = sample[:, :, 0, 0] / sample[:, :1, 0, 0]
            if torch.isclose(scaled, poison / poison[0], rtol=1e-3).all(dim=1).any():
                raise ZeroDivisionError("this row")

        break_calls(monkeypatch, loaded, poisoned)
        engine = start(loaded)
        with ThreadPoolExecutor(4) as threads:
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
        engine.check_health()

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

    def test_closing_ends_requests_that_run(self, loaded: Checkpoint, start: Engines) -> None:
        engine, inside = start(loaded), threading.Event()
        with ThreadPoolExecutor(3) as threads:
            futures = [
                threads.submit(engine.generate, request(number, num_inference_steps=150), lambda progress: inside.set())
                for number in range(3)
            ]
            assert inside.wait(DEADLINE_S)
            engine.close()
            assert [type(future.exception(DEADLINE_S)) for future in futures] == [EngineStopped] * 3

    def test_a_picture_that_is_decoded_does_not_hold_up_the_steps_of_others(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, stepped, decoding = start(loaded), threading.Event(), threading.Event()
        meet, decode = all_in_the_loop(2), loaded.pipe.vae.decode

        def slow_decode(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            decoding.set()
            assert stepped.wait(DEADLINE_S), "no step was taken while this picture was decoded"
            return decode(*args, **kwargs)

        def step_while_the_other_is_decoded(progress: Progress) -> None:
            meet(progress)
            if progress.step == 2:
                assert decoding.wait(DEADLINE_S)
            if progress.step == 4:
                stepped.set()

        monkeypatch.setattr(loaded.pipe.vae, "decode", slow_decode)
        with ThreadPoolExecutor(2) as threads:
            short = threads.submit(engine.generate, request(0, num_inference_steps=2), meet)
            long = threads.submit(engine.generate, request(1), step_while_the_other_is_decoded)
            made = [future.result(DEADLINE_S) for future in (short, long)]
        monkeypatch.undo()
        for one in made:
            assert_right(loaded, one)


class TestMemory:
    def test_a_batch_that_does_not_fit_is_split_and_stays_small(
        self, loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [alone(loaded, request(number)) for number in range(6)]

        def at_most_six_rows(sample: torch.Tensor) -> None:
            if len(sample) > 6:
                raise torch.OutOfMemoryError

        break_calls(monkeypatch, loaded, at_most_six_rows)
        made = together(start(loaded), [request(number) for number in range(6)])
        assert max(np.abs(pixels(one.image) - other).max() for one, other in zip(made, expected, strict=True)) <= 1
        assert 2 <= most_shared(batches) <= 3

    def test_a_request_that_does_not_fit_alone_fails_alone(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_large_ones(sample: torch.Tensor) -> None:
            if sample.shape[-1] > 8:
                raise torch.OutOfMemoryError

        break_calls(monkeypatch, loaded, no_large_ones)
        engine = start(loaded)
        with ThreadPoolExecutor(2) as threads:
            large = threads.submit(engine.generate, request(0, width=96, height=96))
            threads.submit(engine.generate, request(1)).result(DEADLINE_S)
            assert isinstance(large.exception(DEADLINE_S), torch.OutOfMemoryError)

    def test_decoding_that_does_not_fit_is_done_in_tiles(self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
        vae, tiled = loaded.pipe.vae, list[bool]()
        decode = vae.decode

        def only_tiles(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            tiled.append(vae.use_tiling)
            if not vae.use_tiling:
                raise torch.OutOfMemoryError
            return decode(*args, **kwargs)

        monkeypatch.setattr(vae, "decode", only_tiles)
        assert start(loaded).generate(request(0)).image.size == (64, 64)
        assert tiled == [False, True]
        assert not vae.use_tiling


class TestAlone:
    """What cannot be joined runs alone, correctly, and that is said once."""

    def test_a_module_that_mixes_rows_is_found_out_the_first_time(
        self, start: Engines, batches: list[Batch], caplog: pytest.LogCaptureFixture
    ) -> None:
        loaded = small("sd1")
        honest = type(loaded.pipe.unet).forward

        class Liar(type(loaded.pipe.unet)):  # type: ignore[misc]
            @functools.wraps(honest)  # the engine looks at its signature
            def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                (output,) = honest(self, sample, *args, **kwargs)
                return (output + output.mean(dim=0) * (len(sample) > 2),)

        loaded.pipe.unet.__class__ = Liar
        for one in together(start(loaded), [request(number) for number in range(4)]):
            assert_right(loaded, one)
        assert most_shared(batches[-6:]) == 1
        assert [record.message for record in caplog.records if "one at a time" in record.message] == [
            "calls of Liar change when they are joined, so they run one at a time"
        ]

    @pytest.mark.parametrize(
        ("loaded", "said"),
        [
            (small("pixart", use_resolution_binning=False), "does not tell its steps"),
            (small("z_image"), "takes lists of samples"),
        ],
        ids=["no step callback", "list inputs"],
    )
    def test_a_pipeline_whose_calls_cannot_be_joined(
        self, start: Engines, batches: list[Batch], caplog: pytest.LogCaptureFixture, loaded: Checkpoint, said: str
    ) -> None:
        with caplog.at_level(logging.WARNING):
            engine = start(loaded)
            with ThreadPoolExecutor(3) as threads:
                made = [future.result(DEADLINE_S) for future in [threads.submit(engine.generate, request(n)) for n in range(3)]]
        for one in made:
            assert_right(loaded, one)
        assert most_shared(batches) == 1
        (message,) = [record.message for record in caplog.records if "one at a time" in record.message]
        assert said in message
