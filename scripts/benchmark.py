"""How fast pictures are made, side by side: the plain pipeline in a loop, the plain pipeline with the whole batch in one call (the
practical limit), and the engine with as many callers at once.

    python -m scripts.benchmark                                             # the bundled checkpoint on this machine
    python -m scripts.benchmark --model sd2-random --device cuda --size 512 --steps 25
    python -m scripts.benchmark --requests 1 8 --rounds 3 --out results
    python -m scripts.benchmark --served                                    # over HTTP instead: see scripts/benchmark_serving.py

The ways take turns, round by round, and medians are told: ratios hold on a machine whose speed drifts. Every way starts from a prompt and
ends with PNG bytes. Writes benchmark.json and benchmark.png into --out.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import app.engine  # noqa: F401 (before torch)

# isort: split
import diffusers
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from app import png
from app.engine import checkpoint
from app.engine.checkpoint import Checkpoint
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.engine.facts import facts_of
from app.schemas import ImageRequest
from scripts import random_sd2

PROMPTS = ("a red heart on a yellow background", "a small blue star", "a green tree under a white cloud", "a purple fish")
LOOP, WHOLE, ENGINE = "loop", "whole batch", "engine"


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds are medians over the rounds, for all requests together."""

    load: str
    requests: int
    seconds: dict[str, float]
    most_shared: int

    @property
    def of_whole(self) -> float | None:
        """The engine's throughput as a share of the whole batch's."""
        return self.seconds[WHOLE] / self.seconds[ENGINE] if WHOLE in self.seconds else None

    @property
    def over_loop(self) -> float:
        return self.seconds[LOOP] / self.seconds[ENGINE]


class Bench:
    """One checkpoint, run in every way."""

    def __init__(self, loaded: Checkpoint, largest: int) -> None:
        self.batches: list[Batch] = []
        self.pipe: DiffusionPipeline = copy.copy(loaded.pipe)  # the engine's hook lets calls from outside pass
        self.engine = ImageEngine(loaded, max_batch_size=largest, on_batch=self.batches.append)
        self._callers = ThreadPoolExecutor(largest)

    def loop(self, asked: Sequence[ImageRequest]) -> None:
        for one in asked:
            self._plain([one])

    def whole_batch(self, asked: Sequence[ImageRequest]) -> None:
        self._plain(asked)

    def at_once(self, asked: Sequence[ImageRequest]) -> None:
        list(self._callers.map(self.engine.generate, asked))

    def _plain(self, asked: Sequence[ImageRequest]) -> None:
        first = asked[0]
        with torch.inference_mode():
            images = self.pipe(
                [one.prompt for one in asked],
                negative_prompt=[one.negative_prompt for one in asked],
                width=first.width,
                height=first.height,
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                generator=[torch.Generator().manual_seed(one.seed or 0) for one in asked],
            ).images
        for image, one in zip(images, asked, strict=True):
            png.encode(image, facts_of(one, self.engine.capabilities, self.pipe))

    def close(self) -> None:
        self._callers.shutdown()
        self.engine.close()


def equal_load(count: int, size: int, steps: int) -> list[ImageRequest]:
    return [
        ImageRequest(
            prompt=PROMPTS[number % len(PROMPTS)], seed=number, width=size, height=size, num_inference_steps=steps, guidance_scale=5.0
        )
        for number in range(count)
    ]


def mixed_load(count: int, size: int, steps: int) -> list[ImageRequest]:
    """Every other one is three quarters as wide; steps go from three quarters of `steps` to all."""
    narrow = max(64, size * 3 // 4 // 8 * 8)
    shapes = [
        {"width": narrow if number % 2 else size, "num_inference_steps": max(1, steps - number % 4 * steps // 12)}
        for number in range(count)
    ]
    return [one.model_copy(update=shape) for one, shape in zip(equal_load(count, size, steps), shapes, strict=True)]


def measure(bench: Bench, load: str, asked: Sequence[ImageRequest], rounds: int) -> Result:
    ways: dict[str, Callable[[Sequence[ImageRequest]], None]] = {LOOP: bench.loop, ENGINE: bench.at_once}
    if load == "equal":
        ways[WHOLE] = bench.whole_batch  # one call of a pipeline has one size and one number of steps
    for run in ways.values():
        run([one.model_copy(update={"num_inference_steps": 2}) for one in asked])
    bench.batches.clear()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            ways[way](asked)
            seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return Result(load, len(asked), medians, max(batch.requests for batch in bench.batches))


def table(results: Sequence[Result]) -> str:
    lines = [
        "| load | requests | loop s | whole batch s | engine s | engine / whole batch | engine / loop | most shared |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        whole = f"{one.seconds[WHOLE]:.2f}" if WHOLE in one.seconds else "–"
        share = f"{one.of_whole:.2f}" if one.of_whole is not None else "–"
        lines.append(
            f"| {one.load} | {one.requests} | {one.seconds[LOOP]:.2f} | {whole} | {one.seconds[ENGINE]:.2f} | {share} "
            f"| {one.over_loop:.2f} | {one.most_shared} |"
        )
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, load in zip(figure.subplots(1, 2, sharey=True), ("equal", "mixed"), strict=True):
        chosen = [one for one in results if one.load == load]
        for way in (LOOP, WHOLE, ENGINE):
            points = [(one.requests, one.requests / one.seconds[way]) for one in chosen if way in one.seconds]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=way)
        axes.set(title=f"{load} requests", xlabel="requests at once", ylabel="pictures a second", ylim=(0, None))
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def surroundings(args: argparse.Namespace) -> dict[str, object]:
    """Hardware, versions and settings."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__},
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
    }


def load_checkpoint(model: str, device: str) -> Checkpoint:
    if not model.startswith("sd2-random"):
        return checkpoint.load(model, device=device)
    widths = random_sd2.REDUCED if model == "sd2-random-reduced" else random_sd2.REAL
    pipe = random_sd2.build(widths, dtype=torch.float16 if device == "cuda" else torch.float32, sample_size=64).to(device)
    pipe.set_progress_bar_config(disable=True)
    return Checkpoint(pipe, model, "random", num_inference_steps=25, guidance_scale=7.5)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if "--served" in given:
        from scripts import benchmark_serving

        return benchmark_serving.main([one for one in given if one != "--served"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="as in Settings, or sd2-random, or sd2-random-reduced (default: tiny)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--steps", type=int, default=20, help="default 20")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="how many at once (default 1 2 4 8 16)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--out", type=Path, default=Path(".benchmark"), help="default .benchmark")
    args = parser.parse_args(argv)

    about = surroundings(args)
    print(json.dumps(about, indent=1))
    bench = Bench(load_checkpoint(args.model, args.device), max(args.requests))
    try:
        cases = [
            (load, make(count, args.size, args.steps))
            for load, make in (("equal", equal_load), ("mixed", mixed_load))
            for count in args.requests
            if load == "equal" or count > 1
        ]
        results = [measure(bench, load, asked, args.rounds) for load, asked in tqdm(cases)]
    finally:
        bench.close()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmark.json").write_text(json.dumps({**about, "results": [asdict(one) for one in results]}, indent=1))
    plot(results, args.out / "benchmark.png", f"{args.model}, {args.size} x {args.size}, {args.steps} steps, {about['device']}")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
