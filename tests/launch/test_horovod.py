"""The Horovod that setup.sh compiled: two real processes average their gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

PROGRAM = """
import sys
import resnet  # first: it asks for Keras 2 where TensorFlow would take 3
import tensorflow as tf
import horovod.tensorflow as hvd

hvd.init()
weight = tf.Variable([1.0, 2.0])
with tf.GradientTape() as tape:
    loss = tf.reduce_sum((hvd.rank() + 1) * weight**2)
(gradient,) = hvd.DistributedGradientTape(tape).gradient(loss, [weight])
with open(f"{sys.argv[1]}/{hvd.rank()}", "w") as file:
    print(hvd.size(), *gradient.numpy(), file=file)
"""


def test_two_processes_see_the_mean_of_their_gradients(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    horovodrun = Path(sys.executable).parent / "horovodrun"
    environment = {**os.environ, "PATH": f"{horovodrun.parent}:{os.environ['PATH']}"}
    command = [sys.executable, horovodrun, "-np", "2", "--gloo", sys.executable, tmp_path / "program.py", tmp_path]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    for rank in "01":
        size, *gradient = (tmp_path / rank).read_text().split()
        assert size == "2"
        assert [float(part) for part in gradient] == [3.0, 6.0]  # (1 + 2) / 2 times 2 w
