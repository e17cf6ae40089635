"""The load that the served benchmark puts on, on a real server; and how what came back is summed up."""

import asyncio
import math
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from app.engine.engine import ImageEngine
from scripts.load import Answer, Way, arrivals, closed_loop, numbered, percentile
from scripts.serving_results import Result, as_json, from_json, median_of, plot, summary, summed_up, table
from tests.test_client import EngineBackend, serving

FIRST_COLOUR = (31, 119, 180)  # of Matplotlib's


def no_rows() -> int:
    return 0


def test_callers_in_a_closed_loop_ask_until_all_was_asked(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url:
        answers, _ = closed_loop(Way("ours", f"{url}/imagine", no_rows), 2, list(numbered(5, 64, 1)))
    assert [answer.status for answer in answers] == [200] * 5
    assert all(answer.promised_wait == 0 for answer in answers)


def test_callers_that_arrive_at_random_are_all_answered(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url:
        answers, _ = arrivals(Way("ours", f"{url}/imagine", no_rows, "POST"), 1000, list(numbered(4, 64, 1)), seed=1)
    assert [answer.status for answer in answers] == [200] * 4


@contextmanager
def meeting(number: int) -> Iterator[str]:
    """A server that answers once so many requests are there together."""
    crowd, loop, listening = asyncio.Barrier(number), asyncio.new_event_loop(), threading.Event()
    address: list[str] = []

    async def answer(asked: web.Request) -> web.Response:
        await asyncio.wait_for(crowd.wait(), 30)
        return web.Response()

    async def listen() -> None:
        api = web.Application()
        api.router.add_get("/imagine", answer)
        runner = web.AppRunner(api)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/imagine")
        listening.set()

    def run() -> None:
        loop.run_until_complete(listen())
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(30)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def test_the_callers_of_a_closed_loop_ask_at_once() -> None:
    with meeting(3) as url:
        answers, _ = closed_loop(Way("ours", url, no_rows), 3, list(numbered(6, 64, 1)))
    assert [answer.status for answer in answers] == [200] * 6


def test_arrivals_wait_for_no_answer_and_keep_their_distances() -> None:
    gaps = random.Random(1)
    shortest = sum(gaps.expovariate(20) for _ in range(4))
    with meeting(4) as url:
        answers, seconds = arrivals(Way("ours", url, no_rows), 20, list(numbered(4, 64, 1)), seed=1)
    assert [answer.status for answer in answers] == [200] * 4
    assert seconds >= shortest


def test_every_other_request_of_a_mixed_load_is_of_half_the_side() -> None:
    assert [one["img_size"] for one in numbered(4, 128, 1, mixed=True)] == [128, 64, 128, 64]
    assert len({one["seed"] for one in numbered(4, 128, 1)}) == 4


def test_callers_that_leave_are_no_errors(engine: ImageEngine) -> None:
    with serving(EngineBackend(engine)) as url:
        answers, _ = closed_loop(Way("ours", f"{url}/imagine", no_rows), 1, list(numbered(2, 64, 1)), [0.0, None])
    assert [(answer.status, answer.left) for answer in answers] == [(0, True), (200, False)]


def colours(image: Image.Image) -> Counter[tuple[int, ...]]:
    return Counter(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def test_answers_are_summed_up_told_and_drawn(tmp_path: Path) -> None:
    answers = [Answer(200, seconds, promised_wait=1.0, waited=2.0) for seconds in (1.0, 2.0, 3.0)]
    answers += [Answer(503, 0.05), Answer(500, 1.0), Answer(0, 1.0), Answer(0, 1.0, left=True)]
    result = summed_up("8 clients", "ours", answers, seconds=6.0, rows=50, rows_each=10)
    assert result == Result(
        "8 clients", "ours", 3, 0.5, 2.0, 3.0, 3.0, refused=1, errors=2, wasted_rows=20, refused_in=0.05, promises_off_by=[2, 2, 2]
    )
    assert "| 8 clients | ours | 0.50 | 2.00 |" in table([result])
    assert table([result]).endswith("| 2.00 (of 3) |")
    assert "| 8 clients | 0.50 (3.0) |" in summary([result])
    plot([result], tmp_path / "serving.png")
    drawn = Image.open(tmp_path / "serving.png").convert("RGB")
    assert drawn.size == (1320, 480)
    assert colours(drawn)[FIRST_COLOUR] > 1000, "bars"


def test_of_several_rounds_the_medians_count() -> None:
    rounds = [
        summed_up("solo", "ours", [Answer(200, seconds), Answer(500, 9)], seconds, rows=rows, rows_each=10)
        for seconds, rows in ((1, 40), (4, 10), (2, 20))
    ]
    median = median_of(rounds)
    assert (median.load, median.way, median.p50, median.per_second, median.wasted_rows) == ("solo", "ours", 2, 0.5, 10)
    assert median.errors == 3, "none of them is lost in a median"
    assert math.isnan(median.refused_in)
    assert median_of(rounds[:2]).p50 == 2.5


def test_every_wait_of_several_rounds_counts_alike() -> None:
    waits = [[(1.0, 4.0)], [], [(2.0, 2.0), (1.5, 3.0), (0.05, 0.0)]]  # the last is none
    rounds = [summed_up("solo", "ours", [Answer(200, 1, promised_wait=p, waited=w) for p, w in told], 1.0, 0, 10) for told in waits]
    assert median_of(rounds).promises_off_by == [4, 1, 2]


def test_what_is_kept_can_be_read_again() -> None:
    result = summed_up("solo", "ours", [Answer(200, 1.0)], seconds=1.0, rows=10, rows_each=10)
    assert as_json(from_json(as_json(result))) == as_json(result)
    assert as_json(result)["refused_in"] is None


@pytest.mark.parametrize(("part", "expected"), [(0.5, 5), (0.95, 10), (0.0, 1), (1.0, 10)])
def test_a_percentile_is_a_value_that_occurred(part: float, expected: int) -> None:
    assert percentile(range(10, 0, -1), part) == expected
    assert math.isnan(percentile([], part))
