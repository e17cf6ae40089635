"""The judge itself is right about the drawing code's own pictures, and wrong prompts fail before it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from scripts.tiny.captions import Captioned, held_out, random_captioned
from scripts.tiny.drawing import COLOURS, Scene, Thing, draw_scene
from scripts.tiny.judge import Verdict, held_out_prompts, judge

SIDE = 128


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Captioned, Verdict]]:
    random = np.random.default_rng(3)
    return [(captioned, judge(draw_scene(captioned.scene, SIDE, random), captioned)) for captioned in held_out_prompts(300)]


def test_it_finds_nothing_wrong_with_pictures_drawn_from_their_own_captions(drawn: list[tuple[Captioned, Verdict]]) -> None:
    assert sum(verdict.all_right for _, verdict in drawn) >= 297
    assert sum(verdict.place is not None for _, verdict in drawn) > 50
    assert sum(verdict.relation is not None for _, verdict in drawn) > 50


def test_it_finds_pictures_of_other_captions_wrong(drawn: list[tuple[Captioned, Verdict]]) -> None:
    captions = [captioned for captioned, _ in drawn]
    random = np.random.default_rng(3)
    shuffled = zip(captions[1:] + captions[:1], captions, strict=True)
    verdicts = [judge(draw_scene(other.scene, SIDE, random), asked) for other, asked in shuffled]
    assert sum(verdict.all_right for verdict in verdicts) <= 3


OTHERS: dict[str, Callable[[Captioned], Scene]] = {
    "background": lambda one: replace(one.scene, background=next(c for c in COLOURS if c not in colours_of(one))),
    "colour": lambda one: with_things(one, lambda thing: replace(thing, colour=next(c for c in COLOURS if c not in colours_of(one)))),
    "thing": lambda one: with_things(one, lambda thing: replace(thing, name="arrow" if thing.name != "arrow" else "heart")),
    "place": lambda one: with_things(one, lambda thing: replace(thing, x=1 - thing.x, y=1 - thing.y)),
    "relation": lambda one: with_things(one, lambda thing: replace(thing, x=1 - thing.x, y=1 - thing.y)),
}


def colours_of(one: Captioned) -> set[str]:
    return {one.scene.background, *(thing.colour for thing in one.scene.things)}


def with_things(one: Captioned, change: Callable[[Thing], Thing]) -> Scene:
    return replace(one.scene, things=tuple(map(change, one.scene.things)))


@pytest.mark.parametrize("field", OTHERS)
def test_it_finds_a_picture_wrong_that_differs_in_one_thing_alone(field: str, drawn: list[tuple[Captioned, Verdict]]) -> None:
    random = np.random.default_rng(3)
    asked = [one for one, verdict in drawn if getattr(verdict, field) and one.place != "center center"]
    verdicts = [judge(draw_scene(OTHERS[field](one), SIDE, random), one) for one in asked]
    assert len(asked) > 40
    assert sum(getattr(verdict, field) for verdict in verdicts) <= 0.02 * len(asked)
    assert not any(verdict.all_right for verdict in verdicts if not getattr(verdict, field))


def test_training_never_draws_what_is_held_out_for_the_judge() -> None:
    random = np.random.default_rng(0)
    trained = [random_captioned(random) for _ in range(2000)]
    judged = [random_captioned(random, for_judge=True) for _ in range(200)]
    assert not any(held_out(thing.name, thing.colour, one.scene.background) for one in trained for thing in one.scene.things)
    assert all(held_out(thing.name, thing.colour, one.scene.background) for one in judged for thing in one.scene.things)
