"""README.ipynb in JupyterLab in a headless Chromium, run once from top to bottom; the tests then use its panels.

Screenshots are left in .screenshots/.
"""

import base64
import os
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page

from scripts.browser import HOW_TO_GET_ONE, Lab, chromium, headless, lab, run_all
from tests.conftest import REPOSITORY

SCREENSHOTS = REPOSITORY / ".screenshots"
RUN_TIMEOUT_S = 600.0
PATIENCE_MS = 30_000
ERRORS = '[data-mime-type="application/vnd.jupyter.error"]'
UNFINISHED = "cells => cells.filter(cell => !/^\\[\\d+\\]:$/.test(cell.textContent.trim())).length"


@pytest.fixture(scope="module")  # Playwright keeps an event loop running while it lives
def running_lab() -> Iterator[Lab]:
    if chromium() is None:
        missing = f"no Chromium found; get one by: {HOW_TO_GET_ONE}"
        pytest.fail(missing) if os.environ.get("NEED_CHROMIUM") else pytest.skip(missing)
    with lab() as running:
        yield running


@pytest.fixture(scope="module")  # Playwright keeps an event loop running while it lives
def page(running_lab: Lab) -> Iterator[Page]:
    """The notebook after Run All."""
    with headless() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(PATIENCE_MS)
        running_lab.open(page, "README.ipynb")
        run_all(page)
        _await_end(page)
        yield page


def _await_end(page: Page) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    while prompts.evaluate_all(UNFINISHED):
        errors = page.locator(ERRORS).all_inner_texts()
        if errors or time.monotonic() > deadline:
            page.screenshot(path=screenshot("run-failed"))
            pytest.fail("\n".join(errors) or f"Run All was not over after {RUN_TIMEOUT_S:g} s")
        page.wait_for_timeout(500)


@pytest.fixture
def panel(page: Page) -> Iterator[Locator]:
    """The one on the engine, with nothing on its way."""
    panel = page.locator(".imagine").nth(0)
    panel.scroll_into_view_if_needed()
    yield panel
    stop = panel.get_by_role("button", name="Stop", exact=True).first
    if stop.is_enabled():
        stop.click()
    panel.locator(".imagine-actions").first.get_by_text(" in ").or_(panel.get_by_text("Stopped after")).first.wait_for()


def screenshot(name: str) -> Path:
    SCREENSHOTS.mkdir(exist_ok=True)
    return SCREENSHOTS / f"{name}.png"


def shown_by(image: Locator) -> Image.Image:
    """The pixels that the page shows, in the picture's own size."""
    data: str = image.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png").split(",")[1];
        }"""
    )
    return Image.open(BytesIO(base64.b64decode(data))).convert("RGB")


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name, exact=True).first


def fill(panel: Locator, label: str, value: str) -> None:
    field = panel.get_by_label(label, exact=True).first
    field.fill(value)
    field.press("Tab")


def opened(panel: Locator, title: str) -> None:
    """Open a part of the panel that is folded away."""
    header = panel.get_by_text(title, exact=True)
    if "jp-mod-active" not in (header.locator("..").get_attribute("class") or "") and not _contents(header).is_visible():
        header.click()
        _contents(header).wait_for()


def _contents(header: Locator) -> Locator:
    return header.locator("xpath=ancestor::*[contains(@class, 'Collapse')][last()]").locator(".widget-vbox").first
