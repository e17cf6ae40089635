"""Every error leaves as one JSON shape, `ErrorAnswer`. One table says which exception gives which answer."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
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


class NotReady(Exception):
    """The model is still loading."""


async def invalid_fields(raw: Request, error: RequestValidationError) -> Response:
    return _unprocessable([_detail(item) for item in error.errors()])


async def refused_request(raw: Request, error: RefusedRequest) -> Response:
    return _unprocessable(list(error.details))


async def wrong_address(raw: Request, error: HTTPException) -> Response:
    field, value = ("method", raw.method) if error.status_code == 405 else ("path", raw.url.path)
    detail = ErrorDetail.of(field, f"{error.detail}; /docs lists what there is", value)
    return _answer(error.status_code, "wrong_address", str(detail), [detail], error.headers)


async def not_ready(raw: Request, error: NotReady) -> Response:
    return _answer(503, "not_ready", "the model is still loading; /readyz answers 200 once it is ready", headers=RETRY_SOON)


async def overloaded(raw: Request, error: BackPressureError) -> Response:
    return _answer(503, "overloaded", "too many requests are waiting already; try again soon", headers=RETRY_SOON)


async def replica_lost(raw: Request, error: Exception) -> Response:
    return _answer(503, "replica_lost", "the replica making this picture went away; the same request can be sent again", headers=RETRY_SOON)


async def failed(raw: Request, error: Exception) -> Response:
    logger.exception("unexpected error", exc_info=error)
    return _answer(500, "failed", "the picture could not be made; the service's log says why")


HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    RequestValidationError: invalid_fields,
    RefusedRequest: refused_request,
    HTTPException: wrong_address,
    NotReady: not_ready,
    BackPressureError: overloaded,
    RayActorError: replica_lost,
    DeploymentUnavailableError: replica_lost,
    Exception: failed,
}


def _unprocessable(details: list[ErrorDetail]) -> Response:
    return _answer(422, "invalid_request", "; ".join(map(str, details)), details)


def _answer(
    status: int, error: str, message: str, details: Iterable[ErrorDetail] = (), headers: Mapping[str, str] | None = None
) -> Response:
    body = ErrorAnswer(error=error, message=message, details=list(details))
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def _detail(error: Mapping[str, Any]) -> ErrorDetail:
    names = [str(name) for name in error["loc"]]  # ("query", "seed"), or ("query",) for a rule about several fields
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must")
    value = None if error["type"] == "missing" else error["input"]
    return ErrorDetail.of(".".join(names[1:]) or names[0], REPHRASED.get(error["type"], said), value)
