"""Every control of the panel, on the bundled checkpoint."""

import base64
import re
from io import BytesIO

import pytest
from ipywidgets.widgets.widget import _instances
from PIL import Image

from app import png
from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer
from app.schemas import MAX_SEED, ImageRequest
from scripts.tiny.judge import nearest_colours
from tests.explorer.conftest import PATIENCE_S, Watched, finished, press_enter


def background(picture: Image.Image) -> str:
    return str(nearest_colours(picture)[2, 2])


def test_generate_makes_what_the_prompt_says(panel: PromptExplorer) -> None:
    panel.form.prompt.value = "a red heart on a yellow background"
    panel.generate_button.click()
    (made,) = finished(panel).images
    assert background(made.image) == "yellow"
    assert made.facts.request == panel.form.request()


def test_pressing_generate_comes_back_at_once_and_the_button_waits_for_the_end(panel: PromptExplorer, source: Watched) -> None:
    source.hold()
    panel.generate_button.click()
    assert panel.running
    assert panel.generate_button.disabled
    assert not panel.stop_button.disabled
    source.door.set()
    finished(panel)
    assert not panel.generate_button.disabled
    assert panel.stop_button.disabled


def test_the_bar_moves_with_every_step_and_previews_are_shown(panel: PromptExplorer) -> None:
    steps: list[int] = []
    shown: list[bytes] = []
    panel.progress.bar.observe(lambda change: steps.append(change["new"]), "value")
    panel.gallery.large.observe(lambda change: shown.append(change["new"]), "value")
    panel.generate()
    finished(panel)
    assert steps == [1, 2, 3, 4]
    assert len(set(shown)) == 5  # four previews and the picture
    assert [Image.open(BytesIO(one)).size for one in (shown[1], shown[-1])] == [(16, 16), (128, 128)]


def test_time_gone_and_time_left_are_told_while_it_runs(panel: PromptExplorer) -> None:
    told: list[str] = []
    panel.progress.status.observe(lambda change: told.append(change["new"]), "value")
    panel.generate()
    finished(panel)
    assert any(re.fullmatch(r"step 3 of 4 · [\d.]+ s gone, about [\d.]+ s left", one) for one in told)
    assert re.fullmatch(r"1 picture in [\d.]+ s", told[-1])


def test_enter_in_the_prompt_generates_also_the_same_prompt_again(panel: PromptExplorer) -> None:
    for number in (1, 2):
        press_enter(panel.form)
        assert len(finished(panel).images) == number


def test_letters_that_arrive_only_after_enter_are_in_the_picture(panel: PromptExplorer) -> None:
    panel.form.prompt.value = "a blue st"
    press_enter(panel.form, typed_late="a blue star")
    (made,) = finished(panel).images
    assert made.facts.request.prompt == "a blue star"


def test_stop_ends_it_within_a_step_and_leaves_no_picture(panel: PromptExplorer, source: Watched) -> None:
    panel.form.num_inference_steps.value = 150
    source.hold()
    panel.generate()
    assert source.at_door.wait(PATIENCE_S)
    panel.stop_button.click()
    source.door.set()
    finished(panel)
    assert panel.images == []
    assert panel.gallery.tiles == []
    assert re.fullmatch(r"Stopped after step [12] of 150, [\d.]+ s", panel.progress.status.value)
    assert not panel.generate_button.disabled


def test_stopping_keeps_the_pictures_there_were(panel: PromptExplorer, source: Watched) -> None:
    panel.generate()
    (first,) = finished(panel).images
    source.hold()
    panel.generate()
    assert source.at_door.wait(PATIENCE_S)
    panel.stop()
    source.door.set()
    assert finished(panel).images == [first]
    assert panel.gallery.large.value == first.png


def test_several_pictures_have_seeds_one_apart_and_are_asked_for_at_once(panel: PromptExplorer, source: Watched) -> None:
    panel.form.count.value = 4
    source.meet(4)
    panel.generate()
    seeds = [image.facts.request.seed for image in finished(panel).images]
    assert seeds == list(range(panel.form.seed.value, panel.form.seed.value + 4))
    assert source.most_in_flight == 4


def test_the_seed_stays_if_locked_and_is_drawn_if_not(panel: PromptExplorer) -> None:
    panel.form.seed.value = 7
    panel.form.lock.value = True
    panel.generate()
    finished(panel)
    panel.form.lock.value = False
    panel.generate()
    later, earlier = (image.facts.request.seed for image in finished(panel).images)
    assert earlier == 7
    assert later != 7
    assert panel.form.seed.value == later


@pytest.mark.parametrize("count", [1, 5_000_000_000])
def test_the_dice_draws_another_seed_whatever_the_other_fields_hold(panel: PromptExplorer, count: int) -> None:
    panel.form.count.value, before = count, panel.form.seed.value
    panel.form.dice.click()
    assert panel.form.seed.value != before


def test_ranges_and_defaults_are_the_sources_own(source: Watched) -> None:
    form = PromptExplorer(source).form
    can = source.capabilities
    assert (form.width.value, form.height.value, form.num_inference_steps.value, form.guidance_scale.value) == (
        can.width,
        can.height,
        can.num_inference_steps,
        can.guidance_scale,
    )
    assert str(can.max_pixels) in form.width.widget.tooltip


def test_an_example_prompt_goes_into_the_form(panel: PromptExplorer) -> None:
    panel.form.examples[2].click()
    assert panel.form.prompt.value == panel.form.examples[2].description


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "  ", "must not be blank"),
        ("width", 100, "must be a multiple of 8"),
        ("height", 32, "must be greater than or equal to 64"),
        ("width", 1536, "must be at most 65536 pixels for this model"),
        ("num_inference_steps", 0, "must be greater than or equal to 1"),
        ("guidance_scale", 31.0, "must be less than or equal to 30"),
        ("seed", -1, "must be greater than or equal to 0"),
        ("count", 0, "must be from 1 to 16"),
        ("count", 17, "must be from 1 to 16"),
        ("negative_prompt", "x" * 2001, "must have at most 2000 characters"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_typed(panel: PromptExplorer, field: str, value: object, said: str) -> None:
    typed = getattr(panel.form, field)
    right = typed.value
    typed.value = value
    assert said in typed.problem
    assert panel.generate_button.disabled
    assert panel.problem == ""
    press_enter(panel.form)
    assert not panel.running
    assert said in panel.problem
    typed.value = right
    assert panel.problem == ""
    assert not panel.generate_button.disabled


def test_settings_of_a_picture_that_this_model_cannot_make_are_said_outside_of_the_fold(panel: PromptExplorer) -> None:
    panel.use(panel.form.request().model_copy(update={"width": 768, "height": 768}))
    assert "Width must be at most 65536 pixels" in panel.problem


def test_a_size_too_large_is_told_at_both_sides(panel: PromptExplorer) -> None:
    panel.form.width.value = panel.form.height.value = 512
    assert panel.form.width.problem == panel.form.height.problem == "must be at most 65536 pixels for this model"


def test_the_last_of_several_seeds_must_exist_too(panel: PromptExplorer) -> None:
    panel.form.lock.value = True
    panel.form.seed.value = MAX_SEED
    assert panel.form.seed.problem == ""
    panel.form.count.value = 2
    assert panel.form.seed.problem == f"must be at most {MAX_SEED - 1} for 2 pictures"


def test_a_picture_of_the_gallery_is_looked_at_with_its_facts(panel: PromptExplorer) -> None:
    panel.form.prompt.value = "a <b>blue</b> fish"
    panel.generate()
    finished(panel)
    panel.form.prompt.value = "a star"
    panel.generate()
    newer, older = finished(panel).images
    assert panel.gallery.large.value == newer.png
    panel.gallery.tiles[1].button.click()
    assert panel.gallery.large.value == older.png
    assert "a &lt;b&gt;blue&lt;/b&gt; fish" in panel.gallery.facts.value
    assert str(older.facts.request.seed) in panel.gallery.facts.value


def test_the_settings_of_a_picture_are_used_again_and_make_the_same_picture(panel: PromptExplorer) -> None:
    panel.form.guidance_scale.value = 1.5
    panel.generate()
    (first,) = finished(panel).images
    panel.form.prompt.value, panel.form.guidance_scale.value = "a green tree", 4.0
    panel.gallery.use.click()
    assert panel.form.request() == first.facts.request
    panel.generate_button.click()
    assert finished(panel).images[0] == first


def test_settings_of_another_model_are_taken_over_but_for_a_noise_scheduler_that_this_one_lacks(panel: PromptExplorer) -> None:
    scheduler, other = panel.form.scheduler.value, {"prompt": "a boat", "seed": 5, "scheduler": "FlowMatchEulerDiscreteScheduler"}
    panel.use(panel.form.request().model_copy(update=other))
    assert panel.problem == "Noise scheduler FlowMatchEulerDiscreteScheduler is none of this model's."
    assert (panel.form.prompt.value, panel.form.seed.value, panel.form.scheduler.value) == ("a boat", 5, scheduler)
    panel.form.count.value = 0
    assert panel.generate_button.disabled, "what is typed is still checked"
    panel.form.count.value = 1
    assert not panel.generate_button.disabled


def test_pictures_that_leave_the_gallery_leave_no_widgets(panel: PromptExplorer) -> None:
    before = len(_instances)
    panel.gallery.end(panel.gallery.begin(panel.form.requests()))
    assert len(_instances) == before


def test_varying_a_picture_makes_it_with_the_next_four_seeds(panel: PromptExplorer) -> None:
    panel.generate()
    (first,) = finished(panel).images
    panel.gallery.vary.click()
    *variations, _ = finished(panel).images
    expected = [first.facts.request.model_copy(update={"seed": first.facts.request.seed + offset}) for offset in (1, 2, 3, 4)]  # type: ignore[operator]
    assert [image.facts.request for image in variations] == expected


def test_the_download_is_the_png_with_its_facts(panel: PromptExplorer) -> None:
    panel.form.prompt.value = "A red heart, on yellow!"
    panel.generate()
    (made,) = finished(panel).images
    link = panel.gallery.download.value
    assert f'download="a-red-heart-on-yellow-{made.facts.request.seed}.png"' in link
    data = link.split("base64,")[1].split('"')[0]
    assert png.decode(base64.b64decode(data))[1] == made.facts


def test_a_prompt_too_long_to_be_read_is_said_with_the_picture(panel: PromptExplorer) -> None:
    panel.form.prompt.value = "a star " * 200
    panel.generate()
    finished(panel)
    assert "its end was not read" in panel.gallery.facts.value


def test_two_panels_share_one_source(source: Watched) -> None:
    panels = {colour: PromptExplorer(source) for colour in ("yellow", "blue")}
    source.meet(2)
    for colour, panel in panels.items():
        panel.form.num_inference_steps.value = 10
        panel.form.prompt.value = f"a white heart on a {colour} background"
        panel.generate()
    for colour, panel in panels.items():
        assert [background(image.image) for image in finished(panel).images] == [colour]
    assert source.most_in_flight == 2


def test_nothing_is_printed(engine: ImageEngine, capfd: pytest.CaptureFixture[str]) -> None:
    panel = PromptExplorer(engine)
    panel.generate()
    finished(panel)
    assert capfd.readouterr() == ("", "")


def test_icons_have_names_for_screen_readers(panel: PromptExplorer) -> None:
    panel.generate()
    finished(panel)
    for widget in (panel.form.dice, panel.form.lock, panel.progress.bar, panel.gallery.large):
        assert widget.tooltip
    assert panel.gallery.tiles[0].button.description.startswith("Show: ")


def test_pictures_are_what_the_engine_makes_of_the_same_request(panel: PromptExplorer, engine: ImageEngine) -> None:
    panel.generate()
    (made,) = finished(panel).images
    assert engine.generate(ImageRequest.model_validate(made.facts.request.model_dump())) == made
