"""The application behind the stand-in: answers at once, in the version that the traffic's shares give the turn to."""

import json
import time

from app import png
from app.schemas import Facts, ImageRequest
from scripts.tiny.drawing import Scene, Thing, draw_scene
from tests.rollout.platform_state import TOKEN, Platform

JSON = {"Content-Type": "application/json"}


class Served:
    """What goes wrong is set by version name."""

    def __init__(self) -> None:
        self.wrong_pictures: set[str] = set()
        self.slow: dict[str, float] = {}  # seconds an answer takes
        self.failing: dict[str, int] = {}  # status of /imagine
        self.not_ready: dict[str, int] = {}  # how often /readyz says no
        self.answered: list[tuple[str, str]] = []  # path, version
        self._turn = 0

    def answer(self, platform: Platform, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        if authorization != f"Bearer {TOKEN}":
            return 401, JSON, b'{"error": "unauthorized"}'
        version = self._next(platform)
        self.answered.append((path, version))
        named = {"X-Imagine-Version": version}
        if path == "/served/readyz":
            left = self.not_ready.get(version, 0)
            self.not_ready[version] = left - 1
            return (503 if left > 0 else 200), JSON | named, json.dumps({"status": "ready"}).encode()
        time.sleep(self.slow.get(version, 0.0))
        if version in self.failing:
            return self.failing[version], JSON | named, b'{"error": "failed", "message": "the picture could not be made"}'
        return 200, named | {"Content-Type": "image/png"}, picture("gray" if version in self.wrong_pictures else "yellow")

    def _next(self, platform: Platform) -> str:
        """In every 100 requests the canary has as many as its weight, evenly spread."""
        assert platform.primary is not None
        self._turn += 1
        canary = platform.canary
        if canary is not None and self._turn * canary.weight // 100 > (self._turn - 1) * canary.weight // 100:
            return canary.name
        return platform.primary.name


def picture(background: str) -> bytes:
    image = draw_scene(Scene(background, (Thing("heart", "red", 0.5, 0.5, 0.5),)), 64)
    request = ImageRequest(prompt="a red heart on a yellow background", seed=1, width=64, height=64)
    facts = Facts(request=request, model="drawn", revision="0", pipeline="x", scheduler="x", dtype="x", device="cpu", versions={})
    return png.encode(image, facts)
