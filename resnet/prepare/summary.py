"""What became of the images: sums over the shards, rejected.tsv, classes.txt, manifest.json, and the lines a user reads."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from resnet import UserError, files
from resnet.data import manifest, shards
from resnet.prepare import journal
from resnet.prepare.journal import Shard
from resnet.prepare.listing import Listing

DEFAULT_BATCH = 256  # of training; with fewer images it would not make a step


class Tally:
    """Sums over the finished shards; of one shard, only a line is kept."""

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.shards: dict[str, shards.Shard] = {}
        self.split_of = {file: split for split in files for file in files[split]}
        self.classes = {split: Counter[str]() for split in files}
        self.kinds, self.resized, self.rejected = Counter[str](), 0, 0

    def add(self, shard: Shard) -> None:
        """One more."""
        self.classes[self.split_of[shard.file]] += shard.classes
        self.kinds += shard.kinds
        self.resized += shard.resized
        self.rejected += len(shard.rejected)
        self.shards[shard.file] = shards.Shard(shard.file, shard.images, shard.bytes, shard.crc32c)

    def names(self, split: str, classes: list[str]) -> dict[str, int]:
        """Images of each class in one split."""
        return {name: self.classes[split][str(label)] for label, name in enumerate(classes, 1)}

    def of(self, split: str) -> list[shards.Shard]:
        """The shards of one split, in order."""
        return [shard for file, shard in sorted(self.shards.items()) if self.split_of[file] == split]


def headline(listing: Listing, files: dict[str, list[str]], out: Path, processes: int) -> list[str]:
    """What is about to happen."""
    lines = list(listing.notes)
    if listing.ignored:
        kinds = ", ".join(f"{ending} {count:,}" for ending, count in sorted(listing.ignored.items()))
        lines.append(f"left out, not images by their ending: {kinds}")
    if listing.refused:
        name, reason = listing.refused[0]
        lines.append(f"refused before reading: {len(listing.refused):,}, such as {name!r}: {reason}")
    lines.append(
        f"{len(listing.classes):,} classes, {len(listing.train):,} training and {len(listing.val):,} validation images to "
        f"{len(files['train']):,} + {len(files['val']):,} shards in {out}, by {processes} process{'es' * (processes > 1)}"
    )
    return lines


def conclude(
    out: Path,
    options: dict[str, Any],
    listing: Listing,
    tally: Tally,
    max_rejected: float,
    done: int,
    seconds: float,
) -> None:
    """Write rejected.tsv, and if all is well classes.txt and manifest.json. Raises UserError for too many rejected images."""
    rejected = len(listing.refused) + tally.rejected
    total = len(listing.train) + len(listing.val) + len(listing.refused)
    kept = tally.kinds["JPEG"]
    converted = sorted((kind, count) for kind, count in tally.kinds.items() if kind != "JPEG")
    print(f"RGB JPEG: {kept:,}" + ("" if options["resize"] is None else f"; resized: {tally.resized:,}"))
    if converted:
        told = ", ".join(f"{kind} {count:,}" for kind, count in converted)
        print(f"converted to RGB JPEG: {sum(count for _, count in converted):,} ({told})")
    write_rejected(out, listing, tally, rejected)
    if rejected > max_rejected * total:
        enough = math.ceil(rejected / total * 1e4) / 1e4
        raise UserError(
            f"{rejected:,} of {total:,} images were rejected, more than max_rejected={max_rejected:g} allows; read "
            f"{out / manifest.REJECTED}. To do without them: the same command with max_rejected={enough:g}; nothing is "
            "made twice"
        )
    for shard in tally.shards.values():
        if not shard.images:
            raise UserError(
                f"{out / shard.file}: every image of this shard was rejected; delete {out}, and ask for fewer shards"
            )
    made: dict[str, Any] = {
        "options": options,
        "listing": listing.digest(),
        "versions": manifest.versions(),
        "classes": len(listing.classes),
        "texts": {name: text for name, text in listing.texts.items() if text != name},
        "splits": {
            split: manifest.split(tally.of(split), tally.names(split, listing.classes)) for split in ("train", "val")
        },
        "kinds": dict(sorted(tally.kinds.items())),
        "resized": tally.resized,
        "rejected": rejected,
        "ignored": dict(sorted(listing.ignored.items())),
    }
    files.write_classes(out, listing.classes)
    manifest.write(out, made)
    rate = f", {done / seconds:,.0f} images/s" if done else ""
    print(f"{out}: {totals(made)}, in {seconds:,.0f} s{rate}")
    for name in listing.classes:
        if not made["splits"]["train"]["classes"][name]:
            print(f"no training image is left of class {name!r}")
    data = "imagenet" if len(listing.classes) == 1000 and options["source"] == "imagenet" else "folder"
    few = made["splits"]["train"]["images"] < DEFAULT_BATCH
    batch = f" batch={2 ** int(math.log2(made['splits']['train']['images']) - 1)}" if few else ""
    print(f"next: python -m resnet.train data={data} data.dir={shlex.quote(str(out))}{batch}")


def write_rejected(out: Path, listing: Listing, tally: Tally, rejected: int) -> None:
    """A line for each image that could not be used: its name, a tab, the reason. No file if there is none."""
    path = out / manifest.REJECTED
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with files.atomic_write(path) as file:
        for name, reason in map(listing.refused.__getitem__, range(len(listing.refused))):
            file.write(f"{files.escape(str(name))}\t{files.escape(str(reason))}\n".encode())
        for split in ("train", "val"):
            for shard in tally.of(split):
                noted = journal.finished(out, shard.file)
                for name, reason in noted.rejected if noted else ():
                    file.write(f"{files.escape(name)}\t{files.escape(reason)}\n".encode())
    print(f"rejected: {rejected:,}; see {path}")


def totals(made: dict[str, Any]) -> str:
    """What a manifest amounts to."""
    train, val = made["splits"]["train"], made["splits"]["val"]
    count = len(train["shards"]) + len(val["shards"])
    return (
        f"{train['images']:,} training and {val['images']:,} validation images of {made['classes']:,} classes in "
        f"{count:,} shards, {size(train['bytes'] + val['bytes'])}"
    )


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:,.1f} GB"
