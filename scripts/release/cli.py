"""The command line of scripts/rollout.py."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import typer

from scripts.release import options, plan, serve_config, smoke
from scripts.release.connect import connect, has_account
from scripts.release.options import DASHBOARD, SERVED, SERVICE_FILE, Kind
from scripts.release.outcome import Exit, Refused, Unreachable
from scripts.release.package import members, staged, version_name
from scripts.release.rollout import BY_DEPLOYING, Patience, Rollout
from scripts.release.service import Service, commit_on_the_hub, read
from scripts.release.target import GOING_BACK, Observed
from scripts.release.tell import Teller

commands = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@commands.command("plan")
def plan_(
    file: options.FileOption = SERVICE_FILE,
    target: options.TargetOption = Kind.ANYSCALE,
    sets: options.SetOption = None,
    env: options.EnvOption = None,
    version: options.VersionOption = None,
    quick: options.QuickOption = False,
    canary: options.CanaryOption = "",
    address: options.AddressOption = DASHBOARD,
    url: options.UrlOption = SERVED,
    image: options.ImageOption = "",
    working_dir: options.WorkingDirOption = None,
    dry_run: options.DryOption = False,
) -> None:
    """Check file, settings and upload, and tell what a deploy would do. Changes nothing, and needs no account."""
    service = _service(file, sets, version, env, quick=quick, allow_dirty=True)
    steps = options.canary_steps(canary)
    _refuse_misplaced(target, steps, env)
    _tell_plan(file.parent, service, target, steps, image, working_dir)
    if target is Kind.RAY or (target is Kind.ANYSCALE and has_account()):
        try:
            typer.echo(plan.compared(service, connect(target, service, address, url).observe()))
        except (Refused, Unreachable) as error:
            typer.echo(f"running   not told: {error}")
    elif target is Kind.ANYSCALE:
        typer.echo("running   not asked: there is no token (ANYSCALE_CLI_TOKEN, or anyscale login)")


@commands.command()
def deploy(
    file: options.FileOption = SERVICE_FILE,
    target: options.TargetOption = Kind.ANYSCALE,
    sets: options.SetOption = None,
    env: options.EnvOption = None,
    version: options.VersionOption = None,
    allow_dirty: options.DirtyOption = False,
    quick: options.QuickOption = False,
    canary: options.CanaryOption = "",
    golden: options.GoldenOption = True,
    requests: options.RequestsOption = 20,
    p95_limit_s: options.P95Option = 30.0,
    timeout_s: options.TimeoutOption = 1800.0,
    poll_s: options.PollOption = 5.0,
    address: options.AddressOption = DASHBOARD,
    url: options.UrlOption = SERVED,
    no_upload: options.NoUploadOption = False,
    image: options.ImageOption = "",
    working_dir: options.WorkingDirOption = None,
    dry_run: options.DryOption = False,
) -> None:
    """Deploy this commit, prove it, and take it back if the proof fails. The default."""
    service = _service(file, sets, version, env, quick=quick, allow_dirty=allow_dirty or dry_run or target is Kind.KUBERAY)
    steps = options.canary_steps(canary)
    if target is Kind.KUBERAY and not dry_run:
        service = service.pinned(commit_on_the_hub)
    _refuse_misplaced(target, steps, env, upload=not no_upload)
    _tell_plan(file.parent, service, target, steps, image, working_dir, upload=not no_upload)
    if target is Kind.KUBERAY:
        return
    if dry_run:
        typer.echo(
            f"dry run   would deploy {service.version}, then wait, check {requests} pictures at each step, and go back on any failure"
        )
        return
    tell, command_line = Teller(), partial(options.command_line, file=file, target=target, address=address, url=url)
    place = connect(target, service, address, url, upload=not no_upload)
    own_token = service.settings.tokens[0].get_secret_value() if service.settings.tokens else None
    limits = smoke.Limits(golden=golden, requests=requests, p95_s=p95_limit_s)
    with staged(file.parent) as folder:
        rollout = Rollout(
            place,
            service.pinned(commit_on_the_hub),
            folder,
            tell,
            check=lambda seen: smoke.check(seen.url, seen.token or own_token, service.version, limits, tell.say),
            steps=steps,
            patience=Patience(timeout_s, poll_s),
            command_line=command_line,
        )
        try:
            raise typer.Exit(rollout.run())
        except KeyboardInterrupt:
            go_on = "Go on: the same command again. " if rollout.goes_on else ""
            tell.say(f"interrupted: {rollout.stage}. {go_on}Look: {command_line('status')}")
            tell.say(f"Go back: {command_line('rollback') if place.takes_canaries else f'once it has ended, {BY_DEPLOYING}'}")
            raise typer.Exit(Exit.INTERRUPTED) from None


@commands.command()
def status(
    file: options.FileOption = SERVICE_FILE,
    target: options.TargetOption = Kind.ANYSCALE,
    address: options.AddressOption = DASHBOARD,
    url: options.UrlOption = SERVED,
    dry_run: options.DryOption = False,
) -> None:
    """What runs, in which version, with which share of the traffic."""
    service = _service(file, (), "status", quick=False, allow_dirty=True)
    if dry_run:
        typer.echo(f"dry run   would ask for the state of {service.name}")
        return
    observed = connect(target, service, address, url).observe()
    typer.echo(f"{service.name}: no such service is running" if observed is None else f"{service.name}: {observed} at {observed.url}")


@commands.command()
def rollback(
    file: options.FileOption = SERVICE_FILE,
    target: options.TargetOption = Kind.ANYSCALE,
    timeout_s: options.TimeoutOption = 1800.0,
    poll_s: options.PollOption = 5.0,
    address: options.AddressOption = DASHBOARD,
    url: options.UrlOption = SERVED,
    dry_run: options.DryOption = False,
) -> None:
    """Stop the rollout that is going on: the primary version gets all traffic again."""
    service = _service(file, (), "rollback", quick=False, allow_dirty=True)
    if dry_run and target is Kind.ANYSCALE and not has_account():
        typer.echo(f"dry run   would stop the rollout of {service.name} that is going on, and wait for its primary version")
        return
    tell = Teller()
    place = connect(target, service, address, url)
    observed = place.observe()
    primary = _to_go_back_to(service.name, observed)
    if dry_run:
        typer.echo(f"dry run   would go back to {primary}; now: {observed}")
        return
    rollout = Rollout(
        place,
        service,
        file.parent,
        tell,
        check=lambda seen: None,
        patience=Patience(timeout_s, poll_s),
        command_line=partial(options.command_line, file=file, target=target, address=address, url=url),
    )
    raise typer.Exit(rollout.back_to(primary))


@commands.command()
def terminate(
    file: options.FileOption = SERVICE_FILE,
    target: options.TargetOption = Kind.ANYSCALE,
    address: options.AddressOption = DASHBOARD,
    url: options.UrlOption = SERVED,
    yes: options.YesOption = False,
    dry_run: options.DryOption = False,
) -> None:
    """End the service: no version serves any more."""
    service = _service(file, (), "terminate", quick=False, allow_dirty=True)
    if dry_run:
        typer.echo(f"dry run   would end {service.name}: nothing would serve at its address any more")
        return
    if not yes:
        raise Refused(f"this ends {service.name} for everybody who calls it; if that is meant, add --yes")
    connect(target, service, address, url).terminate()
    typer.echo(f"{service.name} is being ended")


def main(argv: Sequence[str] | None = None, help_text: str | None = None) -> int:
    """Exit status; see `Exit`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "--help"):
        arguments.insert(0, "deploy")
    commands.info.help = help_text and "\b\n" + help_text.replace("\n\n", "\n\n\b\n")
    tell = Teller()
    try:
        with _sigterm_like_ctrl_c():
            commands(args=arguments, prog_name="rollout.py")
    except SystemExit as ended:
        return int(ended.code or 0)
    except Refused as error:
        tell.say(f"refused: {error}. Nothing was changed.")
        return Exit.REFUSED
    except Unreachable as error:
        tell.say(f"no answer: {error}.")
        return Exit.UNREACHABLE
    return Exit.DONE


def _service(
    file: Path, sets: Sequence[str] | None, version: str | None, env: Sequence[str] | None = None, *, quick: bool, allow_dirty: bool
) -> Service:
    variables = options.environment(env)
    others = [*sorted(sets or ()), *(f"{name}={value}" for name, value in sorted(variables.items())), *(["--quick"] if quick else ())]
    others += [file.name] if file.name != SERVICE_FILE.name else []
    named = version_name(file.parent, version, others, allow_dirty=allow_dirty)
    service = read(file, named, options.overrides(sets), variables, quick=quick)
    for secret in (*variables.values(), *(token.get_secret_value() for token in service.settings.tokens)):
        Teller.keep_secret(secret)
    return service


def _refuse_misplaced(target: Kind, steps: tuple[int, ...], env: Sequence[str] | None, *, upload: bool = True) -> None:
    """Raises `Refused` for options that this target has no use for."""
    if not upload and target is not Kind.RAY:
        raise Refused("--no-upload is for --target ray; leave it out")
    if steps and target is not Kind.ANYSCALE:
        raise Refused("--canary divides traffic, which only Anyscale does; leave it out")
    if env and target is Kind.KUBERAY:
        raise Refused("--env would print the value; give the pods a Secret of the cluster instead")


def _tell_plan(
    root: Path, service: Service, target: Kind, steps: tuple[int, ...], image: str, working_dir: str | None, *, upload: bool = True
) -> None:
    if target is Kind.KUBERAY:
        manifest = serve_config.ray_service(service, image or f"{service.name}:{service.version}", working_dir)
        typer.echo(serve_config.as_text(manifest), nl=False)
        return
    with staged(root) as folder:
        uploaded = members(folder, service.excludes) if upload else []
        typer.echo(plan.plan(service, uploaded, steps, on_anyscale=target is Kind.ANYSCALE))


def _to_go_back_to(name: str, observed: Observed | None) -> str:
    """Raises `Refused` if there is nothing to stop."""
    if observed is None or observed.primary is None:
        raise Refused(f"no version of {name} is known here to go back to; {BY_DEPLOYING}")
    if observed.canary is None and observed.state != GOING_BACK:
        raise Refused(f"no rollout of {name} is going on ({observed}); to go back to an earlier commit, check it out and deploy it")
    return observed.primary.name


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Being stopped by a machine is as safe as being stopped by a person."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
