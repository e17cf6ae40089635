import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoPipelineForText2Image, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.engine import checkpoint
from app.engine.checkpoint import CheckpointUnavailable
from app.engine.engine import ImageEngine
from app.schemas import ImageRequest

TINY = Path(checkpoint.SHORT_NAMES["tiny"].location)


def test_the_bundled_checkpoint_is_a_plain_diffusers_folder_of_at_most_40_mb() -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(TINY)
    assert type(pipe) is StableDiffusionPipeline
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_a_short_name_and_its_folder_are_the_same_checkpoint() -> None:
    assert checkpoint.load("tiny").revision == checkpoint.load(str(TINY)).revision


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


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnavailable, match=str(tmp_path)):
        checkpoint.load(str(tmp_path))


def random_weights(part: nn.Module) -> nn.Module:
    """Fills a module made on the meta device, in half precision: far quicker than its own initialisation."""
    part = part.to(torch.float16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1_000_003, generator=generator).mul_(0.02).to(torch.float16)
    for parameter in part.parameters():
        parameter.data = noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].view(parameter.shape).clone()
        if parameter.ndim == 1:
            parameter.data.fill_(1)
    for name, buffer in part.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return part


@pytest.fixture(scope="module")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2's real architecture (the 768 v-prediction checkpoint) with random weights, without half-precision files."""
    channels = (320, 640, 1280, 1280)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=96,
            block_out_channels=channels,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.18215,
            sample_size=768,
        )
        text = CLIPTextConfig(hidden_size=1024, num_hidden_layers=23, num_attention_heads=16, intermediate_size=4096, hidden_act="gelu")
        text_encoder = CLIPTextModel(text)
    pipe = StableDiffusionPipeline(
        unet=random_weights(unet),
        vae=random_weights(vae),
        text_encoder=random_weights(text_encoder),
        tokenizer=CLIPTokenizer.from_pretrained(TINY / "tokenizer"),
        scheduler=DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("sd2")
    pipe.save_pretrained(folder)
    return folder


def test_stable_diffusion_2_loads_in_half_precision_with_euler_and_makes_a_picture(
    sd2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkpoint.SHORT_NAMES, "sd2", replace(checkpoint.SHORT_NAMES["sd2"], location=str(sd2_folder)))
    loaded = checkpoint.load("sd2", dtype="float16")
    assert loaded.pipe.unet.dtype == torch.float16
    assert type(loaded.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert loaded.pipe.scheduler.config.prediction_type == "v_prediction"
    engine = ImageEngine(loaded)
    assert (engine.capabilities.width, engine.capabilities.max_pixels) == (768, 1536 * 1536)
    image = engine.generate(ImageRequest(prompt="a red heart", width=64, height=64, num_inference_steps=2, seed=0)).image
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 1
