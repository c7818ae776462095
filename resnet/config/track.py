"""Where metrics go besides <out>/metrics.jsonl: conf/track/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resnet import UserError, uris
from resnet.config.checks import MISSING, Settings, check


@dataclass
class Track(Settings):
    GROUP = "track."
    name: str = MISSING


@dataclass
class Off(Track):
    name: str = "off"


@dataclass
class Mlflow(Track):
    name: str = "mlflow"
    uri: str = MISSING  # of the tracking store
    experiment: str = "resnet"
    run_name: str = MISSING
    tags: Any = None  # of one's own, as in {owner: me}, beside recipe, seed, device, versions and commit
    log_model: bool | None = None  # log the model too, ready to be served; null: yes, but for the jobs of a sweep
    register: str | None = None  # and register it under this name in the model registry
    tensorboard: bool = False  # TensorBoard event files beside: <out>/tensorboard
    parent_run: str | None = None  # run id to nest this run under; a sweep sets it for its jobs
    system_metrics_s: float = 10.0  # seconds between samples of CPU and memory

    def __post_init__(self) -> None:
        way_out = "give a store such as sqlite:////folder/mlflow.db or http://host:5000, or track=off"
        check("://" in self.uri, "track.uri", uris.strip(self.uri), way_out)
        self.check("experiment", bool(self.experiment), "give it a name")
        logged = bool(self.register) and self.log_model is not False
        way_out = "give a name, and leave out track.log_model=false: there would be no model to register"
        self.check("register", self.register is None or logged, way_out)
        plain = isinstance(self.tags, dict) and all(isinstance(tag, (str, int, float)) for tag in self.tags.values())
        self.check("tags", self.tags is None or plain, "must be names and texts, such as {owner: me}")
        self.check_above(0, "system_metrics_s")


def error_line(error: Exception) -> str:
    """What MLflow or this suite raised, as one line without secrets."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{uris.redact(str(error).partition(chr(10))[0])}"
