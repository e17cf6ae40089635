"""Sheets of pictures: what the checkpoint makes of a few prompts."""

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

PROMPTS = (
    "a red heart on a yellow background",
    "a blue circle on a white background",
    "a small green star on a black background",
    "a large orange sun on a blue background",
    "an orange square in the top left corner, pink background",
    "a purple triangle at the bottom on a green background",
    "a white moon on a purple background",
    "a green tree on an orange background",
    "a red house under a yellow sun on a blue background",
    "a blue fish to the left of a green tree on a white background",
    "a white cloud above a red boat on a gray background",
    "a pink flower right of a black cup on a yellow background",
    "Please draw me a tiny purple mushroom, gray background!",
    "star",
    "yellow ring, red background",
    "a cat playing the piano",
)
COLUMNS = 4


def sheet(pipe: StableDiffusionPipeline, *, seed: int = 0, steps: int = 20, guidance_scale: float = 3.0) -> Image.Image:
    """One picture of each of `PROMPTS`, four in a row."""
    generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS]
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(list(PROMPTS), num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators).images
    return side_by_side(pictures, COLUMNS)


def side_by_side(pictures: list[Image.Image], columns: int) -> Image.Image:
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole
