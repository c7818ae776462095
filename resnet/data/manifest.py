"""What a prepared folder says of itself: classes.txt, manifest.json, and how a file comes to stand there whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet import UserError, __version__, files
from resnet.data.shards import Shard

NAME, REJECTED = "manifest.json", "rejected.tsv"
SCHEMA = 1


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


def split(written: Sequence[Shard], classes: dict[str, int]) -> dict[str, Any]:
    """What the manifest says of one split, whose classes have so many images."""
    return {
        "images": sum(shard.images for shard in written),
        "bytes": sum(shard.bytes for shard in written),
        "classes": classes,
        "shards": [dataclasses.asdict(shard) for shard in written],
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json, which says that everything else is there."""
    with files.atomic_write(folder / NAME) as file:
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
