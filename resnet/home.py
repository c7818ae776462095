"""The home folder, and where caches go; a folder in the temporary one stands in for what is missing or cannot be written to.

Containers run as a number that has no passwd entry and no HOME, or as a user whose home is read-only.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from resnet import UserError


def cache() -> Path:
    """The folder for what can be made again: resnet/ in XDG_CACHE_HOME, else in ~/.cache, else in the stand-in."""
    provide()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resnet")  # noqa: PTH111


def expand(path: str) -> Path:
    """`path` with ~ expanded; ~nobody stays a name, as in a shell. Raises UserError for ~ of a user without a home."""
    if path.partition("/")[0] == "~" and os.path.expanduser("~") in ("~", stand_in_name()):  # noqa: PTH111
        raise UserError(f"{path}: this user has no home folder; set HOME, or give the whole path")
    return Path(os.path.expanduser(path))  # noqa: PTH111


def provide() -> None:
    """Set HOME and XDG_CACHE_HOME, for this process and its children, unless the usual ones will do; a line says so.

    Matplotlib, MLflow and Horovod go by them, and fail, or make a folder named ~, where there is no home at all. Raises
    UserError where nothing temporary can be written.
    """
    temporary()
    if os.environ.get("HOME") == "":  # which would make / of ~
        del os.environ["HOME"]
    home, cache = os.path.expanduser("~"), os.environ.get("XDG_CACHE_HOME")  # noqa: PTH111
    without = not Path(home).is_absolute()
    if not without and writable(Path(cache or home, "" if cache else ".cache")):
        return
    place = stand_in()
    os.environ["XDG_CACHE_HOME"] = place
    os.environ.setdefault("MPLCONFIGDIR", f"{place}/matplotlib")
    if without:
        os.environ["HOME"] = place
    reason = "this user has no home folder (HOME is not set)" if without else f"{cache or home} cannot be written to"
    print(f"{reason}: caches are in {place}", file=sys.stderr, flush=True)


def writable(path: Path) -> bool:
    """Whether a folder can be written to, or made."""
    path = next(place for place in (path, *path.parents) if os.path.lexists(place))
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def stand_in_name() -> str:
    return f"{temporary()}/resnet-{os.getuid()}"


def stand_in() -> str:
    """A folder in the temporary one that is this user's alone."""
    place = Path(stand_in_name())
    with contextlib.suppress(FileExistsError):
        place.mkdir(0o700)
    status = place.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return str(place)
    return tempfile.mkdtemp(prefix=f"{place.name}-")  # somebody else's has the name


def temporary() -> str:
    """The folder for temporary files. Raises UserError if there is none."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "TMPDIR: no folder for temporary files, nor the working folder, can be written to; set TMPDIR"
        ) from error
