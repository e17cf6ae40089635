"""Pictures painted over: image-to-image on the weights that make pictures from nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app import png
from app.editing import EditRequest
from app.engine.checkpoint import Checkpoint, image_to_image
from app.engine.device import Batch
from app.engine.engine import ImageEngine
from app.schemas import Progress, RefusedRequest
from tests.engine.families import small
from tests.engine.together import DEADLINE_S, Engines, all_in_the_loop, alone, assert_right, most_shared, pixels, request

SOURCE = Image.effect_noise((80, 40), 100).convert("RGB")


def edit(number: int, strength: float = 0.6, **fields: object) -> EditRequest:
    return EditRequest.of(request(number, scheduler="EulerDiscreteScheduler", **fields), SOURCE, strength)


def plainly(loaded: Checkpoint, asked: EditRequest) -> np.ndarray[tuple[int, ...], np.dtype[np.int_]]:
    """What diffusers' own image-to-image pipeline makes of it, without the engine."""
    editing = image_to_image(loaded)
    assert editing is not None
    return alone(replace(editing, arguments={"image": asked.source, "strength": asked.strength}), asked.plain())


def test_an_edit_and_a_picture_from_nothing_share_calls_and_both_are_right(
    start: Engines, loaded: Checkpoint, batches: list[Batch]
) -> None:
    engine, asked, meet = start(loaded), edit(1, num_inference_steps=20), all_in_the_loop(2)  # so many that they meet again and again
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(engine.generate, one, meet) for one in (asked, request(2, num_inference_steps=20))]
        edited, made = [future.result(DEADLINE_S) for future in futures]
    assert most_shared(batches) == 2
    assert np.abs(pixels(edited.image) - plainly(loaded, asked)).max() <= 1
    assert_right(loaded, made)


def test_the_strength_is_the_share_of_the_steps_that_are_taken(start: Engines, loaded: Checkpoint) -> None:
    steps: list[Progress] = []
    asked = edit(1, 0.4, num_inference_steps=10)
    start(loaded).generate(asked, steps.append)
    assert [(one.step, one.total) for one in steps] == [(number, 4) for number in range(1, 5)]
    assert asked.pixel_steps == 64 * 64 * 2 * (4 + 2)


def test_the_picture_tells_what_it_was_painted_over(start: Engines, loaded: Checkpoint) -> None:
    asked = edit(1)
    made = start(loaded).generate(asked)
    _, facts = png.decode(made.png)
    assert facts == made.facts
    assert (facts.request, facts.edit, facts.pipeline) == (asked.plain(), asked.edit, "StableDiffusionImg2ImgPipeline")


def test_two_sources_are_two_requests_also_in_json() -> None:
    same, other = edit(1), EditRequest.of(edit(1).plain(), SOURCE.rotate(180), 0.6)
    assert (same == edit(1), same == other) == (True, False)
    assert (same.model_dump_json() == edit(1).model_dump_json(), same.model_dump_json() == other.model_dump_json()) == (True, False)


def test_a_strength_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(RefusedRequest, match=r"strength: must be at least 1 / 5, .*0\.1"):
        edit(1, 0.1)


def test_a_family_without_image_to_image_says_so(start: Engines) -> None:
    engine: ImageEngine = start(small("pixart"))
    assert not engine.capabilities.image_to_image
    with pytest.raises(RefusedRequest, match="no image-to-image pipeline"):
        engine.generate(EditRequest.of(request(1), SOURCE))
