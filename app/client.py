"""`ImagineClient`: the one way to call a served app."""

import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import requests
from pydantic import ValidationError

from app import png
from app.schemas import Capabilities, ErrorAnswer, GeneratedImage, GenerationCancelled, ImageRequest, Progress, RefusedRequest

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0
POLL_INTERVAL_S = 0.2


class ImagineError(Exception):
    """Anything that can go wrong with a call; the message says what to do.

    ImagineError
    ├── ServiceUnreachable    nothing answers at the address, or the connection broke
    ├── ServiceBusy           it answers 503: loading or overloaded; try again after `retry_after_s`
    ├── AccessDenied          it wants a token, or another one
    └── ServiceFailed         any other answer that is no picture
    """


class ServiceUnreachable(ImagineError):
    pass


class ServiceBusy(ImagineError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AccessDenied(ImagineError):
    pass


class ServiceFailed(ImagineError):
    pass


class ImagineClient:
    """An `ImageSource`: makes images with the app served at `base_url`. One client serves many threads."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", token: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities.model_validate(self._get("/capabilities").json())

    def generate(
        self,
        request: ImageRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
    ) -> GeneratedImage:
        """See `ImageSource.generate`; also raises `ImagineError`. Progress is told once, when the picture is there, without previews."""
        if cancel is not None and cancel.is_set():
            raise GenerationCancelled
        answer = self._get("/imagine", request.model_dump(exclude_none=True))
        try:
            _, facts = png.decode(answer.content)
        except png.NotOurPNG as error:
            raise ServiceFailed(f"{self.base_url} answered with something else than a picture made here: {error}") from error
        if on_progress is not None:
            total = facts.request.num_inference_steps or 1
            on_progress(Progress(total, total))
        return GeneratedImage(answer.content, facts)

    def wait_until_ready(self, timeout_s: float = 300.0, alive: Callable[[], bool] = lambda: True) -> None:
        """Block until the service has made its first picture. Raises `ImagineError` after `timeout_s`, or once `alive` says no."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._get("/readyz")
                return
            except ImagineError as error:
                if not alive() or time.monotonic() > deadline:
                    raise
                if isinstance(error, AccessDenied):
                    raise
            time.sleep(POLL_INTERVAL_S)

    def _get(self, path: str, query: dict[str, Any] | None = None) -> requests.Response:
        try:
            answer = requests.get(self.base_url + path, query, headers=self._headers, timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S))
        except requests.Timeout as error:
            raise ServiceUnreachable(f"{self.base_url} did not answer in time") from error
        except requests.RequestException as error:
            raise ServiceUnreachable(f"nothing answers at {self.base_url}; start it with `serve run app:entrypoint`") from error
        if not answer.ok:
            raise _error(answer)
        return answer


def _error(answer: requests.Response) -> Exception:
    try:
        told = ErrorAnswer.model_validate_json(answer.content)
    except ValidationError:
        told = ErrorAnswer(error="unknown", message=f"{answer.url} answered {answer.status_code}: {answer.text[:200]}")
    if answer.status_code == 422:
        return RefusedRequest(*told.details)
    if answer.status_code in (401, 403):
        return AccessDenied(f"{told.message}; pass the service's token as ImagineClient(..., token=...)")
    if answer.status_code == 503:
        return ServiceBusy(told.message, float(answer.headers.get("Retry-After", 1)))
    return ServiceFailed(told.message)
