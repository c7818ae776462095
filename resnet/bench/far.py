"""Shards at an address that is far away, against the same shards on the local disk: a server on the loopback that delays."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Collection
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from resnet.bench import images, workers
from resnet.bench.result import Result, Row
from resnet.bench.workers import Child, Sides

if TYPE_CHECKING:
    from resnet.bench.input import Input

SHARDS = 1024  # of the time to the first batch
PIECE = 1 << 18  # bytes that are sent at once, between pauses that keep to the rate


# ---------------------------------------------------------------------------------------------------------------- server
class Server(ThreadingHTTPServer):
    """Serves the files of a folder by ranges: `delay_s` before the first byte, then `rate` bytes a second of a connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, delay_s: float, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.delay_s, self.rate = folder, delay_s, rate


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.server.delay_s)
        path = self.server.folder / self.path.strip("/")
        if path.is_dir():
            names = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>' for one in path.iterdir()).encode()
            self.head(200, len(names), "text/html")
            self.wfile.write(names)
        elif not path.is_file():
            self.head(404, 0)
        else:
            self.file(path)

    def file(self, path: Path) -> None:
        size, part = path.stat().st_size, self.headers.get("Range")
        first, _, last = (part or "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(size, int(last or size) + 1)
        self.head(206 if part else 200, end - begin, span=f"bytes {begin}-{end - 1}/{size}" if part else "")
        if self.command == "HEAD":
            return
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            began, start = time.monotonic(), begin
            while begin < end:
                count = min(PIECE, end - begin)
                time.sleep(max(0.0, began + (begin + count - start) / self.server.rate - time.monotonic()))
                begin += os.sendfile(self.connection.fileno(), file.fileno(), begin, count)

    def head(self, status: int, length: int, kind: str = "application/octet-stream", span: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(length), "Content-Type": kind, "Accept-Ranges": "bytes", "Content-Range": span}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


def server(folder: str, delay_s: str, rate: str) -> Sides:
    """A process that serves a folder. A turn of its side returns the seconds of a core that it has used so far."""
    running = Server(Path(folder), float(delay_s), float(rate))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return {"address": f"http://127.0.0.1:{running.server_port}"}, {"": lambda _steps: time.process_time()}


# --------------------------------------------------------------------------------------------------------------- measure
def measure(knobs: Input, place: Path, cores: Collection[int], result: Result) -> None:
    """Fill `result` with rows of reading from the server against the local disk. `place` is an empty folder."""
    result.about = (
        f"Training batches of {knobs.batch}, {knobs.images} images a round, of the same shards: from a server on the loopback "
        f"that waits {knobs.far_ms:g} ms before the first byte of each answer and sends {knobs.far_mb:g} MB/s a connection "
        "(data.order=blocks, as for every address), and from the local disk (data.order=images)."
    )
    many = few = Path(knobs.dir) if knobs.dir else place
    if not knobs.dir:
        large = images.photos(images.PHOTOS)
        few = images.shards(place / "few", large, 2 * knobs.images, 16)
        many = images.shards(place / "many", [images.resized(one, 256, 75) for one in large], 2 * SHARDS, SHARDS)
    others = sorted(set(os.sched_getaffinity(0)) - set(cores))
    distance, shape = [str((knobs.far_ms or 0) / 1e3), str(knobs.far_mb * 1e6)], [str(knobs.batch), "224"]
    with contextlib.ExitStack() as stack:

        def child(name: str, *words: str, module: str = "children", on: Collection[int] = cores) -> Child:
            return stack.enter_context(Child(module, [name, *words], cores=on))

        def both(name: str, folder: Path) -> dict[str, Child]:
            places = {"far": servers[folder].facts["address"], "local": str(folder)}
            return {side: child(name, where, *shape) for side, where in places.items()}

        servers = {one: child("server", str(one), *distance, module="far", on=others) for one in {few, many}}
        openers = both("first_batch", many)
        firsts = {side: partial(opener.step_time, 1) for side, opener in openers.items()}
        seconds = result.measure(firsts, knobs.rounds, "seconds to the first batch")
        readers = both("read", few)
        turns = {side: Turns(reader, servers[few], knobs) for side, reader in readers.items()}
        rates = result.measure({side: turn.rate for side, turn in turns.items()}, knobs.rounds, "images/s a core")
    memory = {side: turn.peaks[: len(rates[side])] for side, turn in turns.items()}
    result.rows += [
        Row("reading from far away, images/s a core", rates["far"], rates["local"], "local disk"),
        Row("memory of the process, MB", memory["far"], memory["local"], "local disk", less_is_better=True),
        Row("first batch, s", seconds["far"], seconds["local"], "local disk", less_is_better=True),
    ]
    busy, where = statistics.median(turns["far"].busy), "another one" if others else "those that read"
    result.notes += [
        f"{difference(memory):,.0f} MB more than from the local disk; the first batch {difference(seconds):.2f} s later.",
        f"Meanwhile the server used {100 * busy:.0f} % of a core, of {where}.",
    ]


class Turns:
    """The turns of a child that reads, and what each shows beside its rate."""

    def __init__(self, reader: Child, server: Child, knobs: Input) -> None:
        self.reader, self.server, self.knobs = reader, server, knobs
        self.peaks: list[float] = []  # of the reader's memory, MB
        self.busy: list[float] = []  # the server's share of a core

    def rate(self) -> float:
        """Images a second and core."""
        used, began = self.server.step_time(1), time.perf_counter()
        seconds = self.reader.step_time(self.knobs.images // self.knobs.batch)
        self.busy.append((self.server.step_time(1) - used) / (time.perf_counter() - began))
        self.peaks.append(self.reader.facts["peak_mb"])
        return self.knobs.batch / seconds / self.knobs.cores


def difference(sides: dict[str, list[float]]) -> float:
    """The median over the rounds of far minus local."""
    return statistics.median(far - local for far, local in zip(sides["far"], sides["local"], strict=True))


if __name__ == "__main__":
    workers.serve({"server": server})
