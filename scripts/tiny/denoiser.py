"""Stage 3: the UNet learns to paint what the captions say."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from scripts.tiny.architecture import SIDE, VAE_FACTOR
from scripts.tiny.budget import Budget, descend
from scripts.tiny.captions import Captioned, random_captioned, training_caption
from scripts.tiny.drawing import coverage, draw_scene
from scripts.tiny.pictures import as_pixels
from scripts.tiny.text import tokenize

BATCH = 64  # pictures of SIDE x SIDE pixels, and more of smaller ones, fewer of larger ones: every batch costs the same
SIDES = {64: 0.15, 96: 0.1, 128: 0.4, 160: 0.15, 192: 0.2}  # pixels, and how often
RATE = 1e-3
TIMESTEP_SHIFT = 0.6
LEAST_THING_WEIGHT, MOST_THING_WEIGHT = 2.0, 6.0  # how much more a latent counts where the things are: small ones count most
TWO_THINGS_SHARE = 0.6  # they take longest to learn
EMA_DECAY = 0.999
POOL, ENCODED_AT_ONCE = 8_192, 64  # pictures kept as latents
SEEN = 8  # batches a picture is in before it is replaced
SAVES = 5


class Pool:
    """Encoded pictures of one size to draw batches from. At every batch a few are replaced by new ones, so none is seen often."""

    def __init__(self, pipe: StableDiffusionPipeline, random: Generator, side: int, size: int) -> None:
        self._pipe, self._random, self._side = pipe, random, side
        self._batch = min(BATCH * SIDE**2 // side**2, 2 * BATCH)
        self._captioned: list[Captioned] = []
        rounds = trange(-(-size // ENCODED_AT_ONCE), desc=f"pictures of {side}", unit_scale=ENCODED_AT_ONCE)
        parts = [self._encode(ENCODED_AT_ONCE) for _ in rounds]
        self._latents, self._weights = (torch.cat(part) for part in zip(*parts, strict=True))
        self._oldest = 0

    def batch(self) -> tuple[Tensor, Tensor, list[str]]:
        """Latents (B, C, h, w) of unit variance, the weight of each place (B, 1, h, w), and freshly worded captions."""
        self._renew()
        picked = self._random.integers(len(self._latents), size=self._batch)
        captions = [training_caption(self._random, self._captioned[i]) for i in picked]
        return self._latents[picked], self._weights[picked], captions

    def _renew(self) -> None:
        slots = [(self._oldest + i) % len(self._latents) for i in range(self._batch // SEEN)]
        known = self._captioned
        self._captioned = []
        self._latents[slots], self._weights[slots] = self._encode(len(slots))
        for slot, captioned in zip(slots, self._captioned, strict=True):
            known[slot] = captioned
        self._captioned = known
        self._oldest = slots[-1] + 1

    def _encode(self, count: int) -> tuple[Tensor, Tensor]:
        drawn = [random_captioned(self._random, two_things_share=TWO_THINGS_SHARE) for _ in range(count)]
        self._captioned += drawn
        device = self._pipe.device
        pixels = as_pixels([draw_scene(one.scene, self._side, self._random) for one in drawn]).to(device)
        covered = torch.from_numpy(np.stack([np.asarray(coverage(one.scene, self._side)) for one in drawn])).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            latents = self._pipe.vae.encode(pixels).latent_dist.mean.float() * self._pipe.vae.config.scaling_factor
        touched = functional.max_pool2d(covered[:, None].float(), VAE_FACTOR) > 0  # (B, 1, h, w)
        share = touched.float().mean(dim=(2, 3), keepdim=True)
        weights = 1 + (0.5 / share).clamp(LEAST_THING_WEIGHT, MOST_THING_WEIGHT) * touched.float()
        return latents, weights / weights.mean(dim=(2, 3), keepdim=True)


def train(
    pipe: StableDiffusionPipeline, minutes: float, random: Generator, rate: float, save: Callable[[StableDiffusionPipeline], None]
) -> None:
    """Teach the UNet. In the end it has the moving average of its weights, which `save` is also given a few times on the way."""
    unet = pipe.unet.train()
    unet.set_attn_processor(AttnProcessor())  # on a CPU its backward pass is twice as fast as the fused one
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    pools = [Pool(pipe, random, side, int(share * POOL) if minutes > 1 else ENCODED_AT_ONCE) for side, share in SIDES.items()]
    budget = Budget(minutes, "denoiser")
    losses: list[float] = []
    saves = 1
    for step in budget.steps():
        pool = pools[random.choice(len(pools), p=list(SIDES.values()))]
        loss = denoising_loss(pipe, *pool.batch())
        descend(optimizer, loss, budget.rate(step, rate))
        average.update_parameters(unet)
        losses.append(loss.item())
        if step % 20 == 0:
            budget.show(step=step, loss=float(np.mean(losses[-200:])))
        if budget.spent > saves / SAVES:
            save(_with_unet(pipe, average.module))
            saves += 1
    pipe.unet = _with_unet(pipe, average.module).unet
    save(pipe)


def denoising_loss(pipe: StableDiffusionPipeline, latents: Tensor, weights: Tensor, captions: list[str]) -> Tensor:
    """Weighted squared error of the velocity (Salimans and Ho 2022, arXiv:2202.00512) at random timesteps; latents (B, C, h, w)."""
    device = latents.device
    alphas = pipe.scheduler.alphas_cumprod.to(device)
    # Most often where the prompt decides: with less noise the latents show the shapes (logit-normal, Esser et al. 2024, arXiv:2403.03206).
    timesteps = ((torch.randn(len(latents), device=device) + TIMESTEP_SHIFT).sigmoid() * len(alphas)).long()
    signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
    spread = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = (signal * latents + spread * noise).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        with torch.no_grad():
            text = pipe.text_encoder(tokenize(pipe.tokenizer, captions).to(device)).last_hidden_state
        predicted = pipe.unet(noisy, timesteps, text).sample
    wrong: Tensor = (predicted.float() - (signal * noise - spread * latents)).square() * weights
    return wrong.mean()


def _with_unet(pipe: StableDiffusionPipeline, unet: nn.Module) -> StableDiffusionPipeline:
    """A pipeline of its own with a copy of these weights."""
    view = copy.copy(pipe)
    view.unet = copy.deepcopy(unet).eval()
    view.unet.set_attn_processor(AttnProcessor2_0())
    return view
