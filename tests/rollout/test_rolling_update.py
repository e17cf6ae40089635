"""`rollout.py --target ray` on a real cluster, while callers never stop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engine.engine import ImageEngine
from scripts.release.cli import main
from scripts.release.outcome import Exit
from tests.rollout import local_cluster
from tests.rollout.conftest import TINY
from tests.rollout.load import Load
from tests.rollout.local_cluster import Cluster

UNLOADABLE = ("--set", "model=nobody/nothing", "--set", f"revision={'0' * 40}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with local_cluster.cluster() as running:
        yield running


@pytest.fixture(scope="module")
def old(cluster: Cluster, checkout: Path) -> Cluster:
    """The version `old` serves."""
    assert rollout(cluster, checkout, "old") == Exit.DONE
    return cluster


def rollout(cluster: Cluster, checkout: Path, version: str, *more: str) -> int:
    place = ["--target", "ray", "--address", cluster.address, "--url", cluster.url, "--file", str(checkout / "service.yaml")]
    return main(["deploy", *place, "--version", version, "--poll-s", "0.2", "--timeout-s", "200", *TINY, *more])


def test_a_version_that_cannot_load_its_model_is_taken_back_and_the_old_one_never_stopped(
    old: Cluster, checkout: Path, engine: ImageEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    with Load(old.url, engine) as load:
        assert rollout(old, checkout, "broken", *UNLOADABLE) == Exit.TAKEN_BACK
    assert (load.failed(), load.wrong()) == ([], [])
    assert len(load.answers) > 10
    said = capsys.readouterr().err
    assert "broken failed: it is DEPLOY_FAILED" in said
    assert "the checkpoint 'nobody/nothing' is neither a folder nor cached" in said
    assert "model=tiny" in said
    assert "taken back: old serves all requests again" in said
    assert load.versions()[-1] == "old"


def test_an_update_loses_no_request_and_makes_no_wrong_picture(
    old: Cluster, checkout: Path, engine: ImageEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    with Load(old.url, engine) as load:
        assert rollout(old, checkout, "new") == Exit.DONE
    assert (load.failed(), load.wrong()) == ([], [])
    versions = load.versions()
    assert (versions[0], versions[-1]) == ("old", "new")
    assert {"old", "new"} == set(versions)
    assert "done: new serves all requests" in capsys.readouterr().err
    with capsys.disabled():
        print(f"\n{len(versions)} answers, longest time between two {load.gap():.2f} s, slowest {load.slowest():.2f} s")
