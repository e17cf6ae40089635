"""Small checkpoints of several families with random weights, real tokenizers and real text encoders, built without a network."""

import functools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from app.engine.checkpoint import SHORT_NAMES, Checkpoint
from scripts.tiny.captions import random_captioned

WIDTH = 32  # of the text encoders
LATENTS = 4  # channels


@cache
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(Path(SHORT_NAMES["tiny"].location) / "tokenizer")


@cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    random = np.random.default_rng(0)
    learner = Tokenizer(Unigram())
    learner.pre_tokenizer = Metaspace()
    trainer = UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    learner.train_from_iterator((random_captioned(random).caption for _ in range(2000)), trainer)
    vocabulary = learner.get_vocab(with_added_tokens=True)
    scores = [(word, -float(number) / 10) for word, number in sorted(vocabulary.items(), key=lambda item: item[1])]
    return T5TokenizerFast(vocab=scores, model_max_length=64)


def clip_text(kind: Callable[[CLIPTextConfig], nn.Module] = CLIPTextModel) -> nn.Module:
    tokenizer = clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def t5_text(width: int = WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer()), d_model=width, d_ff=64, d_kv=8, num_heads=4, num_layers=2))


def vae() -> AutoencoderKL:
    channels = (8, 16, 16, 16)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENTS,
        norm_num_groups=4,
        shift_factor=0.0,
        sample_size=64,
    )


def unet(**options: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        **{"cross_attention_dim": WIDTH} | options,
    )


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing")


def sd1(kind: type = StableDiffusionPipeline) -> DiffusionPipeline:
    return kind(
        vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(), scheduler=euler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> DiffusionPipeline:
    micro_conditions = 6 * 8
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=micro_conditions + WIDTH,
        ),
        scheduler=euler(),
        add_watermarker=False,
    )


def sd3() -> DiffusionPipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> DiffusionPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENTS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
    )


def chroma() -> DiffusionPipeline:
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENTS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


def pixart() -> DiffusionPipeline:
    """Takes no step callback."""
    return PixArtAlphaPipeline(
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=LATENTS,
            out_channels=2 * LATENTS,
            num_layers=1,
            cross_attention_dim=16,
            sample_size=8,
            patch_size=2,
            caption_channels=WIDTH,
        ),
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


def z_image() -> DiffusionPipeline:
    """Its denoiser takes lists of samples."""
    learned = t5_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned.backend_tokenizer, pad_token="<pad>", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=LATENTS, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
            axes_dims=[4, 4, 8], axes_lens=[128, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(learned), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8,
            )
        ),
        tokenizer=tokenizer,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": sd1,
    "sd1_pag": functools.partial(sd1, StableDiffusionPAGPipeline),
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "chroma": chroma,
    "pixart": pixart,
    "z_image": z_image,
}


def checkpoint_of(pipe: DiffusionPipeline, **arguments: object) -> Checkpoint:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()  # as from_pretrained leaves it: some text encoders drop values at random while they train
    return Checkpoint(pipe, model="random", revision="0", num_inference_steps=4, guidance_scale=3.0, arguments=arguments)


def small(family: str, **arguments: object) -> Checkpoint:
    torch.manual_seed(0)
    return checkpoint_of(FAMILIES[family](), **arguments)


def image_to_image() -> Checkpoint:
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return checkpoint_of(sd1(StableDiffusionImg2ImgPipeline), image=Image.fromarray(noise), strength=0.75)
