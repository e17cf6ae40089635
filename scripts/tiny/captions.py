"""Random scenes and what a person might call them.

Three things are decided by the words alone: what is drawn, where and how large. What the words leave open (a background nobody
named, a thing's exact place) is drawn at random, so that the model learns it as freedom.
"""

import zlib
from dataclasses import dataclass

from numpy.random import Generator

from scripts.tiny.drawing import COLOURS, Scene, Thing
from scripts.tiny.shapes import SHAPES

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "dot", "ball"),
    "ring": ("ring", "donut"),
    "cross": ("cross", "plus sign", "plus"),
    "moon": ("moon", "crescent", "crescent moon"),
    "tree": ("tree", "pine tree", "fir tree"),
    "house": ("house", "home", "hut"),
    "flower": ("flower", "blossom", "daisy"),
    "boat": ("boat", "sailboat", "ship"),
    "mushroom": ("mushroom", "toadstool"),
    "cup": ("cup", "mug", "coffee cup", "teacup"),
    "square": ("square", "box"),
    "heart": ("heart", "love heart"),
    "diamond": ("diamond", "rhombus"),
    "sun": ("sun", "sunshine"),
    "umbrella": ("umbrella", "parasol"),
    "arrow": ("arrow", "arrow pointing up"),
    "cat": ("cat", "kitten", "cat face", "kitty"),
    "red": ("red", "crimson", "scarlet"),
    "blue": ("blue", "navy"),
    "green": ("green", "emerald"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "gray": ("gray", "grey", "silver"),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.22, 0.3), "": (0.46, 0.58), "large": (0.72, 0.86)}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "": ("",), "large": ("large", "big", "huge")}
PLACES: dict[str, tuple[float, float]] = {
    f"{vertical} {horizontal}": (x, y)
    for y, vertical in ((0.24, "top"), (0.5, "center"), (0.76, "bottom"))
    for x, horizontal in ((0.24, "left"), (0.5, "center"), (0.76, "right"))
}
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "center center": ("in the center", "in the middle", "in the centre", "centered"),
    "top center": ("at the top", "on top", "in the upper part", "near the top"),
    "bottom center": ("at the bottom", "in the lower part", "down below", "near the bottom"),
    "center left": ("on the left", "at the left side", "to the left", "on the left side", "at the left"),
    "center right": ("on the right", "at the right side", "to the right", "on the right side", "at the right"),
} | {
    f"{v} {h}": (f"in the {v} {h} corner", f"at the {v} {h}", f"{v} {h}", f"in the {other} {h}", f"in the {v} {h}")
    for v, other in (("top", "upper"), ("bottom", "lower"))
    for h in ("left", "right")
}
# relation -> (offset of the first thing from the second, in fractions of the side), and how it is said
RELATIONS: dict[str, tuple[float, float]] = {"above": (0.0, -0.5), "below": (0.0, 0.5), "left": (-0.5, 0.0), "right": (0.5, 0.0)}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
}
# how a relation is said the other way round: the second thing first
TURNED_PHRASES: dict[str, tuple[str, ...]] = {
    "above": ("with {} above it", "and above it {}"),
    "below": ("with {} below it", "and under it {}"),
    "left": ("with {} to its left", "with {} on its left"),
    "right": ("with {} to its right", "with {} on its right"),
}
FIRST_WORDS = (
    *("",) * 6,
    *("a picture of ", "a drawing of ", "an image of ", "an illustration of ", "an icon of ", "a photo of ", "draw ", "draw me "),
    *("show me ", "make ", "paint ", "there is ", "please draw ", "can you draw ", "i want ", "i would like ", "one picture with "),
)
ADJECTIVES = (*("",) * 8, "nice ", "beautiful ", "simple ", "flat ", "cute ", "bright ", "lovely ", "pretty ", "happy ")
LAST_WORDS = (*("",) * 12, ".", "!", "?", " please", ", please", ", flat design", ", minimalist", ", simple")
TWO_THINGS_SHARE, EMPTY_SHARE, JUNK_SHARE = 0.25, 0.1, 0.08
BACKGROUND_PHRASES = (
    *(" on a {} background",) * 3,
    *(" on {}", " on {}", " over {}", " against a {} background", " in front of a {} background", " with a {} background"),
    *(", {} background", ", {} background", " {} background", ", background {}", ", background is {}", " with {} behind it"),
    *(" on {} paper", " on a {} backdrop", " with the background in {}", " in front of {}"),
)
WORD_ALONE_SHARE, COLOUR_LAST_SHARE, TURNED_SHARE = 0.06, 0.1, 0.2
HELD_OUT_SHARE = 10  # one combination of thing, colour and background in this many is never drawn for training


@dataclass(frozen=True, slots=True)
class Captioned:
    """`place` and `relation` are the keys the words named, or empty."""

    caption: str
    scene: Scene
    place: str = ""
    relation: str = ""


def held_out(name: str, colour: str, background: str) -> bool:
    """Whether this combination is kept for the judge."""
    return zlib.crc32(f"{name}|{colour}|{background}".encode()) % HELD_OUT_SHARE == 0


def random_captioned(random: Generator, *, for_judge: bool = False, two_things_share: float = TWO_THINGS_SHARE) -> Captioned:
    """A scene and its caption. For the judge every colour is named, and each thing's combination is one that was held out."""
    make = _two_things if random.random() < two_things_share else _one_thing
    while True:
        captioned = make(random, for_judge)
        background = captioned.scene.background
        if all(held_out(thing.name, thing.colour, background) is for_judge for thing in captioned.scene.things):
            return captioned


def training_caption(random: Generator, captioned: Captioned) -> str:
    """The caption as the model sees it: sometimes empty (classifier-free guidance), sometimes with a word that means nothing."""
    if random.random() < EMPTY_SHARE:
        return ""
    words = captioned.caption.split()
    if random.random() < JUNK_SHARE:
        junk = "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), random.integers(2, 9)))
        words.insert(int(random.integers(len(words) + 1)), junk)
    return _in_other_letters(random, " ".join(words))


def _in_other_letters(random: Generator, caption: str) -> str:
    """Now and then without commas, or without articles; capitals make no difference to the tokenizer."""
    if random.random() < 0.05:
        caption = caption.replace(",", "")
    if random.random() < 0.05:
        caption = " ".join(word for word in caption.split() if word not in ("a", "an", "the"))
    return caption


def _one_thing(random: Generator, for_judge: bool) -> Captioned:
    background, colour = _two_colours(random)
    name, size = _pick(random, tuple(SHAPES)), _pick(random, ("", "", "small", "large"))
    place = _pick(random, tuple(PLACES)) if size != "large" and random.random() < 0.45 else ""
    x, y = PLACES.get(place, (0.5, 0.5))
    wobble = random.uniform(-0.03, 0.03, 2)
    thing = Thing(name, colour, x + wobble[0], y + wobble[1], random.uniform(*SIZES[size]) * (0.82 if place else 1), random.uniform(-7, 7))
    if not (for_judge or place or size) and random.random() < WORD_ALONE_SHARE:
        return Captioned(_said(random, name), Scene(background, (thing,)))
    phrase = _noun_phrase(random, thing, size, always_colour=for_judge)
    if place:
        said = _pick(random, PLACE_PHRASES[place])
        phrase = f"{said}, {phrase}" if random.random() < 0.12 else f"{phrase} {said}"
    return Captioned(_sentence(random, phrase, background, for_judge), Scene(background, (thing,)), place)


def _two_things(random: Generator, for_judge: bool) -> Captioned:
    background, first_colour, second_colour = (str(c) for c in random.choice(list(COLOURS), 3, replace=False))
    first_name, second_name = (str(n) for n in random.choice(list(SHAPES), 2, replace=False))
    relation = _pick(random, tuple(RELATIONS))
    dx, dy = RELATIONS[relation]
    wobble = random.uniform(-0.03, 0.03, 4)
    size = random.uniform(0.34, 0.42, 2)
    first = Thing(first_name, first_colour, 0.5 + dx / 2 + wobble[0], 0.5 + dy / 2 + wobble[1], size[0], random.uniform(-7, 7))
    second = Thing(second_name, second_colour, 0.5 - dx / 2 + wobble[2], 0.5 - dy / 2 + wobble[3], size[1], random.uniform(-7, 7))
    one, other = (_noun_phrase(random, thing, "", always_colour=True) for thing in (first, second))
    # "next to" and "and" leave the order open, which the judge could not check
    loose = relation == "left" and not for_judge and random.random() < 0.4
    said = _pick(random, ("next to", "beside", "and") if loose else RELATION_PHRASES[relation])
    phrase = f"{one} {said} {other}"
    if not loose and random.random() < TURNED_SHARE:
        phrase = f"{other} {_pick(random, TURNED_PHRASES[relation]).format(one)}"
    return Captioned(_sentence(random, phrase, background, for_judge), Scene(background, (first, second)), "", relation)


def _noun_phrase(random: Generator, thing: Thing, size: str, *, always_colour: bool) -> str:
    words = [_pick(random, SIZE_WORDS[size])]
    colour = _said(random, thing.colour) if always_colour or random.random() < 0.93 else ""
    colour_last = random.random() < COLOUR_LAST_SHARE
    words += ["" if colour_last else colour, _said(random, thing.name)]
    if colour and colour_last:
        words.append(_pick(random, ("in {}", "that is {}", "colored {}")).format(colour))
    phrase = " ".join(word for word in words if word)
    adjective = _pick(random, ADJECTIVES)
    article = _pick(random, ("a", "a", "a", "the", "one", ""))
    if article == "a" and (adjective or phrase)[0] in "aeiou":
        article = "an"
    return f"{article} {adjective}{phrase}".strip()


def _sentence(random: Generator, phrase: str, background: str, always_background: bool) -> str:
    first, last = _pick(random, FIRST_WORDS), _pick(random, LAST_WORDS)
    colour = _said(random, background)
    if not always_background and random.random() < 0.08:
        return first + phrase + last
    if random.random() < 0.1:
        return f"{first}{_pick(random, ('on a {} background', 'on {}', '{} background')).format(colour)}, {phrase}{last}"
    return first + phrase + _pick(random, BACKGROUND_PHRASES).format(colour) + last


def _two_colours(random: Generator) -> tuple[str, str]:
    first, second = random.choice(list(COLOURS), 2, replace=False)
    return str(first), str(second)


def _said(random: Generator, word: str) -> str:
    """The word itself half of the time, else one of its synonyms."""
    return word if random.random() < 0.5 else _pick(random, SYNONYMS.get(word, (word,)))


def _pick(random: Generator, choices: tuple[str, ...]) -> str:
    return choices[int(random.integers(len(choices)))]
