"""A file read from front to back: at an address by large pieces, several of which are on their way at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

from resnet import addresses, files

PIECE = 4 << 20  # bytes of a request


class Pieces:
    """A file of `size` bytes at an address: while one piece is used, the next `depth` are read by the threads of `pool`.

    Has of an open file what tarfile and shards.frames() need. Meant to be read forwards: a byte further back costs a request.
    """

    def __init__(self, address: str, size: int, pool: ThreadPoolExecutor, depth: int, stop: threading.Event) -> None:
        self.address, self.size, self.pool, self.depth, self.stop = address, size, pool, depth, stop
        self.at, self.number, self.data = 0, -1, b""
        self.coming: dict[int, Future[bytes]] = {}

    def seek(self, at: int) -> int:
        self.at = at
        return at

    def tell(self) -> int:
        return self.at

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end. Raises what addresses.read_exactly() raises."""
        parts, end = [], min(self.size, self.at + count)
        while self.at < end:
            number, first = divmod(self.at, PIECE)
            if number != self.number:
                self.number, self.data = number, self.piece(number)
            parts.append(self.data[first : first + end - self.at])
            self.at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def piece(self, number: int) -> bytes:
        for one in range(number, min(number + self.depth, -(-self.size // PIECE - 1)) + 1):
            if one not in self.coming and one * PIECE < self.size:
                span = one * PIECE, min(self.size, (one + 1) * PIECE)
                self.coming[one] = self.pool.submit(addresses.read_exactly, self.address, *span, self.stop)
        for passed in [one for one in self.coming if one < number]:
            self.coming.pop(passed).cancel()
        return self.coming.pop(number).result()


@contextmanager
def open_file(
    path: str, size: int, pool: ThreadPoolExecutor, depth: int, stop: threading.Event
) -> Iterator[IO[bytes] | Any]:
    """A file to read forwards, through a large buffer."""
    if addresses.is_remote(path):
        yield Pieces(path, size, pool, depth, stop)
    else:
        with open(path, "rb", PIECE, opener=files.linked) as file:
            yield file
