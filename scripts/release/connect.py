"""From a name to a target. Imports what talks to it only when it is needed: each takes seconds to load."""

import os
from pathlib import Path

from scripts.release.options import Kind
from scripts.release.outcome import Refused
from scripts.release.service import Service
from scripts.release.target import Target

CREDENTIALS = Path("~/.anyscale/credentials.json")


def has_account() -> bool:
    return bool(os.environ.get("ANYSCALE_CLI_TOKEN")) or CREDENTIALS.expanduser().exists()


def connect(kind: Kind, service: Service, address: str, url: str, *, upload: bool = True) -> Target:
    """Raises `Refused` and `Unreachable`."""
    if kind is Kind.KUBERAY:
        raise Refused("--target kuberay only prints a manifest; kubectl does the rest")
    if kind is Kind.RAY:
        from scripts.release.ray_target import RayTarget

        return RayTarget(service.name, address, url, upload=upload)
    from scripts.release.anyscale_target import AnyscaleTarget

    return AnyscaleTarget(service.name, cloud=service.fields.get("cloud"), project=service.fields.get("project"))
