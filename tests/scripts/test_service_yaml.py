import re

import yaml
from anyscale.service.models import ServiceConfig

from app.settings import Settings
from tests.conftest import REPOSITORY

SERVICE = REPOSITORY / "service.yaml"


def test_it_is_a_service_config_of_the_anyscale_package() -> None:
    config = ServiceConfig.from_yaml(str(SERVICE))
    assert config.name == "imagine"
    assert config.applications[0]["import_path"] == "app:entrypoint"


def test_its_arguments_are_settings() -> None:
    (application,) = yaml.safe_load(SERVICE.read_text())["applications"]
    settings = Settings.model_validate(application["args"])
    assert (settings.model, settings.device, settings.max_replicas) == ("sd2", "cuda", 99)


def test_the_ray_of_its_image_is_the_ray_of_the_requirements() -> None:
    (pinned,) = re.findall(r"^ray\[serve\]==(.+)$", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE)
    assert f":{pinned}-" in yaml.safe_load(SERVICE.read_text())["image_uri"]
