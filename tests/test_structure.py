"""The house rules that a machine can hold."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

APP = sorted((REPOSITORY / "app").rglob("*.py"))
MAY_IMPORT = {
    "app": {"settings", "deployment", "routes"},
    "settings": {"schemas"},
    "schemas": set(),
    "png": {"schemas"},
    "bearer": set(),
    "client": {"bearer", "png", "schemas"},
    "editing": {"schemas"},
    "engine": {"editing", "png", "schemas", "engine"},
    "autoscaling": set(),
    "deployment": {"autoscaling", "engine", "schemas", "settings"},
    "startup": set(),
    "explorer": {"schemas", "png", "explorer"},
    "routes": {"autoscaling", "editing", "png", "schemas", "settings", "routes"},
}


def room(path: Path) -> str:
    """`app/engine/engine.py` is in the room `engine`, `app/png.py` in `png`."""
    first = path.relative_to(REPOSITORY / "app").parts[0]
    return "app" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", APP, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    inside = {name.split(".")[1] for name in imported_modules(ast.parse(path.read_text())) if name.startswith("app.")}
    assert inside - MAY_IMPORT[room(path)] == set()


def test_the_app_and_its_client_load_neither_torch_nor_ray() -> None:
    script = "import sys, app, app.client; print({'torch', 'ray', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True).strip() == "set()"


def test_the_explorer_knows_nothing_of_torch_ray_or_http() -> None:
    script = "import sys, app.explorer; print({'torch', 'ray', 'diffusers', 'requests', 'fastapi'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True).strip() == "set()"


def test_only_the_settings_read_the_environment() -> None:
    """`startup` adds to what the environment excepts from its proxies."""

    def words(path: Path) -> set[str]:
        return {getattr(node, key, "") for node in ast.walk(ast.parse(path.read_text())) for key in ("attr", "id", "name")}

    readers = {room(path) for path in APP if {"environ", "getenv"} & words(path)}
    assert readers == {"settings", "startup"}


def test_no_file_is_longer_than_300_lines() -> None:
    tracked = subprocess.check_output(["git", "ls-files", "*.py", "*.sh"], cwd=REPOSITORY, text=True).split()
    assert {name for name in tracked if len((REPOSITORY / name).read_text().splitlines()) > 300} == set()
