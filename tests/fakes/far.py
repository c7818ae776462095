"""An HTTP server on the loopback that serves the files of a folder by ranges, as far away and as unreliable as a test wants.

And shards of random records, to be read through it.
"""

import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from resnet.data import indexes, shards

COUNT, SHARDS = 240, 6


def write_records(folder):
    """Shards of random records of about 10 kB, with their index; the folder."""
    random = np.random.default_rng(0)
    data = [random.bytes(int(size)) for size in random.integers(5_000, 15_000, COUNT)]
    parts = shards.write_split(folder, "img_train", data, SHARDS)
    indexes.write(folder, parts, [np.array([*map(len, data[n::SHARDS])], "<u4").tobytes() for n in range(SHARDS)])
    return folder


def index_at(place):
    """The index of these shards at an address, or in a folder."""
    paths = [f"{place}/img_train/img_train-{number:05d}-of-{SHARDS:05d}" for number in range(SHARDS)]
    return indexes.index(paths, indexes.load(str(place), None))


class Server(ThreadingHTTPServer):
    """Set the attributes at any time: they are of the next request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = Path(folder)
        self.delay_s = 0.0  # before the first byte
        self.rate = None  # bytes per second of a connection
        self.fail = self.truncate = 0.0  # shares of the requests: answered 500, cut in the middle
        self.status = None  # of every answer
        self.dead = self.stalled = False  # connections are closed; answers never come
        self.lists = self.ranges = True
        self.unlisted = 404  # the status of a folder where it lists nothing
        self.requests, self.lock, self.random = [], threading.Lock(), random.Random(0)
        self.now = self.most = 0  # requests at once
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def chance(self, share):
        with self.lock:
            return self.random.random() < share

    def handle_error(self, *_):
        pass  # of a client that is no longer there

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stalled = False
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server = self.server
        with server.lock:
            server.requests.append((self.command, self.path, self.headers.get("Range")))
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self.answer(body)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, body):
        server = self.server
        time.sleep(server.delay_s)
        while server.stalled:
            time.sleep(0.02)
        if server.dead:
            self.close_connection = True
            return
        path = server.folder / unquote(self.path).strip("/")
        if server.status or server.chance(server.fail):
            self.send(server.status or 500, b"")
        elif path.is_dir() and server.lists:
            names = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>' for one in sorted(path.iterdir()))
            self.send(200, names.encode(), body, "text/html")
        elif not path.is_file():
            self.send(server.unlisted if path.is_dir() else 404, b"")
        else:
            self.send_file(path, body)

    def send_file(self, path, body):
        size = path.stat().st_size
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        if not self.server.ranges or not self.headers.get("Range"):
            return self.send(200, path.read_bytes(), body)
        if int(first) >= size:
            return self.send(416, b"")
        with path.open("rb") as file:
            file.seek(int(first))
            data = file.read(min(size, int(last or size - 1) + 1) - int(first))
        return self.send(206, data, body, extra=("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{size}"))

    def send(self, status, data, body=True, kind="application/octet-stream", extra=None):
        self.send_response(status)
        for name, value in filter(None, [("Content-Length", len(data)), ("Content-Type", kind), extra]):
            self.send_header(name, str(value))
        self.end_headers()
        if body and self.server.chance(self.server.truncate):
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            if self.server.rate:
                time.sleep(len(data) / self.server.rate)
            self.wfile.write(data)
