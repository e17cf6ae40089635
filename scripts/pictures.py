"""Make the pictures of README.md anew, in .readme/: what the bundled model draws, also beside what it learned from, the panel, the chart of
clients at once.

    python -m scripts.pictures                # all of them
    python -m scripts.pictures drawn panel    # some of: drawn, sheet, denoising, clients, panel

The panel needs a Chromium; the chart should be made on a machine that is otherwise idle.
"""

import argparse
import sys
from collections.abc import Callable
from io import BytesIO

import nbformat
from PIL import Image
from playwright.sync_api import Page

from app.client import ImagineClient
from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.explorer import chart, measure, side_by_side
from app.explorer.examples import TINY
from app.schemas import ImageRequest, Progress
from scripts import serving
from scripts.browser import REPOSITORY, headless, lab, run_all
from scripts.readme import METADATA
from scripts.tiny.samples import comparison

FOLDER = REPOSITORY / ".readme"
HEART = ImageRequest(prompt=TINY[0], seed=1)
PANEL_CELL = """
from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer

explorer = PromptExplorer(ImageEngine(checkpoint.load("tiny")))
explorer.form.count.value = 6
explorer
"""


def drawn(engine: ImageEngine) -> Image.Image:
    return side_by_side([engine.generate(ImageRequest(prompt=prompt, seed=1)).image for prompt in TINY], height=160)


def sheet(engine: ImageEngine) -> Image.Image:
    return comparison(engine).reduce(2)


def denoising(engine: ImageEngine) -> Image.Image:
    seen: list[Progress] = []
    made = engine.generate(HEART, seen.append, previews=True)
    previews = [Image.open(BytesIO(progress.preview)) for progress in seen[:12:2] if progress.preview]
    return side_by_side([*previews, made.image], height=128)


def clients(engine: ImageEngine) -> Image.Image:
    """Of the served app, as in the notebook."""
    file = BytesIO()
    with serving.cluster() as address, serving.served(address) as url:
        chart(measure(ImagineClient(url), HEART)).savefig(file, format="png", dpi=90)
    return Image.open(file)


def panel(engine: ImageEngine) -> Image.Image:
    """As JupyterLab shows it, with six pictures made."""
    with headless() as browser, lab() as running:
        cells = [nbformat.v4.new_code_cell(PANEL_CELL.strip())]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), running.folder / "panel.ipynb")
        page = browser.new_page(viewport={"width": 1400, "height": 1400}, device_scale_factor=1)
        running.open(page, "panel.ipynb")
        run_all(page)
        return Image.open(BytesIO(_with_pictures(page)))


def _with_pictures(page: Page) -> bytes:
    page.get_by_role("button", name="Generate", exact=True).click(timeout=120_000)
    page.get_by_text("6 pictures in").wait_for(timeout=120_000)
    return page.locator(".imagine").screenshot()


MAKERS: dict[str, Callable[[ImageEngine], Image.Image]] = {maker.__name__: maker for maker in (drawn, sheet, denoising, clients, panel)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MAKERS, []], help="default: all")
    args = parser.parse_args(argv)
    FOLDER.mkdir(exist_ok=True)
    engine = ImageEngine(checkpoint.load("tiny"))
    for name in args.names or MAKERS:
        MAKERS[name](engine).save(FOLDER / f"{name}.png", optimize=True)
        print(FOLDER / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
