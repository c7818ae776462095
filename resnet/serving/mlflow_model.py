"""MLflow's model around a SavedModel: a folder that `mlflow models serve` takes."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet import UserError, files
from resnet.config.data import Records
from resnet.config.run import Run
from resnet.data import images
from resnet.model import resnet, weights
from resnet.serving import saved_model
from resnet.serving.registry import quiet

FOLDER = "model"  # in <out>
CODE = Path(__file__).with_name("pyfunc.py")
SAVED, IMAGES = "saved_model", "images"  # artifacts
LIMITS = {"max_images": 1000, "max_bytes": 64_000_000}  # of a request over HTTP
PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "tensorflow", "tensorflow-cpu")  # of the last two one is installed


def save(run: Run, out: Path, names: list[str] | None, tensors: weights.Tensors) -> Path:
    """<out>/model: MLflow's model of the run in `out` with these weights; the folder.

    Raises UserError where there is nothing to serve.
    """
    with tf.device("/CPU:0"):  # where it is built; it runs wherever it is loaded
        network = resnet.build(run.model, run.data.classes, "float32")
        weights.load_into(network, tensors, str(out))
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{SAVED}-", suffix=f".{os.getpid()}.part") as aside:
            saved_model.write(network, run.data, names, Path(aside, SAVED))
            return package(Path(aside, SAVED), run, out / FOLDER)


def package(saved: Path, run: Run, folder: Path) -> Path:
    """Write `folder`, replacing it, in MLflow's format around a SavedModel: nothing pickled, nothing fetched."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    if not isinstance(run.data, Records):
        raise UserError(f"data={run.data.name}: images that are no pictures, so there is no MLflow model to serve")
    likeliest = Object([Property("class", DataType.string), Property("probability", DataType.double)])
    outputs = {"class": DataType.string, "probability": DataType.double, "top": Array(likeliest)}
    signature = ModelSignature(
        Schema([ColSpec(AnyType(), "image")]),
        Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
        ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )
    size = run.data.image_size
    requirements = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            requirements.append(f"{name}=={metadata.version(name)}")
    facts = {"model": run.model.name, "classes": run.data.classes, **saved_model.preprocessing(run.data)}
    model = Model(metadata=facts)
    with files.atomic_dir(folder, replace=True) as aside, quiet():
        mlflow.pyfunc.save_model(
            str(aside),
            python_model=str(CODE),
            artifacts={SAVED: saved.absolute().as_uri(), IMAGES: Path(images.__file__).absolute().as_uri()},
            model_config=LIMITS,
            signature=signature,
            input_example=example(size),
            pip_requirements=requirements,
            mlflow_model=model,
        )
        flavor = model.flavors["python_function"]  # without paths of this machine
        flavor["model_code_path"] = CODE.name
        for artifact in flavor["artifacts"].values():
            artifact["uri"] = None
        model.save(str(aside / "MLmodel"))
    return folder


def example(size: int) -> Any:
    """A request with one JPEG, a gradient."""
    import pandas as pd
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(file, "JPEG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})
