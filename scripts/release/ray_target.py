"""A Ray cluster, by the address of its dashboard: what `serve deploy` and `serve status` talk to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.exceptions import AuthenticationError

from scripts.release.outcome import Refused, Unreachable
from scripts.release.serve_config import serve_config
from scripts.release.service import Service
from scripts.release.target import Observed, Version

LOG_LINES = 40


class RayTarget:
    """A rolling update of Serve: the cluster stays, its replicas are replaced one after the other."""

    takes_canaries = False

    def __init__(self, name: str, address: str, url: str, *, upload: bool = True) -> None:
        self._name, self._address, self._url, self._upload = name, address, url, upload
        self._before: Version | None = None  # the version that was running before anything was applied
        self._applied = False
        with _translated(address):
            self._cluster = ServeSubmissionClient(address)

    def observe(self) -> Observed | None:
        application = self._applications().get(self._name)
        if application is None or application["status"] == "DELETING":
            return None
        version, status = _version(application), application["status"]
        rolling = status in {"DEPLOYING", "NOT_STARTED"}
        if status == "RUNNING" and not self._applied:
            self._before = version
        primary, canary = (self._before, version) if rolling else (version, None)
        return Observed(status, primary, canary, self._url, note=_reason(application))

    def apply(self, service: Service, folder: Path, percent: int | None) -> None:
        self._applied = True
        with _translated(self._address):
            uploaded: dict[str, Any] = {"working_dir": str(folder), "excludes": service.excludes}
            if self._upload:
                self._cluster._upload_working_dir_if_needed(uploaded)
            config = serve_config(service, uploaded["working_dir"] if self._upload else None, self._url)
        self._put(config["applications"][0], {name: value for name, value in config.items() if name != "applications"})

    def shift(self, shares: Sequence[tuple[str, int]]) -> None:
        raise Refused("a Ray cluster replaces replicas; it has no traffic to divide")

    def roll_back(self) -> None:
        if self._before is None:
            raise Refused("the cluster keeps no earlier version; check out the commit you want and deploy that")
        self.put_back(self._before)

    def put_back(self, version: Version) -> None:
        if version.deployed is None:
            raise Refused(f"{version.name} was started by `serve.run`, so the cluster does not know how to deploy it again")
        self._put(version.deployed)

    def terminate(self) -> None:
        self._put(None)

    def logs(self, observed: Observed, version: str) -> str:
        application = self._applications().get(self._name, {})
        told = [application.get("message", ""), *(deployment["message"] for deployment in application.get("deployments", {}).values())]
        return "\n".join("\n".join(filter(None, told)).splitlines()[-LOG_LINES:])

    def _put(self, application: dict[str, Any] | None, rest: Mapping[str, Any] = MappingProxyType({})) -> None:
        """The whole set of applications is declared at once: those of others are declared again as they are."""
        others = [other["deployed_app_config"] for name, other in self._applications().items() if name != self._name]
        applications = [config for config in [*others, application] if config]
        with _translated(self._address):
            self._cluster.deploy_applications({**rest, "applications": applications})

    def _applications(self) -> dict[str, dict[str, Any]]:
        with _translated(self._address):
            applications: dict[str, dict[str, Any]] = self._cluster.get_serve_details().get("applications", {})
        return applications


def _version(application: dict[str, Any]) -> Version:
    config = application.get("deployed_app_config") or None
    name = ((config or {}).get("args") or {}).get("version", "unnamed")
    return Version(str(name), application["status"], None, deployed=config)


def _reason(application: dict[str, Any]) -> str:
    """The last line of the traceback of a replica that could not start, if there is one."""
    messages = [deployment.get("message", "") for deployment in application.get("deployments", {}).values()]
    lines = [line for message in messages if "Traceback" in message for line in message.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else str(application.get("message", ""))


@contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise Refused(
            f"the cluster at {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN if it is not in ~/.ray"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:  # what requests raises is an OSError
        text = str(error)[:1000]
        if isinstance(error, OSError) or "status code 5" in text:
            raise Unreachable(f"no Ray dashboard answers at {address} ({text[:200]})") from error
        raise Refused(text) from error
