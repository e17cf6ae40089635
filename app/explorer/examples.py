"""Prompts to begin with, by model."""

from app.schemas import Capabilities

TINY = (
    "a red heart on a yellow background",
    "a large pink flower on a blue background",
    "a small white star in the top left corner on a black background",
    "a blue fish to the left of a green tree on a white background",
)
OTHERS = (
    "a lighthouse on a cliff at dawn, oil painting",
    "a red fox in deep snow, photograph, soft light",
    "a bowl of lemons on a wooden table, still life",
    "the skyline of a city in the rain, ink and watercolour",
)


def example_prompts(capabilities: Capabilities) -> tuple[str, ...]:
    """The bundled model knows coloured things on plain backgrounds; the others are taken to know the world."""
    return TINY if capabilities.model == "tiny" else OTHERS
