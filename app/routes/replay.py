"""`POST /replay`: a PNG made here is made again from the settings inside it, and compared."""

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from PIL import Image

from app import png
from app.routes.backend import Backend, Job, make
from app.routes.imagine import ERRORS, deadline_of, refuse_in_the_address
from app.schemas import Change, ErrorAnswer, ErrorDetail, Facts, GeneratedImage, RefusedRequest, Replay
from app.settings import Settings

TOLERANCE, HALF_PRECISION_TOLERANCE = 1, 8  # of 255
MODES = ("L", "RGB", "RGBA")  # eight bits a channel, as all that is made here
COMPARED = ("model", "revision", "pipeline", "scheduler", "dtype", "device")
UNCHANGED = (
    "it was made with what makes it now, so its pixels or its settings were changed afterwards, or another machine rounds differently"
)


def router(backend: Backend, settings: Settings) -> APIRouter:
    routes = APIRouter()
    body = {"required": True, "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
    responses: dict[int | str, dict[str, Any]] = {
        **ERRORS,
        415: {"model": ErrorAnswer, "description": "The body is not image/png"},
        422: {"model": ErrorAnswer, "description": "No PNG made here, settings inside it that break a rule, or another size than they say"},
    }

    @routes.post("/replay", dependencies=[Depends(refuse_in_the_address)], responses=responses, openapi_extra={"requestBody": body})
    async def replay(raw: Request, response: Response, deadline: Annotated[float, Depends(deadline_of(settings))]) -> Replay:
        """Make a PNG made here again, from the settings inside it, and say whether the picture is the same; if not, how it differs and what
        has changed since: model, revision, versions of libraries."""
        image, facts = await asyncio.to_thread(png.decode, await raw.body())
        refuse_tampered(image, facts)
        request = facts.request.resolved(await backend.capabilities())
        (again,) = (await make(backend, Job((request,), deadline))).pictures
        response.headers["Cache-Control"] = "no-store"
        return await asyncio.to_thread(compared, image, facts, again)

    return routes


def refuse_tampered(image: Image.Image, facts: Facts) -> None:
    """What is made here has all settings inside it, and is as large as they say. Raises `RefusedRequest`."""
    if facts.edit is not None:
        raise RefusedRequest(ErrorDetail.of("edit", "must be null: what this picture was painted over is not in the file", facts.edit))
    if missing := png.settings_left_out(facts):
        raise RefusedRequest(*(ErrorDetail.of(f"request.{name}", "must be given in the picture's settings", None) for name in missing))
    said, seen = f"{facts.request.width} x {facts.request.height}", f"{image.width} x {image.height}"
    if seen != said:
        raise RefusedRequest(ErrorDetail.of("body", f"must be a picture of {said} pixels, as its settings say", seen))
    if image.mode not in MODES:
        raise RefusedRequest(ErrorDetail.of("body", "must have 8 bits a channel and no palette", image.mode))


def compared(image: Image.Image, then: Facts, again: GeneratedImage) -> Replay:
    differences = np.abs(_pixels(image) - _pixels(again.image)).max(axis=2)  # (height, width), of the channel that differs most
    tolerance = TOLERANCE if again.facts.dtype == "float32" else HALF_PRECISION_TOLERANCE
    largest, changed = int(differences.max()), changes(then, again.facts)
    match = largest <= tolerance
    return Replay(
        match=match,
        tolerance=tolerance,
        largest_difference=largest,
        differing_pixels=float((differences > 0).mean()),
        changed=changed,
        why=None if match else _why(changed),
        facts=again.facts,
    )


def changes(then: Facts, now: Facts) -> list[Change]:
    was, is_ = ({name: getattr(facts, name) for name in COMPARED} | _versions(facts) for facts in (then, now))
    return [Change(fact=name, then=was.get(name), now=is_.get(name)) for name in {**was, **is_} if was.get(name) != is_.get(name)]


def _versions(facts: Facts) -> dict[str, str]:
    return {f"versions.{name}": version for name, version in facts.versions.items()}


def _why(changed: list[Change]) -> str:
    if not changed:
        return UNCHANGED
    return "it was made with another " + ", ".join(f"{one.fact} ({one.then}, now {one.now})" for one in changed)


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """(height, width, 4). A colour declared transparent, which nothing made here has, counts like any other."""
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGBA"), dtype=np.int16)
