"""`ImagineClient`: the one way to call a served app."""

import base64
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import ValidationError
from sseclient import SSEClient
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt, stop_before_delay
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from app import png
from app.bearer import Bearer
from app.schemas import (
    Capabilities,
    ErrorAnswer,
    GeneratedImage,
    GenerationCancelled,
    ImageRequest,
    Progress,
    Queued,
    RefusedRequest,
    Replay,
    SourceError,
)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0  # the longest that a service gives itself, unless it is set otherwise
SPARE_S = 10.0  # for its own word that it was too late
LONGEST_SILENCE_S = 60.0  # of a stream, which gives a sign of life every second, and of what needs no picture to answer
POLL_INTERVAL_S = 0.2
PHASE = re.compile(r"([\w-]+);dur=(\d+(?:\.\d+)?)")  # of `Server-Timing`, to which proxies may add their own
JITTER = 0.2
SOON_S = 1.0
NOT_OURS = "answers, but not as this app does; check the address"
BUSY = ("not_ready", "overloaded", "replica_lost", "deadline_too_short")

Told = Queued | Progress | GeneratedImage | None


class ImagineError(SourceError):
    """Anything that can go wrong with a call; the message says what to do.

    ImagineError
    ├── ServiceUnreachable    nothing answers at the address, or the connection broke
    ├── ServiceBusy           it answers 503: loading or overloaded; try again after `retry_after_s`
    ├── DeadlineMissed        the picture was not, or would not be, ready in the time it was given
    ├── AccessDenied          it wants a token, or another one
    └── ServiceFailed         any other answer that is no picture
        └── ServiceMoved      it names another address
    """


class ServiceUnreachable(ImagineError):
    pass


class ServiceBusy(ImagineError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineMissed(ImagineError):
    pass


class AccessDenied(ImagineError):
    pass


class ServiceFailed(ImagineError):
    pass


class ServiceMoved(ServiceFailed):
    pass


class ImagineClient:
    """An `ImageSource`: makes images with the app served at `base_url`. One client serves many threads.

    A busy service is asked again up to `retries` times, each after the seconds it names itself, while all that is within `timeout_s` (ten
    minutes if not given). Whoever watches the steps gets `ServiceBusy` at once, to show the wait instead of sitting through it.
    `timeout_s` is the longest that the service may take each time, its queue included; what is too much for that it refuses at once.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", token: str | None = None, *, retries: int = 3, timeout_s: float | None = None
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, got {base_url!r}")
        if (host := _host_of(base_url)) is None:
            raise ValueError(f"base_url must have a host, and a number as its port if any, got {base_url!r}")
        token = (token or "").strip()  # a file's last line ends too
        if not (token.isascii() and token.isprintable()):
            raise ValueError("token must be printable ASCII")
        self.base_url = base_url.rstrip("/")
        # A proxy that the environment names cannot reach this machine's own services.
        self._proxies = {"no_proxy": host} if host in ("localhost", "127.0.0.1", "::1") else None
        self._headers = {} if timeout_s is None else {"X-Request-Timeout-Seconds": str(timeout_s)}
        self._auth = Bearer(token)
        self._retries, self._timeout_s = retries, ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
        self._answer_within_s = self._timeout_s + SPARE_S

    @cached_property
    def capabilities(self) -> Capabilities:
        answer = self._ask("GET", "/capabilities", LONGEST_SILENCE_S)
        try:
            return Capabilities.model_validate_json(answer.content)
        except ValidationError as error:
            raise ServiceFailed(f"{self.base_url} {NOT_OURS}") from error

    def generate(
        self,
        request: ImageRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
    ) -> GeneratedImage:
        """See `ImageSource.generate`; also raises `ImagineError`."""
        cancelled = cancel or threading.Event()
        if on_progress is not None:
            return self._step_by_step(request, on_progress, cancelled, previews)
        answer: GeneratedImage = self._retrying(cancelled)(self._quietly, request, cancelled if cancel else None)
        return answer

    def replay(self, data: bytes) -> Replay:
        """Have a PNG made by such a service made again, and compared. Raises `RefusedRequest` if it is none, and `ImagineError`."""
        options = {"data": data, "headers": {"Content-Type": "image/png"}}
        answer = self._retrying(threading.Event())(self._ask, "POST", "/replay", self._answer_within_s, **options)
        try:
            return Replay.model_validate_json(answer.content, extra="ignore")
        except ValidationError as error:
            raise ServiceFailed(f"{self.base_url} {NOT_OURS}") from error

    def _quietly(self, request: ImageRequest, cancel: threading.Event | None) -> GeneratedImage:
        if cancel is None:
            return self._whole(request)
        return self._step_by_step(request, lambda progress: None, cancel, previews=False)

    def _whole(self, request: ImageRequest) -> GeneratedImage:
        answer = self._ask("POST", "/imagine", self._answer_within_s, json=request.model_dump(exclude_none=True) | {"format": "png"})
        phases = PHASE.findall(answer.headers.get("Server-Timing", ""))
        return self._generated(answer.content, {name: float(milliseconds) / 1000 for name, milliseconds in phases})

    def _step_by_step(
        self, request: ImageRequest, on_progress: Callable[[Progress], None], cancel: threading.Event, previews: bool
    ) -> GeneratedImage:
        if cancel.is_set():
            raise GenerationCancelled
        with self.stream(request, previews=previews) as told:
            for progress in told:
                if isinstance(progress, GeneratedImage):
                    return progress
                if cancel.is_set():
                    raise GenerationCancelled
                if isinstance(progress, Progress):
                    on_progress(progress)
        raise ServiceUnreachable(f"{self.base_url} closed the connection before the picture was ready; the same request can be sent again")

    def _retrying(self, cancel: threading.Event) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(ServiceBusy),
            wait=_as_told,
            stop=stop_after_attempt(self._retries + 1) | stop_before_delay(self._timeout_s),
            sleep=sleep_using_event(cancel),
            reraise=True,
        )

    @contextmanager
    def stream(self, request: ImageRequest, *, previews: bool = False) -> Iterator[Iterator[Told]]:
        """The place in the queue, steps as they are done, and last the image; None about once a second, so that the caller can look around.

        A busy service is not asked again. Leaving the `with` block closes the connection, which stops the work.
        """
        fields = request.model_dump(exclude_none=True) | {"previews": previews}
        with self._ask("POST", "/imagine/stream", LONGEST_SILENCE_S, json=fields, stream=True) as answer:
            if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise ServiceFailed(f"{self.base_url} {NOT_OURS}")
            yield self._told(answer)

    def _told(self, answer: requests.Response) -> Iterator[Told]:
        try:
            for event in SSEClient(answer.iter_content(chunk_size=None)).events():
                data = json.loads(event.data)
                if event.event == "error":
                    raise _error(answer, ErrorAnswer.model_validate(data))
                if event.event == "queued":
                    yield Queued(data["position"], data["expected_wait_s"])
                elif event.event == "step":
                    preview = data["preview"] and base64.b64decode(data["preview"])
                    yield Progress(data["step"], data["total"], preview)
                elif event.event == "done":
                    yield self._generated(base64.b64decode(data["png"]), data["timings"])
                else:
                    yield None
        except (requests.RequestException, json.JSONDecodeError) as error:  # the second: in the middle of an event
            raise ServiceUnreachable(f"the connection to {self.base_url} was lost half-way; the same request can be sent again") from error

    def _generated(self, data: bytes, timings: dict[str, float] | None = None) -> GeneratedImage:
        try:
            _, facts = png.decode(data, unknown="ignore")
        except png.NotOurPNG as error:
            raise ServiceFailed(f"{self.base_url} answered with something else than a picture made here: {error}") from error
        return GeneratedImage(data, facts, timings or {})

    def wait_until_ready(self, timeout_s: float = 300.0, alive: Callable[[], bool] = lambda: True) -> None:
        """Block until the service has made its first picture. Raises `ImagineError` after `timeout_s`, or once `alive` says no."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._ask("GET", "/readyz", min(LONGEST_SILENCE_S, max(deadline - time.monotonic(), POLL_INTERVAL_S)))
                return
            except ImagineError as error:
                if isinstance(error, AccessDenied | ServiceMoved) or not alive() or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_INTERVAL_S)

    def _ask(self, method: str, path: str, answer_within_s: float, **options: Any) -> requests.Response:  # noqa: ANN401
        """A prompt goes in the body: addresses are kept in logs, and proxies limit their length."""
        options |= {"auth": self._auth, "timeout": (CONNECT_TIMEOUT_S, answer_within_s), "proxies": self._proxies, "allow_redirects": False}
        try:
            answer = requests.request(method, self.base_url + path, headers=self._headers | options.pop("headers", {}), **options)
            if answer.is_redirect:  # followed, it would lose its body
                raise ServiceMoved(f"{self.base_url} leads on to {answer.headers['Location'][:200]}; give the service's own address")
            if not answer.ok:
                raise _error(answer, _told_error(answer))
        except requests.Timeout as error:
            raise ServiceUnreachable(f"{self.base_url} did not answer in time") from error
        except requests.exceptions.SSLError as error:
            raise ServiceUnreachable(f"{self.base_url} could not be trusted: {error}") from error
        except requests.RequestException as error:
            if error.args and isinstance(error.args[0], MaxRetryError):
                raise ServiceUnreachable(f"nothing answers at {self.base_url}; start it with `serve run app:entrypoint`") from error
            raise ServiceUnreachable(f"the connection to {self.base_url} was lost; the same request can be sent again") from error
        return answer


def _host_of(base_url: str) -> str | None:
    with suppress(ValueError):
        address = urlsplit(base_url)
        return address.hostname if address.port != 0 else None
    return None


def _told_error(answer: requests.Response) -> ErrorAnswer:
    try:
        return ErrorAnswer.model_validate_json(answer.content)
    except ValidationError:
        return ErrorAnswer(error="unknown", message=f"{answer.url} answered {answer.status_code}: {answer.text[:200]}")


def _error(answer: requests.Response, told: ErrorAnswer) -> Exception:
    if told.error == "invalid_request":
        return RefusedRequest(*told.details)
    if answer.status_code in (401, 403):
        return AccessDenied(f"{told.message}; pass the service's token as ImagineClient(..., token=...)")
    too_late = told.error == "deadline_passed" or (told.error == "deadline_too_short" and told.retry_after_s is None)
    if too_late or answer.status_code in (408, 504):
        return DeadlineMissed(told.message)
    if answer.status_code == 503 or told.error in BUSY:
        return ServiceBusy(told.message, _retry_after_s(answer, told))
    return ServiceFailed(told.message)


def _retry_after_s(answer: requests.Response, told: ErrorAnswer) -> float:
    """The later one of header and body: a proxy may have its own idea."""
    try:
        in_header = float(Retry().parse_retry_after(answer.headers.get("Retry-After", "0")))
    except InvalidHeader:
        in_header = 0.0
    return max(in_header, told.retry_after_s or 0.0) or SOON_S


def _as_told(state: RetryCallState) -> float:
    """The seconds that the service named, and a little more, so that those refused together do not come back together."""
    error = state.outcome and state.outcome.exception()
    seconds = (isinstance(error, ServiceBusy) and error.retry_after_s) or SOON_S
    return seconds * (1 + random.random() * JITTER)
