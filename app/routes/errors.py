"""Every error leaves as one JSON shape, `ErrorAnswer`. One table says which exception gives which answer."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException

from app.schemas import ErrorAnswer, ErrorDetail, RefusedRequest

logger = logging.getLogger("ray.serve")

RETRY_SOON = {"Retry-After": "2"}  # seconds
REPHRASED = {"extra_forbidden": "is no parameter of this request", "missing": "must be given"}  # pydantic's error type -> rule

LOADING = ErrorAnswer(error="not_ready", message="the model is still loading; /readyz answers 200 once it is ready")
OVERLOADED = ErrorAnswer(error="overloaded", message="too many requests are waiting already; try again soon")
LOST = ErrorAnswer(error="replica_lost", message="the replica making this picture went away; the same request can be sent again")
FAILED = ErrorAnswer(error="failed", message="the picture could not be made; the service's log says why")


class NotReady(Exception):
    """The model is still loading."""


def invalid_fields(error: RequestValidationError) -> ErrorAnswer:
    return _refusal([_detail(item) for item in error.errors()])


def refused_request(error: RefusedRequest) -> ErrorAnswer:
    return _refusal(list(error.details))


# exception -> status, and what is said
TABLE: dict[type[Exception], tuple[int, Callable[[Any], ErrorAnswer]]] = {
    RequestValidationError: (422, invalid_fields),
    RefusedRequest: (422, refused_request),
    NotReady: (503, lambda error: LOADING),
    BackPressureError: (503, lambda error: OVERLOADED),
    RayActorError: (503, lambda error: LOST),
    DeploymentUnavailableError: (503, lambda error: LOST),
    Exception: (500, lambda error: FAILED),
}


def answer_for(error: Exception) -> tuple[int, ErrorAnswer]:
    """The status and the body that an exception becomes, on its own or as the end of a stream."""
    status, say = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if status == 500:
        logger.error("unexpected error", exc_info=error)
    return status, say(error)


async def handle(raw: Request, error: Exception) -> Response:
    status, answer = answer_for(error)
    return JSONResponse(answer.model_dump(), status, headers=RETRY_SOON if status == 503 else None)


async def wrong_address(raw: Request, error: HTTPException) -> Response:
    field, value = ("method", raw.method) if error.status_code == 405 else ("path", raw.url.path)
    detail = ErrorDetail.of(field, f"{error.detail}; /docs lists what there is", value)
    answer = ErrorAnswer(error="wrong_address", message=str(detail), details=[detail])
    return JSONResponse(answer.model_dump(), error.status_code, headers=error.headers)


HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    **dict.fromkeys(TABLE, handle),
    HTTPException: wrong_address,
}


def _refusal(details: list[ErrorDetail]) -> ErrorAnswer:
    return ErrorAnswer(error="invalid_request", message="; ".join(map(str, details)), details=details)


def _detail(error: Mapping[str, Any]) -> ErrorDetail:
    names = [str(name) for name in error["loc"]]  # ("query", "seed"), or ("query",) for a rule about several fields
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must")
    value = None if error["type"] == "missing" else error["input"]
    return ErrorDetail.of(".".join(names[1:]) or names[0], REPHRASED.get(error["type"], said), value)
