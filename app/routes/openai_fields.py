"""The fields of OpenAI's `POST /v1/images/generations`, and what they mean in the words of an `ImageRequest`."""

import re
import secrets
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.routes.errors import CONTRADICTION
from app.routes.rendering import QUALITY
from app.schemas import MAX_SEED, Capabilities, ErrorDetail, Guidance, ImageRequest, RefusedRequest, Seed, Steps

MOST_PICTURES, MOST_PARTIAL_IMAGES = 10, 3
STEPS_OF_QUALITY = {"low": 0.5, "high": 2.0, "xhigh": 2.0, "max": 2.0, "hd": 2.0}  # times the model's own
SIZE = re.compile(r"auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3}")

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
TOLD_QUALITY = {"standard": "medium", "hd": "high"}  # answers have no word for what only retired models took, nor for `auto`
OutputFormat = Literal["png", "jpeg", "webp"]

FIELDS = """
| field | here |
|---|---|
| `prompt` | as it is; at most 2000 characters |
| `model` | the served model's name, or left out; another one is a 404 |
| `n` | 1-10 pictures, no more than a batch holds, made together with seeds `seed`, `seed` + 1, ...; each can be had alone by its seed |
| `size` | `auto` (the model's own) or `WIDTHxHEIGHT` within its limits |
| `quality` | steps: `low` half, `high`, `xhigh`, `max`, `hd` twice (or the service's most), else as usual; `num_inference_steps` wins |
| `response_format` | `b64_json` (default), or `url`: permalinks, where they are made when fetched, with the token if one is wanted |
| `output_format` | `png` (default, with its settings inside), `jpeg`, `webp` |
| `output_compression` | 0-100, for `jpeg` and `webp` |
| `stream`, `partial_images` | `image_generation.partial_image` (0-3 of them) and `image_generation.completed` events |
| `background` | `auto`, `opaque`; `transparent` is refused: the model paints every pixel |
| `moderation` | `auto`, `low`: nothing is moderated |
| `user`, `safety_identifier` | accepted, neither used nor kept |
| `negative_prompt`, `seed`, `num_inference_steps`, `guidance_scale`, `scheduler` | beyond OpenAI's; as in `/imagine` |
| `style`, `complexity`, `frame_count`, `frame_duration_ms`, `svg` | refused: this model has nothing like them |

The stream has no token counts to tell: `usage` holds zeros.
"""


class GenerationsBody(BaseModel):
    """What both addresses take."""

    event_prefix: ClassVar[str] = "image_generation"
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, json_schema_extra={"example": {"prompt": "a red heart on a yellow background"}}
    )

    prompt: Annotated[str, Field(min_length=1, max_length=2000)]
    model: Annotated[str | None, Field(max_length=200)] = None
    n: Annotated[int, Field(ge=1, le=MOST_PICTURES)] | None = None
    size: Annotated[str | None, Field(pattern=rf"^({SIZE.pattern})$")] = None
    quality: Quality | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIAL_IMAGES)] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: Annotated[str | None, Field(max_length=1000)] = None
    safety_identifier: Annotated[str | None, Field(max_length=1000)] = None
    negative_prompt: Annotated[str | None, Field(max_length=2000)] = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: Annotated[str | None, Field(max_length=80)] = None

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if wrong := self._contradiction():
            field, rule = wrong
            raise PydanticCustomError(CONTRADICTION, "{rule}", {"field": field, "rule": rule})
        return self

    @property
    def pictures(self) -> int:
        return self.n or 1

    @property
    def _highest_seed(self) -> int:
        """Of the first picture: the others count on from there."""
        return MAX_SEED + 1 - self.pictures

    @property
    def told_quality(self) -> str | None:
        """In the words that OpenAI's answers have."""
        return None if self.quality == "auto" else TOLD_QUALITY.get(str(self.quality), self.quality)

    @property
    def form(self) -> OutputFormat:
        return self.output_format or "png"

    @property
    def compression(self) -> int:
        """The quality of JPEG and WebP."""
        return QUALITY if self.output_compression is None else self.output_compression

    def to_requests(self, capabilities: Capabilities) -> tuple[ImageRequest, ...]:
        """Resolved, with consecutive seeds. This is where the dialect ends. Raises `RefusedRequest`."""
        most = capabilities.max_num_images_per_prompt
        if self.pictures > most:
            raise RefusedRequest(ErrorDetail.of("n", f"must be at most {most}, the batch that this service makes at once", self.n))
        if (self.seed or 0) > self._highest_seed:
            raise RefusedRequest(ErrorDetail.of("seed", f"must be at most {self._highest_seed} for {self.pictures} pictures", self.seed))
        try:
            first = ImageRequest(**self._fields(capabilities)).resolved(capabilities)
        except ValueError as error:
            raise _as_refusal(error, self.size) from None
        return tuple(first.model_copy(update={"seed": (first.seed or 0) + index}) for index in range(self.pictures))

    def _fields(self, capabilities: Capabilities) -> dict[str, Any]:
        own = ("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler")
        fields: dict[str, Any] = {name: value for name in own if (value := getattr(self, name)) is not None}
        fields.setdefault("seed", secrets.randbelow(self._highest_seed + 1))
        if self.size not in (None, "auto"):
            fields["width"], fields["height"] = map(int, str(self.size).split("x"))
        if self.quality in STEPS_OF_QUALITY and self.num_inference_steps is None:
            steps = round(capabilities.num_inference_steps * STEPS_OF_QUALITY[str(self.quality)])
            fields["num_inference_steps"] = min(max(steps, 1), capabilities.max_num_inference_steps)
        return fields

    def _contradiction(self) -> tuple[str, str] | None:
        """Of fields that each are right and together are not: the one to change, and its rule."""
        if self.partial_images and not self.stream:
            return "partial_images", "must be given together with stream=true"
        if self.response_format == "url" and self.stream:
            return "response_format", "must be b64_json together with stream=true"
        if self.output_compression is not None and self.response_format == "url":
            return "output_compression", "must not be given together with response_format=url"
        if self.output_compression not in (None, 100) and self.form == "png":
            return "output_compression", "must be given together with output_format=jpeg or webp"
        return None


def _as_refusal(error: ValueError, size: str | None) -> ValueError:
    """Width and height are `size` in this dialect."""
    if isinstance(error, RefusedRequest):
        sides = ("width", "height", "width x height")
        return RefusedRequest(*(ErrorDetail.of("size", detail.rule, size) if detail.field in sides else detail for detail in error.details))
    return RefusedRequest(ErrorDetail.of("size", "must have sides from 64 to 1536 pixels, multiples of 8", size))
