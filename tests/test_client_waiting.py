"""How long `ImagineClient` waits, and when it asks again."""

import socket
import threading
from collections.abc import AsyncGenerator, Callable

import pytest

from app.client import ImagineClient, ServiceBusy, ServiceUnreachable
from app.engine.engine import ImageEngine
from app.routes.admission import Overloaded
from app.routes.backend import Job
from app.routes.errors import NotReady
from app.schemas import GenerationCancelled, Queued, Update
from tests.test_client import STAR, EngineBackend, serving


def test_a_service_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream has a sign of life every second, so there is no need to wait as long as a picture may take."""
    monkeypatch.setattr("app.client.LONGEST_SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ImagineClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ServiceUnreachable, match="did not answer in time"):
            client.generate(STAR, lambda progress: None)
        with pytest.raises(ServiceUnreachable, match="did not answer in time"):
            _ = client.capabilities


def test_nobody_waits_longer_for_a_picture_than_they_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.client.SPARE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ImagineClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1)
        with pytest.raises(ServiceUnreachable, match="did not answer in time"):
            client.generate(STAR)


def dead_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is not None


def test_waiting_ends_as_soon_as_the_service_has_died(free_port: int) -> None:
    with pytest.raises(ServiceUnreachable):
        ImagineClient(f"http://127.0.0.1:{free_port}").wait_until_ready(timeout_s=60, alive=dead_after(2))


def test_waiting_ends_at_its_deadline_with_the_reason(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.client.POLL_INTERVAL_S", 30.0)  # which is also how long the last answer may take
    with serving(EngineBackend(engine, NotReady())) as url, pytest.raises(ServiceBusy, match="still loading"):
        ImagineClient(url).wait_until_ready(timeout_s=0)


class BusyAtFirst(EngineBackend):
    """Refuses `refusals` requests, each until `retry_after_s` later."""

    def __init__(self, engine: ImageEngine, refusals: int, retry_after_s: float) -> None:
        super().__init__(engine)
        self.left, self.retry_after_s = refusals, retry_after_s

    async def run(self, job: Job) -> AsyncGenerator[Queued | Update]:
        if self.left:
            self.left -= 1
            raise Overloaded(self.retry_after_s, 10.0, 5)
        async for told in super().run(job):
            yield told


class Hurrying(threading.Event):
    """Never set. Waits are noted, and over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


class SetOnceWaitedOn(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return super().wait(timeout)


def test_a_busy_service_is_asked_again_after_the_seconds_it_names(engine: ImageEngine) -> None:
    cancel = Hurrying()
    with serving(BusyAtFirst(engine, 2, retry_after_s=30)) as url:
        assert ImagineClient(url, retries=2).generate(STAR, cancel=cancel) == engine.generate(STAR)
    assert len(cancel.waits) == 2
    assert all(30 <= seconds <= 36 for seconds in cancel.waits)


def test_nobody_waits_longer_for_another_try_than_they_said(engine: ImageEngine) -> None:
    cancel = Hurrying()
    with serving(BusyAtFirst(engine, 1, retry_after_s=30)) as url, pytest.raises(ServiceBusy) as busy:
        ImagineClient(url, timeout_s=29).generate(STAR, cancel=cancel)
    assert (busy.value.retry_after_s, cancel.waits) == (30, [])


def test_no_more_often_than_agreed(engine: ImageEngine) -> None:
    cancel = Hurrying()
    with serving(BusyAtFirst(engine, 3, retry_after_s=30)) as url, pytest.raises(ServiceBusy, match="5 requests are waiting"):
        ImagineClient(url, retries=2).generate(STAR, cancel=cancel)
    assert len(cancel.waits) == 2


def test_whoever_watches_the_steps_is_told_the_wait_instead(engine: ImageEngine) -> None:
    with serving(BusyAtFirst(engine, 1, retry_after_s=30)) as url, pytest.raises(ServiceBusy) as busy:
        ImagineClient(url).generate(STAR, lambda progress: None)
    assert busy.value.retry_after_s == 30


def test_a_wait_for_a_busy_service_can_be_cancelled(engine: ImageEngine) -> None:
    with serving(BusyAtFirst(engine, 1, retry_after_s=300)) as url, pytest.raises(GenerationCancelled):
        ImagineClient(url).generate(STAR, cancel=SetOnceWaitedOn())
