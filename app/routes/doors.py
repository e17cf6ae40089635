"""What every request passes before a route sees it: the token, the kind and size of its body; and the version on every answer.

`scope["state"]["arrived"]` is when it came, on the monotonic clock: reading a body can take long, and counts.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence

from pydantic import SecretStr
from python_multipart.multipart import parse_options_header
from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.routes.errors import answer_for, error_response, local_path, refused_request
from app.schemas import ErrorAnswer, ErrorDetail, RefusedRequest

logger = logging.getLogger("ray.serve")

OPEN_PATHS = ("/healthz", "/readyz")
BODY_WITHIN_S = 60.0
MOST_PARTS = 2000  # of a form: the framework takes a thousand texts and as many files
JSON = "application/json"
PICTURES = {"/replay": "image/png", "/v1/images/edits": "multipart/form-data"}  # where a body is, or holds, a picture


class Doors:
    """ASGI middleware."""

    def __init__(self, inner: ASGIApp, version: str, tokens: Sequence[SecretStr], max_body_bytes: int, max_picture_bytes: int) -> None:
        self._inner = inner
        self._version = version
        self._tokens = [token.get_secret_value().encode() for token in tokens]
        self._max_body_bytes, self._max_picture_bytes = max_body_bytes, max_picture_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        receive = _without_serves_error(receive)
        scope.setdefault("state", {})["arrived"] = time.monotonic()
        began = False

        async def with_version(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                MutableHeaders(scope=message)["X-Imagine-Version"] = self._version
            await send(message)

        headers = Headers(scope=scope)
        if not self._may_enter(scope, headers):
            answer = ErrorAnswer(error="unauthorized", message="this service wants a token: `Authorization: Bearer ...`")
            await error_response(scope, 401, answer, {"WWW-Authenticate": "Bearer"})(scope, receive, with_version)
            return
        if scope["method"] == "POST":
            try:
                receive, refused = await self._body(receive, headers, PICTURES.get(local_path(scope)))
            except ClientDisconnect:
                return
            if refused is not None:
                await error_response(scope, *refused, {"Connection": "close"})(scope, receive, with_version)
                return
        try:
            await _while_connected(self._inner, scope, receive, with_version)
        except Exception as error:
            if began:
                raise
            await error_response(scope, *answer_for(error))(scope, receive, with_version)

    def _may_enter(self, scope: Scope, headers: Headers) -> bool:
        if not self._tokens or local_path(scope) in OPEN_PATHS:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = [hmac.compare_digest(given.strip().encode(), token) for token in self._tokens]  # all, however many fit
        return kind.lower() == "bearer" and any(same)

    async def _body(self, receive: Receive, headers: Headers, picture: str | None) -> tuple[Receive, tuple[int, ErrorAnswer] | None]:
        """Reads it whole: it is small or refused. `picture` is its kind where it is no JSON. Raises `ClientDisconnect`."""
        wanted, most = (JSON, self._max_body_bytes) if picture is None else (picture, self._max_picture_bytes)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            return receive, (413, _too_large(int(length), most))
        body = bytearray()
        until = asyncio.get_running_loop().time() + BODY_WITHIN_S
        while True:
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                return receive, (408, ErrorAnswer(error="too_slow", message=f"the body was not there in {BODY_WITHIN_S:g} s"))
            body += message.get("body", b"")
            if len(body) > most:
                return receive, (413, _too_large(len(body), most))
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if not message.get("more_body", False):
                break
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != wanted:
            detail = ErrorDetail.of("Content-Type", f"must be {wanted}", kind)
            return receive, (415, refused_request(RefusedRequest(detail)))
        if kind == wanted == "multipart/form-data" and (rule := _broken_rule_of_forms(headers, body)):
            return receive, (422, refused_request(RefusedRequest(ErrorDetail(field="body", rule=rule))))
        return _once_more({**message, "body": bytes(body)}, receive), None


def _broken_rule_of_forms(headers: Headers, body: bytearray) -> str | None:
    """The form's parser drops without a word a last part whose end is missing, and takes what is not UTF-8 for Latin-1. That there is no
    boundary is told further in."""
    boundary = parse_options_header(headers.get("content-type"))[1].get(b"boundary")
    if not boundary:
        return None
    if b"--" + boundary + b"--" not in body:
        return "must be whole multipart/form-data: its end is missing"
    parts = body.split(b"\r\n--" + boundary, MOST_PARTS)
    try:
        b"".join(part for part in parts if b"filename" not in part.partition(b"\r\n\r\n")[0].lower()).decode()
    except UnicodeDecodeError:
        return "must be in UTF-8, but for its files"
    return None


def _too_large(length: int, most: int) -> ErrorAnswer:
    return refused_request(RefusedRequest(ErrorDetail.of("body", f"must be at most {most} bytes", f"{length} bytes or more")))


async def _while_connected(inner: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """A caller that leaves ends the work, even one whose `X-Request-Disconnect-Disabled` keeps Serve's proxy from doing that."""
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def listen() -> None:
        stays = True
        while stays:
            message = await receive()
            stays = message["type"] != "http.disconnect"
            heard.put_nowait(message)
            del message  # which holds the body

    work, left = asyncio.ensure_future(inner(scope, heard.get, send)), asyncio.ensure_future(listen())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if left.done() and (error := left.exception()):
            logger.warning("whether the caller stays cannot be heard: %s", error)
            await asyncio.wait({work})
    finally:
        work.cancel()
        left.cancel()
        await asyncio.wait({work, left})
    try:
        if not work.cancelled():
            work.result()
    finally:
        del work  # an error leads to this frame, which would lead to the error


def _without_serves_error(receive: Receive) -> Receive:
    """When a caller leaves, Serve may cancel its own call that waits for that, and raise it here."""

    async def received() -> Message:
        try:
            return await receive()
        except TaskCancelledError:
            return {"type": "http.disconnect"}

    return received


def _once_more(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
