"""The runs in an MLflow store. MLflow is imported where it is needed: it takes 2 s."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet import UserError, files, uris
from resnet.config.track import Mlflow, Track
from resnet.serving import registry
from resnet.track.client import check_artifacts, way_out
from resnet.track.client import connect as connect

VALUE_LIMIT = 6000  # characters of a parameter (MLflow 3)
BATCH_LIMIT = 100  # parameters to a request (MLflow's REST limit)
FILE = "mlflow.json"  # in <out>: the SyncState
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the tag by which MLflow 3's UI opens on training runs


@dataclass
class SyncState:
    """The content of <out>/mlflow.json: the run that the folder has in the store `uri`, and how much that has got."""

    uri: str
    run_id: str
    sent: int = 0  # bytes of metrics.jsonl
    status: str | None = None  # how the run ended
    complete: bool | None = (
        None  # whether MLflow has got everything, the status and the files too; null: of an older version
    )

    @staticmethod
    def path(out: Path, uri: str) -> Path:
        """<out>/mlflow.json for the first store, mlflow-<hash>.json for others that the run was sent to."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if files.read_json(out / FILE)["uri"] != uri:
                return out / f"mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.json"
        return out / FILE

    @classmethod
    def read(cls, out: Path, uri: str) -> SyncState | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = cls(**files.read_json(cls.path(out, uri)))
            return state if state.uri == uri else None
        return None

    def write(self, out: Path) -> None:
        files.write_text(self.path(out, self.uri), json.dumps(asdict(self)) + "\n")


def run_id(out: Path, uri: str) -> str | None:
    state = SyncState.read(out, uri)
    return state.run_id if state else None


def new_run(client: Any, settings: Mlflow, name: str, tags: dict[str, str]) -> str:
    """Create a run in the experiment `settings.experiment`, which is created if it does not exist; its id."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        database, folder = uris.sqlite_path(settings.uri), settings.experiment.replace("/", "_").lstrip(".") or "_"
        # Beside the database, absolute: MLflow's default is relative to whatever folder the UI is started in.
        location = (database.parent / "mlruns" / folder).as_uri() if database else None
        with contextlib.suppress(Exception):  # another process may be creating it
            client.create_experiment(settings.experiment, artifact_location=location, tags=KIND)
        experiment = client.get_experiment_by_name(settings.experiment)
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(
            f"track.experiment={settings.experiment}: was deleted; {uris.TRACKING}={shlex.quote(settings.uri)} {restore} "
            "restores it, or give another track.experiment="
        )
    for key, value in KIND.items():
        if key not in experiment.tags:
            with contextlib.suppress(MlflowException):  # a server may allow runs only
                client.set_experiment_tag(experiment.experiment_id, key, value)
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


def log_artifact(client: Any, uri: str, run_id: str, path: Path) -> None:
    """Log a file or folder with a run of the store `uri`. Raises UserError where check_artifacts() does."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = client.get_run(run_id).info.artifact_uri
    check_artifacts(uri, location)
    repository = get_artifact_repository(location, tracking_uri=uris.whole(uri))  # a second answer might be another one
    if path.is_dir():
        repository.log_artifacts(str(path), path.name)
    else:
        repository.log_artifact(str(path))


def log_model(client: Any, run_id: str, *, uri: str, folder: Path, register: str | None) -> str:
    """registry.log_model(). Raises UserError where check_artifacts() does, and for a server that the user did not name."""
    if not uris.named(uri):
        if uris.sqlite_path(uri) is None:  # it could answer otherwise when the files are sent
            raise UserError(f"{folder}: not sent to a server that only config.yaml names; {way_out(uri)}")
        check_artifacts(uri, client.get_experiment(client.get_run(run_id).info.experiment_id).artifact_location)
    return registry.log_model(client, run_id, folder, register)


def log_params(client: Any, run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    entities = [Param(name, str(value)[:VALUE_LIMIT]) for name, value in params.items()]
    for first in range(0, len(entities), BATCH_LIMIT):
        client.log_batch(run_id, params=entities[first : first + BATCH_LIMIT])


def log_dataset(client: Any, run_id: str, dataset: dict[str, Any]) -> None:
    """The training data as MLflow's dataset input: name, digest, source, and a profile of counts."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": dataset["source"]}), json.dumps(dataset["profile"])
    entity = Dataset(dataset["name"], dataset["digest"], "local", source, profile=profile)
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


# ------------------------------------------------------------------------------- runs as a sweep or the supervisor sees them
def start_parent(out: Path, settings: Track, name: str, params: dict[str, Any], tags: dict[str, str]) -> str | None:
    """A run for the jobs of the sweep in `out` to nest under: the one it already has, or a new one. None without MLflow."""
    if not isinstance(settings, Mlflow):
        return None
    client, parent = connect(settings.uri), run_id(out, settings.uri)
    if parent is None or not reopen(client, parent):
        parent = new_run(client, settings, name, tags)
        SyncState(settings.uri, parent).write(out)
        log_params(client, parent, params)
    return parent


def close_run(
    settings: Track, run_id: str | None, status: str, *, only_if_running: bool = False, artifacts: tuple[Path, ...] = ()
) -> None:
    """Set a run's status from outside: that of a sweep's parent, or of a job that was killed."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        for path in artifacts:
            log_artifact(client, settings.uri, run_id, path)
        if not only_if_running or client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)


def set_tags(settings: Track, run_id: str | None, tags: dict[str, str]) -> None:
    """Set tags of a run from outside."""
    if isinstance(settings, Mlflow) and run_id is not None:
        for name, value in tags.items():
            connect(settings.uri).set_tag(run_id, name, value)


def count_restart(settings: Track, run_id: str | None) -> None:
    """Count in the run's tag `restarts` that its ranks died and were started again."""
    if isinstance(settings, Mlflow) and run_id is not None:
        client = connect(settings.uri)
        client.set_tag(run_id, "restarts", str(int(client.get_run(run_id).data.tags.get("restarts", "0")) + 1))
