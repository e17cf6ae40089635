"""One request on its way through the stock pipeline: text, denoising loop, decoding."""

import copy
import functools
import io
import itertools
import time
from collections.abc import Callable
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


class Run:
    """Calls the pipeline once. `timings` then says how many seconds went into queue, text, denoise and decode."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: ImageRequest,
        capabilities: Capabilities,
        on_progress: ProgressCallback | None,
        preview: Preview | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._pipe = checkpoint.pipe
        self._request = request
        self._capabilities = capabilities
        self._on_progress = on_progress
        self._preview = preview
        self._parameters = call_parameters(checkpoint.pipe)
        self._guess: Tensor | None = None  # what the latents would be without their noise
        self._asked = time.monotonic()
        self._loop_ended: float | None = None
        self.timings: dict[str, float] = {}

    def __call__(self, task: Task) -> tuple[Image.Image, Facts]:
        began = time.monotonic()
        task.stop_if_asked()
        facts = facts_of(self._request, self._capabilities, self._pipe)
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
        view = copy.copy(self._pipe)
        named = self._request.scheduler
        kind = getattr(diffusers, named) if named else type(view.scheduler)
        view.scheduler = kind.from_config(view.scheduler.config)
        if self._preview is not None:
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
        request = self._request
        fields: dict[str, Any] = request.model_dump(exclude={"seed", "scheduler"})
        if isinstance(request, EditRequest):
            fields["image"] = request.source
        arguments = {name: value for name, value in fields.items() if name in self._parameters} | dict(self._checkpoint.arguments)
        # A generator on the CPU gives the same starting noise on every device.
        arguments["generator"] = torch.Generator("cpu").manual_seed(request.seed or 0)
        if "callback_on_step_end" in self._parameters:
            arguments["callback_on_step_end"] = functools.partial(self._after_step, task)
        return arguments

    def _after_step(self, task: Task, pipe: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            task.step_kind = None
            self._loop_ended = time.monotonic()
        task.stop_if_asked()
        if self._on_progress is not None:
            progress = Progress(step + 1, pipe.num_timesteps, self._picture_of(tensors["latents"]))
            task.tell(functools.partial(self._on_progress, progress))
        return tensors

    def _picture_of(self, latents: Tensor) -> bytes | None:
        guess = latents if self._guess is None else self._guess
        if self._preview is None or not self._preview.fits(guess):
            return None
        file = io.BytesIO()
        self._preview(guess).save(file, "PNG")
        return file.getvalue()
