"""Training, a few steps of it, through its own command."""

import subprocess
import sys
from pathlib import Path

from diffusers import AutoPipelineForText2Image
from PIL import Image

from tests.conftest import REPOSITORY


def train(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "scripts.tiny.train", *arguments], cwd=REPOSITORY, check=True, timeout=240)


def test_training_writes_a_checkpoint_with_a_sheet_and_goes_on_from_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train("--minutes", "0.1", "--autoencoder-minutes", "0.05", "--out", str(first), "--seed", "1")
    assert Image.open(tmp_path / "first-samples.png").size == (512, 512)
    train("--minutes", "0.05", "--init", str(first), "--out", str(second))
    before, after = (AutoPipelineForText2Image.from_pretrained(folder) for folder in (first, second))
    assert before.unet.conv_in.weight.ne(after.unet.conv_in.weight).any()
    assert before.vae.encoder.conv_in.weight.equal(after.vae.encoder.conv_in.weight)  # without time of its own it stays as it was
