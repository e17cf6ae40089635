"""The app on a real Ray cluster of this process's own, on a free port."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from app import entrypoint
from app.client import ImagineClient
from app.settings import Settings

LOGICAL_CPUS = (os.cpu_count() or 1) + 6  # what is tested is not how many replicas fit: one with all, and three small ones beside it


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A cluster with Serve started on it; gives the address at which its apps answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def client(cluster: str) -> ImagineClient:
    """The bundled model, served as `serve run app:entrypoint` serves it."""
    serve.run(entrypoint(Settings(model="tiny", device="cpu", version="abc123")), name="imagine", route_prefix="/")
    client = ImagineClient(cluster)
    client.wait_until_ready()
    return client


@pytest.fixture(scope="session")
def denoiser_rows(client: ImagineClient) -> Callable[[], int]:
    """How many rows the denoiser of the app's replica has computed since that one's start."""
    model = serve.get_deployment_handle("TextToImage", "imagine")
    return lambda: model.denoiser_rows.remote().result(timeout_s=30)


@pytest.fixture
def session_folder(cluster: str) -> Path:
    """Where Ray keeps this session's logs."""
    context = ray.get_runtime_context()
    return Path(str(context.get_temp_dir()), str(context.get_session_name()))
