"""The MLflow store: how it is reached, and the runs in it. MLflow is imported where it is needed: it takes 2 s."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet import files
from resnet.config import track
from resnet.config.track import Mlflow, Off, Track

VALUE_LIMIT = 6000  # characters of a parameter (MLflow 3)
BATCH_LIMIT = 100  # parameters to a request (MLflow's REST limit)
IDENTITY = "mlflow.json"  # in <out>: the MLflow run of this folder, and how far it has been told


@dataclass
class SyncState:
    """What <out>/mlflow.json says: the run that the folder has in the store `uri`, and the bytes of metrics.jsonl that it has."""

    uri: str
    run_id: str
    sent: int = 0
    status: str | None = None  # how the run ended

    def write(self, out: Path) -> None:
        """Keep it."""
        files.write_text(state_path(out, self.uri), json.dumps(asdict(self)) + "\n")


def state_path(out: Path, uri: str) -> Path:
    """Where the note about a store lies: <out>/mlflow.json for the first, mlflow-<hash>.json for others the run was sent to."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if json.loads((out / IDENTITY).read_text())["uri"] != uri:
            return out / f"mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.json"
    return out / IDENTITY


def read_state(out: Path, uri: str) -> SyncState | None:
    """The note of a run's folder about the store `uri`, if there is one."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = SyncState(**json.loads(state_path(out, uri).read_text()))
        return kept if kept.uri == uri else None
    return None


def log_dataset(client: Any, run_id: str, told: dict[str, Any]) -> None:
    """What the run is trained on, as MLflow's dataset input: name, digest, source, and a profile of counts."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=told["name"],
        digest=told["digest"],
        source_type="local",
        source=json.dumps({"uri": told["source"]}),
        profile=json.dumps(told["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_params(client: Any, run_id: str, params: dict[str, Any]) -> None:
    """Parameters, cut to what MLflow takes."""
    from mlflow.entities import Param

    listed = [Param(name, str(value)[:VALUE_LIMIT]) for name, value in params.items()]
    for first in range(0, len(listed), BATCH_LIMIT):
        client.log_batch(run_id, params=listed[first : first + BATCH_LIMIT])


def identity(out: Path, uri: str) -> str | None:
    """The MLflow run id that a run's folder has in the store `uri`, if any."""
    kept = read_state(out, uri)
    return kept.run_id if kept else None


def connect(uri: str) -> Any:
    """An MlflowClient that fails fast. A SQLite store is created first, by one process at a time: racing breaks it for good."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors come as exceptions too
    from mlflow import MlflowClient

    whole = os.environ.get(track.SECRET, "")
    uri = whole if track.masked(whole) == uri else uri
    database = sqlite_path(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(database.with_name(f".{database.name}.lock")):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite:/// URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def new_run(client: Any, settings: Mlflow, name: str, tags: dict[str, str]) -> str:
    """Create a run in the experiment `settings.experiment`, which is made if it does not exist; its id."""
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        database = sqlite_path(settings.uri)
        # Beside the database, absolute: MLflow's default is relative to whatever folder the UI is started in.
        place = (database.parent / "mlruns" / settings.experiment).as_uri() if database else None
        with contextlib.suppress(Exception):  # another process may be making it
            client.create_experiment(settings.experiment, artifact_location=place)
        experiment = client.get_experiment_by_name(settings.experiment)
    return str(client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id)


def reopen(client: Any, run_id: str) -> bool:
    """Set a run RUNNING again; False if it is no longer in the store."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


# ---------------------------------------------------------------------------------------------------- parents and the dead
def start_parent(out: Path, settings: Track, name: str, params: dict[str, Any], tags: dict[str, str]) -> str | None:
    """A run for the jobs of the sweep in `out` to nest under: the one it already has, or a new one. None without MLflow."""
    match settings:
        case Off():
            return None
        case Mlflow():
            client = connect(settings.uri)
            kept = identity(out, settings.uri)
            if kept is not None and reopen(client, kept):
                return kept
            run_id = new_run(client, settings, name, tags)
            SyncState(settings.uri, run_id).write(out)
            log_params(client, run_id, params)
            return run_id
    raise AssertionError(settings)


def close_run(
    settings: Track, run_id: str | None, status: str, *, only_if_running: bool = False, artifacts: tuple[Path, ...] = ()
) -> None:
    """Set a run's status from outside: a sweep's parent, or a job that died without a word."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        if not only_if_running or client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)


def count_restart(settings: Track, run_id: str | None) -> None:
    """Count in the run's tag `restarts` that its ranks died and were started again."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        client.set_tag(run_id, "restarts", str(int(client.get_run(run_id).data.tags.get("restarts", "0")) + 1))
