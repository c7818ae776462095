"""commit.json, by which a checkpoint is complete: its step, its progress, and the SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from resnet import files
from resnet.rundir.folder import check_versions

COMMIT = "commit.json"
UNSEALED = {"step", "top1", "state", "sha256"}  # the keys of a commit.json of resnet 0.1.0, which had no seal
MAX_BYTES = 64 << 30  # of a file of a checkpoint; ResNet-200 with velocity and average has 0.8 GB


def seal(commit: dict[str, Any]) -> str:
    """SHA-256 of the content of a commit.json, whatever its layout."""
    content = {name: part for name, part in commit.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def commit_text(commit: dict[str, Any]) -> str:
    return json.dumps({**commit, "seal": seal(commit)}, indent=1)


def read_commit(path: Path) -> dict[str, Any]:
    """The commit.json of a checkpoint. Raises UserError for one of a newer version, one of DAMAGE for a damaged one."""
    commit = files.read_json(path / COMMIT)
    if commit.get("seal") != seal(commit) and set(commit) != UNSEALED:
        raise ValueError(f"{COMMIT} is not what was written")
    check_versions(path / COMMIT, commit)
    complete = isinstance(commit["step"], int) and isinstance(commit["state"], dict) and commit["sha256"]
    if not complete or any(Path(name).name != name for name in commit["sha256"]):
        raise ValueError(f"{COMMIT} is not that of a checkpoint")
    return dict(commit)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    checksum = hashlib.sha256()
    with files.open_bytes(path, MAX_BYTES) as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
