"""A text-to-image model behind `GET /imagine`, served by Ray Serve."""

from typing import TYPE_CHECKING

from app.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application


def entrypoint(settings: Settings) -> "Application":
    """Build the application: `serve run app:entrypoint [field=value ...]`, any field of `Settings`.

    The annotation must stay the class itself: Ray Serve reads it to check the arguments.
    """
    from app.deployment import text_to_image, visible_cpus, visible_gpus
    from app.routes.ingress import api_ingress

    decided = settings.decided(visible_gpus, visible_cpus)
    return api_ingress(text_to_image(decided), decided)
