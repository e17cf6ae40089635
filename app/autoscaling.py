"""How many replicas there should be. Ray Serve's own policy counts calls, but a call can ask for several pictures."""

from typing import Any

from ray.serve.config import AutoscalingContext

PICTURES = "pictures"  # what a replica tells of itself: how many it is making


def by_pictures(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many that each makes as many pictures as the deployment's `target_ongoing_requests`; Serve keeps within its limits and delays."""
    making = sum((context.aggregated_metrics or {}).get(PICTURES, {}).values())
    return making / context.config.get_target_ongoing_requests(), {}
