"""One request on its way through the stock pipeline: text, denoising loop, decoding."""

import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class Run:
    """Calls the pipeline once. `timings` then says how many seconds went into queue, text, denoise and decode."""

    checkpoint: Checkpoint
    request: ImageRequest
    capabilities: Capabilities
    on_progress: ProgressCallback | None
    preview: Preview | None = None
    timings: dict[str, float] = field(default_factory=dict, init=False)
    _guess: Tensor | None = field(default=None, init=False)  # what the latents would be without their noise
    _asked: float = field(default_factory=time.monotonic, init=False)
    _loop_ended: float | None = field(default=None, init=False)

    def __call__(self, task: Task) -> tuple[Image.Image, Facts]:
        began = time.monotonic()
        facts = facts_of(self.request, self.capabilities, self.checkpoint.pipe)
        view = self._view()
        try:
            image: Image.Image = view(**self._arguments(task)).images[0]
        finally:
            vars(view.scheduler).pop("step", None)  # a circle with the scheduler, in which the latents would stay
            self._guess = None
        moments = {"queue": self._asked, "text": began, "denoise": task.loop_began, "decode": self._loop_ended, "": time.monotonic()}
        known = [(phase, moment) for phase, moment in moments.items() if moment is not None]
        self.timings = {phase: end - start for (phase, start), (_, end) in itertools.pairwise(known)}
        return image, facts

    def _view(self) -> DiffusionPipeline:
        """The pipeline with a noise scheduler of its own: it counts steps."""
        view = copy.copy(self.checkpoint.pipe)
        kind = getattr(diffusers, self.request.scheduler) if self.request.scheduler else type(view.scheduler)
        view.scheduler = kind.from_config(view.scheduler.config)
        if self.preview is not None:
            self._watch(view.scheduler)
        return view

    def _watch(self, scheduler: SchedulerMixin) -> None:
        """Many schedulers return, after the next latents, what they take the finished ones to be."""
        step = scheduler.step

        @functools.wraps(step)  # pipelines look at its signature
        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            output = step(*args, **kwargs)
            self._guess = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            return output

        scheduler.step = watched

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
            self._loop_ended = time.monotonic()
        if self.on_progress is not None:
            progress = Progress(step + 1, pipe.num_timesteps, self._picture_of(tensors["latents"]))
            task.tell(functools.partial(self.on_progress, progress))
        return tensors

    def _picture_of(self, latents: Tensor) -> bytes | None:
        return None if self.preview is None else self.preview(latents if self._guess is None else self._guess)
