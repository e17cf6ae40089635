"""What a loaded checkpoint can do, and how a picture of it was made."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn

from app.editing import EditRequest
from app.engine.checkpoint import Checkpoint
from app.engine.threads import single_threaded
from app.schemas import Capabilities, Facts, ImageRequest

MARKS = 2  # tokens around a text
USUAL_SIDE = 1024  # pixels, of the transformers that do not say
PIXELS_OVER_NATIVE = 4  # how many times its own size a checkpoint may be asked for, if nothing else is said


@single_threaded()
def capabilities_of(checkpoint: Checkpoint, max_pixels: int | None, version: str) -> Capabilities:
    pipe = checkpoint.pipe
    side = _native_side(pipe)
    own = type(pipe.scheduler).__name__
    return Capabilities(
        model=checkpoint.model,
        revision=checkpoint.revision,
        pipeline=type(pipe).__name__,
        scheduler=own,
        schedulers=tuple(sorted({own, *(kind.__name__ for kind in pipe.scheduler.compatibles if _fits(kind, pipe))})),
        width=side,
        height=side,
        size_multiple=_size_multiple(pipe),
        max_pixels=max_pixels or PIXELS_OVER_NATIVE * side * side,
        num_inference_steps=checkpoint.num_inference_steps,
        guidance_scale=checkpoint.guidance_scale,
        max_prompt_tokens=pipe.tokenizer.model_max_length,
        version=version,
    )


def facts_of(request: ImageRequest, capabilities: Capabilities, pipe: DiffusionPipeline) -> Facts:
    # As the pipeline's own `dtype` and `device`, which look through all of its parameters each time.
    first = next(parameter for part in vars(pipe).values() if isinstance(part, nn.Module) for parameter in part.parameters())
    return Facts(
        request=request.plain() if isinstance(request, EditRequest) else request,
        model=capabilities.model,
        revision=capabilities.revision,
        pipeline=type(pipe).__name__,
        scheduler=request.scheduler or capabilities.scheduler,
        dtype=str(first.dtype).removeprefix("torch."),
        device=first.device.type,
        versions={"app": capabilities.version, "diffusers": diffusers.__version__, "torch": torch.__version__},
        warnings=tuple(_warnings(request, pipe)),
        edit=request.edit if isinstance(request, EditRequest) else None,
    )


def _fits(kind: type[SchedulerMixin], pipe: DiffusionPipeline) -> bool:
    """Some are compatible by name only: they need a library that is not here, other settings, or more than a step or two."""
    try:
        scheduler = kind.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(1, **{"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {})
    except Exception:
        return False
    return True


def _native_side(pipe: DiffusionPipeline) -> int:
    """In pixels. Pipelines that do not tell it themselves take it from their denoiser."""
    denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    latents = getattr(pipe, "default_sample_size", None) or getattr(denoiser.config, "sample_size", None)
    return int(latents * pipe.vae_scale_factor) if latents else USUAL_SIDE


def _size_multiple(pipe: DiffusionPipeline) -> int:
    """Transformers see the latents in patches of 2 x 2; UNets halve them less often than their sizes allow."""
    patch = 2 if getattr(pipe, "transformer", None) is not None else 1
    return max(8, patch * int(pipe.vae_scale_factor))


def _warnings(request: ImageRequest, pipe: DiffusionPipeline) -> list[str]:
    limit = pipe.tokenizer.model_max_length
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    texts = {field: text for field, text in texts.items() if len(text.encode()) + MARKS > limit}  # a token is a byte at least
    lengths = {field: len(pipe.tokenizer(text, truncation=False, verbose=False).input_ids) for field, text in texts.items()}
    return [
        f"{field} is {length} tokens long and the text encoder takes {limit}: its end was not read"
        for field, length in lengths.items()
        if length > limit
    ]


def call_parameters(pipe: DiffusionPipeline) -> frozenset[str]:
    """The arguments that the pipeline's `__call__` takes."""
    return _parameters(type(pipe).__call__)


@cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
