"""`ImageEngine`: many requests at once on one stock diffusers pipeline, each with the picture it would have had alone."""

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from diffusers import DiffusionPipeline

from app import png
from app.editing import EditRequest
from app.engine.batching import Batcher
from app.engine.checkpoint import Checkpoint, capabilities_of, has_hooks, image_to_image, settled, why_alone
from app.engine.device import Batch
from app.engine.preview import Preview
from app.engine.run import ProgressCallback, Run
from app.engine.sharing import shared
from app.engine.task import StopReason
from app.engine.threads import single_threaded
from app.schemas import Capabilities, DeadlinePassed, ErrorDetail, GeneratedImage, GenerationCancelled, ImageRequest, RefusedRequest

logger = logging.getLogger(__name__)

TRIAL_S = 10.0  # of a picture that shows whether any can be made, a small one; Serve waits 30 s for the answer
TRIAL = ImageRequest(prompt="trial", num_inference_steps=2, seed=0, width=64, height=64)


class ImageEngine:
    """An `ImageSource` on a loaded checkpoint, safe to call from many threads.

    Up to `max_batch_size` requests run at once; those of one size share the denoiser's calls, whatever their prompts, seeds, steps,
    guidance and schedulers, and the sizes take turns. The others wait in the order they came. It computes with `cpu_threads`, all if not
    given. `on_batch` is told of every call of the denoiser.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_batch_size: int = 8,
        max_pixels: int | None = None,
        version: str = "dev",
        cpu_threads: int | None = None,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        pipe, editing = checkpoint.pipe, image_to_image(checkpoint)
        self._checkpoint = settled(checkpoint)
        self._editing = editing and settled(editing)
        able = {"image_to_image": self._editing is not None, "max_num_images_per_prompt": max_batch_size}
        self.capabilities: Capabilities = capabilities_of(checkpoint, max_pixels, version).limited().model_copy(update=able)
        reason = why_alone(pipe)
        if reason is not None:
            logger.warning("%s %s, so its requests run one at a time", type(pipe).__name__, reason)
        apart = pipe.device.type == "cpu" and not has_hooks(pipe)
        self._batcher = Batcher(max_batch_size if reason is None else 1, cpu_threads or torch.get_num_threads(), on_batch, apart=apart)
        self._shared = shared(pipe, self._batcher)
        self._preview = _preview_of(pipe)  # of the autoencoder as it is now: in half precision some overflow
        self._batcher.start()
        self._in_doubt = False  # since the last picture failed

    def generate(
        self,
        request: ImageRequest,
        on_progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
        timeout_s: float | None = None,
    ) -> GeneratedImage:
        """See `ImageSource.generate`. Raises `RefusedRequest` for a picture to paint over if the family of models has no pipeline for it,
        `DeadlinePassed` after `timeout_s`, waiting included, and `EngineStopped` after `close`."""
        resolved = request.resolved(self.capabilities)
        checkpoint = self._editing if isinstance(resolved, EditRequest) else self._checkpoint
        if checkpoint is None:
            raise RefusedRequest(ErrorDetail(field="image", rule="must not be given: this model has no image-to-image pipeline"))
        run = Run(checkpoint, resolved, self.capabilities, on_progress, self._preview if previews else None)
        try:
            image, facts, timings = self._batcher.run(run, _stop_reason(cancel, timeout_s))
        except Exception as error:
            self._in_doubt |= not isinstance(error, GenerationCancelled)
            raise
        self._in_doubt = False
        start = time.monotonic()
        data = png.encode(image, facts)
        return GeneratedImage(data, facts, timings | {"png": time.monotonic() - start})

    def warm_up(self) -> None:
        """Make a picture alone and two together, so that the first callers do not pay for what is done only once."""
        request = ImageRequest(prompt="warm-up", num_inference_steps=2, seed=0)
        for pictures in (1, 2):
            with ThreadPoolExecutor(pictures) as threads:
                list(threads.map(lambda one: self.generate(one, lambda progress: None, previews=True), [request] * pictures))

    def check_health(self) -> None:
        """Raises if no picture can be made any more. If the last one failed, another is tried: some errors of a GPU stay for ever, and come
        at once. One that only has to wait for others too long says nothing."""
        self._batcher.check_health()
        if self._in_doubt:
            with suppress(DeadlinePassed):
                self.generate(TRIAL, timeout_s=TRIAL_S)

    def close(self) -> None:
        """Requests that run or wait fail with `EngineStopped`, and no thread is left."""
        self._batcher.close()
        self._shared.close()


@single_threaded()
def _preview_of(pipe: DiffusionPipeline) -> Preview | None:
    try:
        return Preview(pipe)
    except (AttributeError, RuntimeError, ValueError) as error:
        logger.warning("%s gets no previews: %s", type(pipe).__name__, error)
        return None


def _stop_reason(cancel: threading.Event | None, timeout_s: float | None) -> StopReason:
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s

    def stopped() -> GenerationCancelled | None:
        if cancel is not None and cancel.is_set():
            return GenerationCancelled("cancelled")
        return DeadlinePassed(f"not ready after {timeout_s:g} s") if time.monotonic() > deadline else None

    return stopped
