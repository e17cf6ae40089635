"""One request on its way through the stock pipeline: text, denoising loop, decoding."""

import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image
from torch import Tensor

from app.editing import EditRequest
from app.engine.checkpoint import Checkpoint, call_parameters
from app.engine.facts import facts_of
from app.engine.preview import Preview
from app.engine.task import Task
from app.schemas import Capabilities, Facts, ImageRequest, Progress

ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Run:
    """Calls the pipeline once. Gives the picture, its facts, and how many seconds went into queue, text, denoise and decode."""

    checkpoint: Checkpoint
    request: ImageRequest
    capabilities: Capabilities
    on_progress: ProgressCallback | None
    preview: Preview | None = None

    def __call__(self, task: Task) -> tuple[Image.Image, Facts, dict[str, float]]:
        task.moments["text"] = time.monotonic()
        facts = facts_of(self.request, self.capabilities, self.checkpoint.pipe)
        pipe = copy.copy(self.checkpoint.pipe)
        kind: Any = getattr(diffusers, self.request.scheduler) if self.request.scheduler else type(pipe.scheduler)
        pipe.scheduler = _guessing(kind).from_config(pipe.scheduler.config)  # its own: it counts steps
        image: Image.Image = pipe(**self._arguments(task)).images[0]
        moments = [*task.moments.items(), ("", time.monotonic())]
        return image, facts, {phase: end - start for (phase, start), (_, end) in itertools.pairwise(moments)}

    def _arguments(self, task: Task) -> dict[str, Any]:
        parameters = call_parameters(self.checkpoint.pipe)
        request = self.request
        arguments: dict[str, Any] = request.model_dump(exclude={"seed", "scheduler"})
        if isinstance(request, EditRequest):
            arguments["image"] = request.source
        if not request.negative_prompt and self.checkpoint.pipe.config.get("force_zeros_for_empty_prompt"):
            del arguments["negative_prompt"]  # zeros stand for none given, and not for an empty one
        # A generator on the CPU gives the same starting noise on every device.
        arguments["generator"] = torch.Generator("cpu").manual_seed(request.seed or 0)
        arguments["callback_on_step_end"] = functools.partial(self._after_step, task)
        return {name: value for name, value in arguments.items() if name in parameters} | dict(self.checkpoint.arguments)

    def _after_step(self, task: Task, pipe: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            task.step_kind = None
            task.moments["decode"] = time.monotonic()
        if self.on_progress is not None:
            guess = getattr(pipe.scheduler, "guess", None)
            preview = None if self.preview is None else self.preview(tensors["latents"] if guess is None else guess)
            task.tell(functools.partial(self.on_progress, Progress(step + 1, pipe.num_timesteps, preview)))
        return tensors


@functools.cache
def _guessing(kind: type[SchedulerMixin]) -> type[SchedulerMixin]:
    """The noise scheduler, which now keeps its guess of the finished latents, where a step returns one after the next latents."""

    @functools.wraps(kind.step)  # pipelines look at its signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        output = kind.step(self, *args, **kwargs)
        self.guess = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        return output

    return type(kind.__name__, (kind,), {"step": step})
