"""What a run stood in: tags to find it by, the packages it had, the changes of the checkout it ran from."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import subprocess
from pathlib import Path

from resnet import __version__
from resnet.config.run import Run
from resnet.config.track import Mlflow, Track

DIFF_LIMIT = 1_000_000  # bytes of source.diff


def tags(run: Run, device: str) -> dict[str, str]:
    """What people filter runs by, beside the parameters."""
    import tensorflow as tf

    return {
        "recipe": run.recipe or "none",
        "seed": str(run.seed),
        "device": device,
        "out": run.out,
        "version.resnet": __version__,
        "version.tensorflow": tf.__version__,
        "version.python": platform.python_version(),
        "mlflow.user": user(),
        "mlflow.source.name": "resnet.train",
        **source_tags(Path(__file__).parent),
        **own_tags(run.track),
    }


def own_tags(settings: Track) -> dict[str, str]:
    """Those that the user gave."""
    given = settings.tags if isinstance(settings, Mlflow) else None
    return {name: str(value) for name, value in (given or {}).items()}


def user() -> str:
    """Who runs this; the number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def source_tags(folder: Path) -> dict[str, str]:
    """Git commit, and whether tracked files differ from it, of the checkout that holds `folder`; empty outside of one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = git("status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty)).lower()}


def environment(out: Path) -> Path:
    """environment.txt: every installed package and its version, as pip freeze lists them."""
    from importlib import metadata

    found = sorted({f"{dist.metadata['Name']}=={dist.version}" for dist in metadata.distributions()}, key=str.lower)
    path = out / "environment.txt"
    path.write_text("\n".join(found) + "\n")
    return path


def changes(out: Path) -> Path | None:
    """source.diff: how the checkout this runs from differs from its commit; None where it does not, or there is none."""
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "diff", "HEAD", "--", "."]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, timeout=30, check=True)
        if done.stdout:
            path = out / "source.diff"
            path.write_bytes(done.stdout[:DIFF_LIMIT])
            return path
    return None


FILES = (environment, changes)  # what is written into a run's folder
