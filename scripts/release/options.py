"""The options that the commands share."""

import os
import re
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.settings import PREFIX
from scripts.release.outcome import Refused
from scripts.release.package import ROOT
from scripts.release.target import ALL


class Kind(StrEnum):
    ANYSCALE = "anyscale"
    RAY = "ray"
    KUBERAY = "kuberay"


SERVICE_FILE = ROOT / "service.yaml"
DASHBOARD, SERVED = "http://127.0.0.1:8265", "http://127.0.0.1:8000"
FileOption = Annotated[Path, typer.Option("--file", "-f", help="The service config.", show_default="service.yaml")]
TargetOption = Annotated[Kind, typer.Option("--target", help="Where to.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of app/settings.py, in place of that in args.")
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME", help="Give replicas this variable of your shell, such as HF_TOKEN: it is in no file, and is not told."
    ),
]
VersionOption = Annotated[str | None, typer.Option("--version", metavar="NAME", help="In place of the commit.")]
DirtyOption = Annotated[bool, typer.Option("--allow-dirty", help="Roll out changes that are in no commit.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="A trial without building an image: every replica installs the packages itself.")
]
CanaryOption = Annotated[
    str, typer.Option("--canary", metavar="P,P,...", help="Percentages of the traffic, checked one after the other, such as 10,50.")
]
AddressOption = Annotated[str, typer.Option("--address", help="Of the cluster's dashboard, for --target ray.")]
UrlOption = Annotated[str, typer.Option("--url", help="Where the cluster serves, for --target ray.")]
NoUploadOption = Annotated[bool, typer.Option("--no-upload", help="The cluster has the code already, for --target ray.")]
ImageOption = Annotated[str, typer.Option("--image", help="Built from the containerfile, for --target kuberay.")]
WorkingDirOption = Annotated[
    str | None,
    typer.Option("--working-dir", help="URI of a zip of the code, for --target kuberay; without it, the image must hold app/."),
]
GoldenOption = Annotated[
    bool, typer.Option("--golden/--no-golden", help="The first picture has to be a red thing on yellow; if not, any that is not blank.")
]
RequestsOption = Annotated[int, typer.Option("--requests", min=20, help="Pictures whose time is measured.")]
P95Option = Annotated[float, typer.Option("--p95-limit-s", min=0.001, help="Longest 95th percentile of a picture's time, in seconds.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=0, help="How long a version may take to come up.")]
PollOption = Annotated[float, typer.Option("--poll-s", min=0.01, help="Seconds between two looks at the state.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell what would be done.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Needed: it ends for everybody who calls it.")]


def command_line(command: str, file: Path, target: Kind, address: str, url: str) -> str:
    """What to type for another command on the same service: without its options it could end one that nobody meant."""
    given = {"--file": str(file), "--target": str(target), "--address": address, "--url": url}
    usual = {"--file": str(SERVICE_FILE), "--target": str(Kind.ANYSCALE), "--address": DASHBOARD, "--url": SERVED}
    options = [word for option, value in given.items() if value != usual[option] for word in (option, value)]
    return shlex.join(["python", "scripts/rollout.py", *command.split(), *options])


def overrides(assignments: Sequence[str] | None) -> dict[str, str]:
    """`["model=tiny"]` to `{"model": "tiny"}`. Raises `Refused`."""
    assignments = assignments or ()
    for one in assignments:
        if "=" not in one:
            raise Refused(f"--set takes FIELD=VALUE, got {one!r}")
    return dict(one.split("=", 1) for one in assignments)


def environment(names: Sequence[str] | None) -> dict[str, str]:
    """`["HF_TOKEN"]` to `{"HF_TOKEN": "hf_..."}`, from the environment. Raises `Refused`."""
    names = names or ()
    for name in names:
        if "=" in name:
            raise Refused(f"--env takes the name of a variable, whose value stays in your shell, got {name.split('=')[0]}=***")
        if name.upper().startswith(PREFIX):
            raise Refused(f"--env {name} would be a setting, which is checked before it is deployed; pass it by --set")
        if not os.environ.get(name):
            raise Refused(f"--env {name}: there is no such variable here, or it is empty")
    return {name: os.environ[name] for name in names}


def canary_steps(text: str) -> tuple[int, ...]:
    """`"10,50"` to `(10, 50, 100)`. Raises `Refused`."""
    if not text:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise Refused(f"--canary takes percentages such as 10,50, got {text!r}")
    steps = [int(percent) for percent in text.split(",")]
    if steps != sorted(set(steps)) or not 1 <= steps[0] <= steps[-1] <= ALL:
        raise Refused(f"--canary takes percentages from 1 to 100, each higher than the one before, got {text!r}")
    return tuple(steps) if steps[-1] == ALL else (*steps, ALL)
