"""`GET /imagine/stream`: the same parameters as `/imagine`, and the picture as it forms, as server-sent events.

| event | data |
|---|---|
| `waiting` | `{}`, about once a second, so that a reader knows the connection lives and can leave |
| `step` | `{"step": 3, "total": 20, "preview": base64 PNG or null}` |
| `done` | `{"png": base64, "facts": {...}, "timings": {...}}`, the last one |
| `error` | the JSON of an error answer, the last one if the picture failed on its way |
"""

import base64
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from app.routes.backend import Backend
from app.routes.errors import answer_for
from app.routes.imagine import ERRORS, ImagineQuery, refuse_repeated
from app.schemas import GeneratedImage, ImageRequest, Progress

SECONDS_BETWEEN_SIGNS_OF_LIFE = 1


class StreamQuery(ImagineQuery):
    previews: Annotated[bool, Field(description="Show the picture as it forms")] = False

    def to_request(self) -> ImageRequest:
        return ImagineQuery(**self.model_dump(exclude={"previews"})).to_request()


def router(backend: Backend) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/imagine/stream",
        dependencies=[Depends(refuse_repeated)],
        response_class=EventSourceResponse,
        responses=ERRORS,
    )
    async def stream(query: Annotated[StreamQuery, Query()]) -> EventSourceResponse:
        """Make a picture and tell every step. Closing the connection stops the work."""
        resolved = query.to_request().resolved(await backend.capabilities())
        return EventSourceResponse(
            events(backend, resolved, query.previews),
            ping=SECONDS_BETWEEN_SIGNS_OF_LIFE,
            ping_message_factory=lambda: ServerSentEvent("{}", event="waiting"),
        )

    return routes


async def events(backend: Backend, request: ImageRequest, previews: bool) -> AsyncIterator[ServerSentEvent]:
    try:
        async for told in backend.stream(request, previews):
            yield _done(told) if isinstance(told, GeneratedImage) else _step(told)
    except Exception as error:
        yield ServerSentEvent(answer_for(error)[1].model_dump_json(), event="error")


def _step(progress: Progress) -> ServerSentEvent:
    preview = None if progress.preview is None else _base64(progress.preview)
    return ServerSentEvent(json.dumps({"step": progress.step, "total": progress.total, "preview": preview}), event="step")


def _done(generated: GeneratedImage) -> ServerSentEvent:
    data = {"png": _base64(generated.png), "facts": generated.facts.model_dump(mode="json"), "timings": generated.timings}
    return ServerSentEvent(json.dumps(data), event="done")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
