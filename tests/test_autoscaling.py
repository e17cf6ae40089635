"""How many replicas Ray Serve is told to have. Ray's own context stands in for its controller."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingContext

from app.autoscaling import by_pictures, places_for_large, places_taken
from app.deployment import text_to_image
from app.settings import Settings


def context(target: float, *pictures: float) -> AutoscalingContext:
    fields = dict.fromkeys(AutoscalingContext.__init__.__code__.co_varnames[1 : AutoscalingContext.__init__.__code__.co_argcount])
    made = {f"replica {number}": float(count) for number, count in enumerate(pictures)}
    config = SimpleNamespace(get_target_ongoing_requests=lambda: target)
    return AutoscalingContext(**fields | {"aggregated_metrics": {"pictures": made}, "config": config})


@pytest.mark.parametrize(("batch", "large"), [(1, 1), (2, 2), (3, 2), (5, 4), (8, 6), (13, 10)])
def test_replicas_that_make_all_they_can_become_more_and_idle_ones_fewer(batch: int, large: int) -> None:
    deployment = text_to_image(Settings(model="tiny", device="cpu", cpu_threads=1, max_batch_size=batch, max_replicas=9))._bound_deployment
    config = deployment._deployment_config.autoscaling_config
    assert config.policy.get_policy()(context(config.target_ongoing_requests, batch))[0] > 1, "one replica, full"
    assert config.policy.get_policy()(context(config.target_ongoing_requests, large, large))[0] > 2, "two, full of large pictures"
    assert config.policy.get_policy()(context(config.target_ongoing_requests, 0, 0))[0] == 0


@pytest.mark.parametrize("places", range(1, 17))
def test_a_replica_that_finds_no_room_for_another_job_counts_as_full_however_many_pictures_jobs_have(places: int) -> None:
    for limit in (places, places_for_large(places)):  # of small pictures, and of large ones
        for asked in range(1, places + 1):
            making = max(limit // asked, 1) * asked
            assert places_taken(making, asked, places) >= places, (limit, asked)
    assert places_taken(1, 1, 8) == 1
    assert places_taken(0, 8, 8) == 0


@pytest.mark.parametrize("places", range(2, 17))
def test_one_caller_that_asks_for_a_picture_at_a_time_needs_no_second_replica(places: int) -> None:
    settings = Settings(model="tiny", device="cpu", cpu_threads=1, max_batch_size=places, max_replicas=9)
    config = text_to_image(settings)._bound_deployment._deployment_config.autoscaling_config
    assert by_pictures(context(config.target_ongoing_requests, places_taken(1, 1, places)))[0] <= 1


def test_the_policy_counts_what_every_replica_tells() -> None:
    assert by_pictures(context(6.0, 8, 4))[0] == 2
