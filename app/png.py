"""Pixels and facts to PNG bytes, and back.

Two text chunks tell how the picture was made: `parameters`, in the form that the A1111 web UI writes and many tools read, and
`imagine`, the `Facts` as JSON.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Literal

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from app.schemas import MAX_SIDE, Facts

FACTS_CHUNK = "imagine"
COMPRESS_LEVEL = 4  # measured at 128 and 768 pixels: half the time of 6 for at most a tenth more bytes; 9 takes up to ten times as long

MOST_PIXELS = 4 * MAX_SIDE**2  # looked at; a frame around the largest picture still fits


class Unreadable(ValueError):
    """The bytes are no image, or none that may be looked at."""


class NotOurPNG(Unreadable):
    """The bytes are no PNG that `encode` made. Where its facts break a rule, the cause is pydantic's error."""


def encode(image: Image.Image, facts: Facts) -> bytes:
    """The same image and facts always give the same bytes."""
    chunks = PngInfo()
    chunks.add_itxt("parameters", parameters_text(facts).replace("\0", " "))  # a text chunk cannot hold NUL; the JSON escapes it
    chunks.add_itxt(FACTS_CHUNK, facts.model_dump_json())
    file = BytesIO()
    image.save(file, "PNG", pnginfo=chunks, compress_level=COMPRESS_LEVEL)
    return file.getvalue()


def decode(png: bytes, *, unknown: Literal["forbid", "ignore"] = "forbid") -> tuple[Image.Image, Facts]:
    """Raises `NotOurPNG`, whatever the bytes are. A newer service may tell facts that are `unknown` here."""
    try:
        image = opened(png, ("PNG",))
        return image, Facts.model_validate_json(image.info[FACTS_CHUNK], extra=unknown)
    except Unreadable as error:
        raise NotOurPNG(str(error)) from error
    except KeyError as error:
        raise NotOurPNG(f"the image has no {FACTS_CHUNK!r} text chunk, so it was not made here or was saved again without it") from error
    except ValidationError as error:
        raise NotOurPNG(f"the facts in the image's {FACTS_CHUNK!r} text chunk cannot be read: {error}") from error


def opened(data: bytes, formats: Sequence[str]) -> Image.Image:
    """The whole image. Raises `Unreadable`, whatever the bytes are."""
    try:
        image = Image.open(BytesIO(data), formats=list(formats))
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        has_more_bits = any(";16" in str(tile.args) for tile in image.tile)  # of which Pillow drops some, or takes all for white
        image.load()
    except UnidentifiedImageError as error:
        raise Unreadable(f"these bytes are no image in {' or '.join(formats)} format") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"the image is larger than {MOST_PIXELS} pixels") from error
    except Exception as error:  # Pillow trips over damage in many ways, IndexError among them
        raise Unreadable("the image is cut off or damaged") from error
    if has_more_bits:
        raise Unreadable("it has 16 bits a channel; save it with 8")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise Unreadable("it is an animation; give one picture")
    return image


def settings_left_out(facts: Facts) -> list[str]:
    """The names of settings that whatever is made here has, and somebody took out."""
    return [name for name, value in facts.request if value is None]


def parameters_text(facts: Facts) -> str:
    """One line each of prompt, negative prompt (if any) and settings."""
    asked = facts.request
    settings = {
        "Steps": asked.num_inference_steps,
        "Sampler": facts.scheduler,
        "CFG scale": asked.guidance_scale,
        "Seed": asked.seed,
        "Size": f"{asked.width}x{asked.height}",
        "Model": facts.model,
        "Model hash": facts.revision,
    }
    lines = [asked.prompt, f"Negative prompt: {asked.negative_prompt}"] if asked.negative_prompt else [asked.prompt]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])
