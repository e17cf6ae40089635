"""Latents become a small RGB picture without the autoencoder: a linear map fitted on the checkpoint's own autoencoder."""

import io

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional

PICTURES = 32  # that the map is fitted on, each of one colour
SIDE = 8  # latents


class Preview:
    """Callable on latents (1, C, h, w); gives a PNG of w x h pixels, but None for those that some families pack into a sequence."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        """Fits the map: flat pictures are encoded, and a least-squares fit leads from their latents back to their colours."""
        generator = torch.Generator().manual_seed(0)
        drawn = ((torch.rand(PICTURES, 3, 1, 1, generator=generator) * 2 - 1) * 1.5).clamp(-1, 1)  # many of them saturated
        colours = drawn.expand(-1, -1, SIDE, SIDE)  # (P, 3, s, s)
        pixels = functional.interpolate(colours, scale_factor=pipe.vae_scale_factor, mode="nearest")
        with torch.inference_mode():
            encoded = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype)).latent_dist.mean.float().cpu()
        shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
        latents = (encoded - shift) * pipe.vae.config.scaling_factor
        self._weights = torch.linalg.lstsq(_with_one(latents), colours.permute(0, 2, 3, 1).reshape(-1, 3)).solution  # (C + 1, 3)

    def __call__(self, latents: Tensor) -> bytes | None:
        if latents.ndim != 4 or latents.shape[1] + 1 != len(self._weights):
            return None
        height, width = latents.shape[2:]
        colours = _with_one(latents[:1].float().cpu()) @ self._weights  # (h * w, 3)
        pixels = ((colours.view(height, width, 3) + 1) * 127.5).clamp(0, 255).byte()
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "PNG")
        return file.getvalue()


def _with_one(latents: Tensor) -> Tensor:
    """(P, C, h, w) as rows (P * h * w, C + 1) with a one at the end for the constant."""
    return functional.pad(latents.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)
