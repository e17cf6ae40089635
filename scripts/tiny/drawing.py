"""Draw flat pictures: things in one colour each on a plain background.

The pictures are the whole training set of the bundled checkpoint, and what its judge measures against.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

from scripts.tiny.shapes import SHAPES, rotated

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 210, 50),
    "orange": (245, 140, 40),
    "purple": (140, 60, 180),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
    "gray": (130, 130, 135),
}
COLOUR_JITTER = 6  # per channel, out of 255
SUPERSAMPLING = 4  # drawn this much larger, then averaged down: smooth edges


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a picture. `x`, `y` (its centre) and `size` (its side) are fractions of the picture's side; `angle` is in degrees."""

    name: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    background: str
    things: tuple[Thing, ...]


def mask(thing: Thing, side: int) -> Image.Image:
    """Where the thing is: an `L` picture of `side` x `side` pixels, 255 on the thing."""
    large = side * SUPERSAMPLING
    picture = Image.new("L", (large, large))
    draw = ImageDraw.Draw(picture)
    for part in SHAPES[thing.name]:
        points = rotated(part.points, thing.angle) * thing.size / 2 + np.array((thing.x, thing.y))
        draw.polygon([(x, y) for x, y in points * large], fill=255 if part.ink else 0)
    return picture.reduce(SUPERSAMPLING)


def draw_scene(scene: Scene, side: int, random: Generator | None = None) -> Image.Image:
    """The picture of a scene, RGB, `side` x `side`; with `random`, its colours vary a little."""
    picture = Image.new("RGB", (side, side), _shade(scene.background, random))
    for thing in scene.things:
        picture.paste(_shade(thing.colour, random), (0, 0), mask(thing, side))
    return picture


def coverage(scene: Scene, side: int) -> Image.Image:
    """Where any thing is: an `L` picture, 255 on the things."""
    covered = Image.new("L", (side, side))
    for thing in scene.things:
        covered = ImageChops.lighter(covered, mask(thing, side))
    return covered


def _shade(colour: str, random: Generator | None) -> RGB:
    exact = np.array(COLOURS[colour])
    jitter = random.integers(-COLOUR_JITTER, COLOUR_JITTER, 3, endpoint=True) if random is not None else 0
    red, green, blue = np.clip(exact + jitter, 0, 255).tolist()
    return red, green, blue
