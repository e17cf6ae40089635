import os

import pytest
from pydantic import ValidationError

from app.settings import Settings


def no_gpus() -> int:
    return 0


def four_cpus() -> int:
    return 4


def one_gpu() -> int:
    return 1


def test_by_default_what_may_wait_is_bounded_by_thirty_seconds_and_by_number() -> None:
    assert (Settings().max_queue_s, Settings().max_queued_requests) == (30, 64)


def test_an_argument_wins_over_the_environment_which_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINE_MODEL", "sd2")
    monkeypatch.setenv("IMAGINE_MAX_QUEUED_REQUESTS", "7")
    settings = Settings.model_validate({"model": "tiny"})
    assert (settings.model, settings.max_queued_requests, settings.min_replicas) == ("tiny", 7, 1)


def test_values_from_a_command_line_are_read_as_their_types() -> None:
    settings = Settings.model_validate({"max_replicas": "3", "graceful_shutdown_timeout_s": "2.5"})
    assert (settings.max_replicas, settings.graceful_shutdown_timeout_s) == (3, 2.5)


def test_an_unknown_argument_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="modle"):
        Settings.model_validate({"modle": "tiny"})


@pytest.mark.parametrize("name", ["IMAGINE_MODLE", "imagine_modle"])
def test_an_unknown_variable_with_our_prefix_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tiny")
    with pytest.raises(ValidationError, match=name):
        Settings()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "tinny"}, "model"),
        ({"device": "tpu"}, "device"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"max_replicas": 100}, "max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"min_replicas": 3, "initial_replicas": 2}, "initial_replicas"),
        ({"max_replicas": 3, "initial_replicas": 4}, "initial_replicas"),
        ({"version": "a b"}, "version"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings.model_validate(fields)


def test_without_a_gpu_the_bundled_model_runs_on_all_cpus_of_one_replica() -> None:
    decided = Settings().decided(no_gpus, four_cpus)
    assert (decided.model, decided.device, decided.max_replicas) == ("tiny", "cpu", 1)
    assert decided.cpu_threads == 4


def test_with_a_gpu_stable_diffusion_2_runs_on_up_to_99_replicas() -> None:
    decided = Settings().decided(one_gpu, four_cpus)
    assert (decided.model, decided.device, decided.max_replicas) == ("sd2", "cuda", 99)


def test_without_a_gpu_there_is_room_for_as_many_replicas_as_it_begins_with() -> None:
    assert Settings(initial_replicas=3).decided(no_gpus, four_cpus).max_replicas == 3


def test_what_was_said_is_not_decided_again() -> None:
    def never() -> int:
        raise AssertionError("looked for GPUs although the device was given")

    decided = Settings(model="tiny", device="cuda", dtype="bfloat16", max_replicas=5).decided(never, four_cpus)
    assert (decided.model, decided.device, decided.dtype, decided.max_replicas) == ("tiny", "cuda", "bfloat16", 5)


def test_a_hub_id_and_a_folder_are_models(tmp_path: os.PathLike[str]) -> None:
    assert Settings(model="owner/name").model == "owner/name"
    assert Settings(model=str(tmp_path)).model == str(tmp_path)


def test_tokens_are_separated_by_commas_and_never_shown() -> None:
    settings = Settings.model_validate({"tokens": "a-token-of-a-good-length, another-token-for-rotation"})
    assert [token.get_secret_value() for token in settings.tokens] == ["a-token-of-a-good-length", "another-token-for-rotation"]
    assert "good-length" not in repr(settings)


def test_tokens_may_come_as_lines() -> None:
    (token,) = Settings.model_validate({"tokens": ["a-token-of-a-good-length\n"]}).tokens
    assert token.get_secret_value() == "a-token-of-a-good-length"


@pytest.mark.parametrize("token", ["short", "ä-token-that-no-header-can-hold", "a-token-of-a-good\nlength"])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="at least 16 characters"):
        Settings.model_validate({"tokens": token})


@pytest.mark.parametrize("given", ["hunter2,correct-horse-battery", ["hunter2", "correct-horse-battery"], 271828182845904])
def test_no_error_shows_a_token(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINE_TOKEN", "staple-of-the-house")
    with pytest.raises(ValidationError) as error:
        Settings.model_validate({"tokens": given, "min_replicas": 3, "max_replicas": 2})
    assert {str(item["loc"][0]) for item in error.value.errors()} == {"tokens", "IMAGINE_TOKEN", "max_replicas"}
    for secret in ("hunter2", "horse", "staple", "2718"):
        assert secret not in str(error.value)


def test_tokens_come_from_the_environment_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINE_TOKENS", "a-token-of-a-good-length")
    assert len(Settings().tokens) == 1
