"""Folders that are written to an address, whole or marked as incomplete; weights that are read from one through the cache.

No store renames a folder at once. So an object INCOMPLETE lies in it from before the first upload until after the last; whoever
reads such a folder refuses it. It has a token, which lies in a folder of this machine's cache too: only from here can the upload
go on, and two machines do not write to one address.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from resnet import UserError, addresses, files, home, retries

INCOMPLETE = "upload.incomplete"
READ_ONLY = ("http", "https", "data", "github", "zip", "tar", "reference")
ENDINGS = (".safetensors", ".npz")
EXPORTED = "model.safetensors"  # in a folder of resnet.export
MAX_WEIGHTS = 4 << 30  # bytes
CHUNK = 16 << 20  # bytes of a download that are asked for at once
LAST = ("saved_model.pb", "MLmodel")  # without which nothing loads the folder


# --------------------------------------------------------------------------------------------------------------- writing
def checked(address: str, knob: str) -> str:
    """An address to write to, without a slash at its end; file:// becomes a path. Raises UserError for one that cannot be."""
    addresses.check(address, knob)
    scheme, _, rest = address.partition("://")
    if scheme in READ_ONLY:
        raise UserError(f"{knob}{address}: {scheme}:// is read here, not written; give s3://, gs://, az:// or a path")
    if not rest.strip("/"):
        raise UserError(f"{knob}{address}: no folder; give a bucket and a name in it, such as s3://bucket/folder")
    filesystem, path = addresses.system(address, knob)
    return path if "file" in filesystem.protocol else address.rstrip("/")


def staging(address: str) -> Path:
    """The folder of this machine's cache for what is uploaded to an address."""
    return home.cache() / "uploads" / hashlib.sha256(address.encode()).hexdigest()[:24]


def names(folder: str) -> set[str]:
    """The files and folders in a folder at an address, as they are now. Raises UserError."""
    with cannot_be_read(folder):
        addresses.forget_listings(folder)
        return set(addresses.listing(folder)) - {
            "",
            folder.rpartition("/")[2],
        }  # which an empty folder of a console has


def claim(folder: str) -> None:
    """Mark a folder at an address as incomplete, and this machine's. Raises UserError if it is another machine's."""
    place, own = f"{folder}/{INCOMPLETE}", staging(folder) / "token"
    own.parent.mkdir(parents=True, exist_ok=True)
    if not own.exists():
        files.write_text(own, secrets.token_hex(8))
    token = files.read_text(str(own))
    content = {"token": token, "by": platform.node(), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with contextlib.suppress(FileExistsError):
        addresses.create(place, json.dumps(content).encode())
    try:
        there = files.parse_json(files.read_text(place))
        owner, who = there["token"], f"{there['by']} on {there['since']}"
    except (ValueError, TypeError, KeyError):
        owner, who = None, "another program"
    if owner != token:
        raise UserError(
            f"out={folder}: incomplete, begun by {who} ({INCOMPLETE} there says so); the same command there goes on with it. "
            "If that machine is no more, delete all in it and begin again"
        )


def upload(source: Path, folder: str) -> None:
    """Write the files of a folder of this machine to one at an address. Raises UserError.

    A kill leaves INCOMPLETE there, and the same call goes on.
    """
    try:
        claim(folder)
        paths = [path for path in source.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: (path.name in LAST, path)):
            addresses.upload(path, f"{folder}/{path.relative_to(source).as_posix()}")
        finish(folder)
    except OSError as error:
        raise UserError(
            f"out={folder}: cannot be written ({reason(error)}); the same command goes on with it"
        ) from error


def reason(error: OSError) -> str:
    """Why an address cannot be written to."""
    missing = isinstance(error, FileNotFoundError)
    return "there is no such bucket" if missing else str(error.strerror or error)


def finish(folder: str) -> None:
    """The folder at an address is complete: nothing marks it any more, and nothing of it stays in the cache."""
    addresses.delete(f"{folder}/{INCOMPLETE}")
    shutil.rmtree(staging(folder), ignore_errors=True)


# --------------------------------------------------------------------------------------------------------------- reading
def is_incomplete(folder: str) -> bool:
    """Whether INCOMPLETE lies in a folder at an address; a store may not say."""
    try:
        return bool(addresses.read(f"{folder.rstrip('/')}/{INCOMPLETE}", 0, 1))
    except OSError:
        return False


def check_complete(folder: str, knob: str) -> None:
    """Raise UserError for a folder at an address that is not whole."""
    if is_incomplete(folder):
        raise UserError(
            f"{knob}{folder}: incomplete ({INCOMPLETE} is there); the command that wrote to it goes on when it is called again"
        )


@contextlib.contextmanager
def cannot_be_read(address: str) -> Iterator[None]:
    """Raise UserError for what lies at an address and cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{address}: no such file there") from error
    except OSError as error:
        raise UserError(f"{address}: cannot be read ({error.strerror or error})") from error


def weights(address: str, knob: str = "") -> Path:
    """A copy in the cache of weights at an address, a file or those in a folder of resnet.export, with their classes.txt.

    One copy serves until the size, ETag or time of the file changes. Raises UserError, which `knob` begins.
    """
    addresses.system(address, knob)
    file = address
    try:
        if not address.lower().endswith(ENDINGS):
            file = f"{address.rstrip('/')}/{EXPORTED}"
            check_complete(address, knob)
        size, stamp = addresses.stamp(file)
        files.check_size(address, size, MAX_WEIGHTS)
        return copy(file, size, stamp)
    except FileNotFoundError as error:
        raise UserError(
            f"{knob}{address}: no such file, nor {EXPORTED} in such a folder; give {' or '.join(ENDINGS)}, or what resnet.export "
            "wrote; of a run, export it first"
        ) from error
    except OSError as error:
        raise UserError(f"{knob}{address}: cannot be read ({error.strerror or error})") from error


def copy(address: str, size: int, stamp: str) -> Path:
    """The copy of a file, and of the classes.txt beside it, which is made if there is none. Raises OSError, UserError."""
    folder, _, name = address.rpartition("/")
    classes = None
    with contextlib.suppress(OSError):
        classes = files.read_content(f"{folder}/{files.CLASSES}")
    key = hashlib.sha256(repr((address, size, stamp, classes)).encode()).hexdigest()[:24]
    place = home.cache() / "weights" / key
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(place.with_suffix(".lock")):
        if not stamp:  # nothing would tell another file of this size
            shutil.rmtree(place, ignore_errors=True)
        if not place.is_dir():
            with files.atomic_dir(place) as aside:
                if classes is not None:
                    (aside / files.CLASSES).write_bytes(classes)
                with (aside / name).open("wb") as file:
                    for start in range(0, size, CHUNK):
                        file.write(addresses.read_exactly(address, start, min(start + CHUNK, size)))
                if addresses.stamp(address) != (size, stamp):
                    raise retries.Unreachable("it changed while it was read; start again")
    return place / name
