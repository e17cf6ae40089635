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
