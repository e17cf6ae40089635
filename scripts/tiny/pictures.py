"""Pictures: random ones, as tensors, and many on one sheet."""

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from scripts.tiny import architecture
from scripts.tiny.captions import random_captioned
from scripts.tiny.drawing import draw_scene


def random_picture(random: Generator) -> Image.Image:
    return draw_scene(random_captioned(random).scene, architecture.SIDE, random)


def random_crop(random: Generator, side: int) -> Image.Image:
    """`side` x `side` pixels of a random picture, their middle somewhere on a thing: there is more to learn than on the background."""
    scene = random_captioned(random).scene
    thing = scene.things[int(random.integers(len(scene.things)))]
    middle = np.array((thing.x, thing.y)) + thing.size * random.uniform(-0.5, 0.5, 2)
    left, top = np.clip(middle * architecture.SIDE - side / 2, 0, architecture.SIDE - side).astype(int).tolist()
    return draw_scene(scene, architecture.SIDE, random).crop((left, top, left + side, top + side))


def as_pixels(pictures: list[Image.Image]) -> Tensor:
    """Pictures as (B, 3, H, W), -1 to 1."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (stacked.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def side_by_side(pictures: list[Image.Image], columns: int) -> Image.Image:
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole
