"""In which form a picture goes out: chosen by `format` or `Accept`, encoded here if it is not PNG."""

import base64
import io
from typing import Any, Literal

import mimeparse
from PIL import Image

from app.routes.errors import NotAcceptable
from app.schemas import GeneratedImage

Format = Literal["png", "jpeg", "webp", "json"]
MEDIA_TYPES: dict[str, Format] = {"application/json": "json", "image/webp": "webp", "image/jpeg": "jpeg", "image/png": "png"}
QUALITY = 90
LONGEST_ACCEPT = 2_000  # characters; browsers send about 150, and the time to read it grows with the square


def negotiated(accept: str) -> Format:
    """The form that the header likes best, then names most exactly, then PNG. Raises `NotAcceptable`."""
    if len(accept) > LONGEST_ACCEPT:
        raise NotAcceptable(accept)
    try:
        best = mimeparse.best_match(list(MEDIA_TYPES), accept.lower() or "*/*")
    except (mimeparse.MimeTypeParseException, ValueError, IndexError):
        best = ""
    if not best:
        raise NotAcceptable(accept)
    return MEDIA_TYPES[best]


def media_type(form: Format) -> str:
    return next(kind for kind, name in MEDIA_TYPES.items() if name == form)


def encoded(png: bytes, form: Format, quality: int = QUALITY) -> bytes:
    """The picture as JPEG or WebP; as PNG it stays what it is, facts included."""
    if form == "png":
        return png
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, form.upper(), quality=quality)
    return file.getvalue()


def enlarged(preview: bytes, width: int, height: int) -> bytes:
    """A preview in the size of the picture to be, as PNG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(preview)).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG", compress_level=1)
    return file.getvalue()


def as_json(generated: GeneratedImage) -> dict[str, Any]:
    """The PNG in base64, how it was made, and the seconds each phase took."""
    return {
        "png": base64.b64encode(generated.png).decode(),
        "facts": generated.facts.model_dump(mode="json"),
        "timings": generated.timings,
    }
