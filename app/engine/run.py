"""One request on its way through the stock pipeline: text, denoising loop, decoding.

Only the loop is concurrent. Tokenizers and autoencoders keep state on objects that all requests share, so everything before a
request's first denoiser call and after its last step happens under one lock.
"""

import copy
import functools
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image
from torch import Tensor

from app.editing import EditRequest
from app.engine.batching import Denoiser, Member, StopReason, current_member
from app.engine.checkpoint import Checkpoint
from app.engine.facts import call_parameters, facts_of
from app.engine.preview import Preview
from app.schemas import Capabilities, Facts, ImageRequest, Progress

ProgressCallback = Callable[[Progress], None]


class Run:
    """Calls the pipeline once. `timings` then says how many seconds went into text, denoise and decode."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        outside_loop: threading.Lock,
        denoiser: Denoiser | None,
        on_progress: ProgressCallback,
        stopped: StopReason,
        preview: Preview | None = None,
    ) -> None:
        self._pipe = checkpoint.pipe
        self._always = checkpoint.arguments
        self._outside_loop = outside_loop
        self._denoiser = denoiser
        self._on_progress = on_progress
        self._stopped = stopped
        self._preview = preview
        self._member = Member(stopped, self._loop_begins)
        self._parameters = call_parameters(checkpoint.pipe)
        self._tells_steps = "callback_on_step_end" in self._parameters
        self._phase, self._phase_began = "queue", time.monotonic()
        self._guess: Tensor | None = None  # what the latents would be without their noise
        self._outside = False
        self.timings: dict[str, float] = {}

    def image(self, request: ImageRequest, capabilities: Capabilities) -> tuple[Image.Image, Facts]:
        if self._denoiser is not None:
            self._denoiser.expect(self._member)
        self._leave_loop()
        self._begin("text")
        token = current_member.set(self._member)
        try:
            self._stop_if_asked()
            facts = facts_of(request, capabilities, self._pipe)
            view = self._view(request.scheduler)
            with torch.inference_mode():
                image: Image.Image = view(**self._arguments(request)).images[0]
            self._stop_if_asked()
            return image, facts
        finally:
            current_member.reset(token)
            if self._denoiser is not None:
                self._denoiser.leave(self._member)
            if self._outside:
                self._outside_loop.release()
            self._begin("done")

    def _view(self, scheduler: str | None) -> DiffusionPipeline:
        """The pipeline with a noise scheduler of its own: it counts steps."""
        view = copy.copy(self._pipe)
        kind = getattr(diffusers, scheduler) if scheduler else type(view.scheduler)
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

    def _arguments(self, request: ImageRequest) -> dict[str, Any]:
        fields: dict[str, Any] = request.model_dump(exclude={"seed", "scheduler"})
        if isinstance(request, EditRequest):
            fields["image"] = request.source
        arguments = {name: value for name, value in fields.items() if name in self._parameters} | dict(self._always)
        # A generator on the CPU gives the same starting noise on every device.
        arguments["generator"] = torch.Generator("cpu").manual_seed(request.seed or 0)
        if self._tells_steps:
            arguments["callback_on_step_end"] = self._after_step
        return arguments

    def _loop_begins(self) -> None:
        """Called at the first denoiser call."""
        self._begin("denoise")
        if self._tells_steps:  # else nobody would say when the loop ends, and the request stays alone from start to end
            self._outside = False
            self._outside_loop.release()

    def _after_step(self, pipe: DiffusionPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        last = step == pipe.num_timesteps - 1
        if last and self._denoiser is not None:
            self._denoiser.leave(self._member)
        self._stop_if_asked()
        self._on_progress(Progress(step + 1, pipe.num_timesteps, self._picture_of(tensors["latents"])))
        if last:
            self._leave_loop()
            self._begin("decode")
        return tensors

    def _stop_if_asked(self) -> None:
        if reason := self._stopped():
            raise reason

    def _leave_loop(self) -> None:
        if not self._outside:
            self._outside_loop.acquire()
            self._outside = True

    def _picture_of(self, latents: Tensor) -> bytes | None:
        if self._preview is None:
            return None
        file = io.BytesIO()
        self._preview(latents if self._guess is None else self._guess).save(file, "PNG")
        return file.getvalue()

    def _begin(self, phase: str) -> None:
        now = time.monotonic()
        self.timings[self._phase] = self.timings.get(self._phase, 0.0) + now - self._phase_began
        self._phase, self._phase_began = phase, now
