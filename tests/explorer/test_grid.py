"""The comparison grid, on the bundled checkpoint."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app.explorer import PromptExplorer
from app.explorer.grid import ComparisonGrid
from app.explorer.sheet import EMPTY, Labels, labelled, side_by_side
from tests.explorer.conftest import PATIENCE_S, Watched


@pytest.fixture
def grid(panel: PromptExplorer) -> ComparisonGrid:
    """Guidance 1 and 3 across, 2 and 3 steps down."""
    panel.grid.across_values.value, panel.grid.down_values.value = "1, 3", "2, 3"
    return panel.grid


def built(grid: ComparisonGrid) -> ComparisonGrid:
    grid.build_button.click()
    assert grid.wait(PATIENCE_S)
    return grid


def contains(sheet: bytes, picture: Image.Image) -> bool:
    """Whether the pixels of the picture are somewhere in the sheet."""
    whole, part = (np.asarray(one.convert("RGB")) for one in (Image.open(BytesIO(sheet)), picture))
    height, width = part.shape[:2]
    corners = np.argwhere((whole == part[0, 0]).all(axis=-1))
    return any(np.array_equal(whole[y : y + height, x : x + width], part) for y, x in corners)


def test_every_combination_is_made_from_the_same_seed(grid: ComparisonGrid, panel: PromptExplorer) -> None:
    built(grid)
    asked = {place: generated.facts.request for place, generated in grid.cells.items()}
    expected = {
        (row, column): panel.form.request().model_copy(update={"num_inference_steps": steps, "guidance_scale": guidance})
        for row, steps in enumerate((2, 3))
        for column, guidance in enumerate((1.0, 3.0))
    }
    assert asked == expected
    assert grid.problem == ""


def test_every_picture_stands_beside_its_own_values(grid: ComparisonGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[dict[tuple[int, int], Image.Image], Labels]] = []

    def noted(cells: dict[tuple[int, int], Image.Image], labels: Labels, size: tuple[int, int]) -> Image.Image:
        drawn.append((cells, labels))
        return labelled(cells, labels, size)

    monkeypatch.setattr("app.explorer.grid.labelled", noted)
    grid.across_values.value = "1, 2, 3"
    built(grid)
    cells, labels = drawn[-1]
    assert (labels.across, labels.down, labels.columns, labels.rows) == ("guidance", "steps", ["1", "2", "3"], ["2", "3"])
    for (row, column), picture in cells.items():
        facts = grid.cells[row, column].facts.request
        assert (f"{facts.num_inference_steps}", f"{facts.guidance_scale:g}") == (labels.rows[row], labels.columns[column])
        assert picture.tobytes() == grid.cells[row, column].image.tobytes()


def test_all_pictures_are_asked_for_at_once_and_stand_in_one_picture(grid: ComparisonGrid, source: Watched) -> None:
    source.meet(4)
    built(grid)
    assert source.most_in_flight == 4
    assert all(contains(grid.picture, generated.image) for generated in grid.cells.values())
    assert "base64," in grid.download.value


def test_the_sheet_is_there_before_the_pictures_are(grid: ComparisonGrid, source: Watched) -> None:
    source.hold()
    grid.build()
    assert source.at_door.wait(PATIENCE_S)
    assert grid.build_button.disabled
    assert grid.cells == {}
    empty = grid.picture
    source.door.set()
    assert grid.wait(PATIENCE_S)
    assert Image.open(BytesIO(empty)).size == Image.open(BytesIO(grid.picture)).size
    assert empty != grid.picture


def test_seeds_are_compared_with_prompts(grid: ComparisonGrid) -> None:
    grid.across.value, grid.down.value = "seed", "prompt"
    grid.across_values.value, grid.down_values.value = "1, 2", "a red star, on blue | a fish"
    requests = [generated.facts.request for _, generated in sorted(built(grid).cells.items())]
    assert [(one.prompt, one.seed) for one in requests] == [
        ("a red star, on blue", 1),
        ("a red star, on blue", 2),
        ("a fish", 1),
        ("a fish", 2),
    ]


@pytest.mark.parametrize("name", ["seed", "prompt", "negative_prompt", "scheduler", "num_inference_steps", "guidance_scale"])
def test_choosing_a_setting_suggests_values_that_the_model_takes(grid: ComparisonGrid, name: str) -> None:
    grid.down.value = "seed" if name != "seed" else "prompt"
    grid.across.value = name
    assert grid.across_values.value
    assert (grid.across_values.problem, grid.down_values.problem) == ("", "")
    assert grid.requests()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("1, 99", "99: Guidance must be less than or equal to 30."),
        ("1, many", "many: Guidance must be a number."),
        (" , ", "must have a value"),
        (",".join(["1"] * 19), "at most 36 pictures; these are 38"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_typed(grid: ComparisonGrid, values: str, said: str) -> None:
    grid.across_values.value = values
    assert grid.across_values.problem == said
    assert grid.build_button.disabled
    grid.build()
    assert grid.wait(0)


def test_a_setting_is_not_compared_with_itself(grid: ComparisonGrid) -> None:
    grid.down.value = "guidance_scale"
    assert grid.down_values.problem == "choose another setting than across"
    assert grid.build_button.disabled


def test_a_wrong_value_in_the_form_is_said(grid: ComparisonGrid, panel: PromptExplorer) -> None:
    panel.form.width.value = 100
    grid.build()
    assert grid.problem == "Width must be a multiple of 8."


def test_stop_ends_all_of_it(grid: ComparisonGrid, source: Watched) -> None:
    grid.down_values.value = "149, 150"
    source.hold()
    grid.build()
    assert source.at_door.wait(PATIENCE_S)
    grid.stop_button.click()
    source.door.set()
    assert grid.wait(PATIENCE_S)
    assert grid.cells == {}
    assert grid.progress.status.value.startswith("Stopped")
    assert not grid.build_button.disabled


def test_a_sheet_leaves_the_places_of_pictures_to_come_empty_and_cuts_long_labels() -> None:
    labels = Labels("prompt", ["word " * 50, "b"], "seed", ["1"], "caption " * 100)
    sheet = labelled({(0, 1): Image.new("RGB", (64, 64), "red")}, labels, (64, 64))
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20) or []}
    assert colours[EMPTY] == colours[255, 0, 0] == 64 * 64


def test_pictures_side_by_side_have_one_height() -> None:
    row = side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (40, 40), "blue")], height=40)
    assert row.size == (20 + 8 + 40, 40)
    assert (row.getpixel((5, 5)), row.getpixel((60, 39))) == ((255, 0, 0), (0, 0, 255))
