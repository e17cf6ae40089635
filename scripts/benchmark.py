"""How fast pictures are made, side by side: the plain pipeline in a loop, the plain pipeline with the whole batch in one call (the
practical limit), and the engine with as many callers at once.

    python -m scripts.benchmark                                             # the bundled checkpoint on this machine
    python -m scripts.benchmark --model sd2-random --device cuda --size 512 --steps 25
    python -m scripts.benchmark --requests 1 8 --rounds 3 --out results
    python -m scripts.benchmark --compiled                                  # and the engine with compile_repeated_blocks
    python -m scripts.benchmark --served                                    # over HTTP instead: see scripts/benchmark_serving.py

The ways take turns, round by round, and are compared within each round: the medians of those ratios hold on a machine whose speed drifts.
Writes benchmark.json, with every round, and benchmark.png into --out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from app.schemas import ImageRequest
from scripts.machine import about_machine
from scripts.ways import COMPILED, ENGINE, LOOP, WHOLE, Way

MORE_ROUNDS = 4  # times as many, at most, where fewer requests make a round shorter
PROMPTS = ("a red heart on a yellow background", "a small blue star", "a green tree under a white cloud", "a purple fish")


@dataclass(frozen=True, slots=True)
class Result:
    """By way, the seconds of each round for all requests together."""

    load: str
    requests: int
    seconds: dict[str, list[float]]
    most_shared: int

    def median(self, way: str) -> float | None:
        return statistics.median(self.seconds[way]) if way in self.seconds else None

    def engine_over(self, way: str) -> float | None:
        """The engine's throughput by that of `way`: the median over the rounds."""
        if way not in self.seconds:
            return None
        return statistics.median(other / own for other, own in zip(self.seconds[way], self.seconds[ENGINE], strict=True))


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


def measure(ways: Mapping[str, Way], load: str, asked: Sequence[ImageRequest], rounds: int) -> Result:
    if load != "equal":
        ways = {name: way for name, way in ways.items() if name != WHOLE}  # one call of a pipeline has one size and one number of steps
    for way in ways.values():
        way.make([one.model_copy(update={"num_inference_steps": 2}) for one in asked])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    most_shared = 0
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            taken = ways[name].make(asked)
            seconds[name].append(taken.seconds)
            if name == ENGINE:
                most_shared = max(most_shared, taken.most_shared)
    return Result(load, len(asked), seconds, most_shared)


def table(results: Sequence[Result]) -> str:
    lines = [
        "| load | requests | loop s | whole batch s | engine s | engine / whole batch | engine / loop | engine / compiled | most shared |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        told = (one.median(LOOP), one.median(WHOLE), one.median(ENGINE), *map(one.engine_over, (WHOLE, LOOP, COMPILED)))
        numbers = " | ".join("–" if number is None else f"{number:.2f}" for number in told)
        lines.append(f"| {one.load} | {one.requests} | {numbers} | {one.most_shared} |")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, load in zip(figure.subplots(1, 2, sharey=True), ("equal", "mixed"), strict=True):
        chosen = [one for one in results if one.load == load]
        for way in (LOOP, WHOLE, ENGINE, COMPILED):
            points = [(one.requests, one.requests / median) for one in chosen if (median := one.median(way))]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=way)
        axes.set(title=f"{load} requests", xlabel="requests at once", ylabel="pictures a second", ylim=(0, None))
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def surroundings(args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings."""
    about = about_machine("torch", "diffusers")
    return about | {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else about["cpu"],
        "torch_threads": torch.get_num_threads(),
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
    }


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
    parser.add_argument("--rounds", type=int, default=5, help=f"default 5; up to {MORE_ROUNDS} times as many where fewer are at once")
    parser.add_argument("--compiled", action="store_true", help="the engine with compiled blocks, too")
    parser.add_argument("--out", type=Path, default=Path(".benchmark"), help="default .benchmark")
    args = parser.parse_args(argv)

    about = surroundings(args)
    print(json.dumps(about, indent=1))
    cases = [
        (load, make(count, args.size, args.steps))
        for load, make in (("equal", equal_load), ("mixed", mixed_load))
        for count in args.requests
        if load == "equal" or count > 1
    ]
    with ExitStack() as stack:
        names = (LOOP, WHOLE, ENGINE, COMPILED) if args.compiled else (LOOP, WHOLE, ENGINE)
        ways = {name: stack.enter_context(closing(Way(name, args.model, args.device, max(args.requests)))) for name in names}
        rounds = {count: args.rounds * min(MORE_ROUNDS, max(args.requests) // count) for count in args.requests}
        results = [measure(ways, load, asked, rounds[len(asked)]) for load, asked in tqdm(cases)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmark.json").write_text(json.dumps({**about, "results": [asdict(one) for one in results]}, indent=1))
    plot(results, args.out / "benchmark.png", f"{args.model}, {args.size} x {args.size}, {args.steps} steps, {about['device']}")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
