"""What the routes need of the model, whatever it runs on."""

from typing import Protocol

from app.schemas import Capabilities, GeneratedImage, ImageRequest


class Backend(Protocol):
    async def ready(self) -> bool:
        """Whether a replica is up, which means that it has made a picture."""
        ...

    async def capabilities(self) -> Capabilities:
        """Raises `NotReady`."""
        ...

    async def generate(self, request: ImageRequest) -> GeneratedImage:
        """Resolve the request and have a replica run it. Raises `NotReady` and `RefusedRequest`."""
        ...
