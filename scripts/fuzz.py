"""A public fuzzer (schemathesis) over the whole OpenAPI document of a service whose pictures are small and quick.

    python -m scripts.fuzz                          # more than ten thousand cases, on a service of its own
    python -m scripts.fuzz --cases 500 --seed 7
    python -m scripts.fuzz --url http://127.0.0.1:8000 --cases 200

No answer may have a status, a type or a body that the document does not promise, nothing may be left running, and the service has to make
pictures afterwards. Exit code 0: so it was.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

from app.client import ImagineClient, ImagineError
from app.schemas import ImageRequest
from scripts import serving

LIMITS: dict[str, Any] = {"max_pixels": 64 * 64, "max_num_inference_steps": 2, "max_batch_size": 4}
CHECKS = (
    "status_code_conformance",  # so that a 500 fails, and a documented 503 or 504 does not
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
# What may answer a request that breaks a rule. 408 is of Serve's proxy: at a deadline of next to nothing nobody has read the request yet.
REFUSALS = (400, 401, 404, 406, 408, 413, 415, 422, 503, 504)
PHASES = "examples,coverage,fuzzing"
GENERATED = re.compile(r"(\d+) generated")
LEAST = 5 / 6  # of the cases that were to be shared out
QUIET_S = 1.0


def fuzz(url: str, cases: int, seed: int | None, timeout_s: float) -> tuple[int, int]:
    """Exit code of the fuzzer, and how many cases it made. `cases` are shared by the operations of the document that take anything."""
    paths = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    operations = sum(bool({"parameters", "requestBody"} & one.keys()) for methods in paths.values() for one in methods.values())
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--phases", PHASES]
    command += ["--max-examples", str(max(1, cases // operations)), "--generation-database", "none", "--no-color", "--no-shrink"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60"]
    command += [] if seed is None else ["--seed", str(seed)]
    made = 0
    with _configured() as folder, subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as fuzzer:
        too_long = threading.Timer(timeout_s, fuzzer.kill)
        too_long.start()
        try:
            for line in fuzzer.stdout or ():
                print(line, end="", flush=True)
                if found := GENERATED.search(line):
                    made = int(found[1])
            fuzzer.wait()
        finally:
            fuzzer.kill()  # if this was interrupted
            too_long.cancel()
    return fuzzer.returncode, made


@contextmanager
def _configured() -> Iterator[str]:
    """A folder for the fuzzer to run in."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "schemathesis.toml").write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {list(REFUSALS)}\n")
        yield folder


def makes_pictures(url: str) -> bool:
    """Whether the service has room and a replica for a picture."""
    try:
        request = ImageRequest(prompt="a red star", seed=1, num_inference_steps=2, width=64, height=64)
        ImagineClient(url).generate(request, lambda progress: None)  # in a stream, whose library keeps a task from the first one on
    except ImagineError as error:
        print(f"No picture is made any more: {error}", file=sys.stderr)
        return False
    return True


def is_quiet() -> bool:
    """Whether the denoiser computes nothing any more."""
    before = serving.rows_of()
    time.sleep(QUIET_S)
    return serving.rows_of() == before


def complaint(rows_before: int, tasks_before: int) -> str:
    """What is wrong after the cases, or nothing."""
    if serving.rows_of() == rows_before:
        return "No picture was made: the service refused everything."
    if not is_quiet():
        return "The denoiser is still at work though nobody waits for a picture."
    left = min(serving.tasks_of() for _ in range(5)) - tasks_before  # the ingress has one more now and then
    return f"{left} tasks of the event loops are left." if left > 0 else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000, help="to share out among the operations (default 12000)")
    parser.add_argument("--seed", type=int, help="repeat a run")
    parser.add_argument("--url", help="a service that runs already, started with limits as small")
    parser.add_argument("--hours", type=float, default=2.0, help="give up after that time (default 2)")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        url = args.url or stack.enter_context(serving.served(stack.enter_context(serving.cluster()), **LIMITS))
        if not makes_pictures(url):
            return 1
        before = (serving.rows_of(), serving.tasks_of()) if args.url is None else None
        code, made = fuzz(url, args.cases, args.seed, args.hours * 3600)
        if made < LEAST * args.cases:
            print(f"Only {made} cases were made" + (" when time was up." if code < 0 else "."), file=sys.stderr)
            return 1
        if before and (wrong := complaint(*before)):
            print(wrong, file=sys.stderr)
            return 1
        if not makes_pictures(url):
            return 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
