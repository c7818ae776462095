"""One training to a folder: the process that runs it holds <out>/.lock as long as it lives, however it dies."""

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

from resnet import UserError

FILE = ".lock"
BUSY = (errno.EACCES, errno.EAGAIN)
PATIENCE_S = 2.0  # for who has just taken it to say so
NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without locks


@dataclass(frozen=True)
class Holder:
    """Who trains in a folder."""

    host: str
    pid: int
    born: float  # when the process started, s since 1970: a number is given to another process one day
    since: str  # local time, for people

    @property
    def lives(self) -> bool:
        """Whether it runs on this host; of other hosts nobody can tell."""
        with contextlib.suppress(psutil.Error):
            return self.host == socket.gethostname() and abs(psutil.Process(self.pid).create_time() - self.born) < 2
        return False

    def refusal(self, out: Path) -> UserError:
        """What is told to whom would disturb it."""
        return UserError(
            f"out={out}: process {self.pid} on {self.host} trains here since {self.since}; wait for it, end it with "
            f"`{self.end()}`, or give another out="
        )

    def end(self) -> str:
        """The command that stops it after it has saved."""
        kill = f"kill {self.pid}"
        return kill if self.host == socket.gethostname() else shlex.join(["ssh", self.host, kill])


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Be the only one that trains in `out`. Raises UserError if another process does, or nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / FILE).open("a+")  # the kernel lets go of it for whoever dies
    except OSError as error:
        raise UserError(f"out={out}: cannot be written to ({error.strerror}); give another folder") from error
    with file:
        take(file, out)
        me = psutil.Process()
        found = Holder(socket.gethostname(), me.pid, me.create_time(), time.strftime("%Y-%m-%d %H:%M:%S"))
        file.truncate(0)
        file.write(json.dumps(asdict(found)) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def take(file: IO[str], out: Path) -> None:
    """Lock an open file; UserError if another process has, or, where the file system has no locks, says that it has and lives."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (*BUSY, *NONE_HERE):
                raise
            found, busy = holder(file), error.errno in BUSY
        lives = found is not None and (found.lives or (busy and found.host != socket.gethostname()))
        if found and lives and found.pid != os.getpid():
            raise found.refusal(out)
        if not busy:
            return
        if time.monotonic() > deadline:
            raise UserError(f"out={out}: another process trains here, and does not say which; give another out=")
        time.sleep(0.05)


def holder(file: IO[str]) -> Holder | None:
    """Who the file says has it."""
    file.seek(0)
    with contextlib.suppress(ValueError, TypeError):
        return Holder(**json.loads(file.read()))
    return None
