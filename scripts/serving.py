"""The app on a Ray cluster of this process's own, for the scripts that try it hard."""

import contextlib
import io
import logging
import os
import socket
from collections.abc import Iterator

import psutil

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
LOGICAL_CPUS = 16  # what is tried is not how many replicas fit


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Serve without apps, on loopback and a free port; gives its address. Everything is stopped at the end."""
    os.environ |= ENVIRONMENT
    import ray
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.redirect_stderr(io.StringIO()):  # Ray calls the planned end of Serve's controller a failure
            serve.shutdown()
            ray.shutdown()


@contextlib.contextmanager
def served(address: str, name: str = "imagine", route_prefix: str = "/", **settings: object) -> Iterator[str]:
    """The app with the bundled model on a CPU, ready; gives its address."""
    from ray import serve

    from app import entrypoint
    from app.client import ImagineClient
    from app.settings import Settings

    fields = {"model": "tiny", "device": "cpu", **settings}
    serve.run(entrypoint(Settings.model_validate(fields)), name=name, route_prefix=route_prefix)
    url = f"{address}{route_prefix.rstrip('/')}"
    ImagineClient(url).wait_until_ready()
    try:
        yield url
    finally:
        serve.delete(name)


def processes(title: str) -> Iterator[psutil.Process]:
    """Those of this process's cluster with this in their title, of which the kernel shows 15 characters and the command line the rest."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(child.cmdline()):
                yield child


def rows_of(name: str = "imagine") -> int:
    """Rows that the denoiser of an app with one replica has computed so far."""
    from ray import serve

    rows: int = serve.get_deployment_handle("TextToImage", name).denoiser_rows.remote().result(timeout_s=60)
    return rows


def tasks_of(name: str = "imagine") -> int:
    """Of the event loops of an app's replicas, one of each kind."""
    from ray import serve

    return sum(serve.get_deployment_handle(kind, name).tasks.remote().result(timeout_s=60) for kind in ("APIIngress", "TextToImage"))
