"""Pictures are pure functions of their fields, and HTTP has words for that: `ETag`, `If-None-Match`, `Content-Location`, `Cache-Control`.

The permalink spells out every field, the model's revision and the service's version. Only its answers may be kept for ever.
"""

import hashlib
import uuid
from typing import Any
from urllib.parse import urlencode

from app.schemas import Capabilities, ErrorDetail, Facts, ImageRequest, RefusedRequest
from app.settings import UNNAMED_VERSION

A_YEAR_S = 31_536_000
LONGEST_ADDRESS = 4_000  # characters: longer ones break clients and proxies, and a prompt in percent signs can be longer

THIS_START = uuid.uuid4().hex  # tells services of the unnamed version apart: the code may have changed between two of them

NOT_KEPT = {"Vary": "Accept", "Cache-Control": "no-store"}


def etag(request: ImageRequest, capabilities: Capabilities, form: str) -> str:
    """Weak: a pixel may differ by 1/255 between two makings."""
    version = THIS_START if capabilities.version == UNNAMED_VERSION else capabilities.version
    said = f"{request.model_dump_json()} {capabilities.model} {capabilities.revision} {version} {form}"
    return f'W/"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'


def permalink(prefix: str, request: ImageRequest, capabilities: Capabilities, form: str) -> str:
    """Where exactly this picture is, below the prefix that the application is served under."""
    fields = spelled_out(request, capabilities) | {"format": form}
    return f"{prefix}/imagine?{urlencode(fields)}"


def spelled_out(request: ImageRequest, capabilities: Capabilities) -> dict[str, Any]:
    fields = request.model_dump() | {"scheduler": request.scheduler or capabilities.scheduler}
    return fields | {"revision": capabilities.revision, "version": capabilities.version}


def cache_control(*, seeded: bool, permanent: bool, private: bool) -> str:
    who = "private" if private else "public"
    if not seeded:
        return "no-store"
    return f"{who}, max-age={A_YEAR_S}, immutable" if permanent else f"{who}, no-cache"


def is_by_this_model(facts: Facts, capabilities: Capabilities) -> bool:
    """While one version follows another, a replica of the one may answer what was asked of the other."""
    return (facts.revision, facts.versions.get("app")) == (capabilities.revision, capabilities.version)


def matches(if_none_match: str, tag: str) -> bool:
    """Weak comparison with every tag of the header."""
    bare = tag.removeprefix("W/")
    given = [one.strip() for one in if_none_match.split(",")]
    return "*" in given or bare in [one.removeprefix("W/") for one in given]


def refuse_other_model(revision: str | None, version: str | None, capabilities: Capabilities) -> None:
    """A permalink of another model or version names a picture that is not made here any more. Raises `RefusedRequest`."""
    pins = {"revision": (revision, capabilities.revision), "version": (version, capabilities.version)}
    wrong = [
        ErrorDetail.of(name, f"must be {own}, which is what this service runs", given)
        for name, (given, own) in pins.items()
        if given not in (None, own)
    ]
    if wrong:
        raise RefusedRequest(*wrong)
