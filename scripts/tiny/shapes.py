"""The things the bundled checkpoint can draw, as polygons.

A thing is a tuple of `Part`s painted in order; a part either lays ink or cuts it away again. Points are in the thing's own square,
-1 to 1 on both axes, x to the right and y downwards, so that turning, scaling and moving a thing is one matrix product.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2)


@dataclass(frozen=True, slots=True)
class Part:
    points: Points
    ink: bool = True


def polygon(*corners: tuple[float, float], ink: bool = True) -> Part:
    return Part(np.array(corners, dtype=np.float64), ink)


def box(left: float, top: float, right: float, bottom: float, ink: bool = True) -> Part:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom), ink=ink)


def ellipse(
    x: float, y: float, rx: float, ry: float, *, turn: float = 0.0, start: float = 0.0, stop: float = 360.0, ink: bool = True
) -> Part:
    """The part of an ellipse between two angles (degrees, clockwise from the right), then turned about its own centre."""
    angles = np.radians(np.linspace(start, stop, 49))
    points = np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1)
    return Part(rotated(points, turn) + np.array((x, y)), ink)


def rotated(points: Points, degrees: float) -> Points:
    """Points turned clockwise about the origin."""
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: Points = points @ matrix
    return turned


def spikes(count: int, outer: float, inner: float) -> Part:
    """A star with its first point upwards."""
    angles = np.radians(np.arange(2 * count) * 180 / count - 90)
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return Part(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def heart() -> Part:
    t = np.linspace(0, 2 * np.pi, 61)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return Part(np.stack([x / 17, (y - 2.5) / 17], axis=1))


def around(part: Part, count: int) -> tuple[Part, ...]:
    return tuple(Part(rotated(part.points, 360 * k / count), part.ink) for k in range(count))


SHAPES: dict[str, tuple[Part, ...]] = {
    "circle": (ellipse(0, 0, 0.92, 0.92),),
    "square": (box(-0.8, -0.8, 0.8, 0.8),),
    "triangle": (polygon((0, -0.95), (0.98, 0.78), (-0.98, 0.78)),),
    "star": (spikes(5, 1.0, 0.42),),
    "heart": (heart(),),
    "diamond": (polygon((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),),
    "ring": (ellipse(0, 0, 0.95, 0.95), ellipse(0, 0, 0.5, 0.5, ink=False)),
    "cross": (box(-0.3, -0.92, 0.3, 0.92), box(-0.92, -0.3, 0.92, 0.3)),
    "moon": (ellipse(-0.1, 0, 0.92, 0.92), ellipse(0.38, -0.12, 0.78, 0.78, ink=False)),
    "sun": (*around(polygon((-0.2, -0.62), (0, -1.0), (0.2, -0.62)), 8), ellipse(0, 0, 0.52, 0.52)),
    "cloud": (
        ellipse(-0.5, 0.15, 0.45, 0.4),
        ellipse(-0.05, -0.15, 0.5, 0.5),
        ellipse(0.5, 0.12, 0.45, 0.42),
        box(-0.5, 0.1, 0.5, 0.55),
    ),
    "tree": (
        box(-0.15, 0.6, 0.15, 1.0),
        polygon((0, -1), (0.5, -0.3), (-0.5, -0.3)),
        polygon((0, -0.6), (0.65, 0.2), (-0.65, 0.2)),
        polygon((0, -0.2), (0.8, 0.7), (-0.8, 0.7)),
    ),
    "house": (
        polygon((0, -0.95), (0.98, -0.1), (-0.98, -0.1)),
        box(-0.72, -0.1, 0.72, 0.9),
        box(-0.5, 0.1, -0.1, 0.45, ink=False),
        box(0.15, 0.2, 0.5, 0.9, ink=False),
    ),
    "flower": (*around(ellipse(0, -0.6, 0.3, 0.4), 6), ellipse(0, 0, 0.45, 0.45), ellipse(0, 0, 0.26, 0.26, ink=False)),
    "fish": (
        ellipse(-0.2, 0, 0.75, 0.5),
        polygon((0.3, 0), (0.98, -0.5), (0.98, 0.5)),
        ellipse(-0.58, -0.12, 0.11, 0.11, ink=False),
    ),
    "boat": (
        polygon((-0.95, 0.4), (0.95, 0.4), (0.6, 0.9), (-0.6, 0.9)),
        box(-0.06, -0.95, 0.06, 0.4),
        polygon((0.14, -0.9), (0.8, 0.25), (0.14, 0.25)),
        polygon((-0.14, -0.6), (-0.65, 0.25), (-0.14, 0.25)),
    ),
    "mushroom": (
        ellipse(0, 0.1, 0.95, 1.0, start=180, stop=360),
        box(-0.3, 0.05, 0.3, 0.95),
        ellipse(-0.42, -0.25, 0.16, 0.16, ink=False),
        ellipse(0.12, -0.52, 0.16, 0.16, ink=False),
        ellipse(0.5, -0.15, 0.14, 0.14, ink=False),
    ),
    "cup": (
        ellipse(0.55, 0.0, 0.42, 0.45),
        ellipse(0.55, 0.0, 0.2, 0.23, ink=False),
        polygon((-0.9, -0.75), (0.6, -0.75), (0.45, 0.8), (-0.75, 0.8)),
    ),
    "apple": (
        ellipse(-0.34, 0.2, 0.54, 0.68),
        ellipse(0.34, 0.2, 0.54, 0.68),
        box(-0.07, -0.85, 0.07, -0.3),
        ellipse(0.38, -0.74, 0.36, 0.15, turn=20),
    ),
    "crown": (
        polygon((-0.95, -0.65), (-0.45, 0.05), (0, -0.9), (0.45, 0.05), (0.95, -0.65), (0.75, 0.45), (-0.75, 0.45)),
        box(-0.75, 0.58, 0.75, 0.85),
    ),
    "umbrella": (
        ellipse(0, 0.05, 0.98, 0.95, start=180, stop=360),
        *(ellipse(x, 0.05, 0.245, 0.16, start=180, stop=360, ink=False) for x in (-0.735, -0.245, 0.245, 0.735)),
        ellipse(0.19, 0.72, 0.26, 0.26, start=0, stop=180),
        ellipse(0.19, 0.72, 0.11, 0.11, start=0, stop=180, ink=False),
        box(-0.07, -0.1, 0.07, 0.72),
    ),
    "butterfly": (
        *(ellipse(side * 0.55, -0.38, 0.5, 0.38, turn=side * -25) for side in (-1, 1)),
        *(ellipse(side * 0.42, 0.42, 0.34, 0.44, turn=side * -20) for side in (-1, 1)),
        ellipse(0, 0.02, 0.11, 0.75),
    ),
    "arrow": (polygon((0, -0.98), (0.8, -0.1), (0.3, -0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.1), (-0.8, -0.1)),),
    "cat": (
        polygon((-0.85, -0.98), (-0.1, -0.5), (-0.8, 0.1)),
        polygon((0.85, -0.98), (0.1, -0.5), (0.8, 0.1)),
        ellipse(0, 0.15, 0.88, 0.72),
        *(ellipse(side * 0.34, 0.02, 0.13, 0.17, ink=False) for side in (-1, 1)),
        polygon((-0.14, 0.36), (0.14, 0.36), (0, 0.54), ink=False),
    ),
}
