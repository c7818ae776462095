"""Where shards go: a folder of this machine, or an address, for which a folder in the cache stands in."""

from __future__ import annotations

import math
import shutil
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resnet import UserError, addresses, remote
from resnet.data import manifest
from resnet.data.shards import Shard

UPLOADS = 8  # shards at once; so many more may wait on the disk, beside those that are being written
Result = tuple[Shard, Any, Any]


class Target:
    """A folder of this machine. `name` is it for people, `folder` where files are written."""

    remote = False

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, Path(name)

    def content(self) -> dict[str, Any] | None:
        """The manifest, once all is there. Raises UserError."""
        return manifest.read(self.folder)

    def is_free(self, scaffold: str, half_done: bool) -> bool:
        """Whether nothing but a preparation, whose own files lie in `scaffold`, has been here."""
        return half_done or not self.folder.exists() or all(part.name == scaffold for part in self.folder.iterdir())

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The bytes of those of these files that are here."""
        paths = {name: self.folder / name for name in names}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def free(self) -> float:
        """Bytes that fit there."""
        return shutil.disk_usage(self.folder).free

    def claim(self) -> None:
        """Begin to write, where no other machine writes. Raises UserError, OSError."""

    def delivered(self, results: Iterator[Result]) -> Generator[Result, None, None]:
        """`results` of writing, each once its shard is where it belongs. Raises OSError, UserError."""
        yield from results

    def publish(self, *names: str) -> None:
        """These files are complete. Raises OSError, UserError."""

    def withdraw(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """All is there. Raises OSError, UserError."""

    def fill(self, write: Callable[[str], None]) -> None:
        """Have `write` write a whole folder of shards, unless it is there. Raises OSError, UserError."""
        write(self.name)


class Remote(Target):
    """An address. Each finished file is uploaded, and a shard is then removed here."""

    remote = True

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, remote.staging(name)

    def content(self) -> dict[str, Any] | None:
        there = remote.names(self.name)
        if remote.INCOMPLETE in there or manifest.NAME not in there:
            return None
        return manifest.read(self.name)

    def is_free(self, scaffold: str, half_done: bool) -> bool:  # noqa: ARG002  what lies here says nothing of there
        there = remote.names(self.name)
        return not there or remote.INCOMPLETE in there

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        addresses.forget_listings(self.name)
        places = {name: f"{self.name}/{name}".rpartition("/") for name in names}
        there = {folder: addresses.listing(folder) for folder, _, _ in places.values()}
        return {
            name: there[folder][last]["size"] for name, (folder, _, last) in places.items() if last in there[folder]
        }

    def free(self) -> float:
        return math.inf  # as far as one can know

    def claim(self) -> None:
        remote.claim(self.name)

    def delivered(self, results: Iterator[Result]) -> Generator[Result, None, None]:
        stop, waiting = threading.Event(), deque[tuple[Future[None], Result]]()
        with ThreadPoolExecutor(UPLOADS) as pool:
            try:
                for result in results:
                    waiting.append((pool.submit(self.send, result[0].file, stop), result))
                    while waiting and (len(waiting) > 2 * UPLOADS or waiting[0][0].done()):
                        waiting[0][0].result()
                        yield waiting.popleft()[1]
                for future, result in waiting:
                    future.result()
                    yield result
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def send(self, file: str, stop: threading.Event) -> None:
        """Upload a shard, and remove it here."""
        addresses.upload(self.folder / file, f"{self.name}/{file}", stop)
        (self.folder / file).unlink()

    def publish(self, *names: str) -> None:
        for name in names:
            addresses.upload(self.folder / name, f"{self.name}/{name}")

    def withdraw(self, name: str) -> None:
        super().withdraw(name)
        addresses.delete(f"{self.name}/{name}")

    def finish(self) -> None:
        remote.finish(self.name)

    def fill(self, write: Callable[[str], None]) -> None:
        if self.content() is None:
            if not self.is_free("", False):
                raise UserError(f"out={self.name}: it holds something else; give a new folder")
            write(str(self.folder / "whole"))
            remote.upload(self.folder / "whole", self.name)


def of(out: str) -> Target:
    """The target of a checked knob out=."""
    return Remote(out) if addresses.is_remote(out) else Target(out)
