"""The ways to make pictures that scripts/benchmark.py compares, each in a process of its own that does nothing else.

In one process they would slow each other down: on a CPU the workers of two computing threads contend (see app/engine/threads.py).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from app import png
from app.engine import checkpoint
from app.engine.checkpoint import Checkpoint, capabilities_of, compile_blocks_of
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.engine.facts import facts_of
from app.schemas import ImageRequest
from scripts import random_sd2

LOOP, WHOLE, ENGINE, COMPILED = "loop", "whole batch", "engine", "engine, compiled"
Make = Callable[[Sequence[ImageRequest]], int]


@dataclass(frozen=True, slots=True)
class Taken:
    seconds: float
    most_shared: int  # how many requests shared a call of the denoiser, at most


class Way:
    """LOOP, WHOLE, ENGINE or COMPILED, ready once it was used for the first time. Every way starts from prompts and ends with PNG bytes."""

    def __init__(self, name: str, model: str, device: str, largest: int) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (name, model, device, largest))

    def make(self, asked: Sequence[ImageRequest]) -> Taken:
        return self._process.submit(_timed, asked).result()

    def close(self) -> None:
        self._process.shutdown()


_ready: list[Make] = []  # what this process does


def _prepare(name: str, model: str, device: str, largest: int) -> None:
    loaded = load_checkpoint(model, device)
    if name == COMPILED:
        compile_blocks_of(loaded.pipe)
    _ready.append(_with_engine(loaded, largest) if name in (ENGINE, COMPILED) else _with_pipeline(loaded, whole=name == WHOLE))


def _timed(asked: Sequence[ImageRequest]) -> Taken:
    start = time.perf_counter()
    most_shared = _ready[0](asked)
    return Taken(time.perf_counter() - start, most_shared)


def _with_engine(loaded: Checkpoint, largest: int) -> Make:
    batches: list[Batch] = []
    engine = ImageEngine(loaded, max_batch_size=largest, on_batch=batches.append)
    callers = ThreadPoolExecutor(largest)

    def make(asked: Sequence[ImageRequest]) -> int:
        batches.clear()
        list(callers.map(engine.generate, asked))
        return max(batch.requests for batch in batches)

    return make


def _with_pipeline(loaded: Checkpoint, *, whole: bool) -> Make:
    capabilities = capabilities_of(loaded, None, "benchmark")

    def make(asked: Sequence[ImageRequest]) -> int:
        for together in [asked] if whole else [[one] for one in asked]:
            first = together[0]
            with torch.inference_mode():
                images = loaded.pipe(
                    [one.prompt for one in together],
                    negative_prompt=[one.negative_prompt for one in together],
                    width=first.width,
                    height=first.height,
                    num_inference_steps=first.num_inference_steps,
                    guidance_scale=first.guidance_scale,
                    generator=[torch.Generator().manual_seed(one.seed or 0) for one in together],
                ).images
            for image, one in zip(images, together, strict=True):
                png.encode(image, facts_of(one, capabilities, loaded.pipe))
        return len(asked) if whole else 1

    return make


def load_checkpoint(model: str, device: str) -> Checkpoint:
    """As in Settings, or Stable Diffusion 2's architecture with random weights: `sd2-random`, or `sd2-random-reduced` in width."""
    if not model.startswith("sd2-random"):
        return checkpoint.load(model, device=device)
    widths = random_sd2.REDUCED if model == "sd2-random-reduced" else random_sd2.REAL
    pipe = random_sd2.build(widths, dtype=torch.float16 if device == "cuda" else torch.float32, sample_size=64).to(device)
    pipe.set_progress_bar_config(disable=True)
    return Checkpoint(pipe, model, "random", num_inference_steps=25, guidance_scale=7.5)
