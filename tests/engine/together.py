"""Ways to have requests meet, and to compare what comes out with what the plain pipeline makes alone."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from types import MethodType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from app.engine.checkpoint import Checkpoint, call_parameters
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.schemas import GeneratedImage, ImageRequest, Progress

DEADLINE_S = 30.0
Engines = Callable[..., ImageEngine]


def pixels(image: Image.Image) -> NDArray[np.int_]:
    return np.asarray(image.convert("RGB"), dtype=int)


def alone(checkpoint: Checkpoint, asked: ImageRequest) -> NDArray[np.int_]:
    """What a plain call of the pipeline makes, without the engine."""
    pipe: DiffusionPipeline = checkpoint.pipe
    own = pipe.scheduler
    pipe.scheduler = (getattr(diffusers, asked.scheduler) if asked.scheduler else type(own)).from_config(own.config)
    try:
        left_out = {"seed", "scheduler"} | ({"negative_prompt"} if not asked.negative_prompt else set())
        fields = {name: value for name, value in asked.model_dump(exclude=left_out).items() if name in call_parameters(pipe)}
        generator = torch.Generator().manual_seed(asked.seed or 0)
        with torch.inference_mode():
            return pixels(pipe(**fields, **checkpoint.arguments, generator=generator).images[0])
    finally:
        pipe.scheduler = own


def compute_as_with_a_gpu(engine: ImageEngine) -> None:
    """All of it in one thread."""
    engine._batcher._most_lanes = 0


def all_in_the_loop(count: int) -> Callable[[Progress], None]:
    """A progress callback that holds everybody after their first step until all `count` are there."""
    barrier = threading.Barrier(count)

    def meet(progress: Progress) -> None:
        if progress.step == 1:
            barrier.wait(DEADLINE_S)

    return meet


def together(engine: ImageEngine, asked: Sequence[ImageRequest]) -> list[GeneratedImage]:
    """All requests at once; from their second step on all of them are in their loops."""
    meet = all_in_the_loop(len(asked))
    with ThreadPoolExecutor(len(asked)) as threads:
        futures = [threads.submit(engine.generate, one, meet) for one in asked]
        return [future.result(DEADLINE_S) for future in futures]


@contextmanager
def one_held_in_the_loop(engine: ImageEngine) -> Iterator[Future[GeneratedImage]]:
    """The first request is held between two steps until the end of the context, and given as what it will become."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        inside.set()
        assert go_on.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as thread:
        held = thread.submit(engine.generate, request(0), hold)
        try:
            assert inside.wait(DEADLINE_S)
            yield held
        finally:
            go_on.set()


def made_until(engine: ImageEngine, met: Callable[[], bool]) -> list[GeneratedImage]:
    """Four requests at once, again and again until they `met`."""
    deadline = time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(4) as threads:
        while True:
            made = [future.result(DEADLINE_S) for future in [threads.submit(engine.generate, request(number)) for number in range(4)]]
            if met():
                return made
            assert time.monotonic() < deadline, "they never met"


class Held:
    """A function that begins and goes on when it is told to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.begun, self.go_on = function, threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self.begun.set()
        assert self.go_on.wait(DEADLINE_S)
        return self._function(*args, **kwargs)


def lasting_three_steps(function: Callable[..., Any], steps: "SimpleQueue[Progress]") -> Callable[..., Any]:
    """The function, which now takes until somebody else has told three steps more."""

    def long(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        now = steps.get(timeout=DEADLINE_S).step + steps.qsize()
        while steps.get(timeout=DEADLINE_S).step < now + 3:
            pass
        return function(*args, **kwargs)

    return long


def most_shared(batches: Sequence[Batch]) -> int:
    """How many requests shared a call, at most."""
    return max(batch.requests for batch in batches)


def request(number: int, **fields: Any) -> ImageRequest:  # noqa: ANN401
    own = {"prompt": f"picture {number}", "seed": number, "num_inference_steps": 5, "guidance_scale": 3.0, "width": 64, "height": 64}
    return ImageRequest.model_validate(own | fields)


def assert_right(loaded: Checkpoint, made: GeneratedImage) -> None:
    assert np.abs(pixels(made.image) - alone(loaded, made.facts.request)).max() <= 1


def break_calls(monkeypatch: pytest.MonkeyPatch, loaded: Checkpoint, breaks: Callable[[torch.Tensor], None]) -> None:
    """`breaks` sees the sample of every call of the denoiser before it is computed, and may raise."""
    original = type(loaded.pipe.unet).forward

    @functools.wraps(original)
    def forward(self: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        breaks(sample)
        return original(self, sample, *args, **kwargs)

    monkeypatch.setattr(loaded.pipe.unet, "forward", MethodType(forward, loaded.pipe.unet))
