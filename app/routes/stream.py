"""`GET` and `POST /imagine/stream`: the same parameters as `/imagine`, and the picture as it forms, as server-sent events.

| event | data |
|---|---|
| `queued` | `{"position": 3, "expected_wait_s": 4.2}`, first of all, then about once a second; position 0: a replica has it |
| `waiting` | `{}`, about once a second, so that a reader knows the connection lives and can leave |
| `step` | `{"step": 3, "total": 20, "preview": base64 PNG or null}` |
| `done` | `{"png": base64, "facts": {...}, "timings": {...}}`, the last one |
| `error` | the JSON of an error answer, the last one if the picture failed on its way |
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.routes.backend import Backend, Job
from app.routes.errors import answer_for
from app.routes.imagine import ERRORS, ImagineQuery, deadline_of, refuse_repeated
from app.routes.rendering import as_json
from app.schemas import ErrorAnswer, GeneratedImage, Progress, Queued, Update
from app.settings import Settings

SECONDS_BETWEEN_SIGNS_OF_LIFE = 1

Events = AsyncGenerator[ServerSentEvent]


class StreamQuery(ImagineQuery):
    format: Annotated[Literal["png"] | None, Field(description="A stream holds PNGs")] = None
    previews: Annotated[bool, Field(description="Show the picture as it forms")] = False


class StreamBody(StreamQuery):
    """The same in JSON, where a number is no text and no truth value."""

    model_config = ConfigDict(strict=True)


def router(backend: Backend, settings: Settings) -> APIRouter:
    routes = APIRouter()
    deadline = Depends(deadline_of(settings))
    documented: dict[str, Any] = {
        "dependencies": [Depends(refuse_repeated)],
        "response_class": EventSourceResponse,
        "responses": ERRORS,
    }

    @routes.get("/imagine/stream", **documented)
    async def stream(raw: Request, query: Annotated[StreamQuery, Query()], deadline: Annotated[float, deadline]) -> EventSourceResponse:
        """Make a picture and tell every step. Closing the connection stops the work."""
        return await answer(raw, query, deadline)

    @routes.post("/imagine/stream", **documented)
    async def stream_body(raw: Request, body: StreamBody, deadline: Annotated[float, deadline]) -> EventSourceResponse:
        """The same with the fields in a JSON body, which no log of addresses keeps."""
        return await answer(raw, body, deadline)

    async def answer(raw: Request, query: StreamQuery, deadline: float) -> EventSourceResponse:
        request = query.resolved_by(await backend.capabilities())
        events = told_as_events(backend, Job((request,), deadline, steps=True, previews=query.previews), native_event)
        return await event_stream(raw, events, _native_error, ping=ServerSentEvent("{}", event="waiting"))

    return routes


async def event_stream(
    raw: Request, events: Events, say_error: Callable[[int, ErrorAnswer], ServerSentEvent], ping: ServerSentEvent | None = None
) -> EventSourceResponse:
    """The answer, once the first event is there: a refusal before it is an ordinary answer, a failure after it the last event."""
    first = await anext(events)
    return EventSourceResponse(
        _from_the_first(raw, first, events, say_error),
        ping=SECONDS_BETWEEN_SIGNS_OF_LIFE,
        ping_message_factory=None if ping is None else lambda: ping,
    )


async def _from_the_first(
    raw: Request, first: ServerSentEvent, events: Events, say_error: Callable[[int, ErrorAnswer], ServerSentEvent]
) -> Events:
    async with aclosing(events):
        try:
            yield first
            async for event in events:
                yield event
        except Exception as error:
            status, answer = answer_for(error)
            raw.state.reason = answer.error
            yield say_error(status, answer)


async def told_as_events(backend: Backend, job: Job, event: Callable[[Queued | Update], ServerSentEvent]) -> Events:
    async with aclosing(backend.run(job)) as told:
        async for news in told:
            yield await asyncio.to_thread(event, news)  # which may encode a picture


def native_event(told: Queued | Update) -> ServerSentEvent:
    if isinstance(told, Queued):
        data = {"position": told.position, "expected_wait_s": round(told.expected_wait_s, 3)}
        return ServerSentEvent(json.dumps(data), event="queued")
    return _done(told.payload) if isinstance(told.payload, GeneratedImage) else _step(told.payload)


def _step(progress: Progress) -> ServerSentEvent:
    preview = None if progress.preview is None else base64.b64encode(progress.preview).decode()
    return ServerSentEvent(json.dumps({"step": progress.step, "total": progress.total, "preview": preview}), event="step")


def _done(generated: GeneratedImage) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(as_json(generated)), event="done")


def _native_error(status: int, answer: ErrorAnswer) -> ServerSentEvent:
    return ServerSentEvent(answer.model_dump_json(), event="error")
