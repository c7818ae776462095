"""A trained network as others run it: TensorFlow's SavedModel, and MLflow's model around it, logged and registered."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError, files
from resnet.config.data import Data, Records
from resnet.config.run import Run
from resnet.data.augment import prepare_images
from resnet.data.pipeline import centre_crop
from resnet.model import resnet, weights

FOLDER = "model"  # in <out>, and its name in MLflow: runs:/<id>/model
CODE = Path(__file__).with_name("pyfunc.py")
SAVED = "saved_model"
PACKAGES = ("mlflow", "numpy", "pandas", "tensorflow", "tensorflow-cpu")  # of the last two one is installed
METRICS = ("eval/top1", "eval/loss", "ema/top1", "ema/loss", "final/top1")  # shown beside the model
MARK = "resnet.uuid"  # the tag of a logged model that knows its folder
VERSIONS = "mlflow.modelVersions"  # the tag by which MLflow shows them
PATIENCE_S = 600  # for the answer to one uploaded file


def save_model(network: Any, data: Data, names: list[str] | None, path: Path) -> None:
    """The SavedModel; the network's own variables are its attribute `weights`, the classes' names its attribute `names`.

    `cropped` makes of pixels [H, W, 3] what evaluation would make of them, [S, S, 3].
    """

    size = data.image_size

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, "images")])
    def scored(images: Any) -> dict[str, Any]:
        logits = network(prepare_images(images, None, data.mean, data.std), training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8, "images")])
    def scored_bytes(images: Any) -> dict[str, Any]:
        return scored(tf.cast(images, tf.float32))

    module = tf.Module()
    module.weights = list(network.weights)
    listed = [name.encode("utf-8", "surrogateescape") for name in names or []]
    module.names = tf.Variable(tf.constant(listed, tf.string), trainable=False)  # a constant would not be kept
    signatures = {"serving_default": scored, "uint8": scored_bytes}
    if isinstance(data, Records):  # synthetic images are no pictures
        made = tf.TensorSpec([size, size, 3], tf.uint8)
        module.cropped = tf.function(lambda image: centre_crop(image, data), [tf.TensorSpec([None, None, 3], tf.uint8)])

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "encoded")])
        def scored_jpegs(encoded: Any) -> dict[str, Any]:
            return scored_bytes(tf.map_fn(lambda one: centre_crop(one, data), encoded, fn_output_signature=made))

        signatures["jpeg"] = scored_jpegs
    module.functions = list(signatures.values())
    tf.saved_model.save(module, str(path), signatures)


# ---------------------------------------------------------------------------------------------------------- MLflow's folder
def save(run: Run, out: Path, names: list[str] | None, tensors: weights.Tensors) -> Path:
    """<out>/model: MLflow's model of the run in `out` with these weights; the folder.

    Raises UserError where there is nothing to serve.
    """
    with tf.device("/CPU:0"):  # where it is built; it runs wherever it is loaded
        network = resnet.build(run.model, run.data.classes, "float32")
        weights.load_into(network, tensors, str(out))
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{SAVED}-", suffix=f".{os.getpid()}.part") as aside:
            save_model(network, run.data, names, Path(aside, SAVED))
            return package(Path(aside, SAVED), run, out / FOLDER)


def package(saved: Path, run: Run, place: Path) -> Path:
    """Make the folder `place`, anew if it is there, of MLflow's format around a SavedModel: nothing pickled, nothing fetched."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    if not isinstance(run.data, Records):
        raise UserError(f"data={run.data.name}: images that are no pictures, so there is no MLflow model to serve")
    likeliest = Object([Property("class", DataType.string), Property("probability", DataType.double)])
    answer = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(likeliest), "top"),
    ]
    signature = ModelSignature(
        Schema([ColSpec(AnyType(), "image")]), Schema(answer), ParamSchema([ParamSpec("top", DataType.long, 5)])
    )
    told = {"model": run.model.name, "classes": run.data.classes, "image_size": run.data.image_size}
    model = Model(metadata=told)
    with files.atomic_dir(place) as aside, quiet():
        mlflow.pyfunc.save_model(
            str(aside),
            python_model=str(CODE),
            artifacts={SAVED: str(saved)},
            signature=signature,
            input_example=example(run.data.image_size),
            pip_requirements=requirements(),
            mlflow_model=model,
        )
        flavor = model.flavors["python_function"]  # without paths of this machine
        flavor["model_code_path"], flavor["artifacts"][SAVED]["uri"] = CODE.name, None
        model.save(str(aside / "MLmodel"))
        shutil.rmtree(place, ignore_errors=True)
    return place


def example(size: int) -> Any:
    """A request of one JPEG, a gradient."""
    import pandas as pd
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(file, "JPEG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def requirements() -> list[str]:
    """What serving needs, pinned to what is installed here."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package}=={importlib.metadata.version(package)}")
    return found


@contextlib.contextmanager
def quiet(**variables: str) -> Iterator[None]:
    """MLflow without its telling of every step and its bars, and with these variables of the environment set."""
    variables = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", **variables}
    before = {name: os.environ.get(name) for name in variables}
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what goes wrong comes as an exception
    os.environ.update(variables)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# ------------------------------------------------------------------------------------------------------- in an MLflow store
def log_model(client: Any, run_id: str, place: Path, register: str | None = None) -> str:
    """Give the run `run_id` the model in the folder `place`, and register it under a name if asked; the model's id.

    It stands in the run's Models tab and answers to runs:/<run_id>/model. Done again after a failure, or for nothing, it goes
    on where it was: the folder is known by its UUID. Raises what MLflow raises.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    run, mark = client.get_run(run_id), Model.load(str(place)).model_uuid
    experiment = run.info.experiment_id
    there = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    made = next((one for one in there if one.tags.get(MARK) == mark), None)
    if made is None:
        made = client.create_logged_model(experiment, FOLDER, run_id, {MARK: mark}, run.data.params)
    if made.status != LoggedModelStatus.READY:
        if made.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}:
            client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
        upload(client, run_id, made, place)
        measure(client, run_id, made.model_id)
        client.finalize_logged_model(made.model_id, "READY")
    if register is not None:
        register(client, run_id, made, register)
    return str(made.model_id)


def upload(client: Any, run_id: str, made: Any, place: Path) -> None:
    """The folder's files; its MLmodel last, with the ids that it has now. A server may take its time over a large file."""
    from mlflow.models import Model

    told = Model.load(str(place))
    told.run_id, told.model_id, told.artifact_path = run_id, made.model_id, made.artifact_location
    with quiet(MLFLOW_HTTP_REQUEST_TIMEOUT=str(PATIENCE_S)), tempfile.TemporaryDirectory() as aside:
        client.log_model_artifacts(made.model_id, str(place))
        told.save(f"{aside}/MLmodel")
        client.log_model_artifact(made.model_id, f"{aside}/MLmodel")


def measure(client: Any, run_id: str, model_id: str) -> None:
    """Show the run's last scores beside the model, too."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    last = [client.get_metric_history(run_id, name)[-1] for name in METRICS if name in known]
    linked = [Metric(one.key, one.value, one.timestamp, one.step, model_id, run_id=run_id) for one in last]
    client.log_batch(run_id, metrics=linked)


def register(client: Any, run_id: str, made: Any, name: str) -> None:
    """A version of the registered model `name`, unless this model is one; and what the model's page shows of it."""
    from mlflow.exceptions import MlflowException

    source = f"models:/{made.model_id}"

    def entered() -> list[dict[str, Any]]:
        there = client.search_model_versions(f"run_id = '{run_id}'")
        return [{"name": one.name, "version": one.version} for one in there if one.source == source]

    if all(one["name"] != name for one in entered()):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with quiet(MLFLOW_TRACKING_URI=client.tracking_uri):  # where the SQLite registry looks the model up
            client.create_model_version(name, source, run_id, await_creation_for=0, model_id=made.model_id)
    client.set_logged_model_tags(made.model_id, {VERSIONS: json.dumps(entered())})
