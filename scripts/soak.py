"""A service under everything at once for a long time: all routes, callers that leave at random, bad input.

    python -m scripts.soak                     # 20 minutes
    python -m scripts.soak --minutes 180 --clients 12

Afterwards no picture may have been wrong (each is compared with that of its seed, and every route has made some), no answer undocumented,
no good request refused but for want of room, and up to eight clients not for that either, no thread or task left, every replica the same
process as before and as able to make pictures, and the memory of none of them may have grown by more than 5 per cent after the first
quarter. Exit code 0: so it was.
"""

import argparse
import asyncio
import base64
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import aiohttp
import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app import png
from app.client import ImagineClient
from app.schemas import ImageRequest
from scripts import serving

SUBJECTS = 12
REPLICA = "ServeReplica:imagine"
MOST_GROWTH = 1.05
FIRST_PART = 4  # of so many, in which memory may still grow
SECONDS_BETWEEN_SAMPLES = 5.0
LEAVES, BAD = 0.2, 0.15  # shares of the requests
FEW_CLIENTS = 8  # so many find room at any time
LARGE, AT_ONCE = (3000, 3000), 40  # pixels; more than the threads of an event loop's own pool
ROUTES = {"GET", "POST", "stream", "replay", "edit", "OpenAI", "OpenAI stream"}
NO_ROOM = {503, 504}
TO_GOOD_REQUESTS, TO_NONSENSE = {200, *NO_ROOM}, {304, 400, 404, 406, 413, 415, 422, *NO_ROOM}
NONSENSE: tuple[dict[str, Any], ...] = (
    {"prompt": ""}, {"prompt": "a", "seed": "x"}, {"prompt": "a", "n": 0}, {"prompt": "a", "img_size": 63}, {}, {"prompt": "\0" * 3000},
)  # fmt: skip

Pixels = NDArray[np.int16]


@dataclass
class Seen:
    """What happened."""

    answers: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)  # pictures, by route
    wrong: list[str] = field(default_factory=list)
    memory: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # bytes of each replica's process, now and then
    threads: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def refused(self) -> int:
        return sum(count for answer, count in self.answers.items() if answer.endswith((" 503", " 504")))


def pixels(data: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"), dtype=np.int16)


def is_same_picture(made: bytes, right: bytes) -> bool:
    if not made:
        return False
    one, other = pixels(made), pixels(right)
    return one.shape == other.shape and int(np.abs(one - other).max()) <= 1


def subject(number: int) -> dict[str, Any]:
    """Small pictures, some of other sizes and with other numbers of steps. Those of a size, which are computed as one, differ in all that
    could be given to the wrong one of them.
    """
    side, steps = (64, 96, 128)[number % 3], (2, 4, 8, 12)[number % 4]
    return {
        "prompt": f"a {('red', 'blue', 'green', 'pink')[number // 3 % 4]} star",
        "negative_prompt": "a blue background" if number // 3 % 2 else "",
        "seed": number,
        "num_inference_steps": steps,
        "guidance_scale": 2.0 + number // 3,
        "width": side,
        "height": side,
    }


@dataclass(frozen=True, slots=True)
class Reference:
    """What a subject looks like, what comes of painting it over, and what it does not look like, all as PNG."""

    picture: bytes
    edited: bytes
    changed: bytes


def edit_of(number: int) -> dict[str, str]:
    return {name: str(value) for name, value in _in_dialect(number).items()}


def reference(client: ImagineClient, number: int) -> Reference:
    picture = client.generate(ImageRequest(**subject(number))).png
    answer = requests.post(f"{client.base_url}/v1/images/edits", edit_of(number), files={"image": picture}, timeout=300)
    answer.raise_for_status()
    image, facts = png.decode(picture)
    changed = png.encode(ImageOps.invert(image), facts)
    return Reference(picture, base64.b64decode(answer.json()["data"][0]["b64_json"]), changed)


def fill_pool(url: str) -> None:
    """The ingress reads pictures in threads, of which it has another one only once all it has are busy: so, with many large ones."""
    file = BytesIO()
    Image.new("L", LARGE).save(file, "PNG")
    with ThreadPoolExecutor(AT_ONCE) as callers:
        asked = partial(requests.post, f"{url}/replay", headers={"Content-Type": "image/png"}, timeout=300)
        answers = {answer.status_code for answer in callers.map(asked, [file.getvalue()] * 2 * AT_ONCE)}
    if answers != {422}:  # not made here, which is seen only once it was read
        raise RuntimeError(f"large pictures were answered with {answers}")


class Caller:
    """Asks for ever, on a route by chance."""

    def __init__(self, url: str, references: Sequence[Reference], seen: Seen, chance: random.Random) -> None:
        self._url, self._references, self._seen, self._chance = url, references, seen, chance
        self._routes = (self._get, self._post, self._stream, self._replay, self._openai, self._openai_stream, self._edit)

    async def until(self, end: float) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            while time.monotonic() < end:
                number = self._chance.randrange(SUBJECTS)
                route = self._chance.choice(self._routes)
                bad = self._chance.choice(NONSENSE) if self._chance.random() < BAD else None
                patience = self._chance.uniform(0.01, 1.0) if self._chance.random() < LEAVES else None
                try:
                    async with asyncio.timeout(patience) as stay:
                        await route(session, number, bad)
                except (TimeoutError, aiohttp.ClientError) as error:
                    if stay.expired():
                        self._seen.answers["left"] += 1
                        continue
                    self._seen.wrong.append(f"{route.__name__}: {error!r}")

    async def _get(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        async with session.get(f"{self._url}/imagine", params=subject(number) if bad is None else bad) as answer:
            self._check("GET", number, answer.status, await answer.read(), bad)

    async def _post(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        async with session.post(f"{self._url}/imagine", json=subject(number) if bad is None else bad) as answer:
            self._check("POST", number, answer.status, await answer.read(), bad)

    async def _stream(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        fields = subject(number) | {"previews": "true"} if bad is None else bad
        async with session.get(f"{self._url}/imagine/stream", params=fields) as answer:
            data = _last_event(await answer.read(), "done")
            self._check("stream", number, answer.status, base64.b64decode(data.get("png", "")), bad)

    async def _replay(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        as_made, reference = self._chance.random() < 0.5, self._references[number]
        body = json.dumps(bad).encode() if bad is not None else reference.picture if as_made else reference.changed
        async with session.post(f"{self._url}/replay", data=body, headers={"Content-Type": "image/png"}) as answer:
            told = json.loads(await answer.read())
            if answer.status == 200 and told["match"] != as_made:
                self._seen.wrong.append(f"replay: {told}")
            self._check("replay", number, answer.status, reference.picture, bad)

    async def _edit(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        form = aiohttp.FormData({name: str(value) for name, value in bad.items()} if bad is not None else edit_of(number))
        form.add_field("image", self._references[number].picture, filename="image.png")
        async with session.post(f"{self._url}/v1/images/edits", data=form) as answer:
            told = json.loads(await answer.read())
            edited = base64.b64decode(told["data"][0]["b64_json"]) if answer.status == 200 else b""
            self._check("edit", number, answer.status, edited, bad, self._references[number].edited)

    async def _openai(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        async with session.post(f"{self._url}/v1/images/generations", json=_in_dialect(number) if bad is None else bad) as answer:
            told = json.loads(await answer.read())
            pictures = [one["b64_json"] for one in told.get("data", [])]
            self._check("OpenAI", number, answer.status, base64.b64decode(pictures[0] if pictures else ""), bad)

    async def _openai_stream(self, session: aiohttp.ClientSession, number: int, bad: dict[str, Any] | None) -> None:
        fields = _in_dialect(number) | {"stream": True, "partial_images": 2} if bad is None else bad
        async with session.post(f"{self._url}/v1/images/generations", json=fields) as answer:
            data = _last_event(await answer.read(), "image_generation.completed")
            self._check("OpenAI stream", number, answer.status, base64.b64decode(data.get("b64_json", "")), bad)

    def _check(self, route: str, number: int, status: int, data: bytes, bad: dict[str, Any] | None, expected: bytes | None = None) -> None:
        self._seen.answers[f"{route} {status}"] += 1
        if status not in (TO_GOOD_REQUESTS if bad is None else TO_NONSENSE):
            self._seen.wrong.append(f"{route}: {status} for {subject(number) if bad is None else bad}")
        elif status == 200:
            self._seen.checked[route] += 1
            right = expected or self._references[number].picture
            if not is_same_picture(data, right) or png.decode(data)[1].request != png.decode(right)[1].request:
                self._seen.wrong.append(f"{route}: not the picture of {subject(number)}")


def _in_dialect(number: int) -> dict[str, Any]:
    fields = subject(number)
    return {"size": f"{fields.pop('width')}x{fields.pop('height')}", **fields}


def _last_event(body: bytes, name: str) -> dict[str, Any]:
    for block in reversed(body.decode().split("\r\n\r\n")):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if lines.get("event") == name:
            data: dict[str, Any] = json.loads(lines["data"])
            return data
    return {}


async def storm(url: str, references: Sequence[Reference], clients: int, seconds: float, seed: int) -> Seen:
    seen = Seen()
    end = time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(SECONDS_BETWEEN_SAMPLES)
            for child in serving.processes(REPLICA):
                seen.memory[child.pid].append(child.memory_full_info().uss)
                seen.threads[child.pid].append(child.num_threads())

    callers = [Caller(url, references, seen, random.Random(seed + number)) for number in range(clients)]
    await asyncio.gather(watch(), *(caller.until(end) for caller in callers))
    return seen


def growth(processes: Mapping[int, Sequence[int]]) -> float:
    """Of the process that grew the most: the last part over the first part in which nothing should grow any more, since pools are full."""

    def grew(samples: Sequence[int]) -> float:
        part = max(1, len(samples) // FIRST_PART)
        return statistics.median(samples[-part:]) / statistics.median(samples[part : 2 * part] or samples)

    return max(map(grew, processes.values()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="default 20")
    parser.add_argument("--clients", type=int, default=8, help="default 8")
    parser.add_argument("--seed", type=int, default=0, help="of the chances (default 0)")
    args = parser.parse_args(argv)

    with serving.cluster() as address, serving.served(address) as url:
        client = ImagineClient(url)
        references = [reference(client, number) for number in range(SUBJECTS)]
        # By more than will come: pools of threads are filled, and caches warm.
        fill_pool(url)
        asyncio.run(storm(url, references, 2 * args.clients, 10.0, args.seed + 1000))
        time.sleep(5)
        before, processes = serving.tasks_of(), {child.pid for child in serving.processes(REPLICA)}
        seen = asyncio.run(storm(url, references, args.clients, 60 * args.minutes, args.seed))
        time.sleep(5)
        after = serving.tasks_of()
        if {child.pid for child in serving.processes(REPLICA)} != processes:
            seen.wrong.append("a replica is not the process that it was")
        for number, right in enumerate(references):
            if not is_same_picture(client.generate(ImageRequest(**subject(number))).png, right.picture):
                seen.wrong.append(f"afterwards: not the picture of {subject(number)}")
    grew = {"memory": growth(seen.memory), "threads": growth(seen.threads)}
    told = {
        "pictures checked": seen.checked.total(),
        "wrong": len(seen.wrong),
        "grew by": {what: f"{by - 1:+.1%}" for what, by in grew.items()},
        "tasks before": before,
        "tasks after": after,
        "answers": dict(seen.answers),
    }
    print(json.dumps(told, indent=1))
    print(*seen.wrong[:20], sep="\n", file=sys.stderr)
    refused = seen.refused and args.clients <= FEW_CLIENTS
    left = after > before or grew["memory"] > MOST_GROWTH or grew["threads"] > 1
    return int(bool(seen.wrong or refused) or seen.checked.keys() < ROUTES or left)


if __name__ == "__main__":
    raise SystemExit(main())
