"""What is declared to a Ray cluster, whose set of applications is always declared whole."""

from typing import Any

import pytest

from scripts.release import ray_target
from scripts.release.outcome import Refused
from scripts.release.ray_target import RayTarget
from scripts.release.target import Version

OURS, THEIRS = {"name": "imagine", "args": {"version": "new"}}, {"name": "other", "args": {}}


class Cluster:
    """Two applications of it are running."""

    def __init__(self, address: str) -> None:
        self.declared: list[list[dict[str, Any]]] = []

    def get_serve_details(self) -> dict[str, Any]:
        running = {"status": "RUNNING", "deployments": {}}
        return {"applications": {one["name"]: running | {"deployed_app_config": one} for one in (OURS, THEIRS)}}

    def deploy_applications(self, config: dict[str, Any]) -> None:
        self.declared.append(config["applications"])


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> RayTarget:
    monkeypatch.setattr(ray_target, "ServeSubmissionClient", Cluster)
    return RayTarget("imagine", "http://127.0.0.1:8265", "http://127.0.0.1:8000")


def test_ending_ours_leaves_the_applications_of_others(target: RayTarget) -> None:
    target.terminate()
    assert target._cluster.declared == [[THEIRS]]


def test_putting_a_version_back_leaves_the_applications_of_others(target: RayTarget) -> None:
    old = OURS | {"args": {"version": "old"}}
    target.put_back(Version("old", "RUNNING", None, deployed=old))
    assert target._cluster.declared == [[THEIRS, old]]


def test_an_application_that_no_file_describes_is_not_replaced_by_none(target: RayTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    details = target._cluster.get_serve_details()
    details["applications"]["imagine"]["deployed_app_config"] = None  # as after `serve.run`
    monkeypatch.setattr(target._cluster, "get_serve_details", lambda: details)
    observed = target.observe()
    assert observed is not None
    assert observed.primary is not None
    with pytest.raises(Refused, match=r"started by `serve.run`"):
        target.put_back(observed.primary)
    assert target._cluster.declared == []
