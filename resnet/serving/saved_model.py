"""A trained network as TensorFlow's SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from resnet.config.data import Data, Records
from resnet.data.augment.on_device import prepare_images
from resnet.data.pipeline import centre_crop, within_limits
from resnet.serving import upright


def preprocessing(data: Data) -> dict[str, Any]:
    """How `jpeg` and `cropped` prepare images, for the metadata of what is exported. data.eval_flip is evaluation's alone."""
    facts: dict[str, Any] = {"image_size": data.image_size}
    if isinstance(data, Records):
        facts |= {"eval_resize": data.eval_short, "eval_resample": data.eval_resample.name}
        facts |= {"eval_interpolation": data.eval_interpolation.name}
    return facts


def write(network: tf.keras.Model, data: Data, names: list[str] | None, path: Path) -> None:
    """The SavedModel; attributes: the network's variables `weights`, the classes' names `names`.

    The signature `jpeg` turns photographs upright. `cropped` preprocesses pixels [H, W, 3] as evaluation does, to [S, S, 3].
    Both refuse images of a size that preparation refuses.
    """
    size = data.image_size

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, "images")])
    def probabilities(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(prepare_images(images, None, data.mean, data.std), training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8, "images")])
    def probabilities_of_uint8(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return probabilities(tf.cast(images, tf.float32))

    module = tf.Module()
    module.weights = list(network.weights)
    encoded = [name.encode("utf-8", "surrogateescape") for name in names or []]
    module.names = tf.Variable(tf.constant(encoded, tf.string), trainable=False)  # a constant would not be saved
    signatures = {"serving_default": probabilities, "uint8": probabilities_of_uint8}
    if isinstance(data, Records):  # synthetic images are no JPEGs
        cropped = tf.TensorSpec([size, size, 3], tf.uint8)

        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
        def crop(image: tf.Tensor) -> tf.Tensor:
            with tf.control_dependencies([within_limits(tf.shape(image))]):
                return centre_crop(image, data)

        module.cropped = crop

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "encoded")])
        def probabilities_of_jpegs(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            return probabilities_of_uint8(
                tf.map_fn(
                    lambda one: crop(upright.decode(one)), encoded, parallel_iterations=1, fn_output_signature=cropped
                )
            )

        signatures["jpeg"] = probabilities_of_jpegs
    module.functions = list(signatures.values())
    tf.saved_model.save(module, str(path), signatures)
