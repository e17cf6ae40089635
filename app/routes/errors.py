"""Every error leaves as one JSON shape, `ErrorAnswer`, or as OpenAI's under `/v1/`. One table says which exception gives which answer."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.png import FACTS_CHUNK, NotOurPNG
from app.routes.admission import DeadlineTooShort, Overloaded
from app.routes.replicas import REPLICA_LOST
from app.schemas import DeadlinePassed, ErrorAnswer, ErrorDetail, RefusedRequest

logger = logging.getLogger("ray.serve")

MOST_DETAILS = 20  # a body can break a rule a hundred thousand times
CONTRADICTION = "contradiction"  # the type of an error about fields that each are right: its context names the one to change
SOON_S = 2.0  # when to come back if nothing better is known
REPHRASED = {"extra_forbidden": "is no parameter of this request", "missing": "must be given", "json_invalid": "must be JSON"}

LOADING = ErrorAnswer(error="not_ready", message="the model is still loading; /readyz answers 200 once it is ready", retry_after_s=SOON_S)
LOST = ErrorAnswer(
    error="replica_lost",
    message="the replicas asked for this picture went away one after another; the same request can be sent again",
    retry_after_s=SOON_S,
)
LATE = ErrorAnswer(error="deadline_passed", message="the picture was not ready in the time the request was given")
FAILED = ErrorAnswer(error="failed", message="the picture could not be made; the service's log says why")


class NotReady(Exception):
    """The model is still loading."""


class ModelNotFound(Exception):
    """Somebody asked for another model than the one that is served: (asked for, served)."""


class NotAcceptable(Exception):
    """None of the forms the caller accepts can be made."""


def invalid_fields(error: RequestValidationError) -> ErrorAnswer:
    return _refusal(error.errors(), _detail)


def unlike_ours(error: NotOurPNG) -> ErrorAnswer:
    """Of bytes that should be a PNG made here: the field of its settings that breaks a rule, or what it is in place of one."""
    broken = error.__cause__
    if isinstance(broken, ValidationError):
        return _refusal(broken.errors(), lambda item: _detail({**item, "loc": (FACTS_CHUNK, *item["loc"])}))
    return _refusal([ErrorDetail(field="body", rule=f"must be a PNG made here: {error}")])


def refused_request(error: RefusedRequest) -> ErrorAnswer:
    return _refusal(error.details)


def overloaded(error: Overloaded) -> ErrorAnswer:
    return ErrorAnswer(
        error="overloaded", message=str(error), retry_after_s=round(error.retry_after_s, 3), expected_wait_s=round(error.expected_wait_s, 3)
    )


def deadline_too_short(error: DeadlineTooShort) -> ErrorAnswer:
    retry = None if error.retry_after_s is None else round(error.retry_after_s, 3)
    return ErrorAnswer(error="deadline_too_short", message=str(error), retry_after_s=retry, expected_wait_s=round(error.expected_wait_s, 3))


def not_acceptable(error: NotAcceptable) -> ErrorAnswer:
    detail = ErrorDetail.of("Accept", "must allow image/png, image/jpeg, image/webp or application/json", error.args[0])
    return ErrorAnswer(error="not_acceptable", message=str(detail), details=[detail])


def model_not_found(error: ModelNotFound) -> ErrorAnswer:
    asked, served = error.args
    detail = ErrorDetail.of("model", f"must be {served}, which is what this service runs", asked)
    return ErrorAnswer(error="model_not_found", message=str(detail), details=[detail])


# exception -> status, and what is said
TABLE: dict[type[Exception], tuple[int, Callable[[Any], ErrorAnswer]]] = {
    RequestValidationError: (422, invalid_fields),
    RefusedRequest: (422, refused_request),
    NotOurPNG: (422, unlike_ours),
    ModelNotFound: (404, model_not_found),
    NotAcceptable: (406, not_acceptable),
    NotReady: (503, lambda error: LOADING),
    Overloaded: (503, overloaded),
    DeadlineTooShort: (503, deadline_too_short),
    **dict.fromkeys(REPLICA_LOST, (503, lambda error: LOST)),
    DeadlinePassed: (504, lambda error: LATE),
    Exception: (500, lambda error: FAILED),
}


def answer_for(error: Exception) -> tuple[int, ErrorAnswer]:
    """The status and the body that an exception becomes, on its own or as the end of a stream."""
    status, say = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if status == 500:
        logger.error("unexpected error", exc_info=error)
    return status, say(error)


def error_response(scope: Scope, status: int, answer: ErrorAnswer, headers: Mapping[str, str] | None = None) -> Response:
    """The answer in the shape that the callers of this path read."""
    scope.setdefault("state", {})["reason"] = answer.error
    native = not local_path(scope).startswith("/v1/")
    told = {"Cache-Control": "no-store", **(headers or {})}
    if answer.retry_after_s is not None:
        told["Retry-After"] = str(max(1, math.ceil(answer.retry_after_s)))
    elif answer.error in ("deadline_passed", "deadline_too_short"):
        told["X-Should-Retry"] = "false"  # OpenAI's client would ask again, with the same deadline
    if native:
        return JSONResponse(answer.model_dump(), status, headers=told)
    return JSONResponse(openai_shape(status, answer), 400 if status == 422 else status, headers=told)


def local_path(scope: Scope) -> str:
    """Without the prefix that the application is served under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def openai_shape(status: int, answer: ErrorAnswer) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "authentication_error" if status == 401 else "invalid_request_error"
    field = answer.details[0].field if answer.details else None
    return {"error": {"message": answer.message, "type": kind, "param": field, "code": answer.error}}


async def handle(raw: Request, error: Exception) -> Response:
    return error_response(raw.scope, *answer_for(error))


async def not_our_words(raw: Request, error: HTTPException) -> Response:
    """What the framework refuses: wrong paths and methods, and bodies that it cannot read."""
    if error.status_code == 400:
        form = raw.headers.get("content-type", "").lower().startswith("multipart/")
        rule = f"must be whole multipart/form-data: {error.detail}" if form else "must be JSON in UTF-8, not too deeply nested"
        return error_response(raw.scope, 422, _refusal([ErrorDetail(field="body", rule=rule)]))
    field, value = ("method", raw.method) if error.status_code == 405 else ("path", raw.url.path)
    detail = ErrorDetail.of(field, f"{error.detail}; /docs lists what there is", value)
    answer = ErrorAnswer(error="wrong_address", message=str(detail), details=[detail])
    headers = dict(error.headers or {})
    if offered := raw.app.openapi()["paths"].get(local_path(raw.scope)):
        headers["Allow"] = ", ".join(method.upper() for method in offered)  # the framework names those of one route alone
    return error_response(raw.scope, error.status_code, answer, headers)


HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    **dict.fromkeys(TABLE, handle),
    HTTPException: not_our_words,
}


def _refusal(broken: Sequence[Any], detail_of: Callable[[Any], ErrorDetail] = lambda detail: detail) -> ErrorAnswer:
    details = [detail_of(one) for one in broken[:MOST_DETAILS]]
    more = len(broken) - len(details)
    return ErrorAnswer(
        error="invalid_request", message="; ".join(map(str, details)) + (f"; and {more} more" if more else ""), details=details
    )


def _detail(error: Mapping[str, Any]) -> ErrorDetail:
    names = [str(name) for name in error["loc"]]  # ("query", "seed"), or ("query",) for a rule about several fields
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must")
    if error["type"] == "json_invalid":
        names = names[:1]
    value: Any = None if error["type"] in ("missing", "json_invalid") else error["input"]
    if error["type"] == CONTRADICTION:
        field = error["ctx"]["field"]
        names, value = ["body", field], value[field]
    return ErrorDetail.of(".".join(names[1:]) or names[0], REPHRASED.get(error["type"], said), value)
