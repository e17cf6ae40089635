"""README.ipynb and its render. That the notebook runs is tested by nbmake: `pytest README.ipynb`."""

from itertools import pairwise

import nbformat
import pytest

from scripts import readme


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(readme.NOTEBOOK, as_version=4)


def test_the_notebook_is_stripped_and_readme_md_is_its_render() -> None:
    assert readme.main(["--check"]) == 0


def test_code_cells_are_short_and_have_prose_before_them(notebook: nbformat.NotebookNode) -> None:
    cells = notebook.cells
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15
            assert before.cell_type == "markdown"


def test_nothing_has_to_be_pasted_in(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        assert "TODO" not in cell.source
        assert "input(" not in cell.source
