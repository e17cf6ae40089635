"""The command line itself: what needs no account, what is refused, and what Ctrl-C does."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from scripts.release.cli import main
from scripts.release.outcome import Exit
from scripts.release.package import version_name
from scripts.release.serve_config import serve_config
from scripts.release.service import read
from tests.rollout.conftest import PINNED, Rollout, commit
from tests.rollout.stand_in import StandIn

SECRET = "a-token-of-a-good-length"


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANYSCALE_CLI_TOKEN", raising=False)
    monkeypatch.setenv("ANYSCALE_HOST", "http://127.0.0.1:1")  # whoever calls it notices
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_account")
def test_a_plan_needs_no_account_and_tells_what_would_be_deployed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--file", str(checkout / "service.yaml"), "--canary", "10,50"]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert told["model"] == "sd2 at main on cuda"
    assert told["replicas"] == "1 to 99; g5.xlarge, 0 to 99 nodes"
    assert told["image"] == "built from .container/Containerfile on anyscale/ray:2.60.0-slim-py311-cu128"
    assert told["traffic"] == "moved to 10 %, 50 %, 100 %, checked at each step"
    assert told["running"].startswith("not asked: there is no token")


def test_with_a_token_a_plan_also_tells_what_would_change(
    rollout: Rollout, checkout: Path, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    sets = [part for field in ("max_batch_size=4", "initial_replicas=20", f"tokens={SECRET}") for part in ("--set", field)]
    assert main(["plan", "--file", str(checkout / "service.yaml"), *PINNED, *sets]) == 0
    told = capsys.readouterr().out
    assert "replicas  1 to 99, 20 at first;" in told
    assert SECRET not in told
    assert "running   RUNNING, primary old RUNNING 100 %" in told
    assert "change    applications[0].args.max_batch_size: 8 -> 4" in told
    assert running_old.changes() == []


@pytest.mark.usefixtures("no_account")
def test_a_plan_takes_a_compute_config_by_its_name(tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = yaml.safe_load((checkout / "service.yaml").read_text()) | {"compute_config": "ours:3"}
    for folder in (".container", "app"):
        shutil.copytree(checkout / folder, tmp_path / folder)
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert main(["plan", "--file", str(path), "--version", "mine"]) == 0
    assert "replicas  1 to 99; nodes as in ours:3" in capsys.readouterr().out


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("command", ["plan", "deploy", "status", "rollback", "terminate"])
def test_a_dry_run_of_every_command_calls_nobody(checkout: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--file", str(checkout / "service.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out


@pytest.mark.usefixtures("no_account")
def test_without_a_command_it_deploys(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--file", str(checkout / "service.yaml"), "--dry-run", "--version", "mine"]) == 0
    assert "would deploy mine" in capsys.readouterr().out


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--set", "modle=tiny"], Exit.REFUSED, "modle: Extra inputs are not permitted"),
        (["--target", "ray", "--canary", "50"], Exit.REFUSED, "--canary divides traffic, which only Anyscale does"),
        (["--set", "max_replicas=many"], Exit.REFUSED, "max_replicas"),
        (["--set", "tiny"], Exit.REFUSED, "--set takes FIELD=VALUE, got 'tiny'"),
        (["--canary", "50,10"], Exit.REFUSED, "each higher than the one before, got '50,10'"),
        (["--no-upload"], Exit.REFUSED, "--no-upload is for --target ray"),
        (["--env", "NO_SUCH_THING"], Exit.REFUSED, "--env NO_SUCH_THING: there is no such variable here"),
        (["--env", "NAME=a-secret"], Exit.REFUSED, "in your shell, got NAME=***."),
        (["--env", "IMAGINE_TOKENS"], Exit.REFUSED, "pass it by --set"),
        (["--env", "HOME", "--target", "kuberay"], Exit.REFUSED, "--env would print the value"),
        (["--canary", "ten"], Exit.REFUSED, "--canary takes percentages such as 10,50, got 'ten'"),
        (["--version", "no spaces"], Exit.REFUSED, "--version must be"),
        (["--requests", "3"], Exit.USAGE, "--requests"),
        (["--unknown"], Exit.USAGE, "No such option"),
        ([], Exit.REFUSED, "Credentials not found"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_called(
    checkout: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: Exit, text: str
) -> None:
    assert main(["deploy", "--file", str(checkout / "service.yaml"), *PINNED, *arguments]) == status
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "name: imagine",
        "name: imagine\napplications: [null]",
        "name: imagine\napplications: [{args: [1]}]",
        "applications: [{import_path: a:b}]",
        "applications: [{import_path: a:b}, {import_path: c:d}]",
        "a: [",
        "name: x\nsurprise: 1",
    ],
)
def test_a_file_that_is_no_service_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(content)
    assert main(["plan", "--file", str(path), "--version", "mine"]) == Exit.REFUSED
    assert "service.yaml" in capsys.readouterr().err


@pytest.mark.usefixtures("no_account")
def test_a_file_that_does_not_lie_beside_the_application_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkout / "production" / "service.yaml"
    path.parent.mkdir()
    fields = yaml.safe_load((checkout / "service.yaml").read_text()) | {"containerfile": "../.container/Containerfile"}
    path.write_text(yaml.safe_dump(fields))
    try:
        assert main(["plan", "--file", str(path)]) == Exit.REFUSED
        assert "app/__init__.py would not be uploaded" in capsys.readouterr().err
        assert main(["deploy", "--file", str(path), "--dry-run", "--target", "ray", "--no-upload"]) == 0
        assert "upload    nothing" in capsys.readouterr().out
    finally:
        shutil.rmtree(path.parent)


def test_a_version_is_named_after_its_commit_and_changes_in_none_are_refused_unless_allowed(
    checkout: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--file", str(checkout / "service.yaml"), *PINNED, "--poll-s", "0.01"]
    name = commit(checkout)
    assert version_name(checkout, None, allow_dirty=False) == name
    assert main(["deploy", *file]) == 0
    stray = checkout / "app" / "stray.py"
    stray.write_text("")
    try:
        assert main(["deploy", *file]) == Exit.REFUSED
        assert "there are changes that are in no commit (app/stray.py)" in capsys.readouterr().err
        assert main(["deploy", *file, "--version", "mine"]) == Exit.REFUSED
        assert main(["deploy", *file, "--allow-dirty"]) == 0
    finally:
        stray.unlink()
    first, second = (applied["version"] for applied in stand_in.applied())
    assert re.fullmatch(f"{name}-with-[0-9a-f]{{8}}", first)
    assert re.fullmatch(f"{name}-dirty-[0-9a-f]{{8}}-with-[0-9a-f]{{8}}", second)


def test_the_same_commit_with_other_settings_is_another_version(checkout: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ["--file", str(checkout / "service.yaml"), *PINNED, "--poll-s", "0.01"]
    commit(checkout)
    for value in ("one-token", "another-token"):
        monkeypatch.setenv("HF_TOKEN", value)
        assert main(["deploy", *file, "--env", "HF_TOKEN"]) == 0
    for more in ([], ["--set", "max_batch_size=4"], ["--quick"]):
        assert main(["deploy", *file, *more]) == 0
    versions = [applied["version"] for applied in stand_in.applied()]
    assert len(set(versions)) == len(versions) == 5


@pytest.mark.usefixtures("no_account")
def test_without_git_a_plan_names_the_version_after_its_files_and_a_deploy_wants_a_name(
    tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(checkout, plain, ignore=shutil.ignore_patterns(".git", "tiny"))
    assert main(["plan", "--file", str(plain / "service.yaml")]) == 0
    assert "service   imagine, version files-" in capsys.readouterr().out
    assert main(["deploy", "--file", str(plain / "service.yaml"), *PINNED]) == Exit.REFUSED
    assert "pass --version NAME" in capsys.readouterr().err


def test_status_tells_versions_and_shares_and_no_secret(running_old: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["status", "--file", str(checkout / "service.yaml")]) == 0
    assert capsys.readouterr().out == f"imagine: RUNNING, primary old RUNNING 100 % at {running_old.url}/served\n"


def test_rollback_stops_the_rollout_that_is_going_on_and_nothing_else(
    running_old: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rollback", "--file", str(checkout / "service.yaml"), "--poll-s", "0.01"]
    assert main(command) == Exit.REFUSED
    assert "no rollout of imagine is going on" in capsys.readouterr().err
    platform = running_old.platform
    assert platform.primary is not None
    platform.apply(platform.primary.applied | {"version": "theirs", "canary_percent": 30})
    assert main([*command, "--dry-run"]) == 0
    assert running_old.changes() == []
    assert main(command) == 0
    assert running_old.changes() == ["roll back"]
    assert "old serves all requests again" in capsys.readouterr().err


def test_terminate_asks_for_a_yes(running_old: StandIn, checkout: Path) -> None:
    command = ["terminate", "--file", str(checkout / "service.yaml")]
    assert main(command) == Exit.REFUSED
    assert running_old.changes() == []
    assert main([*command, "--yes"]) == 0
    assert running_old.changes() == ["terminate"]


def test_a_cluster_that_wants_a_token_says_how_to_give_one(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--target", "ray", "--address", stand_in.url]) == Exit.REFUSED
    assert "set RAY_AUTH_MODE=token" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_said(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--target", "ray", "--address", f"http://127.0.0.1:{free_port}"]) == Exit.UNREACHABLE
    assert f"no Ray dashboard answers at http://127.0.0.1:{free_port}" in capsys.readouterr().err


def test_kuberay_prints_a_manifest_of_the_same_application(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--target",
        "kuberay",
        "--file",
        str(checkout / "service.yaml"),
        *PINNED,
        "--version",
        "mine",
        "--set",
        "initial_replicas=20",
    ]
    assert main([*command, "--image", "registry/imagine:mine", "--working-dir", "https://host/code.zip"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    jsonschema.validate(manifest, RAY_SERVICE)
    served = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    (application,) = served["applications"]
    assert (application["import_path"], application["args"]["version"]) == ("app:entrypoint", "mine")
    assert application["runtime_env"] == {"working_dir": "https://host/code.zip"}
    assert {entry["max_surge_percent"] for entry in application["deployments"]} == {100}
    (workers,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (0, 20, 99)


def test_what_stands_beside_the_application_goes_with_it_to_any_cluster(checkout: Path) -> None:
    service = read(checkout / "service.yaml", "mine")
    application = service.application | {"runtime_env": {"env_vars": {"HF_HOME": "/models"}}}
    fields = service.fields | {"applications": [application], "env_vars": {"HF_TOKEN": "t", "HF_HOME": "/"}, "requirements": ["x==1"]}
    (configured,) = serve_config(replace(service, fields=fields), "s3://code.zip")["applications"]
    assert configured["runtime_env"] == {
        "env_vars": {"HF_TOKEN": "t", "HF_HOME": "/models"},
        "pip": ["x==1"],
        "working_dir": "s3://code.zip",
    }


def closed(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
CONTAINER = closed(["name", "image"], name=TEXT, image=TEXT, resources=closed([], limits={"type": "object"}, requests={"type": "object"}))
POD = closed(["spec"], spec=closed(["containers"], containers={"type": "array", "minItems": 1, "items": CONTAINER}))
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
WORKERS = closed(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    rayStartParams=PARAMETERS,
    template=POD,
)
RAY_SERVICE = closed(  # what the manifest uses of the resource's definition
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=closed(["name"], name=TEXT, labels=PARAMETERS, annotations=PARAMETERS),
    spec=closed(
        ["serveConfigV2", "rayClusterConfig"],
        serveConfigV2=TEXT,
        upgradeStrategy=closed(["type"], type={"enum": ["NewCluster", "None"]}),
        rayClusterConfig=closed(
            ["headGroupSpec"],
            rayVersion=TEXT,
            enableInTreeAutoscaling={"type": "boolean"},
            headGroupSpec=closed(["template"], rayStartParams=PARAMETERS, template=POD),
            workerGroupSpecs={"type": "array", "items": WORKERS},
        ),
    ),
)
