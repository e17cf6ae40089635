"""Strip README.ipynb of its outputs, write the table of settings into it, and render README.md from it.

python -m scripts.readme            # write both
python -m scripts.readme --check    # only say, by the exit status, whether they are up to date
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from app.settings import Settings

REPOSITORY = Path(__file__).parent.parent
NOTEBOOK, RENDERED = REPOSITORY / "README.ipynb", REPOSITORY / "README.md"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def settings_table() -> str:
    """Markdown: every field of `Settings` with its default and what it means."""
    lines = ["| setting | default | what it decides |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {str(field.description).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def with_settings(source: str) -> str:
    """The markdown with the table between its two marks, if it has them."""
    if BEGIN not in source:
        return source
    before, rest = source.split(BEGIN)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{rest.split(END)[1]}"


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is kept in git: no outputs, no counts, no trace of the machine it ran on."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {name: value for name, value in cell.metadata.items() if name == "tags"}
        if cell.cell_type == "markdown":
            cell.source = with_settings(cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def rendered(notebook: nbformat.NotebookNode) -> str:
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    return str(body).strip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if either file is out of date")
    args = parser.parse_args(argv)
    notebook = stripped(nbformat.read(NOTEBOOK, as_version=4))
    wanted = {NOTEBOOK: nbformat.writes(notebook, indent=1) + "\n", RENDERED: rendered(notebook)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if not args.check:
        for path in stale:
            path.write_text(wanted[path])
    for path in stale:
        print(f"{path.name} {'is out of date: python -m scripts.readme' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
