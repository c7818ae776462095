"""Whether all shards of a set lie in a folder, by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from resnet import UserError


def check_complete(paths: Sequence[str]) -> None:
    """Raise UserError if a shard is missing: `x-00003-of-00016` says how many there must be. Of tars none may be left out."""
    if paths[0].endswith(".tar"):
        check_tars(paths)
        return
    folder = paths[0].rpartition("/")[0]
    # With the ending of the name, if it has one: 00016.tfrecord.
    counts = {path.rsplit("-of-", 1)[-1] for path in paths}
    if len(counts) != 1 or not next(iter(counts)).partition(".")[0].isdigit():
        raise UserError(
            f"{folder}: shards of {len(counts)} sets lie here (-of-{', -of-'.join(sorted(counts))}"
            "); keep one set to a folder"
        )
    total = int(counts.pop().partition(".")[0])
    missing = set(range(total))
    for path in paths:
        number = path.rsplit("-of-", 1)[0].rsplit("-", 1)[-1]
        if not number.isdigit() or int(number) >= total:
            raise UserError(f"{path}: is none of the shards 0 to {total - 1}; move it elsewhere")
        missing.discard(int(number))
    sets = {path.rsplit("-of-", 1)[0].rpartition("-")[0] for path in paths}
    if len(sets) > 1:
        names = ", ".join(sorted(name.rpartition("/")[2] for name in sets))
        raise UserError(f"{folder}: shards of {len(sets)} sets lie here ({names}); keep one to a folder")
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {total} shards are missing, first "
            f"{min(missing):05d}-of-{total:05d}; copy or prepare them again"
        )


def check_tars(paths: Sequence[str]) -> None:
    """Raise UserError unless the tars are numbered from 0 or 1 without a gap. How many there must be, no name says."""
    folder = paths[0].rpartition("/")[0]
    matches = [re.fullmatch(r"(.*?)(\d+)\.tar", path.rpartition("/")[2]) for path in paths]
    if strange := next((path for path, match in zip(paths, matches, strict=True) if not match), None):
        raise UserError(f"{strange}: has no number at its end, as in train-000123.tar; move it elsewhere")
    sets = sorted({match[1] for match in matches if match})
    if len(sets) > 1:
        raise UserError(
            f"{folder}: tars of {len(sets)} sets lie here ({sets[0]}*, {sets[1]}*, ...); keep one to a folder"
        )
    numbers = {int(match[2]) for match in matches if match}
    if len(numbers) < len(paths):
        raise UserError(f"{folder}: two tars of the same number lie here; keep one set to a folder")
    first = 1 if 0 not in numbers else 0
    if max(numbers) - first >= len(numbers):
        missing = next(number for number in range(first, max(numbers)) if number not in numbers)
        total = max(numbers) - first + 1
        raise UserError(
            f"{folder}: {total - len(numbers):,} of {total:,} tars are missing, first number {missing}; WebDataset numbers its "
            "tars from 0, without a gap; copy them again"
        )
