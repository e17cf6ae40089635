"""Whatever goes wrong: what was applied, in which order, the exit status, and what the person reads."""

from pathlib import Path

import pytest

from scripts.release import smoke
from scripts.release.cli import main
from scripts.release.outcome import Exit
from tests.rollout.conftest import Rollout
from tests.rollout.platform_state import TOKEN
from tests.rollout.stand_in import CLI_TOKEN, StandIn, Trouble

SERVICES = "^/api/v2/services-v2/$"
APPLY = "/apply$"


def read(capsys: pytest.CaptureFixture[str]) -> str:
    """What the person reads; whatever happens, no secret is in it."""
    output = capsys.readouterr()
    text = output.out + output.err
    assert [secret for secret in (CLI_TOKEN, TOKEN, "secret-of") if secret in text] == []
    return output.err


def test_a_canary_with_wrong_pictures_is_rolled_back_with_the_reason_and_its_logs(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.served.wrong_pictures.add("new")
    assert rollout("--version", "new", "--canary", "20") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new 20", "roll back"]
    text = read(capsys)
    assert "new failed: the golden picture ('a red heart on a yellow background') is wrong" in text
    assert "0% of its border is yellow (at least 30%)" in text
    assert "| 2026-01-01 the replica says: loading the model" in text
    assert "taken back: old serves all requests again" in text


def test_a_version_that_fails_once_it_is_primary_is_replaced_by_the_one_before(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running_old.platform.primary
    running_old.served.slow["new"] = 0.05
    assert rollout("--version", "new", "--p95-limit-s", "0.01") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None", "apply old None"]
    assert before is not None
    (was,) = before.applied["ray_serve_config"]["applications"]
    (again,) = running_old.applied()[-1]["ray_serve_config"]["applications"]
    assert (again["args"], again["runtime_env"]["working_dir"]) == (was["args"], was["runtime_env"]["working_dir"])
    assert "the limit is 0.01 s" in read(capsys)


def test_being_refused_for_want_of_room_counts_as_waiting(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.served.full["new"] = 3
    assert rollout("--version", "new", "--p95-limit-s", "0.9") == Exit.TAKEN_BACK
    assert "the limit is 0.9 s" in read(capsys)


@pytest.mark.parametrize("status", [500, 422])
def test_a_version_that_answers_with_errors_is_rolled_back(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    running_old.served.failing["new"] = status
    assert rollout("--version", "new", "--canary", "50") == Exit.TAKEN_BACK
    assert f"new failed: /imagine answered {status}" in read(capsys)


def test_a_rollback_by_the_platform_in_the_middle_is_noticed(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.platform.takes_back_at = 50
    assert rollout("--version", "new") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None"], "the platform needs no help"
    assert "new failed: the platform itself is taking it back" in read(capsys)


def test_an_unhealthy_version_is_rolled_back_before_the_time_is_up(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.platform.becomes = "UNHEALTHY"
    assert rollout("--version", "new", "--timeout-s", "1000") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None", "roll back"]
    assert "new failed: it is UNHEALTHY" in read(capsys)


def test_a_version_that_never_comes_up_is_rolled_back_when_the_time_is_up(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.platform.becomes = ""
    assert rollout("--version", "new", "--timeout-s", "0.5") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None", "roll back"]
    assert "it did not come about within 0.5 s; last seen: ROLLING_OUT" in read(capsys)


def test_a_first_version_that_fails_is_left_to_look_at(rollout: Rollout, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.platform.becomes = "UNHEALTHY"
    assert rollout("--version", "first") == Exit.STUCK
    assert stand_in.changes() == ["apply first None"]
    assert "there is no version before it to go back to" in read(capsys)


def test_a_rollback_that_does_not_come_about_is_said(rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    running_old.served.failing["new"] = 500
    running_old.platform.rolls_back = False
    assert rollout("--version", "new", "--canary", "50", "--timeout-s", "0.5") == Exit.STUCK
    assert "new could not be taken back" in read(capsys)


def test_a_wrong_token_changes_nothing(
    rollout: Rollout, stand_in: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSCALE_CLI_TOKEN", "sss_another-secret-of-the-person")
    assert rollout("--version", "first") == Exit.REFUSED
    assert [call.path for call in stand_in.calls] == ["/api/v2/userinfo/"]
    assert "credentials" in read(capsys)


@pytest.mark.parametrize("status", [422, 409])
def test_a_deploy_that_is_refused_changes_nothing(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    running_old.troubles.append(Trouble("PUT", APPLY, status, detail="no more GPUs in this account"))
    assert rollout("--version", "new") == Exit.REFUSED
    assert running_old.changes() == ["apply new None"]
    assert "refused: no more GPUs in this account. Nothing was changed." in read(capsys)


@pytest.mark.parametrize("status", [500, 502, 0])
def test_reading_is_repeated_after_an_error_or_a_dropped_connection(rollout: Rollout, running_old: StandIn, status: int) -> None:
    running_old.troubles.append(Trouble("GET", SERVICES, status, times=2))
    assert rollout("--version", "new") == 0
    assert running_old.changes() == ["apply new None"]


@pytest.mark.parametrize("status", [500, 0])
def test_a_deploy_whose_answer_is_lost_is_looked_for_and_never_sent_twice(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    running_old.troubles.append(Trouble("PUT", APPLY, status, after=True))
    assert rollout("--version", "new") == 0
    assert running_old.changes() == ["apply new None"]
    assert "new has arrived; it is not sent again" in read(capsys)


@pytest.mark.parametrize("status", [500, 0])
def test_a_deploy_that_did_not_arrive_is_said_and_not_sent_again(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    running_old.troubles.append(Trouble("PUT", APPLY, status))
    assert rollout("--version", "new") == Exit.UNREACHABLE
    assert running_old.changes() == ["apply new None"]
    assert running_old.platform.canary is None
    assert "new has not arrived: nothing was deployed, so try again" in read(capsys)


@pytest.mark.parametrize("path", ["/compute_templates/$", "_presigned_url$"])
def test_what_is_lost_on_the_way_to_the_deploy_deploys_nothing(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    running_old.troubles.append(Trouble("POST", path, 0))
    assert rollout("--version", "new") == Exit.UNREACHABLE
    assert running_old.changes() == []
    assert "nothing was deployed, so try again" in read(capsys)


def test_a_lost_change_of_the_traffic_is_repeated_since_it_does_no_harm(rollout: Rollout, running_old: StandIn) -> None:
    running_old.before_call = lambda call: lose_the_second_apply(running_old)
    assert rollout("--version", "new", "--canary", "50") == 0
    assert running_old.changes() == ["apply new 50", "apply new 100", "apply new 100"]


def lose_the_second_apply(stand_in: StandIn) -> None:
    if len(stand_in.applied()) == 2 and not stand_in.troubles:
        stand_in.troubles.append(Trouble("PUT", APPLY, 0, after=True))


def somebody_rolls_out(stand_in: StandIn) -> None:
    assert stand_in.platform.primary is not None
    stand_in.platform.apply(stand_in.platform.primary.applied | {"version": "theirs", "canary_percent": 30})


def test_a_rollback_that_arrived_although_its_answer_was_lost_is_not_sent_again(
    running_old: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    somebody_rolls_out(running_old)
    running_old.troubles.append(Trouble("POST", "/rollback$", 0, after=True))
    assert main(["rollback", "--file", str(checkout / "service.yaml"), "--poll-s", "0.01"]) == Exit.DONE
    assert running_old.changes() == ["roll back"]
    assert "old serves all requests again" in read(capsys)


def test_a_rollback_that_cannot_be_watched_is_not_said_to_have_changed_nothing(
    running_old: StandIn, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    somebody_rolls_out(running_old)
    refused = Trouble("GET", SERVICES, 401, times=9)
    running_old.before_call = lambda call: running_old.troubles.extend([refused] if call.path.endswith("/rollback") else [])
    assert main(["rollback", "--file", str(checkout / "service.yaml"), "--poll-s", "0.01"]) == Exit.STUCK
    text = read(capsys)
    assert "old is not back" in text
    assert "Nothing was changed" not in text


def test_going_back_to_a_version_that_is_broken_itself_is_not_called_serving(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = running_old.platform
    platform.state = platform.primary.state = platform.becomes = "UNHEALTHY"  # type: ignore[union-attr]  # there is one
    assert rollout("--version", "new") == Exit.STUCK
    assert "taken back: old is what it was, UNHEALTHY" in read(capsys)


def test_a_lost_rollback_is_repeated(rollout: Rollout, running_old: StandIn) -> None:
    running_old.platform.becomes = "UNHEALTHY"
    running_old.troubles.append(Trouble("POST", "/rollback$", 502))
    assert rollout("--version", "new") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None", "roll back", "roll back"]


def test_a_way_back_whose_answer_is_lost_is_not_stopped_by_a_second_one(rollout: Rollout, running_old: StandIn) -> None:
    running_old.served.failing["new"] = 500
    running_old.platform.on_apply = lambda version: running_old.troubles.extend(
        [Trouble("PUT", APPLY, 502, after=True)] if version.name == "old" else []
    )
    assert rollout("--version", "new") == Exit.TAKEN_BACK
    assert running_old.changes() == ["apply new None", "apply old None"]


def test_a_control_plane_that_is_away_for_a_while_is_waited_for(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.platform.on_apply = lambda version: running_old.troubles.append(Trouble("GET", SERVICES, 501, times=3))
    assert rollout("--version", "new") == 0
    assert "the control plane answered 501 (Not Implemented); still waiting" in read(capsys)


@pytest.mark.parametrize(("status", "times"), [(429, 4), (403, 2)])
def test_a_look_that_is_refused_now_and_then_takes_no_version_back(rollout: Rollout, running_old: StandIn, status: int, times: int) -> None:
    running_old.platform.on_apply = lambda version: running_old.troubles.append(Trouble("GET", SERVICES, status, times=times))
    assert rollout("--version", "new") == 0
    assert running_old.changes() == ["apply new None"]


def test_looks_that_are_refused_for_good_end_the_wait(rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    running_old.platform.on_apply = lambda version: running_old.troubles.append(Trouble("GET", SERVICES, 403, times=10**6))
    assert rollout("--version", "new", "--timeout-s", "1000") == Exit.STUCK
    assert "new could not be taken back" in read(capsys)


def test_a_picture_that_is_cut_off_is_no_picture(rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    running_old.served.cut_off.add("new")
    assert rollout("--version", "new", "--canary", "50") == Exit.TAKEN_BACK
    assert "the image is cut off or damaged" in read(capsys)


def test_an_error_that_nobody_has_thought_of_leads_back_too(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "judge", lambda answer, golden: 1 / 0)
    assert rollout("--version", "new", "--canary", "50") == Exit.TAKEN_BACK
    assert "ZeroDivisionError: division by zero" in read(capsys)


def test_a_model_that_does_not_draw_the_golden_picture_passes_if_told_so_but_not_with_a_blank_one(
    rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    running_old.served.wrong_pictures |= {"gray", "blank"}
    assert rollout("--version", "gray", "--no-golden") == 0
    assert rollout("--version", "blank", "--no-golden") == Exit.TAKEN_BACK
    assert "is blank" in read(capsys)


def test_the_rollout_of_somebody_else_is_not_disturbed(rollout: Rollout, running_old: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    platform = running_old.platform
    assert platform.primary is not None
    platform.apply(platform.primary.applied | {"version": "theirs", "canary_percent": 30})
    assert rollout("--version", "new") == Exit.REFUSED
    assert running_old.changes() == []
    assert "another rollout is going on" in read(capsys)


def test_a_host_that_does_not_answer_is_said(
    rollout: Rollout, stand_in: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("ANYSCALE_HOST", f"http://127.0.0.1:{free_port}")
    assert rollout("--version", "first") == Exit.UNREACHABLE
    assert "no answer: the control plane cannot be reached" in read(capsys)


@pytest.mark.usefixtures("stand_in")
def test_a_plan_is_told_also_if_the_control_plane_is_not(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("ANYSCALE_HOST", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("ANYSCALE_CLI_TOKEN", CLI_TOKEN)
    assert main(["plan", "--file", str(checkout / "service.yaml")]) == Exit.DONE
    assert "running   not told: the control plane cannot be reached" in capsys.readouterr().out
