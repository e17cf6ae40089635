"""How much work a request is, before any of it is done, and which pictures tell how fast it is done."""

import pytest

from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.routes.estimate import CALLED_TWICE, work_of
from app.routes.ingress import was_at_work
from app.schemas import ImageRequest


def test_a_small_picture_counts_for_more_than_its_pixels(engine: ImageEngine) -> None:
    """What was learned from small pictures is used for large ones: by pixels alone those would be promised far too late."""
    small, own, large = (
        work_of(ImageRequest(prompt="-", width=side, height=side, num_inference_steps=10, guidance_scale=3, seed=0), engine.capabilities)
        for side in (64, 128, 256)
    )
    assert small / own == pytest.approx(0.5)
    assert large / own == pytest.approx(3)


@pytest.mark.parametrize(("steps", "times"), [(1, 1.0), (10, 21 / 12)])
def test_schedulers_that_call_the_denoiser_twice_in_all_steps_but_the_last_are_more_work(
    engine: ImageEngine, steps: int, times: float
) -> None:
    plain, twice = (
        work_of(ImageRequest(prompt="-", scheduler=name, num_inference_steps=steps).resolved(engine.capabilities), engine.capabilities)
        for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
    )
    assert twice / plain == pytest.approx(times)


def test_it_is_known_of_every_scheduler_offered_here_how_often_it_calls_the_denoiser(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Batch] = []
    monkeypatch.setattr(engine._batcher._device, "_on_batch", calls.append)
    for scheduler in engine.capabilities.schedulers:
        calls.clear()
        engine.generate(ImageRequest(prompt="-", scheduler=scheduler, num_inference_steps=6, width=64, height=64))
        assert len(calls) == (11 if scheduler in CALLED_TWICE else 6), scheduler


@pytest.mark.parametrize("seconds", [0.02, 2.0], ids=["a short picture", "a long one"])
def test_nothing_is_learned_from_a_picture_that_waited_for_a_replica(seconds: float) -> None:
    on_its_way, until_a_replica_was_there = 0.03, 3.0
    assert was_at_work(seconds, seconds + on_its_way)
    assert not was_at_work(seconds, seconds + until_a_replica_was_there)
