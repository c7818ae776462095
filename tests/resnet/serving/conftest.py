"""A run with names of classes, MLflow's model of it, images to ask it, and the probabilities that are right."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import tensorflow as tf

from resnet.data import indexes, pipeline, shards
from resnet.data.formats import tfexample
from resnet.model import resnet, weights
from resnet.serving import mlflow_model
from resnet.training.trained import read as read_weights

NAMES = ["cat", "dog", "ümlaut, of $x$\nüber"]


@pytest.fixture(scope="session")
def trained(trained_once, tmp_path_factory):
    """A run in bfloat16 with averaged weights."""
    return trained_once.copy("averaged", tmp_path_factory.mktemp("a folder"))


@pytest.fixture(scope="session")
def place(trained, tmp_path_factory):
    """The folder that was written of it; nothing else was, here or in the run's folder."""
    before = set(Path(trained.out).iterdir())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        made = mlflow_model.save(trained, Path(trained.out), NAMES, read_weights(trained.out))
    assert set(Path(trained.out).iterdir()) == before | {made} and not list(elsewhere.iterdir())
    return made


@pytest.fixture(scope="session")
def loaded(place):
    """MLflow's own hold of it."""
    return mlflow.pyfunc.load_model(str(place))


@pytest.fixture(scope="session")
def jpegs(trained, encoded, photo):
    """JPEGs: of the evaluation shards, and of other sizes and colours."""
    index = indexes.index(shards.listing(trained.data.dir, shards.LAYOUTS[0][1]))
    found = [tfexample.decode(shards.read(index, number))["image/encoded"] for number in range(5)]
    return [*found, encoded(photo(1, 300, 40)), encoded(photo(2, 48, 48)), encoded(photo(3).convert("L"))]


@pytest.fixture(scope="session")
def wanted(trained):
    """Probabilities of uint8 [B, 48, 48, 3], by the weights that resnet.evaluate would take, in NumPy's softmax."""
    network = resnet.build(trained.model, 3, "float32")
    weights.load_into(network, read_weights(trained.out), trained.out)

    def of(pixels):
        normal = (np.asarray(pixels, np.float64) - trained.data.mean) / trained.data.std
        logits = network(normal.astype(np.float32), training=False).numpy().astype(np.float64)
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    return of


@pytest.fixture(scope="session")
def of_jpegs(trained, jpegs, wanted):
    """The same of the JPEGs, as evaluation crops them."""
    return wanted([pipeline.centre_crop(tf.constant(one), trained.data).numpy() for one in jpegs])
