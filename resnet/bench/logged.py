"""A benchmark's outcome in MLflow: a run of the experiment `bench`, in the working folder's SQLite as training has it."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from resnet import UserError, __version__
from resnet.bench.result import Outcome, Row, write
from resnet.config import track
from resnet.config.track import Mlflow
from resnet.track import store

EXPERIMENT = "bench"
TAKEN = re.compile(r"[^A-Za-z0-9_\-. /]+")  # what a metric's name may not hold


def settings(name: str) -> Mlflow:
    """The store training uses here."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd()}/mlflow.db"
    return Mlflow(uri=track.strip_credentials(uri), experiment=EXPERIMENT, run_name=name)


def metrics(outcome: Outcome) -> dict[str, float]:
    """Every row's medians, ratio and fraction, by what it is about."""
    found: dict[str, float] = {}
    for row in outcome.rows:
        what = named(row)
        values = {
            "ours": statistics.median(row.ours),
            "theirs": statistics.median(row.theirs) if row.theirs else None,
            "ratio": row.ratio,
            "of limit": row.fraction,
        }
        found |= {f"{what}/{name}": value for name, value in values.items() if value is not None}
    return found


def named(row: Row) -> str:
    """What a row is about, in characters that a metric's name may hold."""
    return " ".join(TAKEN.sub(" ", f"{row.what} to {row.against}" if row.against else row.what).split())


def log(outcome: Outcome, name: str, knobs: dict[str, Any]) -> str:
    """Enter it; the id of its run. Raises UserError where the store cannot be had."""
    chosen = settings(name)
    try:
        client = store.connect(chosen.uri)
        tags = {"command": outcome.command, "version.resnet": __version__, **outcome.facts}
        run_id = store.new_run(client, chosen, name, tags)
        store.log_params(client, run_id, knobs)
        for metric, value in metrics(outcome).items():
            client.log_metric(run_id, metric, value)
        with tempfile.TemporaryDirectory() as folder:
            for path in write(outcome, Path(folder), name):
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        said = track.redact(str(error).partition("\n")[0])
        raise UserError(f"track=mlflow: {chosen.uri}: {type(error).__name__}: {said}") from error
    return run_id
