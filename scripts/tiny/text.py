"""Stage 2: the text encoder learns what captions mean, before it is used for painting.

From the end of a caption linear readers must tell what the scene holds: the names, colours, places and sizes of its things and the
colour of its background. What the caption leaves open they can only guess, as they should. Learning this from painting alone takes
hours; here it takes minutes.
"""

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.tiny.architecture import TEXT_WIDTH
from scripts.tiny.budget import Budget, descend
from scripts.tiny.captions import random_captioned, training_caption
from scripts.tiny.drawing import COLOURS, Scene
from scripts.tiny.shapes import SHAPES

BATCH = 128  # captions
RATE = 1e-3
NAMES, SHADES = ("", *SHAPES), ("", *COLOURS)  # the first is for a second thing that is not there
MEASURE_WEIGHT = 4.0  # of places and sizes beside names and colours
MEASURES = 3  # x, y and size of a thing


class Readers(nn.Module):
    """Linear maps from a caption's features to what its scene holds."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(words)) for words in (NAMES, SHADES, NAMES, SHADES, SHADES))
        self.measures = nn.Linear(TEXT_WIDTH, 2 * MEASURES)

    def loss(self, features: Tensor, scenes: list[Scene]) -> tuple[Tensor, float]:
        """Of features (B, W): the loss, and the share of names and colours that were told right."""
        chosen = torch.tensor([choices(scene) for scene in scenes], device=features.device)  # (B, 5)
        measured = torch.tensor([measures(scene) for scene in scenes], device=features.device)  # (B, 6)
        told = [reader(features) for reader in self.choices]
        loss = sum(
            (functional.cross_entropy(one, chosen[:, i]) for i, one in enumerate(told)), start=torch.zeros((), device=features.device)
        )
        right = float(np.mean([(one.argmax(1) == chosen[:, i]).float().mean().item() for i, one in enumerate(told)]))
        return loss + MEASURE_WEIGHT * functional.mse_loss(self.measures(features), measured) * 2 * MEASURES, right


def choices(scene: Scene) -> list[int]:
    """Name and colour of the first thing and of the second, and the background, as numbers."""
    first, second = scene.things[0], scene.things[1] if len(scene.things) > 1 else None
    of_second = (second.name, second.colour) if second else ("", "")
    return [
        NAMES.index(first.name),
        SHADES.index(first.colour),
        NAMES.index(of_second[0]),
        SHADES.index(of_second[1]),
        SHADES.index(scene.background),
    ]


def measures(scene: Scene) -> list[float]:
    """x, y and size of the first thing and of the second, the latter zeros if there is none."""
    things = [(thing.x, thing.y, thing.size) for thing in scene.things]
    return [*things[0], *(things[1] if len(things) > 1 else (0.0,) * MEASURES)]


def train(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, minutes: float, random: Generator) -> None:
    readers = Readers().to(text_encoder.device)
    optimizer = AdamW([*text_encoder.parameters(), *readers.parameters()], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    budget = Budget(minutes, "text encoder")
    text_encoder.train()
    for step in budget.steps():
        drawn = [random_captioned(random) for _ in range(BATCH)]
        tokens = tokenize(tokenizer, [training_caption(random, one) for one in drawn]).to(text_encoder.device)
        with torch.autocast(text_encoder.device.type, torch.bfloat16):
            hidden = text_encoder(tokens).last_hidden_state
        loss, right = readers.loss(at_the_end(hidden.float(), tokens, tokenizer.eos_token_id), [one.scene for one in drawn])
        descend(optimizer, loss, budget.rate(step, RATE))
        if step % 20 == 0:
            budget.show(step=step, loss=loss.item(), right=right)
    text_encoder.eval()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(B, 77), as a Stable Diffusion pipeline does it."""
    tokens: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


def at_the_end(hidden: Tensor, tokens: Tensor, end: int) -> Tensor:
    """The mean of the features (B, T, W) at the end marks, each of which has seen the whole caption: (B, W)."""
    ends = (tokens == end).unsqueeze(-1)
    return (hidden * ends).sum(dim=1) / ends.sum(dim=1)
