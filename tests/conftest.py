"""What every group of tests shares. Ray is kept away from the caller's home, ports and running clusters, and rollouts from an account."""

import os
import socket
from pathlib import Path

os.environ.pop("ANYSCALE_CLI_TOKEN", None)
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local", "HF_HUB_OFFLINE": "1"}
os.environ["ANYSCALE_HOST"] = "http://127.0.0.1:1"

import pytest

from app.engine import checkpoint
from app.engine.engine import ImageEngine
from app.settings import PREFIX

REPOSITORY = Path(__file__).parent.parent
LONG_S = 900
GROUP_ORDER = (
    "tests/engine",
    "tests/tiny",
    "tests/explorer",
    "tests/browser",
    "tests/notebook",
    "tests/cluster",
    "tests/scripts",
    "tests/rollout",
    "README.ipynb",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs the whole notebook in one go gets longer than the others."""
    for item in items:
        if item.nodeid.startswith(("README.ipynb", "tests/browser")):
            item.add_marker(pytest.mark.timeout(LONG_S))


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def engine() -> ImageEngine:
    """The bundled checkpoint, in this process."""
    return ImageEngine(checkpoint.load("tiny"))


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by group."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                group = next((name for name in GROUP_ORDER if report.nodeid.startswith(name)), "tests")
                seconds[group] = seconds.get(group, 0.0) + report.duration
    terminalreporter.write_line("seconds by group: " + ", ".join(f"{group} {total:.0f}" for group, total in sorted(seconds.items())))
