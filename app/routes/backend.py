"""What the routes need of the model, whatever it runs on."""

from collections.abc import AsyncIterator
from typing import Protocol

from app.schemas import Capabilities, GeneratedImage, ImageRequest, Progress


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

    def stream(self, request: ImageRequest, previews: bool) -> AsyncIterator[Progress | GeneratedImage]:
        """Have a replica run a resolved request: every step as it is done, and last the image. Closing the iterator stops the work."""
        ...
