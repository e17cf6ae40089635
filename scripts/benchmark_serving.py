"""Ways to serve the bundled checkpoint, side by side in one run, on this machine's CPU.

    python -m scripts.benchmark_serving                                  # 300 arrivals for each load: hours on two cores
    python -m scripts.benchmark_serving --arrivals 40 --requests 24      # a first look
    python -m scripts.benchmark_serving --ways ours template --loads solo "8 clients"

The template makes one picture at a time per replica; `serve.batch` and LitServe wait 50 ms for a batch of up to 8. Arrivals come at
50 to 400 per cent of what the template does in a closed loop. Writes serving.json and serving.png into --out.
"""

import argparse
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests as http

from scripts import serving
from scripts.load import Answer, Asked, Way, arrivals, closed_loop, numbered, percentile
from scripts.machine import about_machine

if TYPE_CHECKING:
    from scripts.contenders import Plain  # which imports torch

Opened = Callable[[], AbstractContextManager[Way]]
TEMPLATE, BATCH, LIT, OURS = "template", "serve.batch", "LitServe", "ours"
SHARES = (0.5, 0.8, 1.2, 2.0, 4.0)  # the last is more than any of them can do
NO_WAIT_S = 0.1  # shorter ones are as good as none
READY_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds. `per_second` counts pictures; `wasted_rows` are rows beyond those of the pictures that were delivered."""

    load: str
    way: str
    pictures: int
    per_second: float
    p50: float
    p95: float
    p99: float
    refused: int
    errors: int
    wasted_rows: int
    refused_in: float  # median
    promise_off_by: float  # median factor between the wait that was promised and the one there was


def summed_up(load: str, way: str, answers: Sequence[Answer], seconds: float, rows: int, rows_each: int) -> Result:
    made = [one.seconds for one in answers if one.status == 200]
    refused = [one.seconds for one in answers if one.status == 503]
    told = [(one.promised_wait, one.waited) for one in answers if one.promised_wait is not None and one.waited is not None]
    waits = [(max(promised, NO_WAIT_S), max(waited, NO_WAIT_S)) for promised, waited in told]
    factors = [max(promised / waited, waited / promised) for promised, waited in waits if max(promised, waited) > NO_WAIT_S]
    return Result(
        load=load,
        way=way,
        pictures=len(made),
        per_second=len(made) / seconds,
        p50=percentile(made, 0.5),
        p95=percentile(made, 0.95),
        p99=percentile(made, 0.99),
        refused=len(refused),
        errors=sum(one.status not in (200, 503) and not one.left for one in answers),
        wasted_rows=max(0, rows - rows_each * len(made)),
        refused_in=percentile(refused, 0.5),
        promise_off_by=percentile(factors, 0.5),
    )


def loads(args: argparse.Namespace, template_rate: float) -> dict[str, Callable[[Way], tuple[list[Answer], float]]]:
    def asked(count: int, *, mixed: bool = False) -> list[Asked]:
        return list(numbered(count, args.size, args.steps, mixed=mixed))

    leaving = [None if number % 2 else 1.5 / template_rate for number in range(args.requests)]
    cases: dict[str, Callable[[Way], tuple[list[Answer], float]]] = {
        "solo": lambda way: closed_loop(way, 1, asked(max(8, args.requests // 4))),
        "8 clients": lambda way: closed_loop(way, 8, asked(args.requests)),
        "16 clients": lambda way: closed_loop(way, 16, asked(args.requests)),
        "8 clients, mixed sizes": lambda way: closed_loop(way, 8, asked(args.requests, mixed=True)),
        "8 clients, half of them leave": lambda way: closed_loop(way, 8, asked(args.requests), leaving),
    }
    for share in SHARES:
        cases[f"arrivals at {share:.0%}"] = lambda way, share=share: arrivals(  # type: ignore[misc]
            way, share * template_rate, asked(args.arrivals), seed=int(100 * share)
        )
    return {name: run for name, run in cases.items() if args.loads is None or name in args.loads}


def measure(ways: Mapping[str, Opened], template: Opened, args: argparse.Namespace) -> list[Result]:
    """The ways take turns within each load, so that a machine that drifts is as unfair to all. Each is alone on the machine."""
    with _warm(template, args) as way:
        answers, seconds = closed_loop(way, 8, list(numbered(16, args.size, args.steps)))
    results = []
    for load, run in loads(args, len(answers) / seconds).items():
        for opened in ways.values():
            with _warm(opened, args) as way:
                before = way.rows()
                answers, seconds = run(way)
                time.sleep(1.0)  # what is still being computed for nobody is counted too
                results.append(summed_up(load, way.name, answers, seconds, way.rows() - before, 2 * args.steps))
                print(json.dumps(as_json(results[-1])), flush=True)
    return results


@contextmanager
def _warm(opened: Opened, args: argparse.Namespace) -> Iterator[Way]:
    with opened() as way:
        closed_loop(way, 8, list(numbered(16, args.size, args.steps)))
        yield way


def limits(args: argparse.Namespace) -> dict[str, float]:
    """The plain pipeline in this process: seconds of one picture, and pictures a second with 8 in one call."""
    from scripts.contenders import Plain

    with tempfile.TemporaryDirectory() as folder:
        plain = Plain(Path(folder) / "rows")
        one, eight = list(numbered(1, args.size, args.steps)), list(numbered(8, args.size, args.steps))
        times: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(args.rounds + 1):
            for asked in (one, eight):
                start = time.perf_counter()
                plain.make(asked)
                times[len(asked)].append(time.perf_counter() - start)
    return {"plain_s": statistics.median(times[1][1:]), "whole_batch_per_second": 8 / statistics.median(times[8][1:])}


def all_ways(address: str, folder: Path) -> dict[str, Opened]:
    """By name, how each is started. At the end of its context it is gone again."""
    from scripts.contenders import BATCH as MOST
    from scripts.contenders import Batched, OneAtATime

    return {
        TEMPLATE: partial(_on_serve, TEMPLATE, address, OneAtATime, 1, folder),
        BATCH: partial(_on_serve, BATCH, address, Batched, 2 * MOST, folder),
        LIT: partial(_litserve, folder / "lit"),
        OURS: partial(_ours, address),
    }


@contextmanager
def _on_serve(name: str, address: str, kind: "type[Plain]", ongoing: int, folder: Path) -> Iterator[Way]:
    from ray import serve

    from scripts.contenders import Rows, application

    rows = Rows(folder / kind.__name__)
    serve.run(application(kind, ongoing, folder / kind.__name__), name=name, route_prefix=f"/{name}")
    yield Way(name, f"{address}/{name}/imagine", lambda: rows.value)
    serve.delete(name)


@contextmanager
def _ours(address: str) -> Iterator[Way]:
    from scripts.contenders import THREADS

    with serving.served(address, OURS, "/ours", cpu_threads=THREADS) as url:
        yield Way(OURS, f"{url}/imagine", lambda: serving.rows_of(OURS))


@contextmanager
def _litserve(rows_file: Path) -> Iterator[Way]:
    from scripts.contenders import Rows

    rows = Rows(rows_file)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scripts.contenders", str(port), str(rows_file)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield Way(LIT, f"http://127.0.0.1:{port}/imagine", lambda: rows.value, "POST")
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if http.get(url, timeout=5).ok:
                return
        except http.RequestException:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} did not come up")
        time.sleep(0.2)


def table(results: Sequence[Result]) -> str:
    lines = [
        "| load | way | pictures/s | p50 s | p95 s | p99 s | refused | errors | wasted rows | refused in s | promise off by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        numbers = [one.per_second, one.p50, one.p95, one.p99]
        counts = [one.refused, one.errors, one.wasted_rows]
        rest = ["–" if math.isnan(value) else f"{value:.2f}" for value in (one.refused_in, one.promise_off_by)]
        lines.append(" | ".join([f"| {one.load}", one.way, *(f"{n:.2f}" for n in numbers), *map(str, counts), *rest]) + " |")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """A row for each load, a column for each way: pictures a second, and the 95th percentile of seconds."""
    ways = list(dict.fromkeys(one.way for one in results))
    lines = ["| pictures/s (p95 in s) | " + " | ".join(ways) + " |", "|---|" + "---:|" * len(ways)]
    for load in dict.fromkeys(one.load for one in results):
        by_way = {one.way: f"{one.per_second:.2f} ({one.p95:.1f})" for one in results if one.load == load}
        lines.append(f"| {load} | " + " | ".join(by_way.get(way, "–") for way in ways) + " |")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    ways = list(dict.fromkeys(one.way for one in results))
    names = list(dict.fromkeys(one.load for one in results))
    figures: list[tuple[str, str, Callable[[Result], float]]] = [
        ("pictures a second", "linear", lambda one: one.per_second),
        ("95th percentile, seconds", "log", lambda one: one.p95),
    ]
    for axes, (title, scale, of) in zip(figure.subplots(1, 2), figures, strict=True):
        for number, way in enumerate(ways):
            places = [names.index(one.load) + number / (len(ways) + 1) for one in results if one.way == way]
            axes.bar(places, [of(one) for one in results if one.way == way], width=1 / (len(ways) + 1), label=way)
        axes.set_xticks([place + 0.3 for place in range(len(names))], names, rotation=30, ha="right", fontsize=8)
        axes.set(title=title, yscale=scale)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def surroundings(args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings."""
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    return about_machine("ray", "litserve", "torch", "diffusers") | {"settings": settings}


def as_json(one: Result) -> dict[str, Any]:
    """What was not measured is null: JSON has no word for what is not a number."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(one).items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ways", nargs="+", default=[TEMPLATE, BATCH, LIT, OURS], choices=[TEMPLATE, BATCH, LIT, OURS], help="default all")
    parser.add_argument("--loads", nargs="+", help="names of loads, as in the table; default all")
    parser.add_argument("--arrivals", type=int, default=300, help="for each load with arrivals (default 300)")
    parser.add_argument("--requests", type=int, default=96, help="for each closed loop (default 96)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--steps", type=int, default=20, help="default 20")
    parser.add_argument("--rounds", type=int, default=5, help="of the plain pipeline (default 5)")
    parser.add_argument("--out", type=Path, default=Path(".benchmark"), help="default .benchmark")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started is stopped
    os.environ |= {"RAY_worker_niceness": "0"}  # Ray's own is 15: LitServe would come first
    with tempfile.TemporaryDirectory() as folder, serving.cluster() as address:
        told = surroundings(args) | limits(args)  # beside Ray's own processes, like all that is compared with them
        print(json.dumps(told), flush=True)
        ways = all_ways(address, Path(folder))
        results = measure({name: opened for name, opened in ways.items() if name in args.ways}, ways[TEMPLATE], args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serving.json").write_text(json.dumps({**told, "results": [as_json(one) for one in results]}, indent=1) + "\n")
    plot(results, args.out / "serving.png")
    print(table(results), summary(results), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
