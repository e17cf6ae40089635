"""service.yaml for one version: read, checked, and completed with what only the moment of the rollout knows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from app.settings import Settings
from scripts.release.outcome import Refused
from scripts.release.package import ROOT

NOT_SERVED = frozenset(  # what only the notebook, the client or the scripts need
    {"anyscale", "ipywidgets", "jupyterlab", "matplotlib", "pyyaml", "ray", "sseclient-py", "tenacity", "tqdm", "typer", "urllib3"}
)
OF_THE_IMAGE = frozenset(
    {"ray", "fastapi", "starlette", "pydantic"}
)  # controller and proxies run these too, outside the runtime environment
COMMIT = re.compile(r"[0-9a-f]{40}")
BUNDLED = "app/tiny"


class Given(Settings):
    """From the file and the overrides alone: replicas do not see the environment of whoever rolls out."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **others: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@dataclass(frozen=True)
class Service:
    """One version of the service: the fields of `anyscale.service.ServiceConfig`, and the settings that the application gets."""

    fields: dict[str, Any]
    settings: Settings
    version: str

    @property
    def name(self) -> str:
        return str(self.fields["name"])

    @property
    def application(self) -> dict[str, Any]:
        application: dict[str, Any] = self.fields["applications"][0]
        return application

    @property
    def excludes(self) -> list[str]:
        return list(self.fields.get("excludes", []))

    def pinned(self, commit_of: Callable[[str, str], str]) -> "Service":
        """The same with the model's revision replaced by the commit it stands for now, if it is a hub model."""
        revision = self.settings.revision
        if revision and COMMIT.fullmatch(revision):
            return self
        repository = _hub_id(self.settings)
        if repository is None:
            return self
        commit = commit_of(repository, revision or "main")
        application = self.application | {"args": self.application["args"] | {"revision": commit}}
        return Service(self.fields | {"applications": [application]}, self.settings.model_copy(update={"revision": commit}), self.version)


def read(
    path: Path, version: str, overrides: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None, *, quick: bool = False
) -> Service:
    """`env` are variables beside the file's own. Raises `Refused`, naming what is wrong with the file or an override."""
    try:
        fields = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
    match fields:
        case {"name": str(), "applications": [dict() as application]} if isinstance(given := application.get("args") or {}, dict):
            args = given | dict(overrides or {}) | {"version": version}
        case _:
            raise Refused(f"{path} must be a mapping with a name, and with one application under applications, whose args are a mapping")
    settings = _settings(path, args)
    known = settings.model_dump(mode="json") | {"tokens": args.get("tokens")}  # dumped, they would be stars
    fields |= {"version_name": version, "applications": [application | {"args": {name: known[name] for name in args}}]}
    if env and isinstance(own := fields.get("env_vars") or {}, dict):  # if it is something else, that is said below
        fields["env_vars"] = own | dict(env)
    if settings.model in ("tiny", "auto"):
        fields["excludes"] = [pattern for pattern in fields.get("excludes", []) if pattern != BUNDLED]
    if quick:
        fields = _quick(fields, path.parent)
    elif "containerfile" in fields:
        fields["containerfile"] = str(path.parent / fields["containerfile"])
    _check(path, fields)
    return Service(fields, settings, version)


def requirements(path: Path = ROOT / "requirements.txt") -> dict[str, str]:
    """Name to pinned version, extras dropped from the name."""
    pins = (re.fullmatch(r"([\w.-]+)(?:\[.*])?==(\S+)", line.strip()) for line in path.read_text().splitlines())
    return {pin[1].lower(): pin[2] for pin in pins if pin}


def commit_on_the_hub(repository: str, revision: str) -> str:
    """Raises `Refused`, saying how to do without the hub."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repository, revision=revision, timeout=10).sha
    except Exception as error:  # whatever the HTTP library beneath raises
        raise Refused(
            f"the Hugging Face hub did not say which commit {revision!r} of {repository} is ({type(error).__name__}); "
            "pass --set revision=COMMIT (40 hex digits)"
        ) from error
    return str(commit)


def _settings(path: Path, args: Mapping[str, Any]) -> Settings:
    try:
        return Given.model_validate(args)
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']} (got {item['input']!r})"
            if item["type"] != "extra_forbidden"  # it may be a secret whose name was misspelt
            else f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors()
        )
        raise Refused(f"the args in {path} are no settings of the application: {said}") from error


def _quick(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's base image, and the rest installed by each replica before it starts."""
    if "containerfile" not in fields:
        raise Refused("--quick takes its base image from the containerfile, and the file names none")
    recipe = (folder / fields["containerfile"]).read_text()
    base = re.search(r"^FROM (\S+)", recipe, re.MULTILINE)
    if base is None:
        raise Refused(f"{fields['containerfile']} has no FROM line to take the base image from")
    installed = [f"{name}=={pin}" for name, pin in requirements().items() if name not in NOT_SERVED | OF_THE_IMAGE]
    rest = {name: value for name, value in fields.items() if name != "containerfile"}
    return rest | {"image_uri": base[1], "requirements": installed}


def _check(path: Path, fields: dict[str, Any]) -> None:
    from anyscale.service.models import ServiceConfig

    try:
        ServiceConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise Refused(f"{path} is no service config of the anyscale package: {error}") from error
    if "containerfile" in fields and not Path(fields["containerfile"]).is_file():
        raise Refused(f"{path}: there is no containerfile {fields['containerfile']}")


def _hub_id(settings: Settings) -> str | None:
    model = settings.model
    if model == "auto":
        model = "tiny" if settings.device == "cpu" else "sd2"  # where it turns out to be tiny, that has no revision to mind
    if model == "tiny" or Path(model).is_dir() or Path(model).is_absolute():  # a folder that only the cluster has
        return None
    from app.engine.checkpoint import SHORT_NAMES  # loads torch

    return SHORT_NAMES[model].location if model in SHORT_NAMES else model
