"""Which calls of a pipeline go through the batcher: those of its denoiser, its text encoders and its autoencoder."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_map_only

from app.engine.batching import Batcher
from app.engine.checkpoint import denoiser_of
from app.engine.joining import SharedMethod

HALF_PRECISION = (torch.float16, torch.bfloat16)


def shared(pipe: DiffusionPipeline, batcher: Batcher) -> ExitStack:
    """Until it is closed, whoever calls the pipeline in a task of `batcher` shares these calls with others."""
    with ExitStack() as undo:
        if (denoiser := denoiser_of(pipe)) is not None:
            _replace(undo, denoiser, forward=batcher.share(SharedMethod(denoiser, is_denoiser=True)))
        for name, part in pipe.components.items():
            if name.startswith("text_encoder") and isinstance(part, nn.Module):
                _replace(undo, part, forward=batcher.share(SharedMethod(part)))
        if isinstance(getattr(pipe, "vae", None), nn.Module):
            vae: Any = pipe.vae
            if hasattr(pipe, "upcast_vae") and vae.config.force_upcast and vae.dtype in HALF_PRECISION:
                _cast_up(undo, vae)
            decode = batcher.share(SharedMethod(vae, "decode", alone=_in_tiles_if_out_of_memory(vae)))
            _replace(undo, vae, decode=decode, encode=batcher.share(SharedMethod(vae, "encode")))
        return undo.pop_all()


def _replace(undo: ExitStack, module: nn.Module, **methods: Callable[..., Any]) -> None:
    own = vars(module)
    undo.callback(own.update, {name: own[name] for name in methods if name in own})
    for name in methods:
        undo.callback(own.pop, name, None)
    own.update(methods)


def _cast_up(undo: ExitStack, vae: Any) -> None:  # noqa: ANN401
    """Pipelines that cast it up for a call, and back down after it, find it up already: nobody else's call would fit between the two."""
    undo.callback(vae.to, vae.dtype)
    undo.callback(vae.register_to_config, force_upcast=True)
    vae.to(torch.float32)
    vae.register_to_config(force_upcast=False)
    _replace(undo, vae, decode=_of_single_precision(vae.decode), encode=_of_single_precision(vae.encode))


def _of_single_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def cast_up(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        return method(*args, **kwargs)

    return cast_up


def _in_tiles_if_out_of_memory(vae: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Its `decode`. That has the highest peak of memory; in tiles it needs less and shows faint seams."""
    decode: Callable[..., Any] = vae.decode

    @functools.wraps(decode)
    def decode_or_tile(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return decode(*args, **kwargs)
        except torch.OutOfMemoryError:
            if getattr(vae, "use_tiling", True):  # already, or it cannot
                raise
        # Outside of the except clause: its traceback holds tensors, and only once it is gone is there room.
        vae.enable_tiling()
        try:
            return decode(*args, **kwargs)
        finally:
            vae.disable_tiling()

    return decode_or_tile
