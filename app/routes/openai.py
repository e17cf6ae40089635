"""OpenAI's dialect: `POST /v1/images/generations`, streaming included, and `GET /v1/models`. Only here are its words spoken."""

import asyncio
import base64
import json
import time
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.routes import caching, imagine, rendering
from app.routes.backend import Backend, Job, make
from app.routes.errors import ModelNotFound, openai_shape
from app.routes.imagine import deadline_of
from app.routes.openai_fields import FIELDS, GenerationsBody
from app.routes.stream import Events, event_stream, told_as_events
from app.schemas import Capabilities, ErrorAnswer, ErrorDetail, GeneratedImage, ImageRequest, Progress, Queued, RefusedRequest, Update
from app.settings import Settings

OWNER = "imagine"
NO_TOKENS = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ProblemAnswer(BaseModel):
    error: Problem


class Picture(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    seed: int


class PicturesAnswer(BaseModel):
    created: int
    background: str = "opaque"
    output_format: str
    quality: str | None = None
    size: str
    data: list[Picture]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = OWNER


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "description": description}
    for status, description in {
        400: "A field breaks a rule",
        401: "The service wants a token, or another one",
        404: "Another model than the served one",
        413: "The body is too large",
        415: "The body is not JSON",
        504: "The pictures were not ready in the time the request was given",
    }.items()
}
ERRORS |= {status: imagine.ERRORS[status] | {"model": ProblemAnswer} for status in (408, 503)}
UNUSED: dict[int | str, dict[str, Any]] = {422: {"model": ProblemAnswer, "description": "Never: a field that breaks a rule is a 400 here"}}


def router(backend: Backend, settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI's dialect"])

    @routes.get("/models", responses={code: ERRORS[code] for code in (401, 503)})
    async def models() -> Models:
        """The one model that is served."""
        return Models(data=[Model(id=(await backend.capabilities()).model)])

    @routes.get("/models/{model:path}", responses={**{code: ERRORS[code] for code in (401, 404, 503)}, **UNUSED})
    async def one_model(model: str) -> Model:
        refuse_other_model(model, await backend.capabilities())
        return Model(id=model)

    @routes.post(
        "/images/generations",
        response_model=PicturesAnswer,
        response_model_exclude_none=True,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "Pictures, or with `stream` their events"},
            **ERRORS,
            **UNUSED,
        },
        dependencies=[Depends(imagine.refuse_repeated)],
        description=f"Make pictures, asked for as OpenAI's clients ask.\n{FIELDS}",
    )
    async def generations(
        raw: Request, body: GenerationsBody, deadline: Annotated[float, Depends(deadline_of(settings))]
    ) -> PicturesAnswer | EventSourceResponse:
        capabilities = await backend.capabilities()
        refuse_other_model(body.model, capabilities)
        requests = body.to_requests(capabilities)
        if body.response_format == "url":
            return addresses(raw, body, requests, capabilities)
        return await respond(raw, backend, body, requests, deadline)

    return routes


def addresses(raw: Request, body: GenerationsBody, requests: tuple[ImageRequest, ...], capabilities: Capabilities) -> PicturesAnswer:
    """Permalinks in place of pictures, which nobody makes before they are looked at. Raises `RefusedRequest` for one that is too long."""
    schemes = raw.headers.get("x-forwarded-proto", raw.url.scheme)  # what was spoken to proxies that end TLS, the caller's first
    prefix = str(raw.base_url.replace(scheme="https" if schemes.split(",")[0].strip() == "https" else "http")).rstrip("/")
    urls = [caching.permalink(prefix, one, capabilities, body.form) for one in requests]
    if (longest := max(map(len, urls))) > caching.LONGEST_ADDRESS:
        rule = f"must be b64_json for this prompt, whose address would be {longest} characters long"
        raise RefusedRequest(ErrorDetail.of("response_format", rule, "url"))
    pictures = [Picture(url=url, seed=one.seed or 0) for url, one in zip(urls, requests, strict=True)]
    return PicturesAnswer(created=int(time.time()), data=pictures, quality=body.told_quality, **about(body, requests[0]))


async def respond(
    raw: Request, backend: Backend, body: GenerationsBody, requests: tuple[ImageRequest, ...], deadline: float
) -> PicturesAnswer | EventSourceResponse:
    """The pictures, or the stream of their events."""
    if body.stream:
        partial = body.partial_images or 0
        job = Job(requests, deadline, steps=True, previews=partial > 0)
        return await event_stream(raw, events(backend, job, body, partial), problem_event)
    pictures = (await make(backend, Job(requests, deadline))).pictures
    encoded = [await asyncio.to_thread(in_base64, one.png, body) for one in pictures]
    data = [Picture(b64_json=data, seed=one.seed or 0) for data, one in zip(encoded, requests, strict=True)]
    return PicturesAnswer(created=int(time.time()), data=data, quality=body.told_quality, **about(body, requests[0]))


async def events(backend: Backend, job: Job, body: GenerationsBody, partial: int) -> Events:
    """A comment first, so that a refusal can be an ordinary answer; then partial images and pictures."""
    turns = [Partials(partial) for _ in job.requests]
    async with aclosing(told_as_events(backend, job, lambda news: _event(news, turns, job, body))) as told:
        async for event in told:
            yield event


class Partials:
    """Which steps show a partial image: `number` of them, evenly spread."""

    def __init__(self, number: int) -> None:
        self._number, self.shown = number, 0

    def is_due(self, progress: Progress) -> bool:
        if progress.preview is None or progress.step == progress.total or self.shown == self._number:
            return False
        return progress.step >= progress.total * (self.shown + 1) / (self._number + 1)


def _event(news: Queued | Update, turns: list[Partials], job: Job, body: GenerationsBody) -> ServerSentEvent:
    if isinstance(news, Queued):
        return ServerSentEvent(comment=f"queued at {news.position}, {news.expected_wait_s:.1f} s to go")
    request, turn = job.requests[news.index], turns[news.index]
    if isinstance(news.payload, GeneratedImage):
        return _picture_event("completed", in_base64(news.payload.png, body), body, request, {"usage": NO_TOKENS})
    if not turn.is_due(news.payload):
        return ServerSentEvent(comment=f"step {news.payload.step} of {news.payload.total}")
    picture = rendering.enlarged(news.payload.preview or b"", request.width or 0, request.height or 0)
    turn.shown += 1
    return _picture_event("partial_image", in_base64(picture, body), body, request, {"partial_image_index": turn.shown - 1})


def _picture_event(
    name: Literal["partial_image", "completed"], data: str, body: GenerationsBody, request: ImageRequest, more: dict[str, Any]
) -> ServerSentEvent:
    kind = f"{body.event_prefix}.{name}"
    told = {"type": kind, "b64_json": data, "created_at": int(time.time()), "background": "opaque", "seed": request.seed}
    return ServerSentEvent(json.dumps({**told, "quality": body.told_quality or "auto", **about(body, request), **more}), event=kind)


def problem_event(status: int, answer: ErrorAnswer) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(openai_shape(status, answer)), event="error")


def about(body: GenerationsBody, request: ImageRequest) -> dict[str, str]:
    return {"output_format": body.form, "size": f"{request.width}x{request.height}"}


def in_base64(png: bytes, body: GenerationsBody) -> str:
    return base64.b64encode(rendering.encoded(png, body.form, body.compression)).decode()


def refuse_other_model(model: str | None, capabilities: Capabilities) -> None:
    if model is not None and model != capabilities.model:
        raise ModelNotFound(model, capabilities.model)
