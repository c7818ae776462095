"""MLflow's model of a run in an MLflow store: logged with the run, and registered."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from resnet import files

NAME = "model"  # runs:/<id>/model
METRICS = ("eval/top1", "eval/loss", "ema/top1", "ema/loss", "final/top1")  # shown with the model
UUID = "resnet.uuid"  # the tag of a logged model that says which folder it is of
VERSIONS = "mlflow.modelVersions"  # the tag by which MLflow shows its registered versions
one_at_a_time = threading.RLock()  # quiet()
UPLOAD_TIMEOUT_S = 600  # for the answer to one uploaded file


def log_model(client: Any, run_id: str, folder: Path, register: str | None = None) -> str:
    """Log the model in `folder` with the run, and register it under the name `register` if given; the model's id.

    Called again, after a failure or not, it resumes: the folder is known by its UUID. Not mlflow.pyfunc.log_model, which needs
    a global tracking URI, prints, and starts anew after a failure. Raises what MLflow raises.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.models import Model

    # Not Model.load(), which takes a path for a URI.
    run, model = client.get_run(run_id), Model.from_dict(yaml.safe_load(files.read_bytes(folder / "MLmodel")))
    experiment = run.info.experiment_id
    candidates = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    logged = next((one for one in candidates if one.tags.get(UUID) == model.model_uuid), None)
    if logged is None:
        logged = client.create_logged_model(experiment, NAME, run_id, {UUID: model.model_uuid}, run.data.params)
    if logged.status != LoggedModelStatus.READY:
        outputs = run.outputs.model_outputs if run.outputs else ()
        if logged.model_id not in {output.model_id for output in outputs}:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        model.run_id, model.model_id, model.artifact_path = run_id, logged.model_id, logged.artifact_location
        with quiet(MLFLOW_HTTP_REQUEST_TIMEOUT=str(UPLOAD_TIMEOUT_S)), tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(logged.model_id, str(folder))
            model.save(f"{scratch}/MLmodel")
            client.log_model_artifact(logged.model_id, f"{scratch}/MLmodel")
        points = [client.get_metric_history(run_id, name)[-1] for name in METRICS if name in run.data.metrics]
        linked = [Metric(p.key, p.value, p.timestamp, p.step, logged.model_id, run_id=run_id) for p in points]
        client.log_batch(run_id, metrics=linked)
        client.finalize_logged_model(logged.model_id, "READY")
    if register is not None:
        register_model(client, run_id, logged.model_id, register)
    return str(logged.model_id)


def register_model(client: Any, run_id: str, model_id: str, name: str) -> None:
    """Make the logged model a version of the registered model `name`, unless it is one."""
    from mlflow.exceptions import MlflowException

    source, versions = f"models:/{model_id}", client.search_model_versions(f"run_id = '{run_id}'")
    versions = [version for version in versions if version.source == source]
    if name not in [version.name for version in versions]:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with quiet(MLFLOW_TRACKING_URI=client.tracking_uri):  # where the SQLite registry looks for the model
            versions += [client.create_model_version(name, source, run_id, await_creation_for=0, model_id=model_id)]
    shown = [{"name": version.name, "version": version.version} for version in versions]
    client.set_logged_model_tags(model_id, {VERSIONS: json.dumps(shown)})


@contextlib.contextmanager
def quiet(**variables: str) -> Iterator[None]:
    """MLflow without its progress messages and bars, and with these environment variables.

    One thread at a time: the environment is the whole process's, and the training and its sender both come here.
    """
    variables = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", **variables}
    logger = logging.getLogger("mlflow")
    with one_at_a_time:
        before, level = {name: os.environ.get(name) for name in variables}, logger.level
        logger.setLevel(logging.ERROR)
        os.environ.update(variables)
        try:
            yield
        finally:
            logger.setLevel(level)
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
