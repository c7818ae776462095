"""`python -m resnet.export <run folder | weights file> out=DIR`: the network as a SavedModel, and as safetensors for PyTorch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.evaluate import command, separated

HELP = """Export a trained network: python -m resnet.export WEIGHTS out=DIR [knob=value ...]

WEIGHTS as in resnet.evaluate. DIR gets
  saved_model/        TensorFlow, three signatures, all -> logits and probabilities [B, classes]:
                        serving_default  images   float32 [B, S, S, 3] in 0..255, S the data.image_size
                        uint8            images   uint8 [B, S, S, 3]
                        jpeg             encoded  string [B]: JPEG bytes, resized and cropped as in evaluation
  model.safetensors   timm's names and layout, with model, classes and normalization in its metadata
  classes.txt         a name a line, where they are known

A weights file knows nothing of its images: give data.image_size=, data.mean= and so on if they differ from ImageNet's."""


def export(path: str, words: Sequence[str], out: Path) -> list[str]:
    """Write the folder `out`, which must not exist yet, aside and rename it. Returns lines to show."""
    import tensorflow as tf

    from resnet import trained, weights
    from resnet.preparation import manifest

    if out.exists():
        raise UserError(f"out={out}: exists already; give another folder")
    if not trained.folder_of(Path(path)) and not any(word.startswith(("data=", "data.dir=")) for word in words):
        words = [*words, "data.dir=none"]  # no image is read
    made = trained.opened(path, words, policy="float32")  # whatever it was trained in: the weights are float32
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_model(made.network, made.run.data, made.names, aside / "saved_model")
        data = made.run.data
        metadata = {
            "model": made.run.model.name,
            "classes": str(data.classes),
            "image_size": str(data.image_size),
            "mean": json.dumps([value / 255 for value in data.mean]),  # of pixels in 0..1, as PyTorch has them
            "std": json.dumps([value / 255 for value in data.std]),
        }
        weights.write(aside / "model.safetensors", weights.take(made.network), metadata)
        if made.names:
            manifest.write_classes(aside, made.names)
        aside.rename(out)
    except (OSError, tf.errors.OpError) as error:
        told = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"out={out}: cannot be written ({told}); give another place") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = ", ".join(sorted(part.name for part in out.iterdir()))
    return [*made.notes, f"{out}: {files} ({made.run.model.name}, {data.classes} classes, {data.image_size} px)"]


def save_model(network: Any, data: Any, names: list[str] | None, path: Path) -> None:
    """The SavedModel; the network's own variables are its attribute `weights`, the classes' names its attribute `names`."""
    import tensorflow as tf

    from resnet.augment import prepare_images
    from resnet.config import Records
    from resnet.data import centre_crop

    def scored(pixels: Any) -> dict[str, Any]:
        logits = network(prepare_images(pixels, None, data.mean, data.std), training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    def cropped(encoded: Any) -> Any:
        spec = tf.TensorSpec([data.image_size, data.image_size, 3], tf.uint8)
        return tf.map_fn(lambda one: centre_crop(one, data), encoded, fn_output_signature=spec)

    pixels = [None, data.image_size, data.image_size, 3]
    module = tf.Module()
    module.weights = list(network.weights)
    listed = [name.encode("utf-8", "surrogateescape") for name in names or []]
    module.names = tf.Variable(tf.constant(listed, tf.string), trainable=False)  # a constant would not be kept
    signatures = {
        "serving_default": tf.function(scored, [tf.TensorSpec(pixels, tf.float32, "images")]),
        "uint8": tf.function(scored, [tf.TensorSpec(pixels, tf.uint8, "images")]),
    }
    if isinstance(data, Records):  # synthetic images are no JPEGs
        encoded = tf.TensorSpec([None], tf.string, "encoded")
        signatures["jpeg"] = tf.function(lambda encoded: scored(cropped(encoded)), [encoded])
    module.functions = list(signatures.values())
    tf.saved_model.save(module, str(path), signatures)


def go(words: Sequence[str]) -> None:
    """The command without the reporting of errors."""
    path, rest, out = separated(words, "resnet.export")
    if not out:
        raise UserError("resnet.export: give out=DIR, a folder that does not exist yet")
    for line in export(path, rest, Path(out).expanduser()):
        print(line)


def main() -> int:
    """Exit status."""
    return command(HELP, go)


if __name__ == "__main__":
    sys.exit(main())
