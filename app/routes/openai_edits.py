"""OpenAI's `POST /v1/images/edits`: a picture is painted over as the prompt says, by image-to-image."""

import asyncio
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from PIL import Image, ImageOps
from pydantic import BeforeValidator, ConfigDict, Field, field_validator
from python_multipart.multipart import parse_options_header
from sse_starlette import EventSourceResponse

from app.editing import STRENGTH, EditRequest
from app.png import Unreadable, opened
from app.routes.backend import Backend
from app.routes.imagine import as_number, deadline_of, in_digits, refuse_in_the_address, refuse_twice
from app.routes.openai import ERRORS, UNUSED, PicturesAnswer, ProblemAnswer, refuse_other_model, respond
from app.routes.openai_fields import GenerationsBody
from app.schemas import Capabilities, ErrorDetail, RefusedRequest
from app.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP")
LIST_OF_IMAGES = "image[]"  # what OpenAI's client calls it if it was given a list
MAY_BE_EMPTY = ("prompt", "negative_prompt", "user", "safety_identifier")  # the first has a rule of its own
UTF8 = (b"utf-8", b"utf8")
NO_MASK = "must not be given: the whole picture is painted over"

FIELDS = f"""
| field | here |
|---|---|
| `image` | one PNG, JPEG or WebP without transparency, brought to `size`; `image[]` with one picture is the same, several are refused |
| `strength` | beyond OpenAI's: above 0 to 1, how much is painted over (the share of the steps that are taken); {STRENGTH} if not given |
| `size` | `auto` (that of `image`) or `WIDTHxHEIGHT`, within the model's limits |
| `mask` | refused: the whole picture is painted over |
| `response_format` | `b64_json` alone: no address could hold the picture |
| `stream`, `partial_images` | `image_edit.partial_image` (0-3 of them) and `image_edit.completed` events |
| `input_fidelity` | refused: that is `strength` here |
| `complexity`, `frame_count`, `frame_duration_ms`, `markup`, `svg` | refused: this model has nothing like them |
| `prompt`, `model`, `n`, `quality`, `output_format`, `output_compression`, `background`, `user` | as in `/v1/images/generations` |
| `moderation`, `safety_identifier`, `negative_prompt`, `seed`, `num_inference_steps`, `guidance_scale`, `scheduler` | as there too |
"""


def _a_file(value: object) -> object:
    if isinstance(value, str):
        raise ValueError("must be a file")
    return value


class EditsBody(GenerationsBody):
    event_prefix: ClassVar[str] = "image_edit"
    model_config = ConfigDict(strict=False, json_schema_extra={})  # a form holds text

    image: Annotated[UploadFile | None, BeforeValidator(_a_file)] = None
    listed_image: Annotated[UploadFile | None, BeforeValidator(_a_file), Field(alias=LIST_OF_IMAGES)] = None
    response_format: Literal["b64_json"] | None = None
    _in_digits = field_validator("n", "output_compression", "partial_images", "seed", "num_inference_steps", mode="before")(in_digits)
    strength: Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)] = None
    _as_number = field_validator("guidance_scale", "strength", mode="before")(as_number)

    async def picture(self) -> bytes:
        """Raises `RefusedRequest` if there is none."""
        file = self.image or self.listed_image
        if file is None:
            raise RefusedRequest(ErrorDetail(field="image", rule="must be given"))
        return await file.read()

    def to_edits(self, capabilities: Capabilities, image: Image.Image) -> tuple[EditRequest, ...]:
        """Raises `RefusedRequest`."""
        sized = self if self.size not in (None, "auto") else self.model_copy(update={"size": f"{image.width}x{image.height}"})
        first, *others = sized.to_requests(capabilities)
        edit = EditRequest.of(first, image, self.strength)
        return (edit, *(edit.model_copy(update={"seed": other.seed}) for other in others))


async def refuse_what_a_form_may_not_hold(raw: Request) -> None:
    """Nothing twice, no mask, nothing empty, which the framework would take for not given, and no charset but UTF-8.

    Raises `RefusedRequest`.
    """
    _, options = parse_options_header(raw.headers.get("content-type"))
    if (charset := options.get(b"charset", b"utf-8")).lower() not in UTF8:  # what it does not know the framework would take for Latin-1
        raise RefusedRequest(ErrorDetail.of("Content-Type", "must have no charset but utf-8", charset.decode("latin-1")))
    given = (await raw.form()).multi_items()
    names = [name for name, _ in given]
    if "mask" in names:
        raise RefusedRequest(ErrorDetail(field="mask", rule=NO_MASK))
    if empty := [name for name, value in given if value == "" and name not in MAY_BE_EMPTY]:
        raise RefusedRequest(*(ErrorDetail.of(name, "must not be empty; leave it out", "") for name in empty))
    refuse_twice("image" if name == LIST_OF_IMAGES else name for name in names)


def router(backend: Backend, settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI's dialect"])

    @routes.post(
        "/images/edits",
        dependencies=[Depends(refuse_in_the_address), Depends(refuse_what_a_form_may_not_hold)],
        response_model=PicturesAnswer,
        response_model_exclude_none=True,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "Pictures, or with `stream` their events"},
            **ERRORS,
            415: {"model": ProblemAnswer, "description": "The body is not multipart/form-data"},
            **UNUSED,
        },
        description=f"Paint over a picture, asked for as OpenAI's clients ask.\n{FIELDS}",
    )
    async def edits(
        raw: Request,
        body: Annotated[EditsBody, Form(media_type="multipart/form-data")],
        deadline: Annotated[float, Depends(deadline_of(settings))],
    ) -> PicturesAnswer | EventSourceResponse:
        capabilities = await backend.capabilities()
        refuse_other_model(body.model, capabilities)
        if not capabilities.image_to_image:
            raise RefusedRequest(ErrorDetail(field="image", rule="must not be given: this model has no image-to-image pipeline"))
        data = await body.picture()
        requests = await asyncio.to_thread(lambda: body.to_edits(capabilities, opaque(data)))
        return await respond(raw, backend, body, requests, deadline)

    return routes


def upright(image: Image.Image) -> Image.Image:
    """Cameras store upright pictures lying, with a note which way. Raises `Unreadable`."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged notes trip Pillow in as many ways as damaged pictures
        raise Unreadable("its EXIF is damaged; save it without") from error


def opaque(data: bytes) -> Image.Image:
    """RGB. Raises `RefusedRequest`."""
    try:
        image = upright(opened(data, FORMATS))
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    except (Unreadable, ValueError) as error:  # the second: colours of a kind that Pillow cannot bring to eight bits
        raise RefusedRequest(ErrorDetail(field="image", rule=f"must be a picture: {error}")) from error
    if lowest != 255:
        raise RefusedRequest(ErrorDetail(field="image", rule="must be opaque: what is transparent would be a mask"))
    return image.convert("RGB")
