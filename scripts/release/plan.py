"""What a rollout would do, told before it does anything."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.settings import Settings
from scripts.release.package import Member
from scripts.release.service import COMMIT, Service
from scripts.release.target import Observed

COMPARED = ("applications", "http_options", "logging_config", "compute_config", "image_uri", "query_auth_token_enabled")
NOT_COMPARED = frozenset({"runtime_env", "version", "tokens"})


def plan(service: Service, members: Sequence[Member], steps: Sequence[int], *, on_anyscale: bool = True) -> str:
    settings = service.settings
    revision = f" at {settings.revision}" if settings.revision else ""
    lines = [
        f"service   {service.name}, version {service.version}",
        f"model     {settings.model}{revision} on {settings.device}",
        f"replicas  {_replicas(settings)}; {_nodes(service)}",
        f"image     {_image(service)}",
        f"upload    {_upload(members)}",
        f"traffic   {_traffic(steps) if on_anyscale else 'replicas are replaced one after the other, checked at the end'}",
        f"access    {_access(service, on_anyscale=on_anyscale)}",
    ]
    return "\n".join(lines)


def compared(service: Service, observed: Observed | None) -> str:
    """How the version differs from the one that serves now."""
    if observed is None or observed.primary is None:
        return f"running   nothing: this would be the first version of {service.name}"
    old = _plain(observed.primary.deployed)
    new = service.fields
    changed = [line for key in COMPARED if key in new for line in _differences(key, old.get(key), new[key])]
    return "\n".join([f"running   {observed}", *(f"change    {line}" for line in changed or ["none but the code"])])


def changed_settings(service: Service, observed: Observed) -> list[str]:
    """Where the settings of a version that serves are not those of `service`, which has the same name."""
    old = _plain(observed.primary and observed.primary.deployed).get("applications") or [{}]
    return list(_differences("args", old[0].get("args"), service.application["args"]))


def _plain(deployed: object) -> dict[str, Any]:
    """The fields of a `ServiceConfig`, or of an application of a Serve config."""
    if isinstance(deployed, Mapping):
        return {"applications": [dict(deployed)]}
    return dict(deployed.to_dict()) if hasattr(deployed, "to_dict") else {}


def _differences(path: str, old: object, new: object) -> Iterator[str]:
    if isinstance(new, Mapping) and isinstance(old, Mapping | None):
        for key in new:
            if key not in NOT_COMPARED:
                yield from _differences(f"{path}.{key}", (old or {}).get(key), new[key])
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{path}[{number}]", one, other)
    elif old != new and str(old) != str(new):
        is_pinned_later = path.endswith(".revision") and COMMIT.fullmatch(str(old)) and not COMMIT.fullmatch(str(new))
        yield f"{path}: {'unset' if old is None else old} -> {'the commit of ' if is_pinned_later else ''}{new}"


def _access(service: Service, *, on_anyscale: bool) -> str:
    """A Ray cluster has no tokens but the application's own."""
    if on_anyscale and service.fields.get("query_auth_token_enabled", True):
        return "callers need the service's token"
    return "callers need one of the tokens in args" if service.settings.tokens else "open to everybody"


def _replicas(settings: Settings) -> str:
    at_first = f", {settings.initial_replicas} at first" if settings.initial_replicas else ""
    return f"{settings.min_replicas} to {settings.max_replicas or 'as many as the device suggests'}{at_first}"


def _nodes(service: Service) -> str:
    config = service.fields.get("compute_config") or {}
    if isinstance(config, str):
        return f"nodes as in {config}"
    groups = config.get("worker_nodes") or []
    told = [
        f"{group.get('instance_type', 'any instances')}, {group.get('min_nodes', 0)} to {group.get('max_nodes', 10)} nodes"
        for group in groups
    ]
    return "; ".join(told) or "nodes as the cloud chooses them"


def _image(service: Service) -> str:
    recipe = service.fields.get("containerfile")
    if recipe:
        base = re.search(r"^FROM (\S+)", Path(recipe).read_text(), re.MULTILINE)
        return f"built from {Path(recipe).parent.name}/{Path(recipe).name} on {base[1] if base else 'nothing'}"
    return f"{service.fields.get('image_uri')} and {len(service.fields.get('requirements', []))} packages installed by each replica"


def _upload(members: Sequence[Member]) -> str:
    if not members:
        return "nothing: the cluster has the code already"
    folders = sorted({"/".join(member.name.split("/")[:2]) for member in members})
    return f"{len(members)} files, {sum(member.size for member in members) / 1024:.0f} kB: {', '.join(folders)}"


def _traffic(steps: Sequence[int]) -> str:
    if not steps:
        return "moved by the platform in its own steps, checked when the new version has all of it"
    return "moved to " + ", ".join(f"{percent} %" for percent in steps) + ", checked at each step"
