"""Train the bundled checkpoint on pictures the program draws itself.

    python -m scripts.tiny.train --minutes 120                     # from nothing: autoencoder, then text encoder, then UNet
    python -m scripts.tiny.train --minutes 60 --init app/tiny      # go on with the UNet of the committed weights

The checkpoint is written to --out after each stage and five times in the last one, with a sheet of samples beside it, so training can
be stopped at any time.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.random import Generator
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.tiny import architecture, autoencoder, denoiser, samples, text
from scripts.tiny.captions import random_captioned

AUTOENCODER_SHARE, TEXT_SHARE = 0.18, 0.05  # of the time, when training starts from nothing
TOKENIZER_CAPTIONS = 20_000


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=architecture.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_pipeline(random: Generator) -> StableDiffusionPipeline:
    tokenizer = architecture.new_tokenizer(random_captioned(random).caption for _ in range(TOKENIZER_CAPTIONS))
    return assemble(architecture.new_vae(), architecture.new_text_encoder(tokenizer), tokenizer, architecture.new_unet())


def save(pipe: StableDiffusionPipeline, out: Path) -> None:
    """Write the weights, the large ones in half precision, and beside them a sheet of samples."""
    unet, text_encoder, vae = (copy.deepcopy(part).eval() for part in (pipe.unet, pipe.text_encoder, pipe.vae))
    # Unlike diffusers, transformers loads weights as they were saved: in half precision the two would not fit together.
    saved = assemble(vae.half(), text_encoder.float(), pipe.tokenizer, unet.half())
    with tempfile.TemporaryDirectory(dir=out.parent) as part:  # so that whatever stops it leaves a whole checkpoint
        saved.save_pretrained(part)
        for file in [path for path in Path(part).rglob("*") if path.is_file()]:
            place = out / file.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
    samples.sheet(saved.to(torch.float32)).save(out.with_name(f"{out.name}-samples.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="time for everything (default 120)")
    parser.add_argument("--autoencoder-minutes", type=float, help="of these, for the autoencoder (default: a share, none with --init)")
    parser.add_argument("--text-minutes", type=float, help="of these, for the text encoder (default: a share, none with --init)")
    parser.add_argument("--decoder-minutes", type=float, default=0.0, help="of these, at the end, for the decoder alone (default 0)")
    parser.add_argument("--init", type=Path, help="a checkpoint of this architecture to go on from")
    parser.add_argument("--out", type=Path, default=Path(".tiny/checkpoint"), help="where to write (default .tiny/checkpoint)")
    parser.add_argument("--rate", type=float, default=denoiser.RATE, help=f"highest learning rate of the UNet (default {denoiser.RATE})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    pipe = StableDiffusionPipeline.from_pretrained(args.init, dtype=torch.float32) if args.init else new_pipeline(random)
    pipe.to(args.device)
    for part in (pipe.vae, pipe.unet):
        part.to(memory_format=torch.channels_last)
    left = args.minutes
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if minutes := _minutes(args.autoencoder_minutes, args.init, AUTOENCODER_SHARE * args.minutes):
        autoencoder.train(pipe.vae, minutes, random)
        save(pipe, args.out)
        left -= minutes
    if minutes := _minutes(args.text_minutes, args.init, TEXT_SHARE * args.minutes):
        text.train(pipe.text_encoder, pipe.tokenizer, minutes, random)
        save(pipe, args.out)
        left -= minutes
    if (minutes := left - args.decoder_minutes) > 0:
        denoiser.train(pipe, minutes, random, args.rate, lambda trained: save(trained, args.out))
    if args.decoder_minutes:
        autoencoder.train_decoder(pipe.vae, args.decoder_minutes, random)
        save(pipe, args.out)


def _minutes(asked: float | None, init: Path | None, share: float) -> float:
    if asked is not None:
        return asked
    return 0.0 if init else share


if __name__ == "__main__":
    main()
