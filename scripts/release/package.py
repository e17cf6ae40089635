"""Which code is rolled out: the version's name, and the files that are uploaded."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from scripts.release.outcome import Refused

ROOT = Path(__file__).parent.parent.parent
MAX_ZIP_BYTES = 64 * 2**20
EARLIEST_ZIP_TIME = 315_619_200  # 1980-01-02 in seconds since 1970: a zip can hold nothing earlier
APPLICATION = "app/__init__.py"
NAME = re.compile(r"[\w.+-]{1,64}")  # what Settings.version allows
NEVER = frozenset({".git", ".venv", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    size: int  # bytes


def version_name(root: Path, given: str | None, options: Sequence[str] = (), *, allow_dirty: bool) -> str:
    """The one given, else the commit: `1a2b3c4d5e6f`, or `1a2b3c4d5e6f-dirty-01234567` with a digest of all files.

    `options` are what else makes the version another one; they end it with a digest of theirs: `1a2b3c4d5e6f-with-01234567`.
    Raises `Refused` for files that are in no commit, unless those are allowed.
    """
    if given is not None and not NAME.fullmatch(given):
        raise Refused(f"--version must be 1 to 64 letters, digits or any of ._+-, got {given!r}")
    changed = [] if given is not None and allow_dirty else _changes(root)
    if changed and not allow_dirty:
        shown = ", ".join(line[3:] for line in changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise Refused(f"there are changes that are in no commit ({shown}); commit them, or pass --allow-dirty")
    if given is not None:
        return given
    name = _named_after_files(root, allow_dirty=allow_dirty) + (f"-dirty-{_digest(root)[:8]}" if changed else "")
    return f"{name}-with-{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}" if options else name


def _changes(root: Path) -> list[str]:
    """A line of `git status` each; none where there is no git to ask. Raises `Refused` if what is there cannot be told."""
    told = _git(root, "status", "--porcelain", "--untracked-files=all")
    if told is None and _git(root, "rev-parse", "--git-dir") is not None:
        raise Refused(f"git does not tell what has changed in {root}; `git status` there says why")
    return (told or "").splitlines()


def _named_after_files(root: Path, *, allow_dirty: bool) -> str:
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None and not allow_dirty:
        raise Refused(
            "this folder is no git checkout, so there is no commit to name the version after; pass --version NAME or --allow-dirty"
        )
    return commit or f"files-{_digest(root)[:12]}"


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """A copy of the files that git knows or would add. Only these are uploaded, whatever else lies around.

    Their times are fixed, so that the same code always gives the same zip, which is then uploaded only once.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder, "app-of-imagine")
        copy.mkdir()
        for name in _files(root):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
            os.utime(target, (EARLIEST_ZIP_TIME, EARLIEST_ZIP_TIME))
        yield copy


def members(folder: Path, excludes: Sequence[str]) -> list[Member]:
    """What the zip holds, packed as the anyscale package packs it. Raises `Refused` if it is far too big, or without the application."""
    from anyscale.utils.runtime_env import zip_local_dir

    with zip_local_dir(str(folder), excludes=list(excludes)) as (path, _, _), ZipFile(path) as packed:
        found = [Member(entry.filename.split("/", 1)[1], entry.file_size) for entry in packed.infolist() if not entry.is_dir()]
    if not any(member.name == APPLICATION for member in found):
        raise Refused(
            f"{APPLICATION} would not be uploaded: the service file has to lie in the folder that holds it, and must not exclude it"
        )
    size = sum(member.size for member in found)
    if size > MAX_ZIP_BYTES:
        largest = max(found, key=lambda member: member.size)
        raise Refused(
            f"{size / 2**20:.0f} MB would be uploaded and at most {MAX_ZIP_BYTES / 2**20:.0f} MB make sense; "
            f"the largest file is {largest.name}"
        )
    return found


def _files(root: Path) -> list[str]:
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    if listed is None:
        paths = (path for path in root.rglob("*") if path.is_file() and not NEVER & set(path.relative_to(root).parts))
        return sorted(path.relative_to(root).as_posix() for path in paths)
    return sorted(name for name in set(listed.split("\0")) if name and (root / name).is_file())


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for name in _files(root):
        digest.update(name.encode() + b"\0" + hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def _git(root: Path, *command: str) -> str | None:
    """What git says, or None if it fails, as where there is no checkout. Raises `Refused` for a checkout of somebody else's, which git does
    not read, and for one where there is no git."""
    told = ["git", "-C", str(root), *command]
    try:
        done = subprocess.run(told, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError:
        if (root / ".git").exists():
            raise Refused(f"{root} is a git checkout, and there is no git on the PATH to read it") from None
        return None
    if "dubious ownership" in done.stderr:
        raise Refused(done.stderr.strip())
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
