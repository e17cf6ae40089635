"""Load on a served model: callers in a closed loop, arrivals at random, callers that leave. What comes back is a list of answers."""

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

Asked = dict[str, Any]
QUEUE = re.compile(r"queue;dur=([\d.]+)")
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True)
class Way:
    """A served model. `rows` counts what its denoiser has computed."""

    name: str
    url: str
    rows: Callable[[], int]
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds; `status` 0 is an error of the connection, or a caller that left."""

    status: int
    seconds: float
    left: bool = False
    promised_wait: float | None = None
    waited: float | None = None


async def ask(session: aiohttp.ClientSession, way: Way, asked: Asked, leave_after_s: float | None = None) -> Answer:
    start = time.perf_counter()
    fields = {"json": asked} if way.method == "POST" else {"params": {name: str(value) for name, value in asked.items()}}
    try:
        async with asyncio.timeout(leave_after_s), session.request(way.method, way.url, **fields) as answer:
            await answer.read()
            promised = answer.headers.get("X-Imagine-Expected-Wait")
            waited = QUEUE.search(answer.headers.get("Server-Timing", ""))
            return Answer(
                answer.status,
                time.perf_counter() - start,
                promised_wait=None if promised is None else float(promised),
                waited=None if waited is None else float(waited[1]) / 1000,
            )
    except TimeoutError:
        return Answer(0, time.perf_counter() - start, left=leave_after_s is not None)
    except aiohttp.ClientError:
        return Answer(0, time.perf_counter() - start)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LONGEST_S))


def closed_loop(way: Way, clients: int, requests: Sequence[Asked], leaving: Sequence[float | None] = ()) -> tuple[list[Answer], float]:
    """`clients` callers, each asking anew once answered, until all requests were made. The answers, and the seconds it took."""
    left = iter(zip(requests, leaving or [None] * len(requests), strict=True))

    async def run() -> list[Answer]:
        async with _session() as session:

            async def caller() -> list[Answer]:
                return [await ask(session, way, asked, leave_after_s) for asked, leave_after_s in left]

            return [answer for answers in await asyncio.gather(*(caller() for _ in range(clients))) for answer in answers]

    start = time.perf_counter()
    return asyncio.run(run()), time.perf_counter() - start


def arrivals(way: Way, per_second: float, requests: Sequence[Asked], seed: int) -> tuple[list[Answer], float]:
    """Callers come at random, independently of the answers (Poisson)."""
    gaps = random.Random(seed)

    async def run() -> list[Answer]:
        async with _session() as session:
            tasks = []
            for asked in requests:
                tasks.append(asyncio.create_task(ask(session, way, asked)))
                await asyncio.sleep(gaps.expovariate(per_second))
            return list(await asyncio.gather(*tasks))

    start = time.perf_counter()
    return asyncio.run(run()), time.perf_counter() - start


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile; not a number without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def numbered(count: int, side: int, steps: int, *, mixed: bool = False) -> Iterator[Asked]:
    """Requests of one size, or every other one of half the side."""
    for number in range(count):
        small = mixed and number % 2
        yield {
            "prompt": f"a {('red', 'blue', 'green', 'pink')[number % 4]} star on a yellow background",
            "seed": number,
            "num_inference_steps": steps,
            "img_size": max(64, side // 2) if small else side,
        }
