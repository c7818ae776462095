"""What a prepared folder says of itself: classes.txt, manifest.json, and how a file comes to stand there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from resnet import UserError, __version__

NAME, CLASSES, REJECTED = "manifest.json", "classes.txt", "rejected.tsv"
SCHEMA = 1
# What would end a line, or break a column, in a text file; and the sign that starts an escape. Also bytes that are no UTF-8.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]")
ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")


def escaped(name: str) -> str:
    r"""A name on one line of UTF-8: a newline in it becomes \u000a, a backslash two."""
    return UNSAFE.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", name)


def unescaped(line: str) -> str:
    """The name that escaped() made this of."""
    return ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), line)


def write_classes(folder: Path, classes: Iterable[str]) -> None:
    """One name a line: line n is label n of the shards, and the network's output n - 1."""
    text = "".join(f"{escaped(name)}\n" for name in classes)
    with whole(folder / CLASSES) as file:
        file.write(text.encode())


def read_classes(text: str) -> list[str]:
    """The names in the text of a classes.txt."""
    return [unescaped(line) for line in text.removesuffix("\n").split("\n")]


def versions() -> dict[str, str]:
    """What the bytes of converted images depend on."""
    import PIL
    from PIL import features

    return {
        "resnet": __version__,
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "libjpeg": features.version("libjpeg_turbo") or features.version("jpg") or "",
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json, which says that everything else is there."""
    with whole(folder / NAME) as file:
        file.write(json.dumps({"schema": SCHEMA, **content}, indent=1).encode() + b"\n")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, if there is one. Raises UserError for one that cannot be understood."""
    path = folder / NAME
    try:
        return understood(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def understood(text: bytes | str, path: str) -> dict[str, Any]:
    """The manifest that stands in a file. Raises UserError for one that cannot be understood, or whose sums do not agree."""
    try:
        made: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(made, dict) or made.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}, which is what this version writes")
    try:
        wrong = disagreement(made)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise UserError(f"{path}: damaged ({wrong}); copy it again, or prepare the images again")
    return made


def disagreement(made: dict[str, Any]) -> str | None:
    """What in a manifest contradicts the rest of it, if anything does. Raises what comes of values of other types."""
    counts: list[int] = [made["classes"]]
    for name, split in made["splits"].items():
        for kind in ("images", "bytes"):
            parts = [shard[kind] for shard in split["shards"]]
            counts += [split[kind], *parts]
            if sum(parts) != split[kind]:
                return f"{name}: {split[kind]} {kind}, but {sum(parts)} in its shards"
        counts += split["classes"].values()
        if sum(split["classes"].values()) != split["images"]:
            return f"{name}: {split['images']} images, but {sum(split['classes'].values())} in its classes"
        if len(split["classes"]) != made["classes"]:
            return f"{name}: {len(split['classes'])} of {made['classes']} classes"
    files = [shard["file"] for shard in shards_of(made)]
    if strange := [file for file in files if file.startswith("/") or ".." in file.split("/")]:
        return f"{strange[0]!r} is no file of this folder"
    if len(set(files)) < len(files):
        return "a shard is named twice"
    sums = all(isinstance(shard["crc32c"], str) for shard in shards_of(made))
    if {"train", "val"} - set(made["splits"]) or not isinstance(made["options"], dict) or not sums:
        return "a part of it is missing"
    if strays := [count for count in counts if type(count) is not int or count < 0]:
        return f"{strays[0]!r} is no count"
    total = sum(split["images"] for split in made["splits"].values())
    if (kinds := sum(made.get("kinds", {"JPEG": total}).values())) != total:
        return f"{total} images, but {kinds} of all kinds"
    return None


def shards_of(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every shard that a manifest names."""
    for split in made["splits"].values():
        yield from split["shards"]


@contextlib.contextmanager
def whole(path: Path, aside: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when it is complete and on disk. Until then it is `aside`."""
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have what a file holds, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
