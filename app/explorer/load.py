"""Several clients at once: how long each waits, and how many pictures a minute come out."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from matplotlib.figure import Figure

from app.schemas import ImageRequest, ImageSource


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` asked at the same moment. Seconds, from asking to having the picture."""

    clients: int
    latencies: tuple[float, ...]
    seconds: float

    @property
    def pictures_per_minute(self) -> float:
        return 60 * self.clients / self.seconds


def measure(source: ImageSource, request: ImageRequest, clients: Sequence[int] = (1, 2, 4, 8)) -> list[Load]:
    """Ask as one, two, ... clients, each for the same picture from a seed of its own. The most at once are asked for before, unmeasured:
    some things are done only the first time.
    """
    _ask_at_once(source, request, max(clients))
    return [_ask_at_once(source, request, number) for number in clients]


def _ask_at_once(source: ImageSource, request: ImageRequest, clients: int) -> Load:
    def ask(seed: int) -> float:
        start = time.perf_counter()
        source.generate(request.model_copy(update={"seed": seed}))
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as callers:
        start = time.perf_counter()
        latencies = tuple(callers.map(ask, range(clients)))
        return Load(clients, latencies, time.perf_counter() - start)


def chart(loads: Sequence[Load]) -> Figure:
    """Latency and throughput over the number of clients."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    waiting, coming = figure.subplots(1, 2)
    clients = [load.clients for load in loads]
    names = [str(number) for number in clients]
    waiting.bar(names, [max(load.latencies) for load in loads], color="#c9d7ea", label="slowest")
    waiting.bar(names, [statistics.median(load.latencies) for load in loads], color="#3b6fb6", label="median")
    waiting.set(title="Latency", xlabel="clients at once", ylabel="seconds a picture")
    waiting.legend(frameon=False)
    coming.bar(names, [load.pictures_per_minute for load in loads], color="#3b6fb6", label="measured")
    alone = loads[0].pictures_per_minute / loads[0].clients
    coming.axhline(alone, color="#888", linestyle="--", label="one after another")
    coming.set(title="Throughput", xlabel="clients at once", ylabel="pictures a minute")
    coming.legend(frameon=False)
    for axes in (waiting, coming):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
