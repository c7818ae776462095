"""Programs that are waited for no longer than a limit, whatever they do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from resnet import files

KILLED_S = 5.0  # for a killed process to go; one that waits for a dead disk does not


LATE = "no answer within"  # how the reason of one that was left begins


class Failure(Exception):
    """No answer; the message is the reason, in a line."""


def output(command: Sequence[str], limit_s: float) -> str:
    """What a program prints. Raises Failure. Its output goes to files: a pipe would be held open by its own children."""
    path = os.pathsep.join(filter(None, [str(files.HERE.parent), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            raise Failure(error.strerror or str(error)) from error
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failure(f"{LATE} {limit_s:g} s") from None
        finally:
            with contextlib.suppress(OSError):  # it, and what it has started
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(KILLED_S)
        out.seek(0)
        err.seek(0)
        if status == 0:
            return out.read().decode(errors="replace")
        lines = err.read().decode(errors="replace").strip().splitlines()
        ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        raise Failure(lines[-1][:300] if status > 0 and lines else f"the process ended with {ending}")


def ask(probe: str, *words: str, limit_s: float) -> dict[str, Any]:
    """The answer of a probe. Raises Failure."""
    printed = output([sys.executable, "-m", "resnet.doctor.probes", probe, *words], limit_s)
    try:
        answer: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise Failure("its answer cannot be read") from None
    return answer
