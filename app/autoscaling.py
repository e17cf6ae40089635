"""When there should be more replicas. Ray Serve's own policy counts calls, but a call can ask for several pictures."""

from typing import Any

from ray.serve.config import AutoscalingContext

PICTURES = "pictures"  # under which a replica tells its `places_taken`
PLACES_FOR_LARGE = 0.75  # of all
GROWS_AT = 0.9  # of the places for large pictures


def places_for_large(places: int) -> int:
    """How many of the places pictures may take that are much larger than the model's own."""
    return max(1, round(PLACES_FOR_LARGE * places))


def places_taken(making: int, asked: int, places: int) -> int:
    """By the pictures that a replica is making; all of them if a job like the last one, of as many as were `asked` for, might find no room.
    Such jobs wait in the ingress, where Serve does not count them.
    """
    is_full = making > 0 and making + asked > places_for_large(places)
    return max(making, places) if is_full else making


def by_pictures(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many that each makes as many pictures as the deployment's `target_ongoing_requests`; Serve keeps within its limits and delays."""
    making = sum((context.aggregated_metrics or {}).get(PICTURES, {}).values())
    return making / context.config.get_target_ongoing_requests(), {}
