"""Which calls of a pipeline go through the batcher: those of its denoiser, its text encoders and its autoencoder."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_map_only

from app.engine.batching import Batcher
from app.engine.checkpoint import denoiser_of

HALF_PRECISION = (torch.float16, torch.bfloat16)


@contextmanager
def shared(pipe: DiffusionPipeline, batcher: Batcher) -> Iterator[None]:
    """Inside, whoever calls the pipeline in a task of `batcher` shares these calls with others."""
    with ExitStack() as undo:
        if (denoiser := denoiser_of(pipe)) is not None:
            undo.enter_context(_replaced(denoiser, forward=batcher.share(denoiser, "forward", is_denoiser=True)))
        for name, part in pipe.components.items():
            if name.startswith("text_encoder") and isinstance(part, nn.Module):
                undo.enter_context(_replaced(part, forward=batcher.share(part, "forward")))
        if isinstance(getattr(pipe, "vae", None), nn.Module):
            vae: Any = pipe.vae
            if hasattr(pipe, "upcast_vae") and vae.config.force_upcast and vae.dtype in HALF_PRECISION:
                undo.enter_context(_in_single_precision(vae))
            decode = batcher.share(vae, "decode", alone=_in_tiles_if_out_of_memory(vae))
            undo.enter_context(_replaced(vae, decode=decode, encode=batcher.share(vae, "encode")))
        yield


@contextmanager
def _replaced(module: nn.Module, **methods: Callable[..., Any]) -> Iterator[None]:
    own = vars(module)
    before = {name: own[name] for name in methods if name in own}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            own.pop(name, None)
        own.update(before)


@contextmanager
def _in_single_precision(vae: Any) -> Iterator[None]:  # noqa: ANN401
    """Pipelines that cast it up for a call, and back down after it, find it up already: nobody else's call would fit between the two."""
    dtype = vae.dtype
    vae.to(torch.float32)
    vae.register_to_config(force_upcast=False)
    try:
        with _replaced(vae, decode=_of_single_precision(vae.decode), encode=_of_single_precision(vae.encode)):
            yield
    finally:
        vae.register_to_config(force_upcast=True)
        vae.to(dtype)


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
            if not hasattr(vae, "enable_tiling"):
                raise
        # Outside of the except clause: its traceback holds tensors, and only once it is gone is there room.
        torch.cuda.empty_cache()
        vae.enable_tiling()
        try:
            return decode(*args, **kwargs)
        finally:
            vae.disable_tiling()

    return decode_or_tile
