"""When the memory is too small, or calls cannot be joined: the pictures are right all the same."""

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from app.engine import batching
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from tests.engine.families import small
from tests.engine.together import (
    DEADLINE_S,
    Engines,
    alone,
    assert_right,
    break_calls,
    compute_as_with_a_gpu,
    made_until,
    most_shared,
    one_held_in_the_loop,
    pixels,
    request,
    together,
)


def rows_of_calls(monkeypatch: pytest.MonkeyPatch, loaded: Checkpoint, most: int) -> list[int]:
    """Of the denoiser's calls as they are tried; more than `most` do not fit into memory."""
    tried: list[int] = []

    def note_and_refuse(sample: torch.Tensor) -> None:
        tried.append(len(sample))
        if len(sample) > most:
            raise torch.OutOfMemoryError

    break_calls(monkeypatch, loaded, note_and_refuse)
    return tried


class TestMemory:
    def test_a_batch_that_does_not_fit_is_split_and_stays_small(
        self, loaded: Checkpoint, start: Engines, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [alone(loaded, request(number)) for number in range(6)]
        tried = rows_of_calls(monkeypatch, loaded, most=6)
        made = together(start(loaded), [request(number) for number in range(6)])
        assert 1 <= sum(rows > 6 for rows in tried) <= 2
        assert max(np.abs(pixels(one.image) - other).max() for one, other in zip(made, expected, strict=True)) <= 1
        assert 2 <= most_shared(batches) <= 3

    def test_two_that_do_not_fit_together_the_first_time_keep_what_each_had_alone(
        self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = [request(number) for number in range(2)]
        expected = [alone(loaded, one) for one in asked]
        tried = rows_of_calls(monkeypatch, loaded, most=2)
        made = together(start(loaded), asked)
        assert max(np.abs(pixels(one.image) - other).max() for one, other in zip(made, expected, strict=True)) <= 1
        assert tried.count(4) == 1
        assert tried.count(2) == sum(one.num_inference_steps or 0 for one in asked), "none is computed twice"

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

    def test_a_decoder_that_draws_noise(self, loaded: Checkpoint, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
        decode, rows = loaded.pipe.vae.decode, list[int]()

        def noisy(z: torch.Tensor, *args: Any, generator: torch.Generator, **kwargs: Any) -> Any:  # noqa: ANN401
            rows.append(len(z))
            return decode(z + torch.randn(z.shape, generator=generator), *args, **kwargs)

        monkeypatch.setattr(loaded.pipe.vae, "decode", noisy)
        for one in made_until(start(loaded), lambda: max(rows) > 1):
            assert_right(loaded, one)

    def test_a_module_that_breaks_on_joined_calls(self, loaded: Checkpoint, start: Engines, batches: list[Batch]) -> None:
        honest = type(loaded.pipe.unet).forward

        class Broken(type(loaded.pipe.unet)):  # type: ignore[misc]
            @functools.wraps(honest)
            def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
                return honest(self, {2: sample}[len(sample)], *args, **kwargs)

        loaded.pipe.unet.__class__ = Broken
        for one in together(start(loaded), [request(number) for number in range(4)]):
            assert_right(loaded, one)
        assert most_shared(batches) == 1

    def test_what_cannot_be_joined_is_not_waited_for(self, start: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = small("sd1")

        def only_one(sample: torch.Tensor) -> None:
            if len(sample) > 2:
                raise ValueError

        break_calls(monkeypatch, loaded, only_one)
        engine = start(loaded)
        compute_as_with_a_gpu(engine)
        together(engine, [request(0), request(1)])
        monkeypatch.setattr(batching, "PATIENCE_S", math.inf)
        with one_held_in_the_loop(engine), ThreadPoolExecutor(1) as thread:
            assert_right(loaded, thread.submit(engine.generate, request(2)).result(DEADLINE_S))

    @pytest.mark.parametrize(
        ("loaded", "said"),
        [
            (small("pixart", use_resolution_binning=False), "does not tell its steps"),
            (small("z_image"), "takes more than tensors and values"),
            (small("sd1_pag"), "changes its denoiser for the time of a call"),
        ],
        ids=["no step callback", "list inputs", "a denoiser that is changed"],
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
