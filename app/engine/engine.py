"""A request's life: admitted, run by the stock pipeline, watched, cancelled or finished."""

import copy
import inspect
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from app import png
from app.engine.checkpoint import Checkpoint
from app.schemas import Capabilities, Facts, GeneratedImage, GenerationCancelled, ImageRequest, Progress

ProgressCallback = Callable[[Progress], None]
PIXELS_OVER_NATIVE = 4


class ImageEngine:
    """An `ImageSource` on a loaded checkpoint. Safe to call from many threads; one pipeline call runs at a time."""

    def __init__(self, checkpoint: Checkpoint, *, max_pixels: int | None = None, version: str = "dev") -> None:
        self._checkpoint = checkpoint
        self._max_pixels = max_pixels
        self._version = version
        self._one_at_a_time = threading.Lock()

    @cached_property
    def capabilities(self) -> Capabilities:
        checkpoint, pipe = self._checkpoint, self._checkpoint.pipe
        side = (getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size) * pipe.vae_scale_factor
        return Capabilities(
            model=checkpoint.model,
            revision=checkpoint.revision,
            pipeline=type(pipe).__name__,
            scheduler=type(pipe.scheduler).__name__,
            width=side,
            height=side,
            size_multiple=max(8, pipe.vae_scale_factor),
            max_pixels=self._max_pixels or PIXELS_OVER_NATIVE * side * side,
            num_inference_steps=checkpoint.num_inference_steps,
            guidance_scale=checkpoint.guidance_scale,
            max_prompt_tokens=pipe.tokenizer.model_max_length,
            version=self._version,
        )

    def generate(
        self, request: ImageRequest, on_progress: ProgressCallback | None = None, cancel: threading.Event | None = None
    ) -> GeneratedImage:
        """See `ImageSource.generate`."""
        resolved = request.resolved(self.capabilities)
        with self._one_at_a_time:
            image = self._run(resolved, on_progress or _ignore, cancel or threading.Event())
            facts = self._facts(resolved)
        return GeneratedImage(png.encode(image, facts), facts)

    def warm_up(self) -> None:
        """Make a picture, so that the first caller does not pay for what is done only once."""
        self.generate(ImageRequest(prompt="warm-up", num_inference_steps=2, seed=0))

    def _run(self, request: ImageRequest, on_progress: ProgressCallback, cancel: threading.Event) -> Image.Image:
        view = copy.copy(self._checkpoint.pipe)
        view.scheduler = type(view.scheduler).from_config(view.scheduler.config)  # it counts steps, so each run has its own

        def after_step(pipe: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            if cancel.is_set():
                raise GenerationCancelled
            on_progress(Progress(step + 1, pipe.num_timesteps))
            return tensors

        if cancel.is_set():
            raise GenerationCancelled
        with torch.inference_mode():
            image: Image.Image = view(**self._arguments(request), callback_on_step_end=after_step).images[0]
        return image

    def _arguments(self, request: ImageRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = request.model_dump(exclude={"seed"})
        if not self._takes_negative_prompt:
            del arguments["negative_prompt"]
        # A generator on the CPU gives the same starting noise on every device.
        arguments["generator"] = torch.Generator("cpu").manual_seed(request.seed or 0)
        return arguments

    @cached_property
    def _takes_negative_prompt(self) -> bool:
        return "negative_prompt" in inspect.signature(type(self._checkpoint.pipe).__call__).parameters

    def _facts(self, request: ImageRequest) -> Facts:
        pipe, capabilities = self._checkpoint.pipe, self.capabilities
        return Facts(
            request=request,
            model=capabilities.model,
            revision=capabilities.revision,
            pipeline=capabilities.pipeline,
            scheduler=capabilities.scheduler,
            dtype=str(pipe.dtype).removeprefix("torch."),
            device=pipe.device.type,
            versions={"app": self._version, "diffusers": diffusers.__version__, "torch": torch.__version__},
            warnings=tuple(self._warnings(request)),
        )

    def _warnings(self, request: ImageRequest) -> list[str]:
        tokenizer = self._checkpoint.pipe.tokenizer
        limit = tokenizer.model_max_length
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        lengths = {field: len(tokenizer(text, truncation=False, verbose=False).input_ids) for field, text in texts.items()}
        return [
            f"{field} is {length} tokens long and the text encoder takes {limit}: its end was not read"
            for field, length in lengths.items()
            if length > limit
        ]


def _ignore(progress: Progress) -> None:
    pass
