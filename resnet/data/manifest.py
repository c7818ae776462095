"""manifest.json, the description of a prepared folder: its options, and the images, bytes and CRC of every shard."""

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
    """The versions on which the bytes of converted images depend."""
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
    """Write manifest.json: the last file, so the folder is complete when it is there."""
    files.write_text(folder / NAME, json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n")


def read(folder: Path | str) -> dict[str, Any] | None:
    """The manifest of a prepared folder, or one at an address; None if there is none. Raises UserError if it is damaged."""
    path = f"{str(folder).rstrip('/')}/{NAME}"
    try:
        return parse(files.read_content(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def parse(text: bytes | str, path: str) -> dict[str, Any]:
    """The manifest in a text. Raises UserError if it is damaged: no JSON, another schema, or sums that do not agree."""
    try:
        content: Any = files.parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}, which is what this version writes")
    try:
        wrong = disagreement(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a value of another type
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise UserError(f"{path}: damaged ({wrong}); copy it again, or prepare the images again")
    return content


def disagreement(content: dict[str, Any]) -> str | None:
    """What in a manifest contradicts the rest of it, if anything."""
    counts: list[int] = [content["classes"]]
    for name, split in content["splits"].items():
        for kind in ("images", "bytes"):
            parts = [shard[kind] for shard in split["shards"]]
            counts += [split[kind], *parts]
            if sum(parts) != split[kind]:
                return f"{name}: {split[kind]} {kind}, but {sum(parts)} in its shards"
        counts += split["classes"].values()
        if sum(split["classes"].values()) != split["images"]:
            return f"{name}: {split['images']} images, but {sum(split['classes'].values())} in its classes"
        if len(split["classes"]) != content["classes"]:
            return f"{name}: {len(split['classes'])} of {content['classes']} classes"
    names = [shard["file"] for shard in shards_of(content)]
    if strange := [file for file in names if file.startswith("/") or ".." in file.split("/")]:
        return f"{strange[0]!r} is no file of this folder"
    if len(set(names)) < len(names):
        return "a shard is named twice"
    sums = all(isinstance(shard["crc32c"], str) for shard in shards_of(content))
    if {"train", "val"} - set(content["splits"]) or not isinstance(content["options"], dict) or not sums:
        return "a part of it is missing"
    if strays := [count for count in counts if type(count) is not int or count < 0]:
        return f"{strays[0]!r} is no count"
    total = sum(split["images"] for split in content["splits"].values())
    if (kinds := sum(content.get("kinds", {"JPEG": total}).values())) != total:
        return f"{total} images, but {kinds} of all kinds"
    return None


def shards_of(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every shard that a manifest names."""
    for split in content["splits"].values():
        yield from split["shards"]
