"""JupyterLab and a headless Chromium to look at it with. Used by the browser tests and by `scripts/pictures.py`."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).parent.parent
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_GET_ONE = "apt-get install chromium (Debian, Ubuntu), or any other way to get chromium or google-chrome onto the PATH"
START_TIMEOUT_S = 90.0
LOOK_INTERVAL_S = 0.2
SETTINGS: dict[str, dict[str, object]] = {  # of JupyterLab, by extension
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"adaptive-theme": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page too
}


def chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in CHROMIUMS if (path := shutil.which(name))), None)


@contextmanager
def headless() -> Iterator[Browser]:
    """A browser. Raises `FileNotFoundError` if there is no Chromium."""
    path = chromium()
    if path is None:
        raise FileNotFoundError(f"no Chromium found: {HOW_TO_GET_ONE}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True)
class Lab:
    """A running JupyterLab, whose `folder` has links to everything in the repository, so that notebooks saved in it harm nothing."""

    url: str
    token: str
    folder: Path

    def open(self, page: Page, notebook: str) -> None:
        """Show a notebook of the folder, and wait until its kernel is there."""
        page.goto(f"{self.url}/lab/tree/{notebook}?token={self.token}&reset")
        page.locator(".jp-CodeCell").first.wait_for(timeout=START_TIMEOUT_S * 1000)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(session["path"] == notebook and session["kernel"]["execution_state"] == "idle" for session in self.sessions()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no kernel for {notebook} after {START_TIMEOUT_S:g} s")
            page.wait_for_timeout(LOOK_INTERVAL_S * 1000)

    def sessions(self) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/api/sessions", headers={"Authorization": f"token {self.token}"}, timeout=10)
        answer.raise_for_status()
        sessions: list[dict[str, Any]] = answer.json()
        return sessions


def run_all(page: Page) -> None:
    """Press Run, Run All Cells."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


@contextmanager
def lab(theme: str = "JupyterLab Light") -> Iterator[Lab]:
    """JupyterLab on a free port of this machine, with settings and a home of its own."""
    with TemporaryDirectory() as scratch:
        folder, home = Path(scratch) / "workspace", Path(scratch) / "home"
        folder.mkdir()
        for path in REPOSITORY.iterdir():
            if path.name not in {".git", "README.ipynb"}:
                (folder / path.name).symlink_to(path)
        shutil.copy(REPOSITORY / "README.ipynb", folder)
        _write_settings(home / "settings", theme)
        server, token, port = _start(folder, home)
        try:
            _await_start(server, f"http://127.0.0.1:{port}", home / "lab.log")
            yield Lab(f"http://127.0.0.1:{port}", token, folder)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _start(folder: Path, home: Path) -> tuple[subprocess.Popen[bytes], str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    token = secrets.token_hex(16)
    # fmt: off
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
    ]
    # fmt: on
    own = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    with (home / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
    return server, token, port


def _await_start(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            requests.get(f"{url}/lab", timeout=5)
        except requests.RequestException:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(LOOK_INTERVAL_S)
        else:
            return


def _write_settings(folder: Path, theme: str) -> None:
    chosen = {**SETTINGS, "apputils-extension/themes": {**SETTINGS["apputils-extension/themes"], "theme": theme}}
    for name, values in chosen.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
