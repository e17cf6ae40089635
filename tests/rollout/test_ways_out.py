"""What a person is told to type next is about the service that they rolled out, and no other."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.release import cli
from scripts.release.cli import main
from scripts.release.options import DASHBOARD, SERVED, SERVICE_FILE, Kind, command_line
from scripts.release.outcome import Exit
from scripts.release.service import read
from tests.conftest import REPOSITORY
from tests.rollout.conftest import PINNED, Rollout
from tests.rollout.stand_in import CLI_TOKEN, Call, StandIn

ROLLOUT = REPOSITORY / "scripts" / "rollout.py"
COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("file", "target", "address", "url", "typed"),
    [
        (SERVICE_FILE, Kind.ANYSCALE, DASHBOARD, SERVED, "terminate --yes"),
        (SERVICE_FILE, Kind.RAY, DASHBOARD, SERVED, "terminate --yes --target ray"),
        (Path("my services/one.yaml"), Kind.ANYSCALE, DASHBOARD, SERVED, "terminate --yes --file 'my services/one.yaml'"),
        (
            SERVICE_FILE,
            Kind.RAY,
            "http://10.0.0.1:8265",
            "http://10.0.0.1:8000",
            "terminate --yes --target ray --address http://10.0.0.1:8265 --url http://10.0.0.1:8000",
        ),
    ],
)
def test_a_command_has_the_options_that_lead_to_the_same_service(file: Path, target: Kind, address: str, url: str, typed: str) -> None:
    assert command_line("terminate --yes", file, target, address, url) == f"python scripts/rollout.py {typed}"


def test_how_to_end_a_first_version_that_failed_names_its_file(
    rollout: Rollout, stand_in: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.platform.becomes = "UNHEALTHY"
    assert rollout("--version", "first") == Exit.STUCK
    assert f"To end it: python scripts/rollout.py terminate --yes --file {checkout / 'service.yaml'}" in capsys.readouterr().err


def test_a_service_that_is_terminated_while_it_is_taken_back_is_not_waited_for(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminate(call: Call) -> None:
        if running_old.platform.state == "ROLLING_BACK":
            running_old.platform.terminate()

    running_old.served.failing["new"] = 500
    running_old.before_call = terminate
    assert rollout("--version", "new", "--canary", "50", "--timeout-s", "200") == Exit.STUCK
    assert "new could not be taken back: the service was terminated meanwhile" in capsys.readouterr().err


def test_a_misspelt_field_is_told_without_its_value_which_may_be_a_secret(
    stand_in: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--file", str(checkout / "service.yaml"), "--set", "token=hidden"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "token: Extra inputs are not permitted" in said
    assert "hidden" not in said
    assert stand_in.calls == []


def test_a_checkout_that_git_does_not_read_is_not_taken_for_none(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert main(["plan", "--file", str(checkout / "service.yaml"), "--version", "mine"]) == Exit.REFUSED
    assert "dubious ownership" in capsys.readouterr().err


def test_a_manifest_for_kuberay_names_the_commit_of_the_model(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "commit_on_the_hub", lambda repository, revision: COMMIT)
    command = ["--target", "kuberay", "--file", str(checkout / "service.yaml"), "--set", "model=owner/name", "--version", "mine"]
    assert main(command) == 0
    served = yaml.safe_load(yaml.safe_load(capsys.readouterr().out)["spec"]["serveConfigV2"])
    assert served["applications"][0]["args"]["revision"] == COMMIT


@pytest.mark.usefixtures("running_old")
def test_a_plan_tells_that_a_branch_is_deployed_as_a_commit(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plan", "--file", str(checkout / "service.yaml"), "--set", "model=owner/name", "--set", "revision=main"]) == 0
    assert f"args.revision: {'0' * 40} -> the commit of main" in capsys.readouterr().out


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_service_as_it_is_and_says_how_to_go_on(
    running_old: StandIn, rollout: Rollout, checkout: Path, sent: signal.Signals
) -> None:
    """The script itself, as a process."""
    command = [
        sys.executable,
        ROLLOUT,
        "--file",
        checkout / "service.yaml",
        *PINNED,
        "--version",
        "new",
        "--canary",
        "30",
        "--poll-s",
        "0.1",
    ]
    environment = os.environ | {"ANYSCALE_HOST": running_old.url, "ANYSCALE_CLI_TOKEN": CLI_TOKEN}
    running_old.served.not_ready["new"] = 10**6  # the check of the canary would wait and wait
    running_old.platform.becomes = ""
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )

    def interrupt(call: Call) -> None:
        if running_old.platform.canary is not None and call.path == "/api/v2/services-v2/" and process.poll() is None:
            process.send_signal(sent)

    running_old.before_call = interrupt
    _, said = process.communicate(timeout=120)
    running_old.before_call = lambda call: None
    assert process.returncode == Exit.INTERRUPTED, said
    assert "interrupted: the rollout of new goes on without this terminal, up to 30 %. Go on: the same command again." in said
    assert "Traceback" not in said
    for hint in ("Look: python scripts/rollout.py status", "Go back: python scripts/rollout.py rollback"):
        assert f"{hint} --file {checkout / 'service.yaml'}" in said
    assert running_old.changes() == ["apply new 30"], "nothing was taken back"

    running_old.served.not_ready["new"] = 0
    assert running_old.platform.canary is not None
    running_old.platform.canary.becomes = "RUNNING"
    assert rollout("--version", "new", "--canary", "30") == 0
    assert running_old.changes()[-1] == "apply new 100"


def test_ctrl_c_while_a_version_is_taken_back_does_not_advise_to_deploy_it_again(
    running_old: StandIn, rollout: Rollout, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.served.failing["new"] = 500
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scripts.release.anyscale_target.AnyscaleTarget.roll_back", lambda target: signal.raise_signal(signal.SIGINT))
        assert rollout("--version", "new", "--canary", "30") == Exit.INTERRUPTED
    said = capsys.readouterr().err
    assert "interrupted: new failed and is being taken back. Look: " in said
    assert "Go back: python scripts/rollout.py rollback" in said


def test_the_environment_of_whoever_rolls_out_is_no_setting_of_the_service(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINE_TOKENS", "a-token-of-a-good-length")
    monkeypatch.setenv("IMAGINE_NOTHING_OF_THE_KIND", "1")
    service = read(checkout / "service.yaml", "mine")
    assert service.settings.tokens == ()
    assert "tokens" not in service.application["args"]


@pytest.mark.parametrize(("broken", "told"), [("its index", "does not tell what has changed"), ("no git", "no git on the PATH")])
def test_changes_that_git_cannot_tell_are_not_taken_for_none(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: str, told: str
) -> None:
    folder = shutil.copytree(checkout, tmp_path / "copy")
    if broken == "its index":
        (folder / ".git" / "index").write_bytes(b"nonsense")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["deploy", "--file", str(folder / "service.yaml"), "--version", "mine", *PINNED]) == Exit.REFUSED
    assert told in capsys.readouterr().err
    assert main(["status", "--file", str(folder / "service.yaml"), "--dry-run"]) == Exit.DONE, "it needs no changes"


def test_the_token_of_the_service_is_sent_in_place_of_what_a_netrc_has(
    rollout: Rollout, running_old: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert rollout("--version", "new") == Exit.DONE
