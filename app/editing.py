"""A request to paint over a given picture: image-to-image."""

import hashlib
from io import BytesIO
from typing import Annotated, Self

from PIL import Image
from pydantic import Field, field_serializer

from app.schemas import Edit, ErrorDetail, ImageRequest, RefusedRequest

STRENGTH = 0.7  # if none is given


class EditRequest(ImageRequest):
    """An `ImageRequest` with all fields set that begins with `image`, a PNG of width x height, in place of noise.

    `strength` is the share of the steps that are taken: near 0 the picture hardly changes, with 1 little of it is left.
    """

    image: Annotated[bytes, Field(repr=False)]
    strength: Annotated[float, Field(gt=0, le=1)] = STRENGTH

    @classmethod
    def of(cls, request: ImageRequest, image: Image.Image, strength: float | None = None) -> Self:
        """`request` is resolved; `image` is brought to its size. Raises `RefusedRequest` if no step would be left."""
        file = BytesIO()
        size = (request.width or image.width, request.height or image.height)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "PNG", compress_level=1)
        edit = cls(**request.model_dump(), image=file.getvalue(), strength=STRENGTH if strength is None else strength)
        if edit.denoising_steps < 1:
            rule = f"must be at least 1 / {edit.num_inference_steps}, so that one of so many steps is taken"
            raise RefusedRequest(ErrorDetail.of("strength", rule, strength))
        return edit

    @property
    def denoising_steps(self) -> int:
        """As diffusers counts them."""
        return int((self.num_inference_steps or 0) * self.strength)

    @property
    def edit(self) -> Edit:
        return Edit(image_sha256=self._digest(self.image), strength=self.strength)

    @property
    def source(self) -> Image.Image:
        return Image.open(BytesIO(self.image))

    def plain(self) -> ImageRequest:
        """What is asked for, without the picture to begin with."""
        return ImageRequest(**{name: getattr(self, name) for name in ImageRequest.model_fields})

    @field_serializer("image", when_used="json")
    def _digest(self, image: bytes) -> str:
        """In JSON, and so in an ETag, the picture is its SHA-256."""
        return hashlib.sha256(image).hexdigest()
