"""A folder of photographs in place of shards: `python -m resnet.prepare` makes shards of it when it is first used.

They lie in the cache, in a folder that is called after the photographs' one and the hash of their listing: names, sizes and
times of all files, and how they are read. So what has changed is another set of shards, and a run that goes on has its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from resnet import UserError, addresses, cli, files, home, shell

MANIFEST = "manifest.json"  # of finished shards
SHARD = re.compile(r"-of-\d{3,}|\.tfrecords?\b")  # in the names of shards, whoever wrote them
SPLITS = ("img_train", "train", "imagenet_train_subset")  # folders that may hold them
LISTING = re.compile(r"[\w-][\w.-]*-[0-9a-f]{16}")
# Folders and files that systems and tools leave everywhere, beside those whose name begins with a dot.
JUNK = {
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@sharebin"),  # of NAS (Synology, QNAP)
    *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # of Windows
    *("__macosx", "icon\r", "lost+found", "__pycache__"),
}
OWN = re.compile(
    r"(?<![\w./=-])(dir|labels|label_column|links|max_rejected)(?==)"
)  # knobs of prepare that are data's, too
OTHERS = re.compile(r"(?<![\w./=-])(train|val|val_fraction|missing_classes|resize)=")


@dataclass(frozen=True)
class Photos:
    """A folder of photographs and how it is read, as data=folder says; `prepared` is where the shards go, None: the cache."""

    dir: str
    labels: str | None
    label_column: str | None
    links: str
    max_rejected: float
    prepared: str | None


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system leaves everywhere: neither image nor class."""
    return name.startswith(".") or name.lower() in JUNK


def are_in(dir: str) -> bool:
    """Whether a folder is to be prepared: it is a local one, without anything that looks like shards."""
    if addresses.is_remote(dir):
        return False
    try:
        names = [item.name for item in Path(dir).iterdir()]
        if {MANIFEST, files.CLASSES, ".prepare"} & set(names):
            return False
        inside = [
            name
            for split in SPLITS
            if split in names and Path(dir, split).is_dir()
            for name in (item.name for item in Path(dir, split).iterdir())
        ]
        folders = any(Path(dir, name).is_dir() for name in names)  # beside which a tar is what they were unpacked from
        outside = any(name.endswith(".tar") for name in names) and not folders
        tars = outside or (bool(inside) and all(name.endswith(".tar") or is_junk(name) for name in inside))
        names += inside
    except OSError:
        return False
    return not tars and not any(map(SHARD.search, names))


def place(listing: str, prepared: str | None) -> Path:
    """Where the shards of such a listing are."""
    return Path(prepared or home.cache() / "folders", listing)


@functools.cache
def prepare(photos: Photos) -> str:
    """The listing of these photographs, of which there are shards then. Raises UserError."""
    key, count, size = listing_of(photos)
    name = re.sub(r"[^\w.-]", "_", Path(photos.dir).name).lstrip(".")[:80] or "photos"
    make(photos, f"{name}-{key}", f"{count:,} files, {size / 1e6:,.1f} MB,")
    return f"{name}-{key}"


def restore(photos: Photos, listing: str) -> None:
    """Make the shards of a run's listing again if they are not there. Raises UserError if the photographs are others by now."""
    out = place(listing, photos.prepared)
    if (out / MANIFEST).exists():
        return
    if listing_of(photos)[0] != listing.rpartition("-")[2]:
        raise UserError(
            f"data.dir={photos.dir}: has changed since this run began, and the shards of then are not in {out} any more; put the "
            "images back as they were, or start another run in another out="
        )
    make(photos, listing, "its images")


def listing_of(photos: Photos) -> tuple[str, int, int]:
    """(hash of the listing, number of files, their bytes). Raises UserError if there are none."""
    follow, count, total = photos.links == "follow", 0, 0
    digest = hashlib.sha256(json.dumps([photos.label_column, photos.links, bool(photos.labels)]).encode())
    try:
        if photos.labels is not None:
            digest.update(repr(stamp(photos.labels)).encode())
        pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # with the folders on the way
        while pending:
            below, parents = pending.pop()
            status = Path(photos.dir, below).stat()
            own = (status.st_dev, status.st_ino)
            if own in parents:
                continue  # a link to a folder that it lies in
            with os.scandir(Path(photos.dir, below)) as items:
                for item in sorted(items, key=lambda item: os.fsencode(item.name)):
                    if is_junk(item.name):
                        continue
                    if item.is_dir(follow_symlinks=False) or (
                        item.is_symlink() and follow and Path(item.path).is_dir()
                    ):
                        pending.append((f"{below}{item.name}/", parents | {own}))
                        continue
                    known = stamp(item.path)
                    digest.update(repr((os.fsencode(f"{below}{item.name}"), known)).encode())
                    count, total = count + 1, total + known[0]
    except OSError as error:
        raise UserError(f"data.dir={photos.dir}: cannot be listed ({error.strerror}: {error.filename})") from error
    if not count:
        raise UserError(
            f"data.dir={photos.dir}: nothing is in it; give a folder of shards, or of photographs, in a folder for each class"
        )
    return digest.hexdigest()[:16], count, total


def stamp(path: str) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file; zeros for a broken link, and for what cannot be looked at."""
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        return status.st_size, status.st_mtime_ns
    return 0, 0


def make(photos: Photos, listing: str, what: str) -> None:
    """Prepare the photographs of this listing, unless they are: one process at a time. Raises UserError."""
    out = place(listing, photos.prepared)
    if (out / MANIFEST).exists():
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"data.dir={photos.dir}: another process prepares it; this one waits"
        with files.locked(out.parent / f".{listing}.lock", waiting) as lock:
            if (out / MANIFEST).exists():
                return
            elsewhere = "" if photos.prepared else "; data.prepared= keeps them elsewhere"
            print(f"data.dir={photos.dir}: {what} become shards in {out}, once{elsewhere}", flush=True)
            status, error = run_prepare(words(photos, out), lock.fileno())
            if status:
                stopped(status)
                raise UserError(explained(photos, error or f"its preparation ended with status {status}"))
            if listing_of(photos)[0] != listing.rpartition("-")[2]:
                shutil.rmtree(out)
                raise UserError(
                    f"data.dir={photos.dir}: has changed while it was prepared; start again when it is complete"
                )
    except OSError as error:
        raise UserError(
            f"data.prepared={out.parent}: cannot be written to ({error.strerror}); give another folder"
        ) from error


def words(photos: Photos, out: Path) -> list[str]:
    """The command line of resnet.prepare."""
    knobs = {"labels": photos.labels, "label_column": photos.label_column}
    more = [f"{name}={value}" for name, value in knobs.items() if value is not None]
    fixed = [f"dir={photos.dir}", f"out={out}", f"links={photos.links}", f"max_rejected={photos.max_rejected!r}"]
    return ["source=folder", *fixed, *more]


def run_prepare(words: list[str], lock: int) -> tuple[int, str]:
    """(exit status of resnet.prepare with these words, its error). It holds the lock, too, and ends when this process does."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux
    sys.stdout.flush()
    error = ""
    with subprocess.Popen(
        [sys.executable, "-m", "resnet.prepare", *words],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=[lock],
        preexec_fn=prctl and (lambda: prctl(1, int(signal.SIGTERM))),  # PR_SET_PDEATHSIG
    ) as child:
        assert child.stderr
        try:
            for line in child.stderr:
                if line.startswith("error: "):
                    error = line.removeprefix("error: ").strip()
                else:
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            child.terminate()
            raise
    return child.returncode, error


def stopped(status: int) -> None:
    """Raise what ended the preparation if it was a signal."""
    if status == cli.INTERRUPTED:
        raise KeyboardInterrupt
    if status in (cli.STOPPED, -signal.SIGTERM):
        raise cli.Stopped("the same command goes on with the preparation")


def explained(photos: Photos, error: str) -> str:
    """An error of resnet.prepare for who trains: with the knobs of data, and the way to all others."""
    line = OWN.sub(r"data.\1", error.removeprefix(f"{photos.dir}: "))
    line = line if line.startswith("data.") else f"data.dir={photos.dir}: {line}"
    if OTHERS.search(line):
        command = shell.command("resnet.prepare", "source=folder", f"dir={photos.dir}", "out=SHARDS")
        line += f"; the knobs that are not data's are those of: {command}, whose SHARDS are a data.dir then"
    return line
