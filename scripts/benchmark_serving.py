"""Ways to serve the bundled checkpoint, side by side in one run, on this machine's CPU.

    python -m scripts.benchmark_serving                                  # hours on two cores
    python -m scripts.benchmark_serving --arrivals 40 --requests 24      # a first look
    python -m scripts.benchmark_serving --ways ours template --loads solo "8 clients"

The template makes one picture at a time per replica; `serve.batch` and LitServe wait 50 ms for a batch of up to 8. Arrivals come at 50 to
400 per cent of what the template does in a closed loop. All loads are measured in rounds, whose medians count, but
of the promised waits all. Writes serving.json and serving.png into --out.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests as http

from scripts import serving
from scripts.load import Answer, Asked, Way, arrivals, closed_loop, numbered
from scripts.machine import about_machine
from scripts.serving_results import Result, as_json, from_json, median_of, plot, summary, summed_up, table

if TYPE_CHECKING:
    from scripts.contenders import Plain  # which imports torch

Opened = Callable[[], AbstractContextManager[Way]]
Load = Callable[[Way], tuple[list[Answer], float]]
TEMPLATE, BATCH, LIT, OURS = "template", "serve.batch", "LitServe", "ours"
SHARES = (0.5, 0.8, 1.2, 2.0, 4.0)  # the last is more than any of them can do
PLAIN_CALLS = 3  # in each round
READY_WITHIN_S = 180.0


def closed_loops(args: argparse.Namespace, template_rate: float) -> dict[str, Load]:
    def asked(count: int, *, mixed: bool = False) -> list[Asked]:
        return list(numbered(count, args.size, args.steps, mixed=mixed))

    leaving = [None if number % 2 else 1.5 / template_rate for number in range(args.requests)]
    return {
        "solo": lambda way: closed_loop(way, 1, asked(max(8, args.requests // 4))),
        "8 clients": lambda way: closed_loop(way, 8, asked(args.requests)),
        "16 clients": lambda way: closed_loop(way, 16, asked(args.requests)),
        "8 clients, mixed sizes": lambda way: closed_loop(way, 8, asked(args.requests, mixed=True)),
        "8 clients, half of them leave": lambda way: closed_loop(way, 8, asked(args.requests), leaving),
    }


def random_arrivals(args: argparse.Namespace, template_rate: float, seed: int) -> dict[str, Load]:
    requests = list(numbered(args.arrivals, args.size, args.steps))
    return {
        f"arrivals at {share:.0%}": partial(arrivals, per_second=share * template_rate, requests=requests, seed=seed) for share in SHARES
    }


def measure(ways: Mapping[str, Opened], template: Opened, args: argparse.Namespace) -> dict[str, Any]:
    """Each way is alone on the machine. They take turns in rounds, to and fro, the plain pipeline first, and medians count: so a machine
    that drifts or stalls is as unfair to all.
    """
    with _warm(template, args) as way:
        answers, seconds = closed_loop(way, 8, list(numbered(16, args.size, args.steps)))
    template_rate = len(answers) / seconds
    in_turn, plain = list(ways.values()), list[dict[str, float]]()
    rounds: dict[tuple[str, str], list[Result]] = {}
    for number in range(args.rounds):
        plain.append(limits(args))
        print(json.dumps(plain[-1]), flush=True)
        loads = _chosen(closed_loops(args, template_rate) | random_arrivals(args, template_rate, number), args)
        in_turn.reverse()
        for opened in in_turn:
            with _warm(opened, args) as way:
                for load, run in loads.items():
                    rounds.setdefault((load, way.name), []).append(_measured(load, run, way, args))
    results = [median_of(rounds[load, name]) for load in loads for name in ways]
    return {
        "plain": plain,
        "rounds": [as_json(one) for several in rounds.values() for one in several],
        "results": [as_json(one) for one in results],
    }


def _chosen(loads: Mapping[str, Load], args: argparse.Namespace) -> dict[str, Load]:
    return {name: run for name, run in loads.items() if args.loads is None or name in args.loads}


def _measured(load: str, run: Load, way: Way, args: argparse.Namespace) -> Result:
    before = way.rows()
    answers, seconds = run(way)
    time.sleep(1.0)  # what is still being computed for nobody is counted too
    result = summed_up(load, way.name, answers, seconds, way.rows() - before, 2 * args.steps)
    print(json.dumps(as_json(result)), flush=True)
    return result


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
        for _ in range(PLAIN_CALLS + 1):
            for asked in (one, eight):
                start = time.perf_counter()
                plain.make(asked)
                times[len(asked)].append(time.perf_counter() - start)
    return {"plain_s": statistics.median(times[1][1:]), "whole_batch_per_second": 8 / statistics.median(times[8][1:])}


def all_ways(address: str, folder: Path) -> dict[str, Opened]:
    """By name, how each is started. At the end of its context it is gone again."""
    from scripts.contenders import Batched, OneAtATime

    return {
        TEMPLATE: partial(_on_serve, TEMPLATE, address, OneAtATime, folder),
        BATCH: partial(_on_serve, BATCH, address, Batched, folder),
        LIT: partial(_litserve, folder / "lit"),
        OURS: partial(_ours, address),
    }


@contextmanager
def _on_serve(name: str, address: str, kind: "type[Plain]", folder: Path) -> Iterator[Way]:
    from ray import serve

    from scripts.contenders import Rows, application

    rows = Rows(folder / kind.__name__)
    serve.run(application(kind, folder / kind.__name__), name=name, route_prefix=f"/{name}")
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
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield Way(LIT, f"http://127.0.0.1:{port}/imagine", lambda: rows.value, "POST")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if http.get(url, timeout=5).ok:
                return
        except http.RequestException:
            pass
        if server.poll() is not None:
            raise RuntimeError(f"the server of {url} has ended with {server.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} did not come up")
        time.sleep(0.2)


def surroundings(args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings."""
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    return about_machine("ray", "litserve", "torch", "diffusers") | {"settings": settings}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ways", nargs="+", default=[TEMPLATE, BATCH, LIT, OURS], choices=[TEMPLATE, BATCH, LIT, OURS], help="default all")
    parser.add_argument("--loads", nargs="+", help="names of loads, as in the table; default all")
    parser.add_argument("--arrivals", type=int, default=100, help="for each load with arrivals, in a round (default 100)")
    parser.add_argument("--requests", type=int, default=96, help="for each closed loop, in a round (default 96)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--steps", type=int, default=20, help="default 20")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--out", type=Path, default=Path(".benchmark"), help="default .benchmark")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args(argv)
    known = [*closed_loops(args, 1.0), *random_arrivals(args, 1.0, seed=0)]
    if unknown := set(args.loads or ()) - set(known):
        parser.error(f"--loads must be of {', '.join(map(repr, known))} (got {', '.join(map(repr, sorted(unknown)))})")
    for end in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(end) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(end, lambda number, frame: sys.exit(128 + number))  # so that what was started is stopped
    os.environ |= {"RAY_worker_niceness": "0"}  # Ray's own is 15: LitServe would come first
    with tempfile.TemporaryDirectory() as folder, serving.cluster() as address:
        told = surroundings(args)
        print(json.dumps(told), flush=True)
        ways = all_ways(address, Path(folder))
        measured = measure({name: opened for name, opened in ways.items() if name in args.ways}, ways[TEMPLATE], args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serving.json").write_text(json.dumps(told | measured, indent=1) + "\n")
    results = [from_json(one) for one in measured["results"]]
    plot(results, args.out / "serving.png")
    print(table(results), summary(results), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
