"""Which thread computes what, and with how many CPU threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from app.engine.checkpoint import Checkpoint
from app.engine.engine import ImageEngine
from app.schemas import Progress
from tests.engine.together import DEADLINE_S, Engines, assert_right, break_calls, request

Computed = list[tuple[str, str]]


@pytest.fixture
def seen(loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Computed:
    """What was computed outside of the loop, and the name of the thread that did it."""
    computed: Computed = []

    def noting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            computed.append((what, threading.current_thread().name))
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(loaded.pipe.text_encoder, "forward", noting("text", loaded.pipe.text_encoder.forward))
    monkeypatch.setattr(loaded.pipe.vae, "decode", noting("decode", loaded.pipe.vae.decode))
    return computed


def test_the_denoiser_computes_with_all_cpu_threads_and_requests_with_one(loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, int] = {}
    break_calls(monkeypatch, loaded, lambda sample: threads.update(denoiser=torch.get_num_threads()))
    engine, before = ImageEngine(loaded, cpu_threads=3), torch.get_num_threads()
    try:
        engine.generate(request(0), lambda progress: threads.update(request=torch.get_num_threads()))
    finally:
        engine.close()
    assert threads == {"denoiser": 3, "request": 1}
    assert torch.get_num_threads() == before


def test_text_and_decoding_are_errands_of_the_denoisers_thread_while_no_loop_is_under_way(
    loaded: Checkpoint, seen: Computed, start: Engines
) -> None:
    made = start(loaded).generate(request(0))
    assert [what for what, _ in seen] == ["text", "text", "decode"]
    assert {thread for _, thread in seen} == {"denoiser"}
    assert_right(loaded, made)


def test_beside_a_loop_under_way_a_request_computes_them_itself(loaded: Checkpoint, seen: Computed, start: Engines) -> None:
    engine, inside, go_on = start(loaded), threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        inside.set()
        assert go_on.wait(DEADLINE_S)

    with ThreadPoolExecutor(1, thread_name_prefix="first") as first, ThreadPoolExecutor(1, thread_name_prefix="second") as second:
        held = first.submit(engine.generate, request(0), hold)
        assert inside.wait(DEADLINE_S)
        seen.clear()
        assert_right(loaded, second.submit(engine.generate, request(1)).result(DEADLINE_S))
        assert [thread for _, thread in seen[:3]] == ["second_0"] * 3
        go_on.set()
        assert_right(loaded, held.result(DEADLINE_S))
