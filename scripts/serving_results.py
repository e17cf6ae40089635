"""What the served benchmark measured: summed up, as tables, as JSON and as a plot."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.load import Answer, percentile

NO_WAIT_S = 0.1  # shorter ones are as good as none


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds. `per_second` counts pictures; `wasted_rows` are rows beyond those of the pictures that were delivered."""

    load: str
    way: str
    pictures: float
    per_second: float
    p50: float
    p95: float
    p99: float
    refused: float
    errors: int
    wasted_rows: float
    refused_in: float  # median
    promises_off_by: Sequence[float]  # factors between each wait that was promised and the one there was, where there was one


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
        promises_off_by=factors,
    )


def median_of(rounds: Sequence[Result]) -> Result:
    """Of each number by itself, where it was measured, but of all errors their sum, and all promises; the loads and ways are the same."""
    told, first = [as_json(one) for one in rounds], rounds[0]
    kept = {"load": first.load, "way": first.way, "promises_off_by": [factor for one in rounds for factor in one.promises_off_by]}
    numbers = {name: [one[name] for one in told if one[name] is not None] for name in told[0] if name not in kept}
    medians = {name: statistics.median(values) if values else None for name, values in numbers.items()}
    return from_json({**medians, **kept, "errors": sum(numbers["errors"])})


def as_json(one: Result) -> dict[str, Any]:
    """What was not measured is null: JSON has no word for what is not a number."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(one).items()}


def from_json(told: dict[str, Any]) -> Result:
    numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in told.items()}
    return Result(**numbers)


def table(results: Sequence[Result]) -> str:
    lines = [
        "| load | way | pictures/s | p50 s | p95 s | p99 s | refused | errors | wasted rows | refused in s | waits off by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        numbers = [one.per_second, one.p50, one.p95, one.p99]
        counts = [f"{count:g}" for count in (one.refused, one.errors, one.wasted_rows)]
        refused_in = "–" if math.isnan(one.refused_in) else f"{one.refused_in:.2f}"
        off_by = f"{statistics.median(one.promises_off_by):.2f} (of {len(one.promises_off_by)})" if one.promises_off_by else "–"
        lines.append(" | ".join([f"| {one.load}", one.way, *(f"{n:.2f}" for n in numbers), *counts, refused_in, off_by]) + " |")
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(ways), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
