"""Does the picture show what the prompt asked for? Plain pixel work: colours, and the drawing code's own shapes laid over them.

    python -m scripts.tiny.judge                                       # 200 prompts, the bundled checkpoint, default settings
    python -m scripts.tiny.judge --count 500 --failures failures.png   # and a sheet of the pictures that were wrong
    python -m scripts.tiny.judge --free-form                           # 50 prompts as people write them

The prompts combine thing, colour and background as training never did (`captions.held_out`).
"""

import argparse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from tqdm import tqdm

from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.captions import PLACES, RELATIONS, Captioned, random_captioned
from scripts.tiny.drawing import COLOURS, Thing, mask
from scripts.tiny.free_form import FREE_FORM
from scripts.tiny.pictures import side_by_side
from scripts.tiny.shapes import SHAPES

BORDER = 4  # pixels: the frame in which the background is looked for
TEMPLATE_SIDE = 48  # pixels
TEMPLATE_ANGLES = (-6.0, -3.0, 0.0, 3.0, 6.0)
LEAST_THING = 0.004  # of the picture; anything smaller is no thing
LEAST_APART = 0.15  # of the side, between the middles of two things in a relation
AT_ONCE = 8  # requests, which the engine joins

Mask = NDArray[np.bool_]  # (H, W)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the picture got right; None where the prompt did not ask."""

    background: bool | None = None
    colour: bool | None = None
    thing: bool | None = None
    place: bool | None = None
    relation: bool | None = None

    @property
    def all_right(self) -> bool:
        return all(getattr(self, field.name) is not False for field in fields(self))


def judge(picture: Image.Image, captioned: Captioned) -> Verdict:
    asked = captioned.scene
    names = nearest_colours(picture)
    background = _background(names)
    colours = [thing.colour for thing in asked.things]
    seen = colours_of_things(names, background)[: len(colours)]
    right_background = background == asked.background if asked.background else None
    right_colours = sorted(seen) == sorted(colours) if all(colours) else None
    if captioned.relation:
        return Verdict(right_background, right_colours, relation=bool(right_colours) and _in_relation(names, captioned))
    shape = _cleaned(names == seen[0]) if seen else np.zeros_like(names, dtype=bool)
    right_thing = bool(shape.any()) and recognised(shape) == asked.things[0].name
    place = _place(shape) == captioned.place if captioned.place else None
    return Verdict(right_background, right_colours, thing=right_thing, place=place)


def nearest_colours(picture: Image.Image) -> NDArray[np.str_]:
    """The name of the nearest of `COLOURS` at every pixel, (H, W)."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    distances = np.stack([((pixels - np.array(rgb, dtype=np.float32)) ** 2).sum(axis=-1) for rgb in COLOURS.values()])
    nearest: NDArray[np.str_] = np.array(list(COLOURS))[distances.argmin(axis=0)]
    return nearest


def _background(names: NDArray[np.str_]) -> str:
    """The most common colour of the frame."""
    frame = np.concatenate([names[:BORDER].ravel(), names[-BORDER:].ravel(), names[:, :BORDER].ravel(), names[:, -BORDER:].ravel()])
    values, counts = np.unique(frame, return_counts=True)
    return str(values[counts.argmax()])


def colours_of_things(names: NDArray[np.str_], background: str) -> list[str]:
    """Colours other than the background's, the most frequent first, edges (where colours mix) not counted."""
    areas = {colour: int(_eroded(names == colour).sum()) for colour in COLOURS if colour != background}
    least = LEAST_THING * names.size
    return [colour for colour, area in sorted(areas.items(), key=lambda item: -item[1]) if area >= least]


def recognised(shape: Mask) -> str:
    """The thing whose shape overlaps best (intersection over union) once both are scaled to fill the same square."""
    framed = _framed(shape)
    return max(SHAPES, key=lambda name: max(_overlap(framed, template) for template in _templates(name)))


@cache
def _templates(name: str) -> tuple[NDArray[np.float32], ...]:
    things = (Thing(name, "black", 0.5, 0.5, 0.8, angle) for angle in TEMPLATE_ANGLES)
    return tuple(_framed(np.asarray(mask(thing, 128)) > 127) for thing in things)


def _framed(shape: Mask) -> NDArray[np.float32]:
    """The shape cut out and scaled, with its proportions kept, to `TEMPLATE_SIDE`: values 0 to 1."""
    left, top, right, bottom = _bounds(shape)
    side = max(right - left, bottom - top)
    square = Image.new("L", (side, side))
    cut = Image.fromarray(shape[top:bottom, left:right].astype(np.uint8) * 255)
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    scaled = square.resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.Resampling.BILINEAR)
    return (np.asarray(scaled) / 255).astype(np.float32)


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _in_relation(names: NDArray[np.str_], captioned: Captioned) -> bool:
    """Both things are recognised in their own colours, and in order."""
    shapes = [_cleaned(names == thing.colour) for thing in captioned.scene.things]
    if not all(shape.any() for shape in shapes):
        return False
    if any(recognised(shape) != thing.name for shape, thing in zip(shapes, captioned.scene.things, strict=True)):
        return False
    offset = np.subtract(_middle(shapes[0]), _middle(shapes[1]))
    along = float(offset @ np.sign(RELATIONS[captioned.relation]))
    return along > LEAST_APART


def _place(shape: Mask) -> str:
    """The nearest of `PLACES` to the middle of the shape."""
    if not shape.any():
        return ""
    middle = np.array(_middle(shape))
    return min(PLACES, key=lambda place: float(np.abs(middle - PLACES[place]).sum()))


def _middle(shape: Mask) -> tuple[float, float]:
    """x and y of the middle of the shape's bounds, as fractions of the sides."""
    left, top, right, bottom = _bounds(shape)
    height, width = shape.shape
    return (left + right) / 2 / width, (top + bottom) / 2 / height


def _bounds(shape: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cleaned(shape: Mask) -> Mask:
    """Without lone pixels."""
    return np.asarray(Image.fromarray(shape.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))) > 127


def _eroded(shape: Mask) -> Mask:
    return np.asarray(Image.fromarray(shape.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(3))) > 127


def held_out_prompts(count: int, seed: int = 1) -> tuple[Captioned, ...]:
    random = np.random.default_rng(seed)
    return tuple(random_captioned(random, for_judge=True) for _ in range(count))


def table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: what was asked, how often, and how often the picture had it."""
    lines = ["| asked for | prompts | right |", "|---|---:|---:|"]
    verdicts = list(verdicts)
    for field in fields(Verdict):
        asked = [getattr(verdict, field.name) for verdict in verdicts if getattr(verdict, field.name) is not None]
        if asked:
            lines.append(f"| {field.name} | {len(asked)} | {100 * sum(asked) / len(asked):.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="prompts (default 200)")
    parser.add_argument("--free-form", action="store_true", help="the 50 prompts of free_form.py instead")
    parser.add_argument("--checkpoint", default="tiny", help="a folder (default: the bundled checkpoint)")
    usual = checkpoint.SHORT_NAMES["tiny"]  # a folder alone would be asked with the defaults of its pipeline
    parser.add_argument("--steps", type=int, default=usual.num_inference_steps, help="num_inference_steps (default %(default)s)")
    parser.add_argument("--guidance", type=float, default=usual.guidance_scale, help="guidance_scale (default %(default)s)")
    parser.add_argument("--size", type=int, help="width and height in pixels (default: the checkpoint's)")
    parser.add_argument("--failures", type=Path, help="where to write a sheet of pictures that were wrong")
    args = parser.parse_args()
    engine = ImageEngine(checkpoint.load(args.checkpoint))
    asked = FREE_FORM if args.free_form else held_out_prompts(args.count)
    settings = {"width": args.size, "height": args.size, "num_inference_steps": args.steps, "guidance_scale": args.guidance}
    requests = [ImageRequest.model_validate({"prompt": one.caption, "seed": seed} | settings) for seed, one in enumerate(asked)]
    verdicts, wrong = [], []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        made = tqdm(threads.map(engine.generate, requests), total=len(requests))
        for one, generated in zip(asked, made, strict=True):
            verdicts.append(judge(generated.image, one))
            if not verdicts[-1].all_right:
                wrong.append(generated.image)
                tqdm.write(f"{one.caption!r}: {verdicts[-1]}")
    print(table(verdicts))
    if args.failures and wrong:
        side_by_side(wrong, 8).save(args.failures)


if __name__ == "__main__":
    main()
