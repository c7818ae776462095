"""In place of `resnet.build`: as little as has batch norm; building the graph of a tiny ResNet is most of a short run."""

import tensorflow as tf

# Statements for the fixture `spawn`: trainings of that process have this network.
BEFORE = "import small_network; from resnet.model import resnet; resnet.build = small_network.build"


def build(_model, classes, policy, norm=tf.keras.layers.BatchNormalization, _amx=False):
    layers = tf.keras.layers
    images = layers.Input([None, None, 3])
    x = layers.Conv2D(4, 3, 4, use_bias=False, dtype=policy, name="conv1")(images)
    x = layers.ReLU(dtype=policy)(norm(dtype=policy, name="bn1")(x))
    pooled = layers.GlobalAveragePooling2D(dtype="float32")(x)
    return tf.keras.Model(images, layers.Dense(classes, dtype="float32", name="fc")(pooled))
