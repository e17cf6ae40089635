"""Stage 1: the autoencoder learns to keep pictures, in latents that are easy to paint with.

The first three latent channels are held to the picture's own colours, averaged over the square that a latent stands for; the others
are free to say where edges run inside it. So a latent speaks of its own place alone, a linear map shows it (`app/engine/preview.py`),
and the denoiser learns colours and outlines first. The decoder sees latents with a little noise: what the denoiser leaves unsettled
stays crisp.
"""

import torch
from diffusers import AutoencoderKL
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from scripts.tiny.architecture import SIDE, VAE_FACTOR
from scripts.tiny.budget import Budget, descend
from scripts.tiny.pictures import as_pixels, random_crop, random_picture

BATCH = 5  # pictures, or four times as many crops of half their side
CROP, CROP_SHARE = 64, 0.75  # pixels; most batches are crops, where edges are dense, the others keep the whole picture's statistics right
RATE = 1.5e-3
NOISE = 0.1  # standard deviation, beside colours of about 0.6
EDGE_WEIGHT, COLOUR_WEIGHT, SIZE_WEIGHT = 0.5, 1.0, 1e-3
MEASURED = 256  # pictures that the scaling factor is taken from


def train(vae: AutoencoderKL, minutes: float, random: Generator) -> None:
    """Teach `vae`, then set its scaling factor so that latents have unit variance."""
    vae.train()
    _descend(vae, list(vae.parameters()), Budget(minutes, "autoencoder"), random)
    vae.eval()
    with torch.inference_mode():
        latents = vae.encode(as_pixels([random_picture(random) for _ in range(MEASURED)]).to(vae.device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def train_decoder(vae: AutoencoderKL, minutes: float, random: Generator) -> None:
    """Teach the decoder alone. What latents mean stays as it is, so a denoiser trained on them still fits."""
    vae.eval()
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _descend(vae, [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()], Budget(minutes, "decoder"), random)


def _descend(vae: AutoencoderKL, parameters: list[nn.Parameter], budget: Budget, random: Generator) -> None:
    optimizer = AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in budget.steps():
        pixels = _batch(random).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents = vae.encode(pixels).latent_dist.mean
            decoded = vae.decode(latents + NOISE * torch.randn_like(latents)).sample
        loss = pixel_loss(decoded.float(), pixels) + latent_loss(latents.float(), pixels)
        descend(optimizer, loss, budget.rate(step, RATE))
        if step % 50 == 0:
            budget.show(step=step, loss=loss.item())


def _batch(random: Generator) -> Tensor:
    if random.random() < CROP_SHARE:
        return as_pixels([random_crop(random, CROP) for _ in range(BATCH * (SIDE // CROP) ** 2)])
    return as_pixels([random_picture(random) for _ in range(BATCH)])


def pixel_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 and L2 on pixels (B, 3, H, W), and L1 on the differences between neighbours, which keeps edges sharp."""
    edges = functional.l1_loss(decoded.diff(dim=2), pixels.diff(dim=2)) + functional.l1_loss(decoded.diff(dim=3), pixels.diff(dim=3))
    return functional.l1_loss(decoded, pixels) + functional.mse_loss(decoded, pixels) + EDGE_WEIGHT * edges


def latent_loss(latents: Tensor, pixels: Tensor) -> Tensor:
    """How far the first channels of latents (B, C, h, w) are from the colours of pixels (B, 3, 8h, 8w), and how large the others are."""
    colours = functional.avg_pool2d(pixels, VAE_FACTOR)
    return COLOUR_WEIGHT * functional.mse_loss(latents[:, :3], colours) + SIZE_WEIGHT * latents[:, 3:].square().mean()
