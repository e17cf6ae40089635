"""How a picture was made."""

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from app.editing import EditRequest
from app.engine.checkpoint import denoiser_of, prompt_reader
from app.schemas import Capabilities, Facts, ImageRequest


def facts_of(request: ImageRequest, capabilities: Capabilities, pipe: DiffusionPipeline) -> Facts:
    # Not the pipeline's own `dtype` and `device`: they look through all parameters each time, and begin with the autoencoder, whose type
    # can be another one.
    parts = (denoiser_of(pipe), *vars(pipe).values())
    first = next(parameter for part in parts if isinstance(part, nn.Module) for parameter in part.parameters())
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


def _warnings(request: ImageRequest, pipe: DiffusionPipeline) -> list[str]:
    reader = prompt_reader(pipe)
    if reader is None:
        return []
    tokenizer, limit = reader
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    lengths = {field: len(tokenizer(text, truncation=False, verbose=False).input_ids) for field, text in texts.items()}
    return [
        f"{field} is {length} tokens long and the text encoder takes {limit}: its end was not read"
        for field, length in lengths.items()
        if length > limit
    ]
