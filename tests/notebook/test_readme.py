"""README.ipynb and its render. That the notebook runs is tested by nbmake: `pytest README.ipynb`."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from app.settings import Settings
from scripts import readme
from tests.conftest import REPOSITORY

SCHEDULER_LINE = (
    '    scheduler: Annotated[str | None, Field(max_length=80, description="A noise scheduler of diffusers that fits the model")] = None\n'
)


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(readme.NOTEBOOK, as_version=4)


def test_the_notebook_is_stripped_and_readme_md_is_its_render() -> None:
    assert readme.main(["--check"]) == 0


def test_code_cells_are_short_and_have_prose_before_them(notebook: nbformat.NotebookNode) -> None:
    for before, cell in pairwise(notebook.cells):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15
            assert before.cell_type == "markdown"
            prose = [line for line in before.source.splitlines() if not line.startswith(("#", "!["))]
            assert 20 <= len(" ".join(prose).split()) <= 80, before.source


def test_nothing_has_to_be_pasted_in(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        assert "TODO" not in cell.source
        assert "input(" not in cell.source


def test_every_setting_is_in_the_table(notebook: nbformat.NotebookNode) -> None:
    appendix = next(cell.source for cell in notebook.cells if cell.source.startswith("## Appendix: settings"))
    assert set(re.findall(r"^\| `(\w+)` \|", appendix, re.MULTILINE)) == set(Settings.model_fields)


def test_every_picture_and_file_that_is_named_exists(notebook: nbformat.NotebookNode) -> None:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", prose)
    files = re.findall(r"`((?:app|scripts|tests)/[\w./]*)`", prose)
    assert {".readme/panel.png", ".readme/drawn.png", ".readme/clients.png"} <= set(pictures)
    assert {"app/schemas.py", "scripts/lab.sh"} <= set(files)
    assert [name for name in pictures + files if not (REPOSITORY / name).exists()] == []


def test_an_app_that_cannot_start_fails_the_notebook_with_its_own_log(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    """With a folder that holds no model, from the cells that setting up and starting take."""
    needed = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and ("MODEL, DEVICE = " in cell.source or "entrypoint(Settings(" in cell.source)
    ]
    assert len(needed) == 2
    needed[1].source = needed[1].source.replace("model=MODEL", f"model={str(tmp_path)!r}")
    notebook.cells = needed
    with pytest.raises(CellExecutionError) as failed:
        NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    assert f"CheckpointUnavailable: the folder {str(tmp_path)!r} holds no text-to-image checkpoint" in str(failed.value)
    assert "in _load_pipeline" in str(failed.value)  # its log, not only its last words


def test_the_parameter_that_the_tour_adds_works_end_to_end(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    """Its line goes into a copy of the app, where query and JSON take it, its rule holds, and the picture and its facts have it."""
    cell = next(cell.source for cell in notebook.cells if "a parameter, end to end" in cell.source)
    (line,) = re.findall(r"```python\n(    \w+: Annotated.*\n)```", cell)
    for folder in ("app", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    schemas = tmp_path / "app" / "schemas.py"
    before = schemas.read_text()
    assert before.count(SCHEDULER_LINE) == 1
    schemas.write_text(before.replace(SCHEDULER_LINE, SCHEDULER_LINE + line))
    script = """
import requests
from app import png
from app.engine import checkpoint
from app.engine.engine import ImageEngine
from tests.test_client import EngineBackend, serving

asked = {"prompt": "a star", "seed": 1, "num_inference_steps": 2}
engine = ImageEngine(checkpoint.load("tiny"))
with serving(EngineBackend(engine)) as url:
    plain, other = (requests.get(f"{url}/imagine", asked | {"guidance_rescale": rescale}).content for rescale in (0.0, 0.7))
    assert requests.post(f"{url}/imagine", json=asked | {"guidance_rescale": 0.7}).content == other
    refused = requests.get(f"{url}/imagine", asked | {"guidance_rescale": 2})
assert (refused.status_code, refused.json()["details"][0]["field"]) == (422, "guidance_rescale")
assert png.decode(other)[1].request.guidance_rescale == 0.7
assert png.decode(plain)[0].tobytes() != png.decode(other)[0].tobytes()
engine.close()
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
