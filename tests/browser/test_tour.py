"""What a person sees: README.ipynb after Run All, and its panels used by mouse and keyboard."""

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from scripts.tiny.judge import nearest_colours
from tests.browser.conftest import ERRORS, button, fill, opened, screenshot, shown_by

LARGE = ".imagine-viewer > img"
WATCH = """panel => {
    const seen = {bar: [], pictures: [], on: true};
    window.seen = seen;
    const look = () => {
        const width = parseFloat(panel.querySelector(".progress-bar").style.width);
        if (seen.bar.at(-1) !== width) seen.bar.push(width);
        const image = panel.querySelector(".imagine-viewer > img");
        if (image && image.complete && image.naturalWidth > 1 && image.src !== seen.last) {
            seen.last = image.src;
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 16;
            canvas.getContext("2d").drawImage(image, 0, 0, 16, 16);
            seen.pictures.push(canvas.toDataURL());
        }
        if (seen.on) requestAnimationFrame(look);
    };
    look();
}"""


def test_run_all_leaves_pictures_two_panels_and_a_chart_and_no_error(page: Page) -> None:
    assert page.locator(ERRORS).count() == 0
    panels = page.locator(".imagine")
    assert panels.count() == 2
    for panel in panels.all():
        assert panel.locator(".imagine-tile").count() == 1
        assert shown_by(panel.locator(LARGE)).size == (128, 128)
    chart = page.locator(".jp-CodeCell", has_text="chart(loads)").locator("img")
    assert shown_by(chart).width > 400
    page.screenshot(path=screenshot("tour"))


def test_a_prompt_becomes_a_picture_step_by_step(panel: Locator, page: Page) -> None:
    fill(panel, "Prompt", "a red circle on a yellow background")
    opened(panel, "More settings")
    fill(panel, "Steps", "60")
    panel.evaluate(WATCH)
    button(panel, "Generate").click()
    panel.get_by_text(re.compile(r"^step \d+ of 60")).wait_for()  # until then the line speaks of the picture before
    panel.get_by_text(re.compile(r"^1 picture in")).wait_for()
    seen: dict[str, Any] = page.evaluate("seen.on = false, seen")
    rising = seen["bar"][seen["bar"].index(min(seen["bar"])) :]
    assert len(rising) > 5
    assert rising == sorted(rising)
    assert len(set(seen["pictures"])) > 3
    names = nearest_colours(shown_by(panel.locator(LARGE)))
    assert (names[4, 4], names[64, 64]) == ("yellow", "red")
    panel.screenshot(path=screenshot("generated"))


def test_enter_generates_and_stop_stops_while_other_cells_run(panel: Locator, page: Page) -> None:
    opened(panel, "More settings")
    fill(panel, "Steps", "150")
    tiles = panel.locator(".imagine-tile").count()
    panel.get_by_label("Prompt", exact=True).first.press("Enter")
    panel.get_by_text(re.compile(r"^step \d+ of 150")).wait_for()
    cell = page.locator(".jp-CodeCell", has_text="print(HF_HUB_CACHE)")
    before = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(rf"^\[\d+\]:$(?<!{re.escape(before)})"))
    expect(panel.get_by_text(re.compile(r"^step \d+ of 150"))).to_be_visible()
    button(panel, "Stop").click()
    panel.get_by_text(re.compile(r"^Stopped after step \d+ of 150")).wait_for()
    assert panel.locator(".imagine-tile").count() == tiles


def test_the_settings_of_a_picture_in_the_gallery_are_used_again(panel: Locator) -> None:
    fill(panel, "Prompt", "something else")
    panel.locator(".imagine-tile button").last.click()
    expect(panel.locator(".imagine-facts")).to_contain_text("a red heart on a yellow background")  # the first, made by Run All
    facts = dict(
        zip(panel.locator(".imagine-facts th").all_inner_texts(), panel.locator(".imagine-facts td").all_inner_texts(), strict=True)
    )
    button(panel, "Use settings").click()
    expect(panel.get_by_label("Prompt", exact=True).first).to_have_value(facts["Prompt"])
    expect(panel.get_by_label("Seed", exact=True).first).to_have_value(facts["Seed"])
    expect(panel.get_by_label("Steps", exact=True).first).to_have_value(facts["Steps"])


def test_a_wrong_value_is_said_where_it_was_typed(panel: Locator) -> None:
    opened(panel, "More settings")
    fill(panel, "Width", "100")
    expect(panel.get_by_role("alert")).to_have_text("must be a multiple of 8")
    expect(button(panel, "Generate")).to_be_disabled()
    fill(panel, "Width", "128")
    expect(button(panel, "Generate")).to_be_enabled()


def test_two_settings_are_compared_in_one_picture(panel: Locator) -> None:
    fill(panel, "Prompt", "a white star on a blue background")
    opened(panel, "Compare two settings")
    across, down = panel.get_by_label("Values", exact=True).all()
    for field, values in ((across, "1, 3"), (down, "5, 10")):
        field.fill(values)
        field.press("Tab")
    button(panel, "Compare").click()
    panel.get_by_text(re.compile(r"^4 pictures in")).wait_for()
    names = nearest_colours(shown_by(panel.locator(".imagine-sheet img")))
    assert (names == "blue").sum() > 4 * 128 * 128 / 3
    panel.screenshot(path=screenshot("compared"))


def test_a_service_that_was_stopped_is_said_with_the_command_that_starts_it(page: Page) -> None:
    served = page.locator(".imagine").nth(1)
    button(served, "Generate").click()
    expect(served.get_by_role("alert")).to_contain_text("start it with `serve run app:entrypoint`")
    served.screenshot(path=screenshot("stopped-service"))


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [900, 1400])
def test_the_panel_fits_and_can_be_read(panel: Locator, page: Page, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 1200})
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {theme}")
    page.locator(f'body[data-jp-theme-name="JupyterLab {theme}"]').wait_for(state="attached")
    page.locator("body:not(.jp-mod-theme-loading)").wait_for(state="attached")
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    panel.screenshot(path=screenshot(f"panel-{theme.lower()}-{width}"))
    assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth + 1")
    label = panel.get_by_text("Prompt", exact=True).first
    assert label.evaluate(CONTRAST) > 4.5  # what WCAG asks of text


CONTRAST = """label => {
    const light = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
        const [r, g, b] = parts.map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    let below = label;
    while (/rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(below).backgroundColor)) below = below.parentElement;
    const [one, other] = [getComputedStyle(label).color, getComputedStyle(below).backgroundColor].map(light).sort((a, b) => b - a);
    return (one + .05) / (other + .05);
}"""
