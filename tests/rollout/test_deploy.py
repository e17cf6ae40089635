"""What is sent to the control plane, in which order, when all goes well."""

import random

import pytest

from scripts.release.outcome import Exit
from tests.rollout.conftest import Rollout
from tests.rollout.stand_in import StandIn, Trouble


def test_the_first_deploy_waits_until_this_version_is_primary_healthy_and_checked(
    rollout: Rollout, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.served.not_ready["first"] = 2
    assert rollout("--version", "first", "--canary", "10") == 0
    assert stand_in.changes() == ["apply first None"]
    asked = [path for path, _ in stand_in.served.answered]
    assert (asked.count("/served/readyz"), asked.count("/served/imagine")) == (3, 21)
    said = capsys.readouterr().err
    assert "STARTING, primary first STARTING" in said
    assert "no version yet that could share the traffic" in said
    assert "done: first serves all requests" in said


def test_an_update_goes_by_the_platforms_steps_and_is_checked_at_the_end(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollout("--version", "new") == 0
    assert running_old.changes() == ["apply new None"]
    said = capsys.readouterr().err
    for percent in (10, 50, 100):
        assert f"canary new RUNNING {percent} %" in said
    assert said.index("canary new RUNNING 100 %") < said.index("new passed: ready, the first picture is right, p95 of 20 pictures")


def test_a_canary_is_checked_at_each_step_until_the_new_version_has_answered_often_enough(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollout("--version", "new", "--canary", "20,50") == 0
    assert running_old.changes() == ["apply new 20", "apply new 50", "apply new 100"]
    assert capsys.readouterr().err.count("new passed") == 3
    pictures = [version for path, version in running_old.served.answered if path == "/served/imagine"]
    assert (pictures.count("new"), pictures.count("old")) == (3 * 21, 0), "the old version makes no picture that nobody looks at"
    refusals = [version for path, version in running_old.served.answered if path == "/served/imagine refused"]
    assert refusals.count("old") > 21 * 3, "at 20 % of the traffic the old version answers four times as often"


def test_a_canary_of_one_percent_is_found_among_the_answers_of_the_old_version(rollout: Rollout, running_old: StandIn) -> None:
    running_old.served.chance = random.Random(0)
    assert rollout("--version", "new", "--canary", "1") == 0
    assert running_old.changes() == ["apply new 1", "apply new 100"]


def test_a_new_ingress_that_still_meets_replicas_of_the_old_version_is_asked_again(rollout: Rollout, running_old: StandIn) -> None:
    running_old.served.made_by_old["new"] = 2
    assert rollout("--version", "new") == 0
    assert running_old.served.answered.count(("/served/imagine refused", "new")) == 2


def test_what_is_applied_is_the_service_config_with_the_version_in_the_arguments(rollout: Rollout, stand_in: StandIn) -> None:
    assert rollout("--version", "first") == 0
    (applied,) = stand_in.applied()
    (application,) = applied["ray_serve_config"]["applications"]
    assert (applied["name"], applied["version"]) == ("imagine", "first")
    assert application["import_path"] == "app:entrypoint"
    assert application["args"]["version"] == "first"
    assert (application["args"]["model"], application["args"]["max_replicas"]) == ("owner/name", 99)
    assert application["runtime_env"]["working_dir"].startswith("s3://bucket/pkg_")
    assert "pip" not in application["runtime_env"], "the image holds the dependencies"
    assert applied["config"]["access"]["use_bearer_token"] is True
    assert applied["ray_serve_config"]["http_options"] == {"request_timeout_s": 120}
    assert stand_in.containerfiles[0].split("\n", 1)[0].startswith("#")


def test_a_variable_of_the_shell_reaches_the_replicas_and_is_never_told(
    rollout: Rollout, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-the-shell")
    assert rollout("--env", "HF_TOKEN") == 0
    (applied,) = stand_in.applied()
    (application,) = applied["ray_serve_config"]["applications"]
    assert application["runtime_env"]["env_vars"] == {"HF_TOKEN": "a-secret-of-the-shell"}
    stand_in.troubles.append(Trouble("PUT", "/apply$", 422, detail="wrong: HF_TOKEN=a-secret-of-the-shell"))
    assert rollout("--env", "HF_TOKEN", "--version", "another") == Exit.REFUSED
    told = "".join(capsys.readouterr())
    assert "wrong: HF_TOKEN=***" in told
    assert "a-secret-of-the-shell" not in told


def test_a_quick_trial_takes_the_base_image_and_leaves_ray_and_what_the_controller_runs_to_it(rollout: Rollout, stand_in: StandIn) -> None:
    assert rollout("--version", "first", "--quick") == 0
    assert stand_in.containerfiles == []
    image = next(call.body["image_uri"] for call in stand_in.calls if "image_uri" in call.path)
    assert image == "anyscale/ray:2.60.0-slim-py311-cu128"
    installed = {line.split("==")[0] for line in stand_in.applied()[0]["ray_serve_config"]["applications"][0]["runtime_env"]["pip"]}
    assert {"torch", "diffusers"} <= installed
    assert installed & {"ray", "fastapi", "starlette", "pydantic", "anyscale", "jupyterlab"} == set()


def test_the_same_code_is_uploaded_once(rollout: Rollout, stand_in: StandIn) -> None:
    assert rollout("--version", "first") == 0
    assert rollout("--version", "second") == 0
    assert [call.method for call in stand_in.calls if call.path.startswith("/upload/")] == ["PUT"]


def test_a_version_that_serves_already_is_only_checked(rollout: Rollout, running_old: StandIn) -> None:
    assert rollout("--version", "old") == 0
    assert running_old.changes() == []


def test_the_same_version_with_other_settings_is_refused_and_says_which(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollout("--version", "old", "--set", "max_batch_size=4") == Exit.REFUSED
    assert running_old.changes() == []
    assert "old is serving already with other settings (args.max_batch_size: 8 -> 4)" in capsys.readouterr().err


def test_a_canary_that_was_interrupted_is_taken_up_where_it_is(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = running_old.platform
    assert platform.primary is not None
    platform.apply(platform.primary.applied | {"version": "new", "canary_percent": 30})
    while platform.canary is None or platform.canary.weight < 30:
        platform.look()
    assert rollout("--version", "new", "--canary", "30,60") == 0
    assert running_old.changes() == ["apply new 30", "apply new 60", "apply new 100"]
    assert capsys.readouterr().err.count("new passed") == 3, "the step it had reached may never have been checked"
