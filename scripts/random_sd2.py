"""Stable Diffusion 2's real architecture with random weights: for benchmarks and tests where its own weights cannot be had."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.engine.checkpoint import SHORT_NAMES


@dataclass(frozen=True, slots=True)
class Widths:
    unet: tuple[int, ...]
    unet_heads: tuple[int, ...]
    vae: tuple[int, ...]
    text: int
    text_layers: int
    text_heads: int
    norm_groups: int


REAL = Widths((320, 640, 1280, 1280), (5, 10, 20, 20), (128, 256, 512, 512), text=1024, text_layers=23, text_heads=16, norm_groups=32)
REDUCED = Widths((32, 64, 128, 128), (1, 2, 4, 4), (16, 32, 64, 64), text=128, text_layers=3, text_heads=4, norm_groups=8)


def build(widths: Widths = REAL, *, dtype: torch.dtype = torch.float16, sample_size: int = 96) -> StableDiffusionPipeline:
    """The pipeline on the CPU; `sample_size` is in latents, 96 for the 768 checkpoint and 64 for the base one.

    `REDUCED` keeps the shape of the architecture and makes it about a hundred times smaller.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            block_out_channels=widths.unet,
            attention_head_dim=widths.unet_heads,
            cross_attention_dim=widths.text,
            norm_num_groups=widths.norm_groups,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=widths.vae,
            down_block_types=("DownEncoderBlock2D",) * len(widths.vae),
            up_block_types=("UpDecoderBlock2D",) * len(widths.vae),
            layers_per_block=2,
            norm_num_groups=widths.norm_groups,
            scaling_factor=0.18215,
            sample_size=8 * sample_size,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=widths.text,
                intermediate_size=4 * widths.text,
                num_hidden_layers=widths.text_layers,
                num_attention_heads=widths.text_heads,
                hidden_act="gelu",
            )
        )
    return StableDiffusionPipeline(
        unet=_filled(unet, dtype),
        vae=_filled(vae, dtype),
        text_encoder=_filled(text_encoder, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(SHORT_NAMES["tiny"].location, subfolder="tokenizer"),
        scheduler=DDIMScheduler(
            prediction_type="v_prediction",
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _filled(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Gives values to a module made on the meta device; a stretch of noise repeated is far quicker than its own initialisation."""
    part = part.to(dtype).to_empty(device="cpu")
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    for parameter in part.parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1)
        else:
            repeats = -(-parameter.numel() // len(noise))
            parameter.data = noise.repeat(repeats)[: parameter.numel()].view(parameter.shape).clone()
    for name, buffer in part.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return part.eval()
