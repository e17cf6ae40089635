"""An Anyscale Service, by the SDK of the anyscale package."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyscale
import click
import requests
import urllib3
from anyscale.cli_logger import BlockLogger
from anyscale.client.openapi_client.rest import ApiException as InternalApiException
from anyscale.sdk.anyscale_client.rest import ApiException as ExternalApiException
from anyscale.service.models import ServiceConfig, ServiceLogMode, ServiceVersionStatus
from urllib3.util.retry import Retry

from scripts.release.outcome import Refused, Unreachable
from scripts.release.service import Service
from scripts.release.target import GONE, Observed, Version

LOG_LINES = 40
TRY_AGAIN = frozenset({408, 429})
READS = frozenset({"GET", "HEAD"})  # may be sent again after a 5xx or a dropped connection: they change nothing


class AnyscaleTarget:
    """Talks to the control plane at `ANYSCALE_HOST` with `ANYSCALE_CLI_TOKEN`, or the login of `anyscale login`."""

    takes_canaries = True

    def __init__(self, name: str, *, cloud: str | None = None, project: str | None = None) -> None:
        self._named: dict[str, Any] = {"name": name, "cloud": cloud, "project": project}
        # In a workspace the SDK would have every replica install what was ever installed there, on top of the image.
        os.environ["ANYSCALE_SKIP_PYTHON_DEPENDENCY_TRACKING"] = "1"
        with _translated():
            sdk = anyscale.Anyscale(_host=os.environ.get("ANYSCALE_HOST"))
        _repeat_only_reads(sdk)
        # Not `sdk.service`: it would print the service's token in an example of how to call it.
        self._services = anyscale.service.ServiceSDK(client=sdk._anyscale_client, logger=BlockLogger(log_output=False))

    def observe(self) -> Observed | None:
        with _translated():
            try:
                status = self._services.status(**self._named)
            except RuntimeError as error:
                if "was not found" in str(error):
                    return None
                raise
        if str(status.state) in GONE:
            return None
        return Observed(
            state=str(status.state),
            primary=_version(status.primary_version),
            canary=_version(status.canary_version),
            url=(status.query_url or "").rstrip("/"),
            token=status.query_auth_token,
        )

    def apply(self, service: Service, folder: Path, percent: int | None) -> None:
        config = ServiceConfig.from_dict(service.fields | {"working_dir": str(folder)})
        with _translated():
            self._services.deploy(config, canary_percent=percent)

    def shift(self, shares: Sequence[tuple[str, int]]) -> None:
        """Without a config the SDK sends the canary's own again with another weight, so this cannot become yet another version."""
        versions = json.dumps([{"name": name, "traffic_percent": percent} for name, percent in shares])
        with _translated():
            self._services.deploy([], versions=versions, **self._named)

    def roll_back(self) -> None:
        with _translated():
            self._services.rollback(**self._named)

    def put_back(self, version: Version) -> None:
        with _translated():
            self._services.deploy(version.deployed)

    def terminate(self) -> None:
        with _translated():
            self._services.terminate(**self._named)

    def logs(self, observed: Observed, version: str) -> str:
        canary = observed.canary is not None and observed.canary.name == version
        with _translated():
            told: str = self._services.controller_logs(**self._named, canary=canary, mode=ServiceLogMode.TAIL, max_lines=LOG_LINES)
        return told


def _version(status: ServiceVersionStatus | None) -> Version | None:
    return status and Version(status.name, str(status.state), status.weight, deployed=status.config)


def _repeat_only_reads(sdk: anyscale.Anyscale) -> None:
    """urllib3 counts PUT among the methods it may repeat: a connection dropped after the deploy was read would deploy twice."""
    careful = Retry(
        4,
        allowed_methods=READS,
        status_forcelist=(500, 502, 503, 504),
        backoff_factor=0.25,
        raise_on_status=False,
    )
    for api in (sdk._anyscale_client._internal_api_client, sdk._anyscale_client._external_api_client):
        pools = api.api_client.rest_client.pool_manager
        pools.connection_pool_kw["retries"] = careful
        pools.clear()  # those that exist keep what they were made with


@contextmanager
def _translated() -> Iterator[None]:
    """Whatever the SDK raises becomes `Refused` (it was told no) or `Unreachable` (it cannot know)."""
    try:
        yield
    except (InternalApiException, ExternalApiException) as error:
        if error.status is not None and 400 <= error.status < 500 and error.status not in TRY_AGAIN:
            raise Refused(f"the control plane refused it ({error.status}): {error.body or error.reason}") from error
        raise Unreachable(f"the control plane answered {error.status} ({error.reason})") from error
    except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
        raise Unreachable(f"the control plane cannot be reached: {_root(error)}") from error
    except click.ClickException as error:
        if getattr(error, "exit_code", 1) == 2:
            raise Unreachable(f"the control plane cannot be reached: {error.message.splitlines()[0]}") from error
        raise Refused(error.message) from error
    except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
        if getattr(error.__context__, "status", None) in TRY_AGAIN:  # of the answer that the SDK has put into words
            raise Unreachable(str(error)) from error
        raise Refused(str(error)) from error
    except Exception as error:
        raise Refused(f"the anyscale package failed: {error!r}") from error


def _root(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return f"{type(reason or error).__name__}"
