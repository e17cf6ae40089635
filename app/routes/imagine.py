"""`GET` and `POST /imagine`: a prompt in the query or in a JSON body, a picture back."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticKnownError

from app.routes import caching, rendering
from app.routes.backend import Backend, Job, Made, make
from app.routes.rendering import Format
from app.schemas import Capabilities, ErrorAnswer, ErrorDetail, Facts, ImageRequest, RefusedRequest, Side
from app.settings import UNNAMED_VERSION, Settings

# How much before the caller's deadline ours is: Serve's proxy cuts off at the same header.
MARGIN, SHORTEST_MARGIN_S, LONGEST_MARGIN_S = 0.1, 0.3, 0.5
TIMEOUT_HEADER = "x-request-timeout-seconds"
SHORTEST_DEADLINE_S = 1.0  # below, the proxy may well answer before anybody here has read the request
WHOLE_NUMBER = re.compile("-?[0-9]+")
NO_PART_OF_NUMBERS = re.compile(r"[_\s]")

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The service wants a token, or another one"},
    408: {
        "model": ErrorAnswer,
        "content": {"text/plain": {}},
        "description": "The body did not come. As text: Serve's proxy gave up before the service did; only with a tiny deadline",
    },
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    415: {"model": ErrorAnswer, "description": "The body is not JSON"},
    422: {"model": ErrorAnswer, "description": "A field breaks a rule"},
    503: {
        "model": ErrorAnswer,
        "content": {"text/plain": {}},
        "description": "Loading, or too busy; `Retry-After` and the body say when to come back. As text: Serve's proxy itself has no room",
    },
    504: {"model": ErrorAnswer, "description": "The picture was not ready in the time the request was given"},
}
NOT_ACCEPTABLE: dict[int | str, dict[str, Any]] = {406: {"model": ErrorAnswer, "description": "No form that `Accept` allows"}}


def in_digits(value: object) -> object:
    """Raises for text that is no whole number in digits: Pydantic takes `1_0`, ` 5` and `2.0`, too."""
    if isinstance(value, str) and not WHOLE_NUMBER.fullmatch(value):
        raise PydanticKnownError("int_parsing")
    return value


def as_number(value: object) -> object:
    """Raises for `1_0` and ` 5`, which Pydantic would take."""
    if isinstance(value, str) and NO_PART_OF_NUMBERS.search(value):
        raise PydanticKnownError("float_parsing")
    return value


class ImagineQuery(ImageRequest):
    """The fields of an `ImageRequest`, `img_size` as a short form of a square, the form of the answer, and what a permalink pins."""

    img_size: Annotated[Side | None, Field(description="Width and height at once")] = None
    format: Annotated[Format | None, Field(description="Form of the answer; what `Accept` prefers if not given")] = None
    revision: Annotated[str | None, Field(max_length=200, description="Refuse if the model is not of this revision")] = None
    version: Annotated[str | None, Field(max_length=64, description="Refuse if the service is not of this version")] = None

    _in_digits = field_validator("img_size", "width", "height", "num_inference_steps", "seed", mode="before")(in_digits)
    _as_number = field_validator("guidance_scale", mode="before")(as_number)

    def to_request(self) -> ImageRequest:
        """Raises `RefusedRequest` if the size is given in both forms."""
        fields = self.model_dump(include=set(ImageRequest.model_fields))
        if self.img_size is not None:
            if self.width is not None or self.height is not None:
                both = ", ".join(f"{name}={fields[name]}" for name in ("width", "height") if fields[name] is not None)
                rule = "must not be given together with width or height"
                raise RefusedRequest(ErrorDetail.of("img_size", rule, f"img_size={self.img_size}, {both}"))
            fields |= {"width": self.img_size, "height": self.img_size}
        return ImageRequest(**fields)

    def resolved_by(self, capabilities: Capabilities) -> ImageRequest:
        """Raises `RefusedRequest`."""
        caching.refuse_other_model(self.revision, self.version, capabilities)
        return self.to_request().resolved(capabilities)

    def is_permalink(self, request: ImageRequest, capabilities: Capabilities) -> bool:
        """Whether every field was given."""
        return self.format is not None and caching.spelled_out(request, capabilities).keys() <= self.model_fields_set


class ImagineBody(ImagineQuery):
    """The same in JSON, where a number is no text and no truth value."""

    model_config = ConfigDict(strict=True)


class ImagineAnswer(BaseModel):
    """The picture as JSON."""

    png: Annotated[str, Field(description="In base64")]
    facts: Facts
    timings: Annotated[dict[str, float], Field(description="Seconds by phase")]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written."""


async def refuse_repeated(raw: Request) -> None:
    """A parameter given twice is an error, never the last one wins; and what is asked in a body is asked there alone."""
    if raw.method != "POST":
        refuse_a_body_beside_the_address(raw)
        refuse_other_text_than_utf8(raw.url.query)
        refuse_twice(name for name, _ in raw.query_params.multi_items())
        return
    await refuse_in_the_address(raw)
    try:
        body = json.loads((await raw.body()).decode("utf-8-sig") or "null", object_pairs_hook=Pairs)
    except (RecursionError, ValueError) as error:  # what the framework itself takes: it is a little less deep, or in UTF-16
        raise HTTPException(400) from error
    refuse_twice(name for name, _ in (body if isinstance(body, Pairs) else ()))


async def refuse_in_the_address(raw: Request) -> None:
    """Raises `RefusedRequest` for parameters beside a body."""
    if given := raw.query_params.multi_items():
        raise RefusedRequest(*(ErrorDetail.of(name, "must be in the body, not in the address", value) for name, value in given))


def refuse_a_body_beside_the_address(raw: Request) -> None:
    """Nobody would read it. Raises `RefusedRequest`."""
    if raw.headers.get("content-length", "0") != "0" or "transfer-encoding" in raw.headers:
        raise RefusedRequest(ErrorDetail(field="body", rule="must not be given with GET; the parameters are in the address"))


def refuse_other_text_than_utf8(query: str) -> None:
    """The framework would put a replacement character where a byte is none of UTF-8. Raises `RefusedRequest`."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError as error:
        raise RefusedRequest(ErrorDetail.of("query", "must be UTF-8, percent-encoded", query[:200])) from error


def refuse_twice(names: Iterable[str]) -> None:
    """Raises `RefusedRequest`, which tells how often, not what: values can be nested too deeply to be told."""
    repeated = {name: count for name, count in Counter(names).items() if count > 1}
    if repeated:
        raise RefusedRequest(*(ErrorDetail.of(name, "must be given once", f"{count} times") for name, count in repeated.items()))


def deadline_of(settings: Settings) -> Callable[..., Awaitable[float]]:
    """A dependency: until when a request must be answered, on this process's monotonic clock."""

    async def deadline(
        raw: Request,
        x_request_timeout_seconds: Annotated[
            float | None,
            BeforeValidator(as_number),
            Header(
                ge=SHORTEST_DEADLINE_S,
                allow_inf_nan=False,
                description="Give up after so many seconds; refused at once if that is too short",
            ),
        ] = None,
    ) -> float:
        refuse_twice(name for name in raw.headers if name == TIMEOUT_HEADER)
        seconds = settings.request_timeout_s
        if x_request_timeout_seconds is not None:
            margin = min(max(MARGIN * x_request_timeout_seconds, SHORTEST_MARGIN_S), LONGEST_MARGIN_S)
            seconds = min(seconds, x_request_timeout_seconds - margin)
        arrived: float = raw.state.arrived  # and not now: Serve's proxy counted while the body came, too
        return arrived + seconds

    return deadline


def router(backend: Backend, settings: Settings) -> APIRouter:
    routes = APIRouter()
    deadline = Depends(deadline_of(settings))
    picture = {"image/png": {}, "image/jpeg": {}, "image/webp": {}, "application/json": {"schema": ImagineAnswer.model_json_schema()}}
    documented: dict[str, Any] = {
        "dependencies": [Depends(refuse_repeated)],
        "response_class": Response,
        "responses": {
            200: {"content": picture, "description": "The picture; how it was made is in its headers and, in PNG and JSON, in itself"},
            304: {"description": "`If-None-Match` names this very picture"},
            **NOT_ACCEPTABLE,
            **ERRORS,
        },
    }

    @routes.get("/imagine", **documented)
    async def imagine(raw: Request, query: Annotated[ImagineQuery, Query()], deadline: Annotated[float, deadline]) -> Response:
        """Make a picture. The same query with the same seed gives the same bytes from a service that is otherwise idle; next to other
        requests, whose steps are computed together with its own, a pixel may differ by 1/255 in single precision. Identical requests in
        flight at the same time share one making; streams do not, nor does who gives less time than the first, or much more."""
        return await answer(raw, query, deadline)

    @routes.post("/imagine", **documented)
    async def imagine_body(raw: Request, body: ImagineBody, deadline: Annotated[float, deadline]) -> Response:
        """The same with the fields in a JSON body, which no log of addresses keeps."""
        return await answer(raw, body, deadline)

    async def answer(raw: Request, query: ImagineQuery, deadline: float) -> Response:
        capabilities = await backend.capabilities()
        form = query.format or rendering.negotiated(in_one_line(raw, "accept"))
        request = query.resolved_by(capabilities)
        tag = caching.etag(request, capabilities, form)
        seeded = query.seed is not None
        headers = {
            "ETag": tag,
            "Cache-Control": caching.cache_control(
                seeded=seeded,
                permanent=raw.method == "GET" and query.is_permalink(request, capabilities) and settings.version != UNNAMED_VERSION,
                private=bool(settings.tokens) or "authorization" in raw.headers,
            ),
        }
        if query.format is None:
            headers["Vary"] = "Accept"
        permalink = caching.permalink(raw.scope.get("root_path", ""), request, capabilities, form)
        if len(permalink) <= caching.LONGEST_ADDRESS:
            headers["Content-Location"] = permalink
        if raw.method == "GET" and seeded and caching.matches(in_one_line(raw, "if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        made = await make(backend, Job((request,), deadline))
        if not caching.is_by_this_model(made.pictures[0].facts, capabilities):
            headers = caching.NOT_KEPT
        body = await asyncio.to_thread(body_of, made, form)
        return Response(body, media_type=rendering.media_type(form), headers=headers | facts_headers(made))

    return routes


def in_one_line(raw: Request, header: str) -> str:
    """A list may come in several lines of the same name."""
    return ", ".join(raw.headers.getlist(header))


def body_of(made: Made, form: Format) -> bytes:
    (generated,) = made.pictures
    return json.dumps(rendering.as_json(generated)).encode() if form == "json" else rendering.encoded(generated.png, form)


def facts_headers(made: Made) -> dict[str, str]:
    """The settings used, one header each. The prompts are in the PNG: a header cannot hold every character."""
    (generated,) = made.pictures
    facts = generated.facts
    told = {
        "Seed": facts.request.seed,
        "Width": facts.request.width,
        "Height": facts.request.height,
        "Num-Inference-Steps": facts.request.num_inference_steps,
        "Guidance-Scale": facts.request.guidance_scale,
        "Model": facts.model,
        "Revision": facts.revision,
        "Scheduler": facts.scheduler,
        "Expected-Wait": f"{made.expected_wait_s:.3f}",
    }
    if facts.warnings:
        told["Warning"] = "; ".join(facts.warnings)
    headers = {f"X-Imagine-{name}": str(value).encode("latin-1", "backslashreplace").decode("latin-1") for name, value in told.items()}
    if generated.timings:
        headers["Server-Timing"] = ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in generated.timings.items())
    return headers
