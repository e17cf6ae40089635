"""Start the app from a program or a notebook of one's own, and learn why when it does not start."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.context import _get_global_client

LINES_TOLD = 25  # of a replica's log
LOOPBACK = "127.0.0.1"


class AppNotStarted(RuntimeError):
    """The app could not start; the message is the end of its own log."""


@contextmanager
def telling_why() -> Iterator[None]:
    """Around `serve.run`, whose error says only that a deployment failed: raises `AppNotStarted` in its place."""
    try:
        yield
    except RuntimeError as error:
        log = replica_log()
        raise AppNotStarted("\n".join([str(error), *log[-LINES_TOLD:]])) from None


def replica_log() -> list[str]:
    """The lines that replicas of an app which failed have left: a traceback, its reason last."""
    messages = [
        deployment.message
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
        if "Traceback" in deployment.message
    ]
    return [line for message in messages for line in message.strip().splitlines() if line.strip()]


def start_serve(wanted_port: int = 8000) -> int:
    """Start Ray Serve on loopback, at another port if that one is taken, and tell the port. Where it runs already it stays as it is."""
    _bypass_proxies()
    if _get_global_client(raise_if_no_controller_running=False) is None:
        serve.start(http_options={"host": LOOPBACK, "port": free_port(wanted_port)})
    port: int = _get_global_client().http_config.port  # Serve tells it nowhere else
    return port


def _bypass_proxies() -> None:
    """One that the environment names cannot reach what this machine serves to itself. Commands that are started from here see it too."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if hosts != "*" and LOOPBACK not in hosts.split(","):
        hosts = ",".join(filter(None, [hosts, LOOPBACK]))
    os.environ.update({"no_proxy": hosts, "NO_PROXY": hosts})


def free_port(wanted: int = 8000) -> int:
    """`wanted` if nothing on this machine listens there, else one that is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no port is free on {LOOPBACK}")
