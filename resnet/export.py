"""`python -m resnet.export <run folder | weights file> out=DIR`: as a SavedModel, as safetensors for PyTorch, for MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from resnet import UserError, addresses, cli, files, home, remote

FLAG = "mlflow="

HELP = """Export a trained network: python -m resnet.export WEIGHTS out=DIR [knob=value ...]

WEIGHTS as in resnet.evaluate. Whoever loads or serves the exported models runs them: do that only with models from people
you trust. DIR gets
  saved_model/        TensorFlow, three signatures, all -> logits and probabilities [B, classes]:
                        serving_default  images   float32 [B, S, S, 3] in 0..255, S the data.image_size
                        uint8            images   uint8 [B, S, S, 3]
                        jpeg             encoded  string [B]: JPEG bytes, resized and cropped as in evaluation
  model.safetensors   timm's names and layout, with model, classes and preprocessing in its metadata
  classes.txt         one class name per line, if known
  mlflow_model/       if mlflow=true: MLflow's format, for `mlflow models serve` (docs/serving.md)

DIR may be an address, such as s3://bucket/model: it is written in the cache, then uploaded.

A weights file does not describe its images: give data.image_size=, data.mean= and so on if they differ from ImageNet's."""


def export_to(path: str, overrides: Sequence[str], out: str, mlflow: bool = False) -> list[str]:
    """Write the folder `out`, or that at an address, which must not exist yet. Returns lines for the user."""
    place = remote.checked(out, "out=") if addresses.is_remote(out) else str(home.expand(out))
    if not addresses.is_remote(place):
        return export(path, overrides, Path(place), mlflow)
    there = remote.names(place)
    if there and remote.INCOMPLETE not in there:
        raise UserError(f"out={place}: exists already; give another folder")
    aside = remote.staging(place) / "whole"
    shutil.rmtree(aside, ignore_errors=True)
    lines = export(path, overrides, aside, mlflow)
    remote.upload(aside, place)
    return [line.replace(str(aside), place) for line in lines]


def export(path: str, overrides: Sequence[str], out: Path, mlflow: bool = False) -> list[str]:
    """Write the folder `out`, which must not exist yet. Returns lines for the user."""
    import tensorflow as tf

    from resnet.model import weights
    from resnet.serving import mlflow_model, saved_model
    from resnet.training import trained

    if out.exists():
        raise UserError(f"out={out}: exists already; give another folder")
    if not trained.folder_of(Path(path)) and not any(word.startswith(("data=", "data.dir=")) for word in overrides):
        overrides = [*overrides, "data.dir=none"]  # no image is read
    # Whatever it was trained in, the weights are float32.
    loaded = trained.load(path, overrides, policy="float32", reads_images=False)
    run, data = loaded.run, loaded.run.data
    metadata = {
        "model": run.model.name,
        "classes": str(data.classes),
        **{name: str(value) for name, value in saved_model.preprocessing(data).items()},
        "mean": json.dumps([value / 255 for value in data.mean]),  # of pixels in 0..1, as PyTorch has them
        "std": json.dumps([value / 255 for value in data.std]),
    }
    try:
        with files.atomic_dir(out) as aside:
            saved_model.write(loaded.network, data, loaded.names, aside / "saved_model")
            if mlflow:
                mlflow_model.package(aside / "saved_model", run, aside / "mlflow_model")
            weights.write(aside / "model.safetensors", weights.export_from(loaded.network), metadata)
            if loaded.names:
                files.write_classes(aside, loaded.names)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"out={out}: cannot be written ({reason}); give another place") from error
    content = ", ".join(sorted(part.name for part in out.iterdir()))
    return [*loaded.notes, f"{out}: {content} ({run.model.name}, {data.classes} classes, {data.image_size} px)"]


def main() -> None:
    with cli.command(HELP) as words:
        path, overrides, out = cli.weights_and_overrides(words, "resnet.export")
        if not out:
            raise UserError("resnet.export: give out=DIR, a folder that does not exist yet")
        flags = [word.removeprefix(FLAG) for word in overrides if word.startswith(FLAG)]
        if not {*flags} <= {"true", "false"}:
            raise UserError(f"{FLAG}{flags[-1]}: must be true or false")
        overrides = [word for word in overrides if not word.startswith(FLAG)]
        for line in export_to(path, overrides, out, flags[-1:] == ["true"]):
            print(line)


if __name__ == "__main__":
    main()
