"""What is asked for, what comes back, and who can be asked. Imports nothing of the application."""

import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Annotated, Any, Protocol, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

MIN_SIDE, MAX_SIDE = 64, 1536  # pixels
MAX_SEED, MAX_STEPS = 2**32 - 1, 150
STEPS_WORTH_OF_THE_REST = 2  # reading the text, decoding and encoding
LONGEST_SHOWN = 80  # characters of a refused value

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, Field(max_length=2000)]


def _sendable(value: object) -> str:
    """As text. Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    try:
        return str(value).encode("utf-8", "replace").decode()
    except RecursionError:
        return "what is nested too deeply to be shown"


class ErrorDetail(BaseModel):
    """One thing that was refused: which field, the rule it broke, and the value it had."""

    field: str
    rule: str
    value: str | None = None

    @classmethod
    def of(cls, field: str, rule: str, value: object) -> Self:
        shown = None if value is None else _sendable(value)
        if shown is not None and len(shown) > LONGEST_SHOWN:
            shown = f"{shown[:LONGEST_SHOWN]}… ({len(shown)} characters)"
        return cls(field=_sendable(field)[:LONGEST_SHOWN], rule=_sendable(rule), value=shown)

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}" + ("" if self.value is None else f" (got {self.value!r})")


class ErrorAnswer(BaseModel):
    """The one shape of every error. `retry_after_s`: when the same request is expected to be let in; `expected_wait_s`: how long it would
    have waited now."""

    error: str
    message: str
    details: list[ErrorDetail] = []
    retry_after_s: float | None = None
    expected_wait_s: float | None = None


class RefusedRequest(ValueError):
    """A request that breaks a rule of the model, such as its largest size."""

    def __init__(self, *details: ErrorDetail) -> None:
        super().__init__("; ".join(map(str, details)))
        self.details = details

    def __reduce__(self) -> tuple[type[Self], tuple[ErrorDetail, ...]]:
        return type(self), self.details  # crosses processes: by default only the message would


class SourceError(Exception):
    """A source of images that could not be reached, is busy or failed; the message says what to do.

    With `retry_after_s` the same request is worth another try after so many seconds.
    """

    retry_after_s: float | None = None


class GenerationCancelled(Exception):
    """The caller asked to stop before the picture was ready."""


class DeadlinePassed(GenerationCancelled):
    """The picture was not ready in the time it was given."""


class EngineStopped(RuntimeError):
    """The engine makes no picture any more; another one may."""


class Capabilities(BaseModel):
    """What a source of images can do, and what it does if not told otherwise."""

    model_config = ConfigDict(frozen=True)

    model: str
    revision: str
    pipeline: str
    scheduler: str
    schedulers: tuple[str, ...]
    width: int
    height: int
    size_multiple: int
    max_pixels: int
    num_inference_steps: int
    max_num_inference_steps: int = MAX_STEPS
    guidance_scale: float
    max_prompt_tokens: int | None
    version: str
    image_to_image: bool = False
    max_num_images_per_prompt: int = 1  # with seeds one after another, made together

    def limited(self, max_num_inference_steps: int = MAX_STEPS) -> Self:
        """The same with at most so many steps allowed, and defaults that keep to the limits on steps and pixels."""
        side = min(self.width, math.isqrt(self.max_pixels) // self.size_multiple * self.size_multiple)
        fits = self.width * self.height <= self.max_pixels
        return self.model_copy(
            update={
                "max_num_inference_steps": max_num_inference_steps,
                "num_inference_steps": min(self.num_inference_steps, max_num_inference_steps),
                "width": self.width if fits else side,
                "height": self.height if fits else side,
            }
        )


class ImageRequest(BaseModel):
    """One image to make. Fields left out are filled in by `resolved`; after that the image is a pure function of the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # `example`, not `examples`: the documentation page fills it into its form
    prompt: Annotated[str, Field(min_length=1, max_length=2000, json_schema_extra={"example": "a red heart on a yellow background"})]
    negative_prompt: Text = ""
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    seed: Seed | None = None
    scheduler: Annotated[str | None, Field(max_length=80, description="A noise scheduler of diffusers that fits the model")] = None

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt

    @property
    def pixel_steps(self) -> int:
        """The work of a resolved request: pixels x rows of the denoiser (two with guidance) x steps, what is not steps counted in them."""
        rows = 2 if (self.guidance_scale or 0) > 1 else 1
        return (self.width or 0) * (self.height or 0) * rows * (self.denoising_steps + STEPS_WORTH_OF_THE_REST)

    @property
    def denoising_steps(self) -> int:
        return self.num_inference_steps or 0

    def resolved(self, capabilities: Capabilities) -> Self:
        """The same request with every field set: the model's defaults, and a seed drawn at random.

        Raises `RefusedRequest` if the size does not fit the model.
        """
        width, height = self.width or capabilities.width, self.height or capabilities.height
        multiple = capabilities.size_multiple
        wrong = [
            ErrorDetail.of(side, f"must be a multiple of {multiple} for this model", pixels)
            for side, pixels in (("width", width), ("height", height))
            if pixels % multiple
        ]
        if width * height > capabilities.max_pixels:
            wrong.append(
                ErrorDetail.of("width x height", f"must be at most {capabilities.max_pixels} pixels for this model", f"{width} x {height}")
            )
        if (self.num_inference_steps or 0) > (limit := capabilities.max_num_inference_steps):
            wrong.append(ErrorDetail.of("num_inference_steps", f"must be at most {limit} for this service", self.num_inference_steps))
        if self.scheduler is not None and self.scheduler not in capabilities.schedulers:
            wrong.append(ErrorDetail.of("scheduler", f"must be one of {', '.join(capabilities.schedulers)}", self.scheduler))
        if wrong:
            raise RefusedRequest(*wrong)
        defaults = {
            "num_inference_steps": capabilities.num_inference_steps,
            "guidance_scale": capabilities.guidance_scale,
            "seed": secrets.randbelow(MAX_SEED + 1),
        }
        filled: dict[str, Any] = {name: default for name, default in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update=filled | {"width": width, "height": height, "scheduler": self.scheduler or capabilities.scheduler})


class Edit(BaseModel):
    """What a picture was painted over: the SHA-256 of the source as it was given to the pipeline, and how much of it was noise at first."""

    image_sha256: str
    strength: float


class Facts(BaseModel):
    """How an image was made: all that is needed to make it again, and nothing that differs between two identical runs."""

    model_config = ConfigDict(frozen=True)

    request: ImageRequest
    model: str
    revision: str
    pipeline: str
    scheduler: str
    dtype: str
    device: str
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    edit: Edit | None = None


class Change(BaseModel):
    """Something a picture is made with that is not what it was."""

    fact: str
    then: str | None
    now: str | None


class Replay(BaseModel):
    """A picture beside the one that its own settings make now. They match if no channel differs by more than `tolerance`."""

    match: bool
    tolerance: Annotated[int, Field(description="1 of 255, and 8 in half precision, where rounding depends on who shares a step")]
    largest_difference: Annotated[int, Field(ge=0, le=255, description="Of a channel, of 255")]
    differing_pixels: Annotated[float, Field(ge=0, le=1, description="Share of all pixels")]
    changed: Annotated[list[Change], Field(description="Model, revision, versions of libraries ... that are not what they were")]
    why: Annotated[str | None, Field(description="A sentence, if they do not match")]
    facts: Annotated[Facts, Field(description="How the picture was made now")]


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `total` denoising steps are done. `preview` is a small PNG, if previews were asked for and the model allows them."""

    step: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """`position` in the queue, 0 once a replica has the request, and the seconds it is expected to wait yet."""

    position: int
    expected_wait_s: float


@dataclass(frozen=True)
class GeneratedImage:
    """A PNG, whose text chunks hold the facts, the same facts, and the seconds that each phase of making it took."""

    png: bytes
    facts: Facts
    timings: dict[str, float] = field(default_factory=dict, compare=False)

    @cached_property
    def image(self) -> Image.Image:
        return Image.open(BytesIO(self.png)).copy()  # read at once: by many threads, who share a picture, Pillow's cannot be

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png


@dataclass(frozen=True, slots=True)
class Update:
    """News of the picture at `index` of those that were asked for together."""

    index: int
    payload: Progress | GeneratedImage


class ImageSource(Protocol):
    """Whoever makes images: the engine in this process, or the client of a served one."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(
        self,
        request: ImageRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
    ) -> GeneratedImage:
        """Make one image; blocks until it is done. With `previews`, progress shows the picture as it forms.

        Raises `RefusedRequest` for a request that does not fit the model, `GenerationCancelled` once `cancel` is set, and `SourceError`
        if the source is in trouble.
        """
        ...
