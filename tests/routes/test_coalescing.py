"""Identical requests in flight, over a backend that makes a picture when it is told to."""

import asyncio
import gc
import weakref

import pytest

from app.schemas import ImageRequest
from tests.routes.kiln import STAR, Service, run, turns


def test_identical_requests_share_one_generation_and_each_gets_its_answer() -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR) for _ in range(4)]
        await turns()
        service.kiln.open.set()
        made = await asyncio.gather(*asked)
        assert [one.pictures[0].png for one in made] == [b"1"] * 4
        assert (service.kiln.begun, service.joined) == (1, 3)
        assert made[0].expected_wait_s == pytest.approx(5, abs=1)

    run(scenario())


OTHERWISE: dict[str, object] = {
    "prompt": "a heart",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_inference_steps": 3,
    "guidance_scale": 1.5,
    "seed": 2,
    "scheduler": "HeunDiscreteScheduler",
}


def test_requests_that_differ_in_any_field_do_not() -> None:
    async def scenario() -> None:
        service = Service()
        service.kiln.open.set()
        others = [STAR.model_copy(update={name: value}) for name, value in OTHERWISE.items()]
        await asyncio.gather(service.ask(STAR), service.ask(STAR, others[0]), *map(service.ask, others))
        assert (service.kiln.begun, service.joined) == (2 + len(others), 0)

    assert OTHERWISE.keys() == ImageRequest.model_fields.keys()
    run(scenario())


def test_once_it_is_made_it_is_made_anew() -> None:
    async def scenario() -> None:
        service = Service()
        service.kiln.open.set()
        for _ in range(2):
            await service.ask(STAR)
        assert service.kiln.begun == 2

    run(scenario())


@pytest.mark.parametrize("leaving", [0, 1], ids=["the first", "another"])
def test_one_leaving_does_not_stop_the_others_the_last_one_does(leaving: int) -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR) for _ in range(2)]
        await turns()
        asked[leaving].cancel()
        await turns()
        assert service.kiln.stopped == 0
        asked[1 - leaving].cancel()
        await turns()
        assert service.kiln.stopped == 1
        again = service.ask(STAR)
        service.kiln.open.set()
        assert (await again).pictures[0].png == b"1"
        assert service.kiln.begun == 2

    run(scenario())


def test_an_error_reaches_all() -> None:
    async def scenario() -> None:
        service = Service(trouble=ZeroDivisionError("broken"))
        asked = [service.ask(STAR) for _ in range(3)]
        await turns()
        service.kiln.open.set()
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in errors] == [ZeroDivisionError] * 3
        assert service.kiln.begun == 1

    run(scenario())


def test_who_leaves_stops_the_work_that_no_other_waits_for_although_there_is_more_of_the_same() -> None:
    async def scenario() -> None:
        service = Service()
        hasty = service.ask(STAR, given_s=20)
        await turns()
        patient = service.ask(STAR)
        await turns()
        hasty.cancel()
        await turns()
        assert (service.kiln.begun, service.kiln.stopped) == (2, 1)
        service.kiln.open.set()
        assert (await patient).pictures[0].png == b"1"

    run(scenario())


def test_streams_stay_outside() -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR), service.ask(STAR, steps=True)]
        await turns()
        service.kiln.open.set()
        await asyncio.gather(*asked)
        assert (service.kiln.begun, service.joined) == (2, 0)

    run(scenario())


def test_an_error_keeps_nothing_of_what_was_asked_until_the_garbage_is_collected() -> None:
    async def scenario() -> None:
        service, request = Service(trouble=RuntimeError("broken")), STAR.model_copy()
        asked, asker = weakref.ref(request), service.ask(request)
        del request
        await turns()
        service.kiln.open.set()
        with pytest.raises(RuntimeError):
            await asker
        del asker
        service.kiln.trouble = None
        await turns()
        assert asked() is None

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
