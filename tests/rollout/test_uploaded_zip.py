"""What was uploaded is enough: unpacked into an empty folder, it serves, and the smoke test of the rollout talks to it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import requests
import yaml

from scripts.release.cli import main
from scripts.release.outcome import Exit
from tests.rollout.conftest import TINY
from tests.rollout.platform_state import Version
from tests.rollout.stand_in import StandIn


class Served:
    """`serve run` on what was applied."""

    def __init__(self, stand_in: StandIn, folder: Path, port: int) -> None:
        self._stand_in, self._folder, self._port = stand_in, folder, port
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "serve.log"

    def start(self, version: Version) -> None:
        config = dict(version.applied["ray_serve_config"])
        (application,) = config["applications"]
        uploaded = self._stand_in.uploads[application["runtime_env"]["working_dir"].rsplit("/", 1)[1]]
        code = self._folder / "unpacked"
        with ZipFile(BytesIO(uploaded)) as packed:
            packed.extractall(code)
        (root,) = code.iterdir()
        config["http_options"] = config["http_options"] | {"host": "127.0.0.1", "port": self._port}
        config["applications"] = [{name: value for name, value in application.items() if name != "runtime_env"}]
        (root / "served.yaml").write_text(yaml.safe_dump(config))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("w") as log:
            command = ["serve", "run", "--address", "local", "served.yaml"]
            self._process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._stand_in.served_url = f"http://127.0.0.1:{self._port}"

    def is_up(self, version: Version) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"http://127.0.0.1:{self._port}/readyz", timeout=10).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        finally:
            if self._process.poll() is None:
                self._process.kill()


@pytest.fixture
def served(stand_in: StandIn, tmp_path: Path, free_port: int) -> Iterator[Served]:
    served = Served(stand_in, tmp_path, free_port)
    stand_in.platform.on_apply, stand_in.platform.is_up = served.start, served.is_up
    yield served
    served.stop()


def test_the_uploaded_zip_serves_from_an_empty_folder_and_passes_the_smoke_test(
    stand_in: StandIn, served: Served, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--file", str(checkout / "service.yaml"), *TINY, "--version", "first", "--poll-s", "0.5", "--timeout-s", "200"]
    assert main(command) == Exit.DONE, served.log.read_text()
    assert stand_in.changes() == ["apply first None"]
    assert "first passed: ready, the first picture is right, p95 of 20 pictures" in capsys.readouterr().err
