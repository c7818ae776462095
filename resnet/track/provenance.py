"""Where a run comes from: tags to find it by, the installed packages, the uncommitted changes of the checkout."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from resnet import __version__
from resnet.config.run import Run
from resnet.config.track import Mlflow

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
    """The output of a git command; nothing where it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=30, check=True).stdout
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
    path = out / "environment.txt"
    path.write_text("\n".join(sorted(packages, key=str.lower)) + "\n")
    return path


def changes(out: Path) -> Path | None:
    """source.diff: the uncommitted changes of the checkout that this runs from; None if there are none."""
    diff = git(Path(__file__).parent, "diff", "HEAD", "--", ".")
    path = out / "source.diff"
    return path if diff and path.write_bytes(diff[:DIFF_LIMIT]) else None


WRITERS = (environment, changes)  # of files in a run's folder
