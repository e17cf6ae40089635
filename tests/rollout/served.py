"""The application behind the stand-in: answers at once, in the version that the traffic's shares give the turn to."""

import functools
import json
import random
import time

from app import png
from app.schemas import Facts, ImageRequest
from scripts.tiny.drawing import Scene, Thing, draw_scene
from tests.rollout.platform_state import TOKEN, Platform

JSON = {"Content-Type": "application/json"}
REFUSED = b'{"error": "invalid_request", "message": "version", "details": [{"field": "version", "rule": "must be another", "value": "x"}]}'


class Served:
    """What goes wrong is set by version name."""

    def __init__(self) -> None:
        self.wrong_pictures: set[str] = set()
        self.cut_off: set[str] = set()
        self.slow: dict[str, float] = {}  # seconds an answer takes
        self.full: dict[str, int] = {}  # how many pictures are refused once, for a second
        self.failing: dict[str, int] = {}  # status of /imagine
        self.made_by_old: dict[str, int] = {}  # how often an ingress meets only replicas of the version before
        self.not_ready: dict[str, int] = {}  # how often /readyz says no
        self.answered: list[tuple[str, str]] = []  # path, version
        self.chance: random.Random | None = None
        self._turn = 0

    def answer(self, platform: Platform, path: str, query: dict[str, str], authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        if authorization != f"Bearer {TOKEN}":
            return 401, JSON, b'{"error": "unauthorized"}'
        version = self._next(platform)
        named = {"X-Imagine-Version": version}
        if self._refuses(version, query):
            self.answered.append((f"{path} refused", version))
            return 422, JSON | named, REFUSED
        self.answered.append((path, version))
        if path == "/served/readyz":
            left = self.not_ready.get(version, 0)
            self.not_ready[version] = left - 1
            return (503 if left > 0 else 200), JSON | named, json.dumps({"status": "ready"}).encode()
        time.sleep(self.slow.get(version, 0.0))
        if self.full.get(version, 0) and len(self.answered) % 2:
            self.full[version] -= 1
            return 503, JSON | named | {"Retry-After": "1"}, b'{"error": "overloaded", "message": "the queue is full"}'
        if version in self.failing:
            return self.failing[version], JSON | named, b'{"error": "failed", "message": "the picture could not be made"}'
        made = picture("gray" if version in self.wrong_pictures else "yellow", thing=version != "blank")
        return 200, named | {"Content-Type": "image/png"}, made[: len(made) // 2] if version in self.cut_off else made

    def _refuses(self, version: str, query: dict[str, str]) -> bool:
        """What is pinned to another version, without making a picture."""
        if "version" not in query:
            return False
        left = self.made_by_old.get(version, 0)
        self.made_by_old[version] = left - 1
        return left > 0 or query["version"] != version

    def _next(self, platform: Platform) -> str:
        """In every 100 requests the canary has as many as its weight, evenly spread unless `chance` decides."""
        assert platform.primary is not None
        if self.chance is not None and platform.canary is not None:
            return (platform.canary if self.chance.uniform(0, 100) < platform.canary.weight else platform.primary).name
        self._turn += 1
        canary = platform.canary
        if canary is not None and self._turn * canary.weight // 100 > (self._turn - 1) * canary.weight // 100:
            return canary.name
        return platform.primary.name


@functools.cache
def picture(background: str, *, thing: bool) -> bytes:
    image = draw_scene(Scene(background, (Thing("heart", "red", 0.5, 0.5, 0.5),) if thing else ()), 64)
    request = ImageRequest(prompt="a red heart on a yellow background", seed=1, width=64, height=64)
    facts = Facts(request=request, model="drawn", revision="0", pipeline="x", scheduler="x", dtype="x", device="cpu", versions={})
    return png.encode(image, facts)
