"""Prove that a refactor changes nothing that a run computes: train the same short runs in two versions, compare bit for bit.

    python tests/golden/compare.py main             # this working tree against a commit, branch or tag
    python tests/golden/compare.py record a.json    # only record, for example before a change
    python tests/golden/compare.py diff a.json b.json

A record holds, for each run, every logged value but times and speeds, the result, and the SHA-256 of every variable in the
newest checkpoint. Values depend on the machine, so no record is committed. About two minutes for a record on two cores.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model=tiny data=digits batch=64 track=off schedule=constant optim.lr=0.02 log_every_steps=1 steps=6 eval_steps=4"
)
EVAL = f"{TINY} steps_per_loop=1 save_every_steps=3"
BLOWS_UP = f"{TINY} optim.lr=1e4 save_every_steps=2 eval=false steps=12 on_nan.lr_factor=1e-6"
SYNTHETIC = "data=synthetic data.image_size=64 batch=8 steps=3 eval_steps=2 track=off log_every_steps=1"

# name -> commands, one after the other in the same folder; out= is added to those of resnet.train.
RUNS = {
    "sgd_fp32_resumed": [
        f"train {EVAL}",
        f"train {EVAL} steps=9",
        "evaluate run out=scores",
        "export run out=exported",
    ],
    "sgd_momentum_fp16": [f"train {TINY} dtype=fp16 optim.nesterov=true"],
    "lars_bf16_mixup": [f"train {TINY} optim=lars dtype=bf16 mixup=0.2 steps_per_loop=2 schedule.warmup_epochs=0.2"],
    "ema_progressive": [
        f"train {EVAL} ema.decay=0.9 ema.every_steps=2 epochs=3 steps=50 batch=96 log_every_steps=7 "
        "progressive.start_size=16 progressive.multiple=8 progressive.end_epochs=2 save_every_steps=10"
    ],
    "accumulation_cosine": [
        f"train {TINY} cluster.gradient_accumulation=2 schedule=cosine epochs=9 label_smoothing=0.2"
    ],
    "skip": [f"train {BLOWS_UP} on_nan.policy=skip optim.lr=300 save_every_steps=100"],
    "rollback": [f"train {BLOWS_UP} on_nan.policy=rollback"],
    "not_finite": [f"train {BLOWS_UP}"],
    "two_ranks": [f"train {EVAL} cluster=cpu2 data.flip=true", f"train {EVAL} cluster=cpu2 data.flip=true steps=8"],
    "two_ranks_synced": [f"train {EVAL} cluster=cpu2 cluster.sync_batch_norm=true ema.decay=0.9 ema.every_steps=1"],
    "range_test": [f"train {TINY} lr_find=true lr_find_steps=25 steps=null"],
    "resnet50_fp32": [f"train model=resnet50 {SYNTHETIC}"],
    "resnet50_bf16_lars": [f"train model=resnet50 optim=lars dtype=bf16 {SYNTHETIC}"],
    "resnext50_bf16": [f"train model=resnext50 dtype=bf16 {SYNTHETIC} batch=4"],
    "finetune": [
        f"train {TINY}",
        f"train {TINY} out=tuned init=run finetune.freeze=[conv1,bn1] finetune.lr_multipliers={{fc:10}}",
    ],
}
VARYING = ("images_per_s", "data_wait", "minutes", "seconds", "speeds", "time_ms", "out", "resnet", "weights")


def varies(name: str) -> bool:
    """Whether a value of this name differs between two runs of the same version."""
    return name.startswith("system/") or name in VARYING or any(part in name for part in VARYING[:4])


def plain(value: object) -> object:
    """JSON content without what varies."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if not varies(name)}
    return [plain(part) for part in value] if isinstance(value, list) else value


def variables(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every variable in a checkpoint folder, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(checkpoint / "weights"))
    names = [
        name for name in reader.get_variable_to_shape_map() if not name.startswith(("_CHECKPOINTABLE", "save_counter"))
    ]
    return {name: hashlib.sha256(reader.get_tensor(name).tobytes()).hexdigest() for name in sorted(names)}


def record_run(checkout: Path, folder: Path, name: str) -> dict[str, object]:
    """Run the commands of one entry of RUNS in `folder` with the code of `checkout`; what they left behind."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}
    ends = []
    for command in RUNS[name]:
        module, *words = command.split()
        if module == "train" and not any(word.startswith("out=") for word in words):
            words.append("out=run")
        last = {word.partition("=")[0]: word for word in words}  # a later word wins, as a person would expect
        done = subprocess.run(
            [sys.executable, "-m", f"resnet.{module}", *last.values()],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
        ends.append(done.returncode)
    files: dict[str, Any] = {}
    for path in sorted(folder.glob("*/*.json*")):
        if path.suffix == ".jsonl":
            files[str(path.relative_to(folder))] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("result.json", "scores.json"):
            files[str(path.relative_to(folder))] = plain(json.loads(path.read_text()))
    files.get("tuned/result.json", {}).pop("fingerprint", None)  # it is of init=, a path
    for out in ("run", "tuned"):
        if checkpoints := sorted(folder.glob(f"{out}/checkpoints/step-*")):
            files[f"{out}/{checkpoints[-1].name}"] = variables(checkpoints[-1])
            commit = json.loads((checkpoints[-1] / "commit.json").read_text())
            files[f"{out}/{checkpoints[-1].name}/state"] = plain({"top1": commit["top1"], **commit["state"]})
    return {"exit_statuses": ends, "files": files}


def record(checkout: Path, names: list[str]) -> dict[str, object]:
    """What every run of RUNS computes with the code of `checkout`; two runs at a time."""
    with (
        tempfile.TemporaryDirectory(prefix="resnet-golden-") as folder,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        jobs = {name: pool.submit(record_run, checkout, Path(folder, name), name) for name in names}
        return {name: job.result() for name, job in jobs.items()}


def differences(before: object, after: object, place: str = "") -> list[str]:
    """A line for every value that is not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{place}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{place}/{number}")]
    return [] if before == after else [f"{place}: {before} -> {after}"]


def main() -> int:
    """Exit status: 0 if nothing differs."""
    words = sys.argv[1:]
    names = [word.removeprefix("only=") for word in words if word.startswith("only=")] or list(RUNS)
    match [word for word in words if not word.startswith("only=")]:
        case ["record", path]:
            Path(path).write_text(json.dumps(record(ROOT, names), indent=1) + "\n")
            return 0
        case ["diff", before, after]:
            found = differences(json.loads(Path(before).read_text()), json.loads(Path(after).read_text()))
        case [revision] if revision not in ("record", "diff"):
            with tempfile.TemporaryDirectory(prefix="resnet-golden-") as folder:
                checkout = Path(folder, "before")
                subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", checkout, revision], check=True)
                try:
                    found = differences(record(checkout, names), record(ROOT, names))
                finally:
                    subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", checkout], check=True)
        case _:
            print(__doc__)
            return 2
    for line in found[:40]:
        print(line)
    print(f"{len(found)} differences in {len(names)} runs")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
