"""What a row of the tables of options is: how it is typed, what its value must be, and what it becomes here."""

from __future__ import annotations

from dataclasses import dataclass

TRUTH = r"(?i)0|1|t|f|true|false"
# kind -> (what a value must match, the same in words, what stands for it in --help)
KINDS = {
    "": ("", "without a value", ""),
    "dtype": (r"bf16|fp32", "bf16 or fp32", "bf16|fp32"),
    "any dtype": (r"bf16|fp16|fp32", "bf16, fp16 or fp32", "bf16|fp16|fp32"),
    "size": (r"18|34|50|101|152|200", "18, 34, 50, 101, 152 or 200", "SIZE"),
    "whole": (r"[1-9]\d*", "a whole number above 0", "N"),
    "count": (r"\d+", "a whole number", "N"),
    "limit": (r"-1|[1-9]\d*", "a whole number above 0, or -1 for no limit", "N"),
    "auto": (r"\d+", "a whole number, 0 for no wish", "N"),
    "pair": (r"[1-9]\d*, ?[1-9]\d*", "the first and the last step with a comma between them, counted from 1", "A,B"),
    "number": (r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", "a number", "X"),
    "truth": (TRUTH, "0 or 1, false or true", "0|1"),
    "if true": (TRUTH, "0 or 1, false or true", "0|1"),
    "hosts": (r"[\w.-]+(,[\w.-]+)*", "names or addresses with commas between them", "A,B"),
    "model": (r"resnet_estimator|resnet_keras", "resnet_estimator or resnet_keras", "MODEL"),
    "version": (r"1", "1: every network here is v1.5, as the original's version 1 was", "1"),
    "type": (r"resnet|resnext", "resnet or resnext", "resnet|resnext"),
    "optimizer": (r"SGD|LARS|resnet50_default", "SGD or LARS; there are no others here", "SGD|LARS"),
    "schedule": (r"piecewise|polynomial|constant", "piecewise, polynomial or constant", "NAME"),
    "preset": (r"resnet50_v1\.5", "resnet50_v1.5; for other networks add -- model=, see resnet.train --help", "NAME"),
    "scale": (r"dynamic|1", "dynamic: a fixed scale of the loss is not available, and bf16 needs none", "dynamic"),
    "strategy": (
        r"off|False|default|one_device|mirrored|multi_worker_mirrored|hpu",
        "off, one_device, mirrored or hpu: Horovod connects the ranks here, and there are no TPUs or parameter servers",
        "NAME",
    ),
    "weights": (
        r"(?s).+\.(safetensors|npz)",
        "a .safetensors or .npz file: TensorFlow 1's checkpoints cannot be read yet, and the original ignored this; "
        "leave it out, or add -- init= with weights that resnet.train reads",
        "FILE",
    ),
    "binding": (r"socket|slot", "socket or slot", "NAME"),
    "folder": (r"(?s).*\S.*", "a folder", "DIR"),
    "text": (r"(?s).*", "text", "VALUE"),
    "refused": (r"(?s).*", "text", "VALUE"),
    "refused flag": (TRUTH, "0 or 1, false or true", "0|1"),
}
SWITCHES = ("truth", "if true", "refused flag")  # --name alone is true; --noname is false
OFF = r"(?i)|0|-1|f|false|none|off|null"


@dataclass(frozen=True)
class Option:
    """An option, variable, flag or key.

    Without a kind, or of kind `if true` and true, it sets its knob to `fixed`. A refused one is harmless if it matches `fixed`.
    """

    names: str  # as they are typed, spaces between them
    key: str  # a knob, or a word that the modules beside make knobs of; none: it is ignored, or refused
    help: str  # for --help and docs/original.md
    kind: str = ""
    fixed: str = "true"


def ignored(names: str, reason: str, kind: str = "text") -> Option:
    return Option(names, "", f"ignored: {reason}", kind)


def refused(names: str, way_out: str, kind: str = "refused") -> Option:
    """One that does something which is missing here, unless it is off."""
    return Option(names, "", f"not available: {way_out}", kind, OFF)


def by_name(options: tuple[Option, ...]) -> dict[str, Option]:
    return {name: option for option in options for name in option.names.split()}
