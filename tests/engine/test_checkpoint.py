import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    PRXPipeline,
    PRXTransformer2DModel,
    StableDiffusionPipeline,
)
from diffusers.configuration_utils import FrozenDict

from app.engine import checkpoint
from app.engine.checkpoint import CheckpointUnavailable
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest
from scripts import random_sd2

TINY = Path(checkpoint.SHORT_NAMES["tiny"].location)


def test_the_bundled_checkpoint_is_a_plain_diffusers_folder_of_at_most_40_mb() -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(TINY)
    assert type(pipe) is StableDiffusionPipeline
    assert pipe("a star", num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_a_short_name_and_its_folder_are_the_same_checkpoint() -> None:
    assert checkpoint.load("tiny").revision == checkpoint.load(str(TINY)).revision


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("bfloat16", True)])
def test_single_precision_is_all_of_it_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch, dtype: str, allowed: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    checkpoint.load("tiny", dtype=dtype)
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_the_revision_of_a_folder_changes_with_its_contents(tmp_path: Path) -> None:
    copied = shutil.copytree(TINY, tmp_path / "copy")
    before = checkpoint.load(str(copied)).revision
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.021"))
    assert checkpoint.load(str(copied)).revision != before


def test_a_hub_that_cannot_be_reached_is_one_sentence_that_names_the_bundled_model() -> None:
    with pytest.raises(CheckpointUnavailable, match=r"nobody/nothing.*model=tiny") as unavailable:
        checkpoint.load("nobody/nothing")
    assert "\n" not in str(unavailable.value)


def test_a_revision_is_what_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asked = StableDiffusionPipeline.from_pretrained(TINY), list[str]()

    def from_the_hub(location: str, *, revision: str, **options: object) -> StableDiffusionPipeline:
        asked.append(revision)
        return pipe

    monkeypatch.setattr(AutoPipelineForText2Image, "from_pretrained", from_the_hub)
    commit = "a" * 40
    assert checkpoint.load("owner/name", revision=commit).revision == commit
    assert asked == [commit]


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnavailable, match=str(tmp_path)):
        checkpoint.load(str(tmp_path))


@pytest.mark.parametrize("missing", ["guidance_scale", "vae_scale_factor"])
def test_a_pipeline_unlike_the_others_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    class Unlike(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, prompt: str, num_inference_steps: int = 50, **more: float) -> None: ...

    pipe = StableDiffusionPipeline.from_pretrained(TINY)
    if missing == "guidance_scale":
        pipe.__class__ = Unlike
    else:
        del pipe.vae_scale_factor
    monkeypatch.setattr(AutoPipelineForText2Image, "from_pretrained", lambda *args, **options: pipe)
    with pytest.raises(CheckpointUnavailable, match=f"{type(pipe).__name__}.*'tiny'"):
        checkpoint.load("tiny")


def test_schedulers_that_count_their_timesteps_otherwise_are_not_offered() -> None:
    """Checkpoints of the hub do not name all settings that schedulers know today."""
    loaded = checkpoint.load("tiny")
    named = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "skip_prk_steps": True}
    loaded.pipe.scheduler = PNDMScheduler.from_config(named)
    loaded.pipe.scheduler._internal_dict = FrozenDict(named)
    offered = checkpoint.capabilities_of(loaded, None, "test").schedulers
    assert "EDMEulerScheduler" not in offered
    assert {"PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"} <= set(offered)


def test_schedulers_that_cannot_predict_what_the_model_does_are_not_offered() -> None:
    loaded = checkpoint.load("tiny")
    loaded.pipe.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    offered = checkpoint.capabilities_of(loaded, None, "test").schedulers
    assert "UniPCMultistepScheduler" in offered
    assert "EulerDiscreteScheduler" not in offered


def test_a_pipeline_that_counts_its_own_size_in_pixels_makes_pictures_of_that_size() -> None:
    """PRX, whose text encoder has no part in it."""
    loaded = checkpoint.load("tiny")
    transformer = PRXTransformer2DModel(in_channels=4, hidden_size=32, num_heads=2, depth=1, context_in_dim=32, axes_dim=[8, 8])
    pipe = PRXPipeline(transformer, FlowMatchEulerDiscreteScheduler(), None, None, loaded.pipe.vae, default_sample_size=256)
    capabilities = checkpoint.capabilities_of(replace(loaded, pipe=pipe), None, "test")
    assert (capabilities.width, capabilities.height) == (256, 256)


@pytest.fixture(scope="module")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2's real architecture (the 768 v-prediction checkpoint) with random weights, without half-precision files."""
    folder = tmp_path_factory.mktemp("sd2")
    random_sd2.build().save_pretrained(folder)
    return folder


def test_stable_diffusion_2_loads_in_half_precision_with_euler_and_makes_a_picture(
    sd2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkpoint.SHORT_NAMES, "sd2", replace(checkpoint.SHORT_NAMES["sd2"], location=str(sd2_folder)))
    loaded = checkpoint.load("sd2", dtype="float16")
    assert loaded.pipe.unet.dtype == torch.float16
    assert type(loaded.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert loaded.pipe.scheduler.config.prediction_type == "v_prediction"
    loaded.pipe.to(torch.bfloat16)  # a CPU takes minutes for convolutions in float16
    engine = ImageEngine(loaded)
    assert (engine.capabilities.width, engine.capabilities.max_pixels) == (768, 1536 * 1536)
    image = engine.generate(ImageRequest(prompt="a red heart", width=64, height=64, num_inference_steps=2, seed=0)).image
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 1
