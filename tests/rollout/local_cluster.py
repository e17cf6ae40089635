"""A Ray cluster of its own, in processes of its own, with a dashboard to deploy to."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

LOGICAL_CPUS = 8  # more than there are, so that a new replica has room beside the old one


@dataclass(frozen=True)
class Cluster:
    address: str  # of the dashboard
    url: str  # where Serve is to listen


@contextmanager
def cluster() -> Iterator[Cluster]:
    head, dashboard, agent, served = _free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a longer name would be too long for Ray's sockets
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    command += [f"--port={head}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--num-cpus={LOGICAL_CPUS}", f"--temp-dir={folder}", "--object-store-memory=200000000"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"HF_HUB_OFFLINE": "1"}
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/serve/applications/", process, folder / "start.log")
        yield Cluster(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{served}")
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=60)  # it takes leave of its replicas first
    for one in alive:
        one.kill()
    process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
