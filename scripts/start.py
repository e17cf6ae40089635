"""Serve the app on this machine until told to stop, and make a first picture with it.

    python -m scripts.start ["a prompt"] [--port 8000] [--no-picture]

Settings come from the environment (`IMAGINE_MODEL=sd2`, see app/settings.py). Ctrl-C, SIGINT or SIGTERM ends it and everything it
started. Exit status: 0 after being told to stop, 1 if the app could not start, 2 for a wrong argument or a port in use.
"""

import argparse
import contextlib
import io
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from app.client import ImagineClient
    from app.schemas import ImageRequest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

PROMPT = "a red heart on a yellow background"
PICTURE = Path("first-picture.png")


class Stop(Exception):
    """A signal asked for the end."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"of the first picture (default: {PROMPT})")
    parser.add_argument("--port", type=_port, default=8000, help="default 8000")
    parser.add_argument("--no-picture", action="store_true", help="only serve")
    parser.add_argument("--install-seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not _is_free(args.port):
        print(
            f"Port {args.port} is in use. Stop what uses it, or choose another: bash scripts/start.sh --port {args.port + 1}",
            file=sys.stderr,
        )
        return 2
    _stop_on_signals()
    try:
        return serve_until_stopped(args)
    except Stop:
        print("\nStopped.")
        return 0


def serve_until_stopped(args: argparse.Namespace) -> int:
    import ray
    from pydantic import ValidationError
    from ray import serve

    from app import entrypoint, startup
    from app.client import ImagineClient
    from app.deployment import missing, visible_cpus, visible_gpus
    from app.schemas import ImageRequest
    from app.settings import Settings

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    times = {} if args.install_seconds is None else {"install": args.install_seconds}
    try:
        settings, request = Settings(), ImageRequest(prompt=args.prompt)
    except ValidationError as error:
        print(f"A setting or the prompt is wrong: {error}", file=sys.stderr)
        return 2
    token = settings.tokens[0].get_secret_value() if settings.tokens else None
    try:
        with _timed(times, "start Ray"):
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            _stop_on_signals()  # Ray has put in handlers of its own
            if lacking := missing(settings.decided(visible_gpus, visible_cpus)):
                print(f"\nThe app could not start: {lacking}.", file=sys.stderr)
                return 1
            serve.start(http_options={"host": "127.0.0.1", "port": args.port})
        with _timed(times, "load the model"):
            try:
                serve.run(entrypoint(settings))
            except RuntimeError as error:
                why = startup.replica_log() or [str(error)]
                print(f"The app could not start: {why[-1].strip()}", file=sys.stderr)
                return 1
            client = ImagineClient(f"http://127.0.0.1:{args.port}", token)
            client.wait_until_ready()
        said = []
        if not args.no_picture:
            with _timed(times, "first picture"):
                said = [_first_picture(client, request)]
        _tell(client.base_url, args.prompt, [*said, _told_times(times)], needs_token=token is not None)
        while True:
            signal.pause()
    finally:
        print("Stopping …", flush=True)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ray.is_initialized():
            with contextlib.redirect_stderr(io.StringIO()):  # Ray calls the planned end of Serve's controller a failure
                serve.shutdown()
                ray.shutdown()


def _first_picture(client: "ImagineClient", request: "ImageRequest") -> str:
    """Where it is, or why there is none, which is no reason not to serve."""
    from app.schemas import RefusedRequest, SourceError

    try:
        PICTURE.write_bytes(client.generate(request).png)
    except (SourceError, RefusedRequest, OSError) as error:
        return f"There is no first picture: {error}"
    return f"The first picture: {PICTURE.resolve()}"


def _told_times(times: dict[str, float]) -> str:
    return "Times: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())


def _tell(base_url: str, prompt: str, said: list[str], *, needs_token: bool) -> None:
    url = f"{base_url}/imagine?{urlencode({'prompt': prompt, 'seed': 1})}"
    header = "-H 'Authorization: Bearer TOKEN' " if needs_token else ""
    lines = [f"Another one: curl -o picture.png {header}{shlex.quote(url)}", f"All parameters: {base_url}/docs", "Stop: Ctrl-C"]
    print("", *said, *lines, sep="\n", flush=True)


@contextlib.contextmanager
def _timed(times: dict[str, float], what: str) -> Iterator[None]:
    print(f"{what} … ", end="", flush=True)
    start = time.monotonic()
    yield
    times[what] = time.monotonic() - start
    print(f"{times[what]:.1f} s", flush=True)


def _stop_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, got {port}")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


if __name__ == "__main__":
    sys.exit(main())
