"""Training, a few steps of it, through its own command."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoPipelineForText2Image, DDPMScheduler
from PIL import Image

from app.engine import checkpoint
from scripts.tiny.denoiser import denoising_loss
from tests.conftest import REPOSITORY


def train(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "scripts.tiny.train", *arguments], cwd=REPOSITORY, check=True, timeout=240)


def test_the_loss_is_nought_for_the_velocity_as_diffusers_defines_it() -> None:
    loaded = checkpoint.load("tiny").pipe
    own = DDPMScheduler.from_config(loaded.scheduler.config)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def perfect(noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> SimpleNamespace:
        signal, spread = (part.sqrt().view(-1, 1, 1, 1) for part in (own.alphas_cumprod[timesteps], 1 - own.alphas_cumprod[timesteps]))
        return SimpleNamespace(sample=own.get_velocity(latents, (noisy - signal * latents) / spread, timesteps))

    pipe = SimpleNamespace(scheduler=own, tokenizer=loaded.tokenizer, text_encoder=loaded.text_encoder, unet=perfect)
    assert denoising_loss(pipe, latents, torch.ones(4, 1, 1, 1), ["a star"] * 4) < 1e-6


def test_training_writes_a_checkpoint_with_a_sheet_and_goes_on_from_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train("--minutes", "0.1", "--autoencoder-minutes", "0.05", "--out", str(first), "--seed", "1")
    assert Image.open(tmp_path / "first-samples.png").size == (512, 512)
    train("--minutes", "0.05", "--init", str(first), "--out", str(second))
    before, after = (AutoPipelineForText2Image.from_pretrained(folder) for folder in (first, second))
    assert before.unet.conv_in.weight.ne(after.unet.conv_in.weight).any()
    assert before.vae.encoder.conv_in.weight.equal(after.vae.encoder.conv_in.weight)  # without time of its own it stays as it was
