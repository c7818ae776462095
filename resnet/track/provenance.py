"""Where a run comes from: tags to find it by, the installed packages, the uncommitted changes of the checkout."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from resnet import __version__, files
from resnet.config.run import Run
from resnet.config.track import Mlflow

ROOT = files.HERE.parent
DIFF_LIMIT = 1_000_000  # bytes of source.diff


def tags(run: Run, device: str) -> dict[str, str]:
    """What people filter runs by, beside the parameters."""
    import tensorflow as tf

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without names
        user = str(os.getuid())
    own = (isinstance(run.track, Mlflow) and run.track.tags) or {}
    return {
        "recipe": run.recipe or "none",
        "seed": str(run.seed),
        "device": device,
        "out": run.out,
        "version.resnet": __version__,
        "version.tensorflow": tf.__version__,
        "version.python": platform.python_version(),
        "mlflow.user": user,
        "mlflow.source.name": "resnet.train",
        **source_tags(Path(__file__).parent),
        **{name: str(value) for name, value in own.items()},
    }


def git(folder: Path, *words: str) -> bytes:
    """The output of a git command; nothing where it fails. The checkout that this runs from may be another user's.

    Of another checkout around it, whose configuration can name programs, git takes nothing unless it is the user's own.
    """
    safe = ["-c", f"safe.directory={ROOT}", "-c", "core.fsmonitor=false"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", *safe, "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
    return b""


def source_tags(folder: Path) -> dict[str, str]:
    """Git commit, and whether tracked files differ from it, of the checkout that holds `folder`; empty outside of one."""
    commit = git(folder, "rev-parse", "HEAD").decode().strip()
    if not commit:
        return {}
    dirty = git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty)).lower()}


def environment(out: Path) -> Path:
    """environment.txt: every installed package and its version, as pip freeze lists them."""
    packages = {f"{dist.metadata['Name']}=={dist.version}" for dist in metadata.distributions()}
    return files.write_text(out / "environment.txt", "\n".join(sorted(packages, key=str.lower)) + "\n")


def changes(out: Path) -> Path | None:
    """source.diff: the uncommitted changes of the checkout that this runs from; None if there are none."""
    diff = git(Path(__file__).parent, "diff", "HEAD", "--", ".")
    path = out / "source.diff"
    if not diff:
        return None
    with files.atomic_write(path) as file:
        file.write(diff[:DIFF_LIMIT])
    return path


WRITERS = (environment, changes)  # of files in a run's folder
