"""Identical requests in flight that were given different times."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from app.routes.admission import DeadlineTooShort, Overloaded
from app.routes.backend import Job
from app.schemas import DeadlinePassed, Queued, Update
from tests.routes.kiln import STAR, Kiln, Service, run, turns


class Strict(Kiln):
    """Refuses at the door who gives it less than `least_s`."""

    def __init__(self, least_s: float = 0.2) -> None:
        super().__init__()
        self._least_s = least_s

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if job.seconds_left < self._least_s:
            raise DeadlineTooShort(5.0, job.seconds_left, 0.0, None)
        async for told in super().run(job):
            yield told


def test_who_gives_much_more_time_than_the_first_does_not_lose_the_place_at_its_deadline() -> None:
    async def scenario() -> None:
        service = Service()
        hasty = service.ask(STAR, given_s=0.3)
        await turns()
        patient = [service.ask(STAR) for _ in range(2)]
        await turns()
        assert service.kiln.begun == 2
        with pytest.raises(DeadlinePassed):
            await hasty
        service.kiln.open.set()
        assert [(await one).pictures[0].png for one in patient] == [b"1", b"1"]
        assert (service.kiln.begun, service.joined) == (2, 1)

    run(scenario())


def test_those_with_much_more_time_do_not_keep_the_others_from_sharing() -> None:
    async def scenario() -> None:
        service = Service()
        asked = [service.ask(STAR, given_s=given_s) for given_s in (20, 60, *(20.5 for _ in range(5)))]
        await turns()
        service.kiln.open.set()
        assert [one.pictures[0].png for one in await asyncio.gather(*asked)] == [b"1"] * 7
        assert (service.kiln.begun, service.joined) == (2, 5)

    run(scenario())


class LateAtFirst(Kiln):
    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        first = not self.begun
        async for told in super().run(job):
            if first and isinstance(told, Update):
                raise DeadlinePassed("late")
            yield told


def test_the_first_ones_deadline_is_not_that_of_who_gave_a_little_more() -> None:
    async def scenario() -> None:
        service = Service(kiln=LateAtFirst())
        first, other = service.ask(STAR, given_s=54), service.ask(STAR, given_s=59)
        await turns()
        service.kiln.open.set()
        with pytest.raises(DeadlinePassed):
            await first
        assert (await other).pictures[0].png == b"1"
        assert service.kiln.begun == 2

    run(scenario())


class FullAtTheSecond(Kiln):
    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if self.begun:
            raise Overloaded(1.0, 2.0, 3)
        async for told in super().run(job):
            yield told


def test_who_has_waited_until_the_deadline_is_late_also_where_there_is_no_room_for_another_try() -> None:
    async def scenario() -> None:
        service = Service(kiln=FullAtTheSecond())
        asked = [service.ask(STAR, given_s=given_s) for given_s in (1.0, 1.05)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(end) for end in ends] == [DeadlinePassed] * 2
        assert service.kiln.begun == 1

    run(scenario())


def test_a_shorter_deadline_is_judged_on_its_own() -> None:
    async def scenario() -> None:
        service = Service()
        patient = service.ask(STAR)
        await turns()
        with pytest.raises(DeadlinePassed):
            await service.ask(STAR, given_s=0.05)
        service.kiln.open.set()
        await patient
        assert (service.kiln.begun, service.joined) == (2, 0)

    run(scenario())


def test_who_has_waited_until_the_deadline_is_late_and_not_refused() -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict())
        asked = [service.ask(STAR, given_s=1.0 + 0.02 * number) for number in range(4)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(end) for end in ends] == [DeadlinePassed] * 4

    run(scenario())


@pytest.mark.parametrize("turns_later", range(8))
def test_who_comes_just_as_a_generation_has_failed_begins_another(turns_later: int) -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict(least_s=55))
        service.kiln.open.set()
        hasty = service.ask(STAR, given_s=54)
        for _ in range(turns_later):
            await asyncio.sleep(0)
        patient = service.ask(STAR, given_s=59)
        with pytest.raises(DeadlineTooShort):
            await hasty
        assert (await patient).pictures[0].png == b"1"

    run(scenario())


def test_the_refusal_of_who_gives_too_little_time_is_not_that_of_others() -> None:
    async def scenario() -> None:
        service = Service(kiln=Strict(least_s=55))
        service.kiln.open.set()
        hasty, patient = service.ask(STAR, given_s=54), service.ask(STAR, given_s=59)
        with pytest.raises(DeadlineTooShort):
            await hasty
        assert (await patient).pictures[0].png == b"1"

    run(scenario())
