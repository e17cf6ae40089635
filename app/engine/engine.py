"""`ImageEngine`: many requests at once on one stock diffusers pipeline, each with the picture it would have had alone."""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from app import png
from app.editing import EditRequest
from app.engine.batching import Batch, Denoiser, StopReason
from app.engine.checkpoint import Checkpoint, image_to_image
from app.engine.facts import call_parameters, capabilities_of
from app.engine.policy import FairShare
from app.engine.preview import Preview
from app.engine.run import ProgressCallback, Run
from app.engine.threads import single_threaded
from app.schemas import (
    MAX_STEPS,
    Capabilities,
    DeadlinePassed,
    ErrorDetail,
    GeneratedImage,
    GenerationCancelled,
    ImageRequest,
    Progress,
    RefusedRequest,
)

logger = logging.getLogger(__name__)

DENOISERS = ("unet", "transformer", "prior", "decoder", "unet_2", "transformer_2")  # a pipeline with two of them is run whole
SECONDS_BETWEEN_LOOKS = 0.02  # at whether a request that waits for a place was cancelled


class ImageEngine:
    """An `ImageSource` on a loaded checkpoint, safe to call from many threads.

    Up to `max_batch_size` requests run at once and share the denoiser's calls, whatever their prompts, seeds, steps, guidance, schedulers
    and sizes; the others wait in the order they came. On a CPU steps are computed with `cpu_threads`, all if not given. `on_batch` is told
    of every call of the denoiser.
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
        self._checkpoint = checkpoint
        self._pipe = checkpoint.pipe
        self._editing = image_to_image(checkpoint)
        able = {"image_to_image": self._editing is not None}
        self.capabilities: Capabilities = capabilities_of(checkpoint, max_pixels, version).limited(MAX_STEPS).model_copy(update=able)
        self._outside_loop = threading.Lock()
        module = _denoiser_of(self._pipe)
        shares = module is not None and "callback_on_step_end" in call_parameters(self._pipe)
        if not shares:
            logger.warning("%s does not tell its steps, so its requests run one at a time", type(self._pipe).__name__)
        self._places = Places(max_batch_size if shares else 1)
        self._denoiser = (
            Denoiser(module, FairShare(max_batch_size), on_batch, cpu_threads or torch.get_num_threads()) if module is not None else None
        )
        _decode_in_tiles_if_out_of_memory(self._pipe)
        self._undo = ExitStack()
        if self._denoiser is not None:
            self._undo.enter_context(_errands(self._pipe, self._denoiser))

    @single_threaded()
    def generate(
        self,
        request: ImageRequest,
        on_progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
        timeout_s: float | None = None,
    ) -> GeneratedImage:
        """See `ImageSource.generate`. Raises `DeadlinePassed` after `timeout_s`, waiting included, and `EngineStopped` after `close`."""
        resolved = request.resolved(self.capabilities)
        stopped = _stop_reason(cancel, timeout_s)
        preview = self._preview if previews else None
        run = Run(self._checkpoint_for(resolved), self._outside_loop, self._denoiser, on_progress or _ignore, stopped, preview)
        with self._places.take(stopped):
            image, facts = run.image(resolved, self.capabilities)
        start = time.monotonic()
        data = png.encode(image, facts)
        return GeneratedImage(data, facts, run.timings | {"png": time.monotonic() - start})

    def _checkpoint_for(self, request: ImageRequest) -> Checkpoint:
        """Raises `RefusedRequest` for a picture to paint over where the family of models has no pipeline for it."""
        if not isinstance(request, EditRequest):
            return self._checkpoint
        if self._editing is None:
            raise RefusedRequest(ErrorDetail.of("image", "must not be given: this model has no image-to-image pipeline", None))
        return self._editing

    def warm_up(self) -> None:
        """Make a picture, so that the first caller does not pay for what is done only once."""
        self.generate(ImageRequest(prompt="warm-up", num_inference_steps=2, seed=0), previews=True)

    def check_health(self) -> None:
        """Raises `EngineStopped` if no picture can be made any more."""
        if self._denoiser is not None:
            self._denoiser.check_health()

    def close(self) -> None:
        """Requests that run or wait fail with `EngineStopped`, and no thread is left."""
        self._undo.close()
        if self._denoiser is not None:
            self._denoiser.close()

    @cached_property
    def _preview(self) -> Preview | None:
        with self._outside_loop:
            try:
                return Preview(self._pipe)
            except (AttributeError, RuntimeError, ValueError) as error:
                logger.warning("%s gets no previews: %s", type(self._pipe).__name__, error)
                return None


class Places:
    """A number of places, taken in the order of asking."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, stopped: StopReason) -> Iterator[None]:
        """Raises the reason if the request is stopped while it waits."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or not self._free:
                    if reason := stopped():
                        raise reason
                    self._changed.wait(SECONDS_BETWEEN_LOOKS)
                self._free -= 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()


def _denoiser_of(pipe: DiffusionPipeline) -> nn.Module | None:
    """The one module in which the pipeline spends its time, if it is one."""
    found = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    return getattr(pipe, found[0]) if found in (["unet"], ["transformer"]) else None


@contextmanager
def _errands(pipe: DiffusionPipeline, denoiser: Denoiser) -> Iterator[None]:
    """Text encoders and the autoencoder are errands of the denoiser's thread, when it has nothing else to do."""
    lent = [(part, "forward") for name, part in pipe.components.items() if name.startswith("text_encoder") and isinstance(part, nn.Module)]
    lent += [(pipe.vae, name) for name in ("encode", "decode")] if isinstance(getattr(pipe, "vae", None), nn.Module) else []
    before = [vars(owner).get(name) for owner, name in lent]
    for owner, name in lent:
        setattr(owner, name, functools.wraps(getattr(owner, name))(functools.partial(denoiser.errand, getattr(owner, name))))
    try:
        yield
    finally:
        for (owner, name), own in zip(lent, before, strict=True):
            delattr(owner, name) if own is None else setattr(owner, name, own)


def _decode_in_tiles_if_out_of_memory(pipe: DiffusionPipeline) -> None:
    """Decoding has the highest peak of memory; in tiles it needs less and shows faint seams."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        return
    decode = vae.decode

    @functools.wraps(decode)
    def decode_or_tile(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return decode(*args, **kwargs)
        except torch.OutOfMemoryError:
            pass  # its traceback holds tensors: only once it is gone is there room
        torch.cuda.empty_cache()
        vae.enable_tiling()
        try:
            return decode(*args, **kwargs)
        finally:
            vae.disable_tiling()

    vae.decode = decode_or_tile


def _ignore(progress: Progress) -> None:
    pass


def _stop_reason(cancel: threading.Event | None, timeout_s: float | None) -> StopReason:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def stopped() -> GenerationCancelled | None:
        if cancel is not None and cancel.is_set():
            return GenerationCancelled("cancelled")
        if deadline is not None and time.monotonic() > deadline:
            return DeadlinePassed(f"not ready after {timeout_s:g} s")
        return None

    return stopped
