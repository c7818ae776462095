"""One training to a folder: its process holds <out>/.lock until it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from resnet import UserError, files

FILE = ".lock"
SUBFOLDERS = ("checkpoints", "logs", "model", "profile", "tensorboard")  # what a run makes in its folder
BUSY = (errno.EACCES, errno.EAGAIN)
PATIENCE_S = 2.0  # for a process that has just locked the file to write who it is
held: set[IO[str]] = set()  # by this process; a fork of it would share the lock, and keep it
os.register_at_fork(after_in_child=lambda: [file.close() for file in held])
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without locks


@dataclass(frozen=True)
class Holder:
    """The process that trains in a folder."""

    host: str
    pid: int
    born: float  # when the process started, s since 1970: PIDs are reused
    since: str  # local time, for people

    @property
    def alive(self) -> bool:
        """Whether it runs, on this host."""
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.born) < 2
        return False


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Be the only process that trains in `out`. Raises UserError if another one does, or nothing can be written there."""
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        check_subfolders(out)
        file = open(out / FILE, "a+", opener=files.regular)  # noqa: SIM115  # the kernel unlocks it when the process dies
    with file:
        take(file, out)
        me = psutil.Process()
        mine = Holder(socket.gethostname(), me.pid, me.create_time(), time.strftime("%Y-%m-%d %H:%M:%S"))
        file.truncate(0)
        file.write(json.dumps(asdict(mine)) + "\n")
        file.flush()
        held.add(file)
        try:
            yield
        finally:
            held.discard(file)
            file.truncate(0)


def check_subfolders(out: Path) -> None:
    """Raise UserError for a file or link in place of a folder of a run, and for a link in one, which TensorFlow would follow."""
    for name in SUBFOLDERS:
        if (out / name).is_symlink() or ((out / name).exists() and not (out / name).is_dir()):
            raise UserError(
                f"out={out}: {name} must be a folder, and is a file or a link; remove it, or give another out="
            )
        if link := next((path for path in (out / name).rglob("*") if path.is_symlink()), None):
            raise UserError(f"out={out}: {link.relative_to(out)} is a link; remove it, or give another out=")


def take(file: IO[str], out: Path) -> None:
    """Lock an open file. Raises UserError if another process has; without file locks, if the one that it names is alive."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (*BUSY, *UNSUPPORTED):
                raise
            other, busy = holder(file), error.errno in BUSY
        here = other is not None and other.host == socket.gethostname()
        if other and other.pid != os.getpid() and (other.alive if here else busy):
            kill = f"kill {other.pid}"  # it saves a checkpoint first
            raise UserError(
                f"out={out}: process {other.pid} on {other.host} trains here since {other.since}; wait for it, end it with "
                f"`{kill if here else shlex.join(['ssh', other.host, kill])}`, or give another out="
            )
        if not busy:
            return
        if time.monotonic() > deadline:
            raise UserError(f"out={out}: another process trains here, and does not say which; give another out=")
        time.sleep(0.05)


def is_held(out: Path) -> bool:
    """Whether another process trains in `out`; one on another host may."""
    with contextlib.suppress(OSError), open(out / FILE, opener=files.regular) as file:
        other = holder(file)
        away = other is not None and other.host != socket.gethostname()
        return other is not None and (away or (other.pid != os.getpid() and other.alive))
    return False


def holder(file: IO[str]) -> Holder | None:
    """The process that the file names."""
    file.seek(0)
    with contextlib.suppress(ValueError, TypeError):
        return Holder(**files.parse_json(file.read(files.SMALL)))
    return None
