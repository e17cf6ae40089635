"""Sheets of pictures: what the checkpoint makes of a few prompts, and how that compares with what the drawing code makes.

python -m scripts.tiny.samples --out sheet.png     # 64 held-out prompts: the checkpoint's pictures left, drawings right
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from app.engine.checkpoint import load
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts.tiny.drawing import draw_scene
from scripts.tiny.judge import AT_ONCE, held_out_prompts
from scripts.tiny.pictures import side_by_side

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
COMPARED = 64
GAP = 16  # pixels


def sheet(pipe: StableDiffusionPipeline, *, seed: int = 0, steps: int = 20, guidance_scale: float = 3.0) -> Image.Image:
    """One picture of each of `PROMPTS`, four in a row."""
    generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS]
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(list(PROMPTS), num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators).images
    return side_by_side(pictures, COLUMNS)


def comparison(engine: ImageEngine) -> Image.Image:
    """Pictures of held-out prompts, eight in a row, and right of them drawings of the same scenes."""
    asked, random = held_out_prompts(COMPARED), np.random.default_rng(0)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        requests = [ImageRequest(prompt=one.caption, seed=seed) for seed, one in enumerate(asked)]
        made = [one.image for one in tqdm(threads.map(engine.generate, requests), total=COMPARED)]
    drawn = [draw_scene(one.scene, made[0].width, random) for one in asked]
    left, right = side_by_side(made, 8), side_by_side(drawn, 8)
    whole = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + GAP, 0))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny", help="a folder (default: the bundled checkpoint)")
    parser.add_argument("--out", type=Path, default=Path(".tiny/sheet.png"), help="default .tiny/sheet.png")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    engine = ImageEngine(load(args.checkpoint))
    comparison(engine).save(args.out)
    engine.close()


if __name__ == "__main__":
    main()
