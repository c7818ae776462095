"""What became of the images: rejected.tsv, classes.txt, manifest.json, and the lines that a user reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from resnet import UserError, files, photos, shell
from resnet.data import images, indexes, manifest
from resnet.data.shards import Shard
from resnet.prepare import archive
from resnet.prepare.listing import Listing
from resnet.prepare.state import State

DEFAULT_BATCH = 256  # of training; fewer images would not make a step


def check_left_out(listing: Listing, max_rejected: float) -> None:
    """Raise UserError if the endings of more than `max_rejected` of all files keep them out, hidden ones and texts apart."""
    left = left_out(listing)
    total = left.total() + sum(map(len, listing.splits))
    if left.total() > max_rejected * total:
        raise UserError(
            f"{left.total():,} of {total:,} files are no images by their ending ({counted(left)}), more than "
            f"max_rejected={max_rejected:g} allows; {needs(left)}convert or rename them to one of {' '.join(archive.ENDINGS)}, "
            f"or do without them by max_rejected={share(left.total(), total):g}"
        )


def left_out(listing: Listing) -> Counter[str]:
    """How many files of each ending might be images, and are not taken."""
    return Counter({end: n for end, n in listing.ignored.items() if end != "hidden" and end not in archive.TEXTS})


def needs(endings: Iterable[str]) -> str:
    """What would read the images among files of these endings, if they were left out because it is missing."""
    forms = {archive.NEEDS[ending] for ending in endings if ending in archive.NEEDS}
    return "".join(f"{form} needs {images.PACKAGES[form]}; " for form in sorted(forms) if not images.decodes(form))


def counted(endings: Counter[str]) -> str:
    return ", ".join(f"{ending} {count:,}" for ending, count in sorted(endings.items()))


def share(part: int, total: int) -> float:
    """The least max_rejected of four digits that allows `part` of `total`."""
    return math.ceil(part / total * 1e4) / 1e4


def headline(listing: Listing, names: Sequence[list[str]], processes: int) -> None:
    """Print what is about to happen. `names` are the shards of each split."""
    train, val = listing.splits
    lines = [*listing.notes]
    if listing.by_content:
        lines.append(f"images by their content, whatever their ending: {counted(listing.by_content)}")
    if listing.ignored:
        way_out = needs(listing.ignored).removesuffix("; ")
        hint = f" ({way_out})" if way_out else ""
        lines.append(f"left out, not images by their ending: {counted(listing.ignored)}{hint}")
    if listing.refused:
        [(count,)] = listing.state.select("count(*) FROM rejected WHERE shard = ''")
        name, reason = listing.refused
        lines.append(f"refused before reading: {count:,}, such as {name!r}: {reason}")
    to = f"{' + '.join(f'{len(files):,}' for files in names)} shards in {listing.state.target.name}"
    print(
        *lines,
        f"{len(listing.classes):,} classes, {len(train):,} training and {len(val):,} validation images to {to}, by "
        f"{processes} process{'es' * (processes > 1)}",
        sep="\n",
        flush=True,
    )


def conclude(listing: Listing, max_rejected: float, count: int, seconds: float) -> None:
    """Write rejected.tsv, then classes.txt, index.bin and manifest.json; `count` images took so many seconds.

    Raises UserError if too many images were rejected.
    """
    state, options = listing.state, listing.state.settings["options"]
    target, out = state.target, state.out
    kinds = Counter[str](dict(state.select("kind, sum(images) FROM counts GROUP BY kind ORDER BY kind")))
    [(resized,)] = state.select("sum(resized) FROM shards")
    print(f"RGB JPEG: {kinds['JPEG']:,}" + ("" if options["resize"] is None else f"; resized: {resized:,}"))
    if parts := ", ".join(f"{kind} {number:,}" for kind, number in kinds.items() if kind != "JPEG"):
        print(f"converted to RGB JPEG: {kinds.total() - kinds['JPEG']:,} ({parts})")
    if twelve := sum(number for kind, number in kinds.items() if "12-bit" in kind):
        print(f"16-bit values none of which is above {images.TWELVE:,}, taken for 12 bits: {twelve:,} images")
    for reason, number in state.select(
        "reason, count(*) FROM rejected WHERE reason GLOB '*, which needs *' GROUP BY reason"
    ):
        print(f"{number:,} images are {reason}")
    rejected = write_rejected(state)
    check_rejected(listing, max_rejected, rejected, kinds.total())
    for (file,) in state.select("file FROM shards WHERE NOT images ORDER BY file LIMIT 1"):
        raise UserError(
            f"{target.name}/{file}: every image of this shard was rejected; delete {target.name}, and ask for fewer shards"
        )
    splits = {split: split_entry(state, split, listing.classes) for split in ("train", "val")}
    content: dict[str, Any] = {
        "options": options,
        "listing": state.settings["listing"],
        "versions": state.settings["versions"],
        "classes": len(listing.classes),
        "texts": {name: text for name, text in listing.texts.items() if text != name},
        "splits": splits,
        "kinds": dict(kinds),
        "resized": resized,
        "rejected": rejected,
        "ignored": dict(sorted(listing.ignored.items())),
    }
    files.write_classes(out, listing.classes)
    written = [Shard(**shard) for shard in manifest.shards_of(content)]
    indexes.write(out, written, (state.lengths(shard.file) for shard in written))
    manifest.write(out, content)
    target.publish(files.CLASSES, indexes.NAME, manifest.NAME)
    target.finish()
    state.is_finished = True
    rate = f", {count / seconds:,.0f} images/s" if count else ""
    print(f"{target.name}: {totals(content)}, in {seconds:,.0f} s{rate}")
    for name, number in splits["train"]["classes"].items():
        if not number:
            print(f"no training image is left of class {name!r}")
    data = "imagenet" if len(listing.classes) == 1000 and options["source"] == "imagenet" else "folder"
    number = splits["train"]["images"]
    batch = [f"batch={2 ** int(math.log2(number) - 1)}"] if number < DEFAULT_BATCH else []
    if out.parent == photos.place("", None):  # who trains has had it made
        return
    print("next:", shell.command("resnet.train", f"data={data}", shell.override("data.dir", target.name), *batch))


def check_rejected(listing: Listing, max_rejected: float, rejected: int, good: int) -> None:
    """Raise UserError if more than `max_rejected` of all files are no images that can be read, or all of them."""
    left, place = left_out(listing).total(), f"{listing.state.target.name}/{manifest.REJECTED}"
    total = good + rejected + left
    if not good:
        raise UserError(f"none of the {rejected:,} images can be read; {place} has the reasons")
    if rejected and rejected + left > max_rejected * total:
        also = f", and {left:,} left out for their endings" if left else ""
        raise UserError(
            f"{rejected:,} of {total:,} images were rejected{also}, more than max_rejected={max_rejected:g} allows; read "
            f"{place}. To do without them: the same command with max_rejected={share(rejected + left, total):g}; nothing is "
            "made twice"
        )


def split_entry(state: State, split: str, classes: list[str]) -> dict[str, Any]:
    """The manifest's entry of a split."""
    rows = state.select("file, images, bytes, crc32c FROM shards WHERE split = ? ORDER BY file", split)
    query = "label, sum(c.images) FROM counts c JOIN shards ON shard = file WHERE split = ? GROUP BY label"
    counts: dict[int, int] = dict(state.select(query, split))
    labels = {name: counts.get(label, 0) for label, name in enumerate(classes, 1)}
    return manifest.split([Shard(*row) for row in rows], labels)


def write_rejected(state: State) -> int:
    """Write a line for each rejected image: its name, a tab, the reason. No file if there is none. Returns their number."""
    rows = state.select(
        "name, reason FROM rejected LEFT JOIN shards ON shard = file ORDER BY split, file, rejected.rowid"
    )
    if rows:
        files.write_text(state.out / manifest.REJECTED, "".join(f"{name}\t{reason}\n" for name, reason in rows))
        state.target.publish(manifest.REJECTED)
        print(f"rejected: {len(rows):,}; see {state.target.name}/{manifest.REJECTED}")
    else:
        state.target.withdraw(manifest.REJECTED)
    return len(rows)


def totals(content: dict[str, Any]) -> str:
    """The sums of a manifest, for people."""
    train, val = content["splits"]["train"], content["splits"]["val"]
    count = len(train["shards"]) + len(val["shards"])
    return (
        f"{train['images']:,} training and {val['images']:,} validation images of {content['classes']:,} classes in "
        f"{count:,} shards, {size(train['bytes'] + val['bytes'])}"
    )


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
