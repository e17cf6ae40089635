"""What a rollout needs of the place it rolls out to, whichever that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from scripts.release.service import Service

ALL = 100  # percent
BROKEN = frozenset({"UNHEALTHY", "SYSTEM_FAILURE", "TERMINATING", "TERMINATED", "DEPLOY_FAILED"})
GOING_BACK = "ROLLING_BACK"
GONE = frozenset({"TERMINATING", "TERMINATED"})


@dataclass(frozen=True)
class Version:
    name: str
    state: str  # the target's own word
    percent: int | None  # of the traffic
    deployed: Any = field(default=None, repr=False, compare=False)  # what `put_back` needs to deploy it again

    def __str__(self) -> str:
        return f"{self.name} {self.state}" + ("" if self.percent is None else f" {self.percent} %")


@dataclass(frozen=True)
class Observed:
    """The service at one moment. During a rollout the new version is the canary, and becomes the primary at its end."""

    state: str  # the target's own word
    primary: Version | None
    canary: Version | None
    url: str
    token: str | None = field(default=None, repr=False)
    note: str = ""  # what the target itself says about it

    def __str__(self) -> str:
        versions = [f"{role} {version}" for role, version in (("primary", self.primary), ("canary", self.canary)) if version]
        return ", ".join([self.state, *versions])

    def version(self, name: str) -> Version | None:
        return next((version for version in (self.canary, self.primary) if version and version.name == name), None)

    def settled_on(self, name: str) -> bool:
        """It alone serves, and is healthy."""
        return self.state == "RUNNING" and self.canary is None and self.primary is not None and self.primary.name == name


class Target(Protocol):
    """Every method raises `Refused` or `Unreachable`."""

    takes_canaries: bool

    def observe(self) -> Observed | None:
        """None if there is no such service, or it was terminated."""
        ...

    def apply(self, service: Service, folder: Path, percent: int | None) -> None:
        """Deploy a version from the staged files; returns once that is accepted. Never sends it twice."""
        ...

    def shift(self, shares: Sequence[tuple[str, int]]) -> None:
        """Give versions that run already these percentages of the traffic."""
        ...

    def roll_back(self) -> None:
        """Stop a rollout that is going on: the primary version gets all traffic again."""
        ...

    def put_back(self, version: Version) -> None:
        """Deploy an earlier version again, after another one has become the primary."""
        ...

    def terminate(self) -> None: ...

    def logs(self, observed: Observed, version: str) -> str:
        """The last lines that the version wrote."""
        ...
