"""The command line: `serve run app:entrypoint`."""

import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from app.client import ImagineClient
from app.schemas import ImageRequest
from tests.conftest import REPOSITORY

SERVE = ["serve", "run", "--address", "local", "app:entrypoint"]


def test_serve_run_serves_on_loopback_until_interrupted(tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, the only one `serve run` takes, is in use")
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen([*SERVE, "model=tiny", "device=cpu", "max_replicas=1"], cwd=REPOSITORY, stdout=output, stderr=output)
    try:
        client = ImagineClient("http://127.0.0.1:8000")
        client.wait_until_ready(timeout_s=150, alive=lambda: server.poll() is None)
        listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert [address for address in listening if address[1:] == (8000,)] == [("127.0.0.1", 8000)]
        assert client.generate(ImageRequest(prompt="a star", num_inference_steps=1)).image.size == (128, 128)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0, log.read_text()


def test_an_unknown_key_is_refused_by_name() -> None:
    done = subprocess.run([*SERVE, "modle=tiny"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "modle" in done.stderr
    assert "Extra inputs are not permitted" in done.stderr
