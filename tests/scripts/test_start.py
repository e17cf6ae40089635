"""`bash scripts/start.sh`: what goes wrong on somebody's machine is one sentence, and what was started ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image

from tests.conftest import REPOSITORY

TOOLS = ("awk", "bash", "cat", "cmp", "cp", "df", "dirname", "grep", "mktemp", "rm", "sleep")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh copy of the scripts, and a PATH (`bin`) with no Python on it yet."""
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "requirements.txt").write_text("nothing-of-this-name==1\n")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return tmp_path


def stub(bare: Path, name: str, script: str) -> None:
    path = bare / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def start(bare: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "scripts/start.sh"]
    return subprocess.run(command, cwd=bare, env={"PATH": str(bare / "bin")}, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_supported_python_it_names_those_that_are(bare: Path) -> None:
    stub(bare, "python3", "exit 1")  # says no to the version check
    done = start(bare)
    assert (done.returncode, done.stderr) == (2, "Python 3.11, 3.12 or 3.13 is needed, and none of them is on the PATH.\n")


def test_without_the_venv_module_it_names_the_package_that_has_it(bare: Path) -> None:
    stub(bare, "python3", 'case "$2" in *venv*version_info*) echo python3.11-venv ;; *ensurepip*) exit 1 ;; esac')
    done = start(bare)
    assert done.returncode == 2
    assert done.stderr == "python3 has no venv module. On Debian and Ubuntu: apt install python3.11-venv\n"


def test_on_a_full_disk_it_says_how_much_is_needed(bare: Path) -> None:
    stub(bare, "df", "printf 'Filesystem 1M-blocks Used Available\\n/dev/x 100 90 10\\n'")
    done = start(bare)
    assert (done.returncode, done.stderr) == (2, "The disk is full: 10 MB are free here and about 3000 MB are needed.\n")


def with_environment(bare: Path, python: str) -> None:
    """One that was made already. What its Python does is told in bash; it takes any version check for right."""
    (bare / ".venv/bin").mkdir(parents=True)
    (bare / ".venv/bin/activate").touch()
    path = bare / ".venv/bin/python"
    path.write_text(f'#!/bin/bash\ncase "$*" in *version_info* | *--version) exit ;; esac\n{python}\n')
    path.chmod(0o755)


def test_on_a_disk_that_has_room_for_little_more_an_environment_is_brought_up_to_date(bare: Path) -> None:
    stub(bare, "df", "printf 'Filesystem 1M-blocks Used Available\\n/dev/x 100 90 10\\n'")
    with_environment(bare, 'echo "$@"')
    done = start(bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert "-m scripts.start" in done.stdout


def test_an_environment_of_another_python_is_named_and_left_alone(bare: Path) -> None:
    with_environment(bare, "")
    stub(bare / ".venv", "python", "exit 1")  # says no to the version check
    done = start(bare)
    assert (done.returncode, "Remove the folder and run this again" in done.stderr) == (2, True)
    assert (bare / ".venv/bin/activate").exists()


def test_what_was_installed_by_a_run_that_was_cut_off_later_does_not_count(bare: Path) -> None:
    with_environment(bare, "exit 1")
    before = (bare / "requirements.txt").read_text()
    (bare / ".venv/.installed-requirements.txt").write_text(before)
    (bare / "requirements.txt").write_text("something==2")
    assert start(bare).returncode == 2
    (bare / "requirements.txt").write_text(before)
    assert "pip could not install" in start(bare).stderr


def test_a_disk_that_fills_up_while_installing_is_said(bare: Path) -> None:
    with_environment(bare, 'echo "OSError: [Errno 28] No space left on device" >&2; exit 1')
    done = start(bare)
    assert done.returncode == 2
    assert done.stderr.endswith("The disk is full: pip could not write to .venv.\n")


@pytest.mark.parametrize("left", ["without pip", "of a python that is gone"])
def test_an_environment_that_is_not_whole_is_made_whole(bare: Path, left: str) -> None:
    (bare / "requirements.txt").write_text("")
    (bare / ".venv/bin").mkdir(parents=True)
    (bare / ".venv/.installed-requirements.txt").touch()
    if left == "without pip":
        (bare / ".venv/.installed-requirements.txt").unlink()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare / ".venv"], timeout=60, check=True)
        (bare / ".venv/bin/activate").unlink()
    else:
        (bare / ".venv/bin/python").symlink_to("nowhere")
    command = ["bash", "-c", ". scripts/install.sh; install requirements.txt; $PYTHON -m pip --version"]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert str(bare / ".venv") in done.stdout.splitlines()[-1]
    assert (bare / ".venv/bin/activate").exists()


def test_a_port_in_use_is_said_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["bash", "scripts/start.sh", "--port", str(port)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"Port {port} is in use" in done.stderr
    assert "start Ray" not in done.stdout


def test_a_prompt_that_breaks_a_rule_is_said_before_anything_is_started(free_port: int) -> None:
    command = ["bash", "scripts/start.sh", "", "--port", str(free_port)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "prompt" in done.stderr
    assert "start Ray" not in done.stdout


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("DEVICE", "cuda", "needs 1 GPUs, and Ray has 0"),
        ("MIN_REPLICAS", "99", "min_replicas=99 with device=cpu needs"),
        ("INITIAL_REPLICAS", "99", "initial_replicas=99 with device=cpu needs"),
    ],
)
def test_what_this_machine_does_not_have_is_said_and_not_waited_for(free_port: int, setting: str, value: str, said: str) -> None:
    command = ["bash", "scripts/start.sh", "--port", str(free_port)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", f"IMAGINE_{setting}": value}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "load the model" not in done.stdout


@pytest.mark.parametrize(("end", "token"), [(signal.SIGINT, ""), (signal.SIGTERM, "a-token-of-the-service")])
def test_it_serves_in_the_background_until_a_signal_and_leaves_nothing_behind(
    tmp_path: Path, free_port: int, end: signal.Signals, token: str
) -> None:
    log = tmp_path / "start.log"
    command = f'exec bash scripts/start.sh "a red heart on a yellow background" --port {free_port} > {log} 2>&1'
    environment = os.environ | ({"IMAGINE_TOKENS": token} if token else {})
    started = subprocess.Popen(["bash", "-c", f"{command} & wait"], cwd=REPOSITORY, env=environment, start_new_session=True)
    deadline = time.monotonic() + 150
    while "Stop: Ctrl-C" not in (text := log.read_text() if log.exists() else ""):
        assert started.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    (picture,) = re.findall(r"The first picture: (.+)", text)
    assert Image.open(picture).size == (128, 128)
    (header, address) = re.findall(r"curl -o picture.png (?:-H '(.+)' )?'(http.+)'", text)[0]
    assert header == ("Authorization: Bearer TOKEN" if token else "")
    answer = requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    assert answer.headers["Content-Type"] == "image/png"
    assert token == "" or token not in text

    server = psutil.Process(started.pid).children()[0]
    family = [server, *server.children(recursive=True)]
    assert len(family) > 3
    os.kill(server.pid, end)
    assert started.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert log.read_text().endswith("Stopped.\n")
