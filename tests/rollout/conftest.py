"""The rollout against a stand-in for the control plane, and a small repository to roll out."""

import copy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.release.cli import main
from tests.conftest import REPOSITORY
from tests.rollout.stand_in import CLI_TOKEN, StandIn, running

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
UPLOADED = "app requirements.txt service.yaml .container"
PINNED = ("--set", "model=owner/name", "--set", f"revision={'0' * 40}")
TINY = tuple(
    part
    for field in ("model=tiny", "revision=bundled", "device=cpu", "cpu_threads=1", "max_replicas=1", "max_num_inference_steps=8")
    for part in ("--set", field)
)
QUICK = ("--poll-s", "0.01", "--timeout-s", "5")

Rollout = Callable[..., int]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    with running() as stand_in:
        log_in(monkeypatch, stand_in, tmp_path)
        yield stand_in


def log_in(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn, home: Path) -> None:
    monkeypatch.setenv("ANYSCALE_HOST", stand_in.url)
    monkeypatch.setenv("ANYSCALE_CLI_TOKEN", CLI_TOKEN)
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean checkout with one commit of what this repository rolls out."""
    folder = tmp_path_factory.mktemp("checkout")
    files = subprocess.run(["git", "ls-files", "-z", *UPLOADED.split()], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in [*files.stdout.strip("\0").split("\0"), *new_files()]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([*GIT, "init", "-q"], cwd=folder, check=True)
    commit(folder)
    return folder


def new_files() -> list[str]:
    command = ["git", "ls-files", "--others", "--exclude-standard", "-z", *UPLOADED.split()]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def commit(folder: Path) -> str:
    """The name of the version that the folder's files are then."""
    subprocess.run([*GIT, "add", "-A"], cwd=folder, check=True)
    subprocess.run([*GIT, "commit", "-q", "--allow-empty", "-m", "a change"], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def rollout(stand_in: StandIn, checkout: Path) -> Rollout:
    """Runs `rollout.py deploy` on the checkout; gives the exit status."""

    return lambda *arguments: deploy(checkout, *arguments)


def deploy(checkout: Path, *arguments: str) -> int:
    return main(["deploy", "--file", str(checkout / "service.yaml"), *PINNED, *QUICK, *arguments])


@pytest.fixture(scope="session")
def deployed_old(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    with running() as stand_in, pytest.MonkeyPatch.context() as monkeypatch:
        log_in(monkeypatch, stand_in, tmp_path_factory.mktemp("home"))
        assert deploy(checkout, "--version", "old") == 0
    return stand_in


@pytest.fixture
def running_old(stand_in: StandIn, deployed_old: StandIn) -> StandIn:
    """The version `old` serves, and nothing is recorded yet."""
    stand_in.platform.primary, stand_in.platform.state = copy.deepcopy(deployed_old.platform.primary), "RUNNING"
    stand_in.uploads, stand_in.compute = dict(deployed_old.uploads), dict(deployed_old.compute)
    stand_in.containerfiles = list(deployed_old.containerfiles)
    return stand_in
