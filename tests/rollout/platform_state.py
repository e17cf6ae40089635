"""What the control plane's stand-in knows: one service, its versions, and how it changes each time somebody looks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

TIME = "2026-01-01T00:00:00Z"
TOKEN = "secret-of-the-service"
OWN_STEPS = (10, 50, 100)  # percent of the traffic, when nobody says which

numbers = count(1)


@dataclass
class Version:
    """`becomes` is the state it reaches after starting; with "" it never leaves it."""

    name: str
    applied: dict[str, Any]
    becomes: str = "RUNNING"
    state: str = "STARTING"
    weight: int = 0
    looks: int = 2  # that it takes to start
    id: str = field(default_factory=lambda: f"version_{next(numbers):020}")

    def told(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created_at": TIME,
            "weight": self.weight,
            "version": self.name,
            "ray_serve_config": self.applied["ray_serve_config"],
            "build_id": self.applied["build_id"],
            "compute_config_id": self.applied["compute_config_id"],
            "production_job_ids": ["job_1"],
            "current_state": self.state,
        }


class Platform:
    """The tests turn these knobs: what a new version becomes, whether the platform takes it back by itself, and who else is told."""

    def __init__(self) -> None:
        self.primary: Version | None = None
        self.canary: Version | None = None
        self.state = "TERMINATED"
        self.target = 100  # percent that the canary is on its way to
        self.own_steps = False
        self.becomes = "RUNNING"
        self.takes_back_at = 101  # percent of the traffic at which the platform takes a canary back
        self.rolls_back = True
        self.on_apply: Callable[[Version], None] = lambda version: None
        self.is_up: Callable[[Version], bool] = lambda version: True

    def apply(self, body: dict[str, Any]) -> None:
        """A version that the canary has already only gets another weight."""
        percent, name = body.get("canary_percent"), body["version"]
        if self.canary is not None and self.canary.name == name:
            self.target, self.own_steps = (100, True) if percent is None else (percent, False)
            return
        version = Version(name, body, becomes=self.becomes)
        self.on_apply(version)
        if self.primary is None or self.state == "TERMINATED":
            version.weight = 100
            self.primary, self.state = version, "STARTING"
        else:
            self.canary, self.state = version, "ROLLING_OUT"
            self.target, self.own_steps = (100, True) if percent is None else (percent, False)

    def roll_back(self) -> None:
        self.state = "ROLLING_BACK"

    def terminate(self) -> None:
        self.state = "TERMINATED"

    def look(self) -> None:
        """One step on: time passes only when somebody looks."""
        if self.state == "ROLLING_BACK":
            if self.rolls_back and self.primary is not None:
                self.canary, self.state, self.primary.weight = None, self.primary.state, 100
        elif self.canary is not None:
            self._roll_out(self.canary)
        elif self.primary is not None and self.state == "STARTING":
            self._start(self.primary)
            self.state = self.primary.state

    def _start(self, version: Version) -> None:
        version.looks -= 1
        if version.looks <= 0 and version.becomes and self.is_up(version):
            version.state = version.becomes

    def _roll_out(self, canary: Version) -> None:
        if canary.state != "RUNNING":
            self._start(canary)
        elif canary.weight >= self.takes_back_at:
            self.roll_back()
        elif canary.weight < self.target:
            canary.weight = next(step for step in OWN_STEPS if step > canary.weight) if self.own_steps else self.target
            if self.primary is not None:
                self.primary.weight = 100 - canary.weight
        elif canary.weight == 100:
            self.primary, self.canary, self.state = canary, None, "RUNNING"
            canary.weight = 100

    def told(self, base_url: str) -> list[dict[str, Any]]:
        if self.primary is None:
            return []
        return [
            {
                "type": "V2",
                "id": "service_1",
                "name": "imagine",
                "project_id": "project_1",
                "cloud_id": "cloud_1",
                "creator_id": "user_1",
                "created_at": TIME,
                "hostname": "127.0.0.1",
                "current_state": self.state,
                "goal_state": "RUNNING",
                "auth_token": TOKEN,
                "auto_rollout_enabled": True,
                "versions": [version.told() for version in (self.primary, self.canary) if version],
                "primary_version": self.primary.told(),
                "canary_version": self.canary and self.canary.told(),
                "service_observability_urls": {},
                "base_url": base_url,
                "creator": USER,
                "is_multi_version": False,
            }
        ]


USER = {"id": "user_1", "name": "Somebody", "username": "somebody", "email": "somebody@example.com"}
