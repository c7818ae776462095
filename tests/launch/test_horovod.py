"""The Horovod that setup.sh compiles: what of its source, and two real processes that average their gradients."""

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


def test_cmake_gets_its_words_and_a_source_without_the_file_that_newer_tensorflows_lack_headers_for(tmp_path):
    sources = tmp_path / "the source" / "horovod" / "tensorflow" / "CMakeLists.txt"
    sources.parent.mkdir(parents=True)
    kept = ['list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/mpi_ops.cc")', "set_output_dir()"]
    left_out = kept[0].replace("mpi_ops", "xla_mpi_ops")
    sources.write_text("\n".join([kept[0], left_out, kept[1], ""]))
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\nexit 3\n")
    cmake.chmod(0o755)
    script = Path(__file__).parents[2] / "launch" / "horovod_cmake.sh"
    for words in ([str(tmp_path / "the source"), "-DCMAKE_BUILD_TYPE=Rel With"], ["--build", ".", "--", "-j 2"]):
        path = f"{cmake.parent}:{os.environ['PATH']}"
        done = subprocess.run([script, *words], env={"PATH": path}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (3, "".join(f"{word}|" for word in words), "")
    assert sources.read_text().splitlines() == kept


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
