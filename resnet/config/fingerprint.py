"""Every knob by its dotted name, which of them may change when a run is resumed, and a hash of the others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

from resnet.config.run import Run

# Knobs that do not change what the weights become: they may change when a run is resumed.
FREE = (
    "steps",
    "eval",
    "eval_steps",
    "eval_every_epochs",
    "eval_offset_epochs",
    "stop_at_top1",
    "log_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "steps_per_loop",
    "profile_steps",
    "mlperf",
    "out",
    "resume",
    "recipe",
    "data.dir",
    "data.label_offset",  # of the shards in data.dir, as they are numbered there
    "data.on_corrupt",
    "data.max_corrupt",
    "data.cache",
    "data.cache_dir",
    "data.cache_gb",
    "data.disk",
    "data.fetch_mb",
    "data.labels",  # as data.dir: data.listing is the hash of what is there
    "data.max_rejected",
    "data.prepared",
)
FREE_GROUPS = ("cluster", "track", "on_nan")


def may_change_on_resume(knob: str) -> bool:
    """Whether a knob may change when a run is resumed."""
    return knob in FREE or knob.partition(".")[0] in FREE_GROUPS


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, default) of every knob below a dataclass; an Enum by its name, as users write it."""
    for knob in dataclasses.fields(node):
        value = getattr(node, knob.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{knob.name}.")
        else:
            make = knob.default_factory
            default = knob.default if make is dataclasses.MISSING else make()
            value, default = (part.name if isinstance(part, Enum) else part for part in (value, default))
            yield prefix + knob.name, value, default


def flat(run: Run) -> dict[str, Any]:
    """Every knob of the run by its dotted name: `optim.lr`, `data.image_size`, `batch`."""
    return {name: value for name, value, _ in walk(run)}


def fingerprint(run: Run) -> str:
    """Changes when a run must do something else or more than before; not where a newer version has one more knob.

    So it is a hash of the knobs that differ from their defaults, and of the groups' names, which decide what the defaults are;
    without augment=none, which is what versions without that group did.
    """
    ends = ("steps", "eval", "eval_steps", "stop_at_top1")
    changed = [(name, value) for name, value, default in walk(run) if value != default or name.endswith(".name")]
    changed = [knob for knob in changed if knob != ("augment.name", "none")]
    knobs = {name: str(value) for name, value in changed if name in ends or not may_change_on_resume(name)}
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]
