"""Callers that never stop asking for pictures of differing length, and look at every one."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import requests

from app import png
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest

CALLERS = 2
ASKED = [
    ImageRequest(prompt=prompt, seed=seed, num_inference_steps=steps)
    for prompt, seed, steps in (
        ("a red heart on a yellow background", 1, 2),
        ("a blue circle on a white background", 2, 4),
        ("a green square on a pink background", 3, 8),
    )
]


@dataclass(frozen=True)
class Answer:
    began: float
    ended: float
    status: int  # 0 if there was none
    version: str | None
    wrong_by: int  # of 255, the largest difference to the picture that the engine makes alone


class Load:
    def __init__(self, url: str, engine: ImageEngine) -> None:
        self._url = url
        self._expected = [np.asarray(engine.generate(asked).image, dtype=np.int16) for asked in ASKED]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: list[Answer] = []

    def __enter__(self) -> "Load":
        self._callers = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.join(120)

    def versions(self) -> list[str | None]:
        return [answer.version for answer in sorted(self.answers, key=lambda answer: answer.ended)]

    def failed(self) -> Sequence[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def wrong(self) -> Sequence[Answer]:
        return [answer for answer in self.answers if answer.status == 200 and answer.wrong_by > 1]

    def gap(self) -> float:
        """The longest time between two answers, in seconds."""
        ended = sorted(answer.ended for answer in self.answers)
        return max(later - earlier for earlier, later in pairwise(ended))

    def slowest(self) -> float:
        return max(answer.ended - answer.began for answer in self.answers)

    def _call(self, number: int) -> None:
        while not self._stop.is_set():
            which = number % len(ASKED)
            answer = self._ask(which)
            with self._lock:
                self.answers.append(answer)
            number += 1

    def _ask(self, which: int) -> Answer:
        began = time.monotonic()
        try:
            answer = requests.get(f"{self._url}/imagine", ASKED[which].model_dump(exclude_none=True), timeout=120)
        except requests.RequestException:
            return Answer(began, time.monotonic(), 0, None, 0)
        wrong_by = 0
        if answer.ok:
            made = np.asarray(png.decode(answer.content)[0], dtype=np.int16)
            wrong_by = int(np.abs(made - self._expected[which]).max())
        return Answer(began, time.monotonic(), answer.status_code, answer.headers.get("X-Imagine-Version"), wrong_by)
