"""A disk of a megabyte or a few, a real one, that can be filled."""

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Disk:
    """A file system, and a file that takes its room away."""

    path: Path

    @property
    def ballast(self):
        return self.path / "ballast"

    def fill(self, room=0):
        """Leave so many bytes."""
        status = os.statvfs(self.path)
        size = status.f_bavail * status.f_frsize - room
        with self.ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), size)

    def free(self):
        self.ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(path, size="4m"):
    """Such a disk at `path`; the test is skipped where nothing can be mounted."""
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    ).returncode:
        pytest.skip("no mount here")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
