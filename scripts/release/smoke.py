"""Is the new version fit to serve? Asked through the service's own address, as a caller would.

While old and new versions share the traffic, nobody can choose which one answers: each answer names its version in a header, and a question
is put again until the new one has answered it.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import requests
from PIL import Image
from pydantic import ValidationError

from app import png
from app.bearer import Bearer
from app.schemas import ErrorAnswer
from scripts.release.outcome import Failed

VERSION_HEADER = "X-Imagine-Version"
GOLDEN = {"prompt": "a red heart on a yellow background", "seed": 1}
LEAST_THING, LEAST_BACKGROUND = 0.02, 0.3  # shares of the picture, and of its border
BORDER = 1 / 16  # of the side
RED, YELLOW = (340, 20), (35, 70)  # degrees of hue
COLOURFUL = 0.35  # least saturation and value of a pixel that has a colour at all
PAUSE_S = 0.5
LEAST_CONTRAST = 8  # of 255, the standard deviation of a picture that is not blank
FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True)
class Limits:
    golden: bool = True  # else any picture that is not blank will do
    requests: int = 20
    p95_s: float = 30.0
    ready_s: float = 300.0
    answer_s: float = 180.0


def check(url: str, token: str | None, version: str, limits: Limits, say: Callable[[str], None]) -> None:
    """Raises `Failed`."""
    asking = _Asking(url, token, version, limits)
    asking.until_ready()
    picture = asking.picture(GOLDEN)
    judge(picture.answer, golden=limits.golden)
    seconds = sorted(asking.picture(GOLDEN | {"seed": 2 + number}).seconds for number in range(limits.requests))
    p95 = seconds[math.ceil(0.95 * len(seconds)) - 1]
    if p95 > limits.p95_s:
        raise Failed(
            f"95 of 100 pictures took up to {p95:.2f} s, the limit is {limits.p95_s:g} s (median {seconds[len(seconds) // 2]:.2f} s)"
        )
    say(f"{version} passed: ready, the first picture is right, p95 of {len(seconds)} pictures {p95:.2f} s (limit {limits.p95_s:g} s)")


def judge(answer: requests.Response, *, golden: bool = True) -> None:
    """Raises `Failed`."""
    try:
        picture = png.opened(answer.content, FORMATS)
    except png.Unreadable as error:
        raise Failed(f"the golden prompt was answered with {answer.headers.get('Content-Type')}: {error}") from error
    if golden:
        _judge_golden(picture)
    elif np.asarray(picture.convert("L")).std() < LEAST_CONTRAST:
        raise Failed(f"the picture of {GOLDEN['prompt']!r} is blank")


def _judge_golden(picture: Image.Image) -> None:
    """A red thing on a yellow background, by hue, so that a photograph passes as a drawing does."""
    pixels = np.asarray(picture.convert("HSV"), dtype=np.float32)
    colourful = (pixels[..., 1:] / 255 >= COLOURFUL).all(axis=-1)
    hue = pixels[..., 0] / 255 * 360
    red = colourful & ((hue >= RED[0]) | (hue <= RED[1]))
    yellow = colourful & (hue >= YELLOW[0]) & (hue <= YELLOW[1])
    edge = np.ones(hue.shape, dtype=bool)
    height, width = (max(1, round(side * BORDER)) for side in hue.shape)
    edge[height:-height, width:-width] = False
    if red.mean() < LEAST_THING or yellow[edge].mean() < LEAST_BACKGROUND:
        raise Failed(
            f"the golden picture ({GOLDEN['prompt']!r}) is wrong: {red.mean():.0%} of it is red (at least {LEAST_THING:.0%}), "
            f"{yellow[edge].mean():.0%} of its border is yellow (at least {LEAST_BACKGROUND:.0%}); "
            "for a model that does not draw so there is --no-golden"
        )


@dataclass(frozen=True, slots=True)
class _Answered:
    answer: requests.Response
    seconds: float


class _Asking:
    def __init__(self, url: str, token: str | None, version: str, limits: Limits) -> None:
        self._url, self._version, self._limits = url.rstrip("/"), version, limits
        self._session = requests.Session()
        self._session.auth = Bearer(token)

    def until_ready(self) -> None:
        deadline = time.monotonic() + self._limits.ready_s
        while True:
            said = self._readiness()
            if said is None:
                return
            if time.monotonic() > deadline:
                raise Failed(f"it was not ready within {self._limits.ready_s:g} s: {said}")
            time.sleep(PAUSE_S)

    def _readiness(self) -> str | None:
        """Why not; None if it is."""
        try:
            answered = self.of_the_version("/readyz", {}, refused=(503,))
        except (Failed, requests.RequestException) as error:
            return str(error)
        return None if answered.answer.ok else _said(answered.answer)

    def picture(self, query: Mapping[str, Any]) -> _Answered:
        """With the version among the fields, so that the other one refuses at once instead of making a picture that nobody looks at."""
        return self.of_the_version("/imagine", {**query, "version": self._version})

    def of_the_version(self, path: str, query: Mapping[str, Any], refused: tuple[int, ...] = ()) -> _Answered:
        """The seconds count from its first refusal for want of room, if there was one: a caller waits for that too.

        Raises `Failed` if it answers with an error other than `refused`, or never answers.
        """
        deadline = time.monotonic() + self._limits.answer_s
        seen: set[str] = set()
        first_refused: float | None = None
        while True:
            answered = self._ask(path, query)
            answer, late = answered.answer, time.monotonic() > deadline
            name = answer.headers.get(VERSION_HEADER)
            seen.add(name or f"an answer {answer.status_code} without a version")
            if answer.status_code == 503 and path != "/readyz" and not late:
                if name == self._version and first_refused is None:
                    first_refused = time.monotonic() - answered.seconds
                time.sleep(min(_retry_after_s(answer), max(deadline - time.monotonic(), 0.0)))
            elif name is None:
                raise Failed(f"{path} answered {_said(answer)}, without naming its version")
            elif name == self._version and not _is_made_by_another(answer):
                if not answer.ok and answer.status_code not in refused:
                    raise Failed(f"{path} answered {_said(answer)}")
                return answered if first_refused is None else replace(answered, seconds=time.monotonic() - first_refused)
            elif late:
                raise Failed(f"{self._version} did not answer {path}; answers came from {', '.join(sorted(seen))}")

    def _ask(self, path: str, query: Mapping[str, Any]) -> _Answered:
        start = time.monotonic()
        try:
            answer = self._session.get(self._url + path, params=dict(query), timeout=self._limits.answer_s)
        except requests.RequestException as error:
            raise Failed(f"{path} was not answered: {type(error).__name__}") from error
        return _Answered(answer, time.monotonic() - start)


def _is_made_by_another(answer: requests.Response) -> bool:
    """The new ingress may be up while all replicas of the model are still of the version before."""
    if answer.status_code != 422:
        return False
    try:
        return any(detail.field == "version" for detail in ErrorAnswer.model_validate_json(answer.content).details)
    except ValidationError:
        return False


def _retry_after_s(answer: requests.Response) -> float:
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdigit() else PAUSE_S


def _said(answer: requests.Response) -> str:
    text = " ".join(answer.text.split())
    return f"{answer.status_code}: {text[:200]}"
