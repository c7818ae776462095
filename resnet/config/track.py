"""Where metrics go: conf/track/."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from resnet.config.checks import MISSING, check, check_range


@dataclass
class Track:
    """Where metrics go besides <out>/metrics.jsonl."""

    name: str = MISSING


@dataclass
class Off(Track):
    """Nowhere."""

    name: str = "off"


@dataclass
class Mlflow(Track):
    """An MLflow tracking store."""

    name: str = "mlflow"
    uri: str = MISSING
    experiment: str = "resnet"
    run_name: str = MISSING
    tags: Any = None  # of one's own, as in {owner: me}, beside recipe, seed, device, versions and commit
    log_model: bool | None = None  # keep the model too, ready to be served; null: yes, but for the jobs of a sweep
    register: str | None = None  # and enter it in the model registry by this name
    tensorboard: bool = False  # TensorBoard event files beside: <out>/tensorboard
    parent_run: str | None = None  # run id to nest this run under; a sweep sets it for its jobs
    system_metrics_s: float = 10.0  # seconds between samples of CPU and memory

    def __post_init__(self) -> None:
        check(
            "://" in self.uri,
            "track.uri",
            self.uri or "''",
            "give a store such as sqlite:////folder/mlflow.db or http://host:5000, or track=off",
        )
        check(bool(self.experiment), "track.experiment", "''", "give it a name")
        check(
            self.register is None or (bool(self.register) and self.log_model is not False),
            "track.register",
            self.register or "''",
            "give a name, and leave out track.log_model=false: there would be no model to enter",
        )
        plain = isinstance(self.tags, dict) and all(
            isinstance(value, (str, int, float)) for value in self.tags.values()
        )
        check(self.tags is None or plain, "track.tags", self.tags, "must be names and texts, such as {owner: me}")
        check_range("track.system_metrics_s", self.system_metrics_s, 0, math.inf, open_low=True)


SECRET = "RESNET_TRACK_URI"  # the environment variable that keeps the URI with its user and password


def strip_credentials(uri: str) -> str:
    """The URI without user and password, which go nowhere but into the environment of this process and its ranks."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    os.environ[SECRET] = uri
    return masked(uri)


def masked(uri: str) -> str:
    """The URI as it may be shown."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def redact(text: str) -> str:
    """`text` without the store's user and password."""
    whole = os.environ.get(SECRET, "")
    secret = urlsplit(whole).netloc.rpartition("@")[0]
    return text.replace(f"{secret}@", "").replace(secret, "***") if secret else text
