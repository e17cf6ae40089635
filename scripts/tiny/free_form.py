"""Fifty prompts as people write them, with what must be seen.

A colour, background or place that is empty was not asked for. Two things come with how the first stands to the second.
"""

from scripts.tiny.captions import Captioned
from scripts.tiny.drawing import Scene, Thing


def one(prompt: str, name: str, colour: str = "", background: str = "", place: str = "") -> Captioned:
    return Captioned(prompt, Scene(background, (Thing(name, colour, 0.5, 0.5, 0.5),)), place)


def two(prompt: str, first: tuple[str, str], relation: str, second: tuple[str, str], background: str = "") -> Captioned:
    """`first` and `second` are colour and name."""
    things = tuple(Thing(name, colour, 0.5, 0.5, 0.4) for colour, name in (first, second))
    return Captioned(prompt, Scene(background, things), "", relation)


FREE_FORM: tuple[Captioned, ...] = (
    one("star", "star"),
    one("A HEART", "heart"),
    one("mushroom please", "mushroom"),
    one("red heart", "heart", "red"),
    one("Blue Fish", "fish", "blue"),
    one("an umbrella, green", "umbrella", "green"),
    one("just a plain yellow circle", "circle", "yellow"),
    one("kitty cat, black", "cat", "black"),
    one("some purple butterfly", "butterfly", "purple"),
    one("Red star. White background.", "star", "red", "white"),
    one("yellow sun on blue", "sun", "yellow", "blue"),
    one("orange fish blue background", "fish", "orange", "blue"),
    one("I'd love to see a pink flower with green all around it", "flower", "pink", "green"),
    one("the background is black and there is a white moon", "moon", "white", "black"),
    one("green background with a red apple in it", "apple", "red", "green"),
    one("A golden crown lying on purple velvet", "crown", "yellow", "purple"),
    one("a tree. it is green. the background is yellow.", "tree", "green", "yellow"),
    one("could you make me a blue house against an orange sky?", "house", "blue", "orange"),
    one("gray cat in front of a pink wall", "cat", "gray", "pink"),
    one("paint: white cloud, blue backdrop", "cloud", "white", "blue"),
    one("simple icon of an orange umbrella, white background, flat design, vector art", "umbrella", "orange", "white"),
    one("logo with a purple diamond on white", "diamond", "purple", "white"),
    one("a very big red circle on a white background", "circle", "red", "white"),
    one("one tiny little yellow star on black", "star", "yellow", "black"),
    one("Draw a RED SAILBOAT on WHITE", "boat", "red", "white"),
    one("Violet mug, grey background", "cup", "purple", "gray"),
    one("hello! my daughter wants a pink butterfly on a yellow background", "butterfly", "pink", "yellow"),
    one("a pine tree in white on a red background, christmas card", "tree", "white", "red"),
    one("green arrow, black background", "arrow", "green", "black"),
    one("a doughnut shaped ring in brown tones on a blue table", "ring", "", "blue"),
    one("black plus sign white background", "cross", "black", "white"),
    one("an orange triangle over a gray surface", "triangle", "orange", "gray"),
    one("small blue square in the top left on a yellow background", "square", "blue", "yellow", "top left"),
    one("a red ball at the bottom of a white picture", "circle", "red", "white", "bottom center"),
    one("put a green heart in the upper right corner, pink background", "heart", "green", "pink", "top right"),
    one("yellow moon, top right corner, on a black background", "moon", "yellow", "black", "top right"),
    one("white star in the bottom left, background blue", "star", "white", "blue", "bottom left"),
    one("a purple flower on the right side, white background", "flower", "purple", "white", "center right"),
    one("on the left: an orange fish. background: blue", "fish", "orange", "blue", "center left"),
    one("red house in the middle of a green background", "house", "red", "green", "center center"),
    two("a red house under a yellow sun", ("red", "house"), "below", ("yellow", "sun")),
    two("a blue fish to the left of a green tree", ("blue", "fish"), "left", ("green", "tree")),
    two("yellow sun above a red house, blue background", ("yellow", "sun"), "above", ("red", "house"), "blue"),
    two("white cloud over an orange boat on a blue background", ("white", "cloud"), "above", ("orange", "boat"), "blue"),
    two("a black cat below a yellow moon, purple background", ("black", "cat"), "below", ("yellow", "moon"), "purple"),
    two("A pink flower right of a blue cup. White background.", ("pink", "flower"), "right", ("blue", "cup"), "white"),
    two("red mushroom left of a green tree on white", ("red", "mushroom"), "left", ("green", "tree"), "white"),
    two("there's a white star above an orange cat, black background", ("white", "star"), "above", ("orange", "cat"), "black"),
    two("a red apple with a green heart to its right, yellow background", ("green", "heart"), "right", ("red", "apple"), "yellow"),
    two("purple butterfly on top of a pink flower, white background", ("purple", "butterfly"), "above", ("pink", "flower"), "white"),
)
