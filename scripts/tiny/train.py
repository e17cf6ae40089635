"""Train the bundled checkpoint on pictures the program draws itself.

    python -m scripts.tiny.train --minutes 80                      # from nothing: autoencoder first, then text encoder and UNet
    python -m scripts.tiny.train --minutes 60 --init app/tiny      # go on from the committed weights

The checkpoint is written to --out four times on the way, with a sheet of samples beside it, so training can be stopped at any time.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.random import Generator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.tiny import architecture, samples
from scripts.tiny.captions import random_captioned, training_caption
from scripts.tiny.drawing import draw_scene

CROP, CROPS = 64, 32  # pixels a side, and crops in an autoencoder batch
BATCH = 32  # pictures in a denoiser batch
WARM_UP_STEPS = 100
AUTOENCODER_RATE, DENOISER_RATE = 2e-3, 1e-3  # highest learning rates
TIMESTEP_SHIFT = 0.8
EMA_DECAY = 0.998
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5
SAVES = 5
LONGEST_STEP_S = 10.0  # anything longer was a pause


class Budget:
    """A stretch of time, shown as a progress bar. While the process is paused (Ctrl-Z, a laptop asleep) it does not run out."""

    def __init__(self, minutes: float, title: str) -> None:
        self._total = minutes * 60
        self._used = 0.0
        self._bar = tqdm(total=round(self._total), desc=title, unit="s", mininterval=5)

    @property
    def spent(self) -> float:
        """0 at the start, 1 at the end."""
        return min(self._used / self._total, 1.0)

    def steps(self) -> Iterator[int]:
        step = 0
        while self.spent < 1:
            start = time.monotonic()
            yield step
            step += 1
            self._used += min(time.monotonic() - start, LONGEST_STEP_S)
            self._bar.update(round(self._used) - self._bar.n)
        self._bar.close()

    def show(self, **figures: float) -> None:
        self._bar.set_postfix({name: f"{figure:.4g}" for name, figure in figures.items()})


def train_autoencoder(vae: AutoencoderKL, minutes: float, random: Generator) -> None:
    """Teach `vae` to keep what it is shown, on crops; then set its scaling factor so that latents have unit variance."""
    optimizer = AdamW(vae.parameters(), weight_decay=0.0)
    budget = Budget(minutes, "autoencoder")
    vae.train()
    for step in budget.steps():
        pixels = torch.cat([_crop(_pixels([_picture(random)]), random) for _ in range(CROPS)]).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        loss = autoencoder_loss(decoded.float(), pixels) + KL_WEIGHT * posterior.kl().mean()
        _descend(optimizer, loss, AUTOENCODER_RATE * _ramp(step, budget.spent))
        if step % 50 == 0:
            budget.show(step=step, loss=loss.item())
    vae.eval()
    with torch.inference_mode():
        latents = vae.encode(_pixels([_picture(random) for _ in range(256)]).to(vae.device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def autoencoder_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 and L2 on pixels (B, 3, H, W), and L1 on the differences between neighbours, which keeps edges sharp."""
    edges = functional.l1_loss(decoded.diff(dim=2), pixels.diff(dim=2)) + functional.l1_loss(decoded.diff(dim=3), pixels.diff(dim=3))
    return functional.l1_loss(decoded, pixels) + functional.mse_loss(decoded, pixels) + EDGE_WEIGHT * edges


def train_denoiser(pipe: StableDiffusionPipeline, minutes: float, random: Generator, out: Path, rate: float = DENOISER_RATE) -> None:
    """Teach UNet and text encoder together. What is saved is their moving average."""
    trained = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder}).train()
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = AdamW(trained.parameters(), weight_decay=0.01, fused=True)
    budget = Budget(minutes, "denoiser")
    losses: list[float] = []
    saves = 1
    for step in budget.steps():
        latents, captions = _batch(pipe, random)
        loss = denoiser_loss(pipe, latents, captions)
        _descend(optimizer, loss, rate * _ramp(step, budget.spent))
        average.update_parameters(trained)
        losses.append(loss.item())
        if step % 20 == 0:
            budget.show(step=step, loss=float(np.mean(losses[-200:])))
        if budget.spent > saves / SAVES:
            save(pipe, average.module, out)
            saves += 1
    save(pipe, average.module, out)


def denoiser_loss(pipe: StableDiffusionPipeline, latents: Tensor, captions: list[str]) -> Tensor:
    """Mean squared error of the velocity (Salimans and Ho 2022, arXiv:2202.00512) at random timesteps; latents (B, C, h, w)."""
    device = latents.device
    tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    alphas = pipe.scheduler.alphas_cumprod.to(device)
    # Most often where the prompt decides: with less noise the latents show the shapes (logit-normal, Esser et al. 2024, arXiv:2403.03206).
    timesteps = ((torch.randn(len(latents), device=device) + TIMESTEP_SHIFT).sigmoid() * len(alphas)).long()
    signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
    spread = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = (signal * latents + spread * noise).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        text = pipe.text_encoder(tokens).last_hidden_state
        predicted = pipe.unet(noisy, timesteps, text).sample
    return functional.mse_loss(predicted.float(), signal * noise - spread * latents)


def save(pipe: StableDiffusionPipeline, average: nn.Module, out: Path) -> None:
    """Write the averaged weights, the large ones in half precision, and beside them a sheet of samples."""
    unet, text_encoder, vae = (copy.deepcopy(part).eval() for part in (*average.children(), pipe.vae))
    # Unlike diffusers, transformers loads weights as they were saved: in half precision the two would not fit together.
    averaged = assemble(vae.half(), text_encoder.float(), pipe.tokenizer, unet.half())
    averaged.save_pretrained(out)
    samples.sheet(averaged.to(torch.float32)).save(out.with_name(f"{out.name}-samples.png"))


def assemble(vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=architecture.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_pipeline(random: Generator) -> StableDiffusionPipeline:
    tokenizer = architecture.new_tokenizer(random_captioned(random).caption for _ in range(20_000))
    return assemble(architecture.new_vae(), architecture.new_text_encoder(tokenizer), tokenizer, architecture.new_unet())


def _batch(pipe: StableDiffusionPipeline, random: Generator) -> tuple[Tensor, list[str]]:
    """Fresh pictures as latents (BATCH, C, h, w) of unit variance, and their captions."""
    drawn = [random_captioned(random) for _ in range(BATCH)]
    pixels = _pixels([draw_scene(captioned.scene, architecture.SIDE, random) for captioned in drawn]).to(pipe.device)
    with torch.no_grad(), torch.autocast(pipe.device.type, torch.bfloat16):
        latents = pipe.vae.encode(pixels).latent_dist.mean
    return latents.float() * pipe.vae.config.scaling_factor, [training_caption(random, captioned) for captioned in drawn]


def _picture(random: Generator) -> Image.Image:
    return draw_scene(random_captioned(random).scene, architecture.SIDE, random)


def _pixels(pictures: list[Image.Image]) -> Tensor:
    """Pictures as (B, 3, H, W), -1 to 1."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (stacked.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _crop(pixels: Tensor, random: Generator) -> Tensor:
    top, left = random.integers(0, architecture.SIDE - CROP, 2, endpoint=True)
    return pixels[:, :, top : top + CROP, left : left + CROP]


def _ramp(step: int, spent: float) -> float:
    """Rises from 0 to 1 over the first steps, then falls in a straight line to 0 at the end of the budget."""
    return min((step + 1) / WARM_UP_STEPS, 1.0 - spent)


def _descend(optimizer: AdamW, loss: Tensor, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=80, help="time for everything (default 80)")
    parser.add_argument("--autoencoder-minutes", type=float, help="of these, for the autoencoder (default: a quarter, none with --init)")
    parser.add_argument("--init", type=Path, help="a checkpoint of this architecture to go on from")
    parser.add_argument("--out", type=Path, default=Path(".tiny/checkpoint"), help="where to write (default .tiny/checkpoint)")
    parser.add_argument(
        "--rate", type=float, default=DENOISER_RATE, help=f"highest learning rate of the denoiser (default {DENOISER_RATE})"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    pipe = StableDiffusionPipeline.from_pretrained(args.init, dtype=torch.float32) if args.init else new_pipeline(random)
    pipe.to(args.device)
    for part in (pipe.vae, pipe.unet):
        part.to(memory_format=torch.channels_last)
    autoencoder_minutes = args.autoencoder_minutes
    if autoencoder_minutes is None:
        autoencoder_minutes = 0 if args.init else args.minutes / 4
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if autoencoder_minutes:
        train_autoencoder(pipe.vae, autoencoder_minutes, random)
    train_denoiser(pipe, args.minutes - autoencoder_minutes, random, args.out, args.rate)


if __name__ == "__main__":
    main()
