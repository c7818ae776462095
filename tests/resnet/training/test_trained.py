"""Weights read from a run's folder, a checkpoint or a SavedModel of this suite."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from torch_layout import counted, drawn, row, same

from resnet import UserError, files, rundir
from resnet.model import resnet, weights
from resnet.optim import optimizers
from resnet.training import checkpoint
from resnet.training.trained import initialize
from resnet.training.trained import read as read_weights


@dataclass
class State:
    """What a loop keeps beside the weights."""

    seen: int = 0


def told(path):
    """The one line about a path that is refused."""
    with pytest.raises(UserError) as error:
        read_weights(str(path))
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{path}: ") and len(line) < 700, line
    return line.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def filled():
    """`filled(seed)`: the network of model=tiny with 7 classes, now of random values, and its tensors."""
    built = functools.cache(lambda policy: resnet.build(row("tiny"), 7, policy))

    def make(seed, policy="float32"):
        network = built(policy)
        tensors = counted(drawn(row("tiny"), 7, seed))
        weights.load_into(network, tensors, "drawn")
        return network, tensors

    return make


@pytest.fixture
def filled_folder(run_of, filled):
    """`filled_folder({step: (top1, averaged)})`: a run's folder, and the tensors of each of its checkpoints."""

    def make(steps):
        run = run_of("model=tiny", "data=synthetic", "data.classes=7")
        out, wanted = Path(run.out), {}
        rundir.save(run, out)
        for step, (top1, averaged) in steps.items():
            network, tensors = filled(step, "mixed_bfloat16")
            mean, mean_tensors = filled(step + 1) if averaged else (None, None)
            optimizer = optimizers.build(run.optim, network.trainable_variables)
            for velocity in optimizer.velocity:
                velocity.assign(velocity - 5.0)
            average = {"average": mean} if averaged else {}
            trackable = tf.train.Checkpoint(network=network, optimizer=optimizer, **average)
            with checkpoint.CheckpointWriter(out, trackable, 9) as writer:
                writer.save(step, top1, State())
            wanted[step] = mean_tensors or tensors
        return out, wanted

    return make


def test_of_a_run_the_best_checkpoint_is_read_else_the_newest(filled_folder):
    out, wanted = filled_folder({10: (None, False), 20: (None, False)})
    same(read_weights(str(out)), wanted[20])
    out, wanted = filled_folder({30: (0.9, False), 40: (0.8, False), 50: (None, False)})
    same(read_weights(str(out)), wanted[30])
    same(read_weights(str(out / "checkpoints" / "step-00000040")), wanted[40])
    same(read_weights(str(out / "checkpoints" / "step-00000050")), wanted[50])


def test_averaged_weights_come_before_the_others(filled_folder):
    out, wanted = filled_folder({10: (0.5, True), 20: (0.4, False)})
    same(read_weights(str(out)), wanted[10])
    same(read_weights(str(out / "checkpoints" / "step-00000010")), wanted[10])
    same(read_weights(str(out / "checkpoints" / "step-00000020")), wanted[20])


def test_a_checkpoint_can_be_carried_away_and_its_folder_have_any_name(filled_folder, tmp_path):
    out, wanted = filled_folder({10: (0.5, False)})
    place = tmp_path / "best [of all] *"
    (out / "checkpoints" / "step-00000010").rename(place)
    same(read_weights(str(place)), wanted[10])


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_damaged_checkpoint_is_refused_by_name(filled_folder, evaluated):
    out, _ = filled_folder({10: (0.9 if evaluated else None, False), 20: (0.8 if evaluated else None, False)})
    chosen = out / "checkpoints" / f"step-000000{10 if evaluated else 20}"
    data = chosen / "weights.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    with pytest.raises(UserError) as error:
        read_weights(str(out))
    assert str(error.value).startswith(f"{chosen}: this checkpoint is damaged (weights.data-00000-of-00001 is not what")
    assert told(chosen) == str(error.value).removeprefix(f"{chosen}: ")
    (chosen / "commit.json").write_text("{")
    assert told(chosen).startswith("this checkpoint is damaged (JSONDecodeError")
    assert chosen.is_dir()  # nothing is renamed by who only reads


def test_a_folder_without_weights_is_told(run_of, tmp_path):
    run = run_of("model=tiny", "data=synthetic")
    rundir.save(run, Path(run.out))
    assert told(run.out).startswith("a run without a checkpoint yet; start it again; or give a .safetensors")
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty").startswith("no weights are in this folder; or give a .safetensors")


@pytest.fixture
def saved_model(filled):
    """`saved_model(path)`: a SavedModel with what resnet.export gives it; its tensors."""

    def make(path, attribute="weights"):
        network, tensors = filled(3, "mixed_bfloat16")
        module = tf.Module()
        setattr(module, attribute, list(network.weights))
        module.names = tf.constant(["a", "b"])
        module.other = tf.Variable(1.0, name="fc/kernel")
        module.scored = tf.function(lambda x: network(x, training=False), [tf.TensorSpec([None, 32, 32, 3])])
        tf.saved_model.save(module, str(path), {"serving_default": module.scored})
        return tensors

    return make


def test_a_saved_model_is_read_by_its_variables(saved_model, tmp_path):
    wanted = saved_model(tmp_path / "model [1]")
    same(read_weights(str(tmp_path / "model [1]")), wanted)


def test_a_saved_model_of_others_or_damaged_is_told(saved_model, tmp_path):
    saved_model(tmp_path / "other", "parameters")
    assert "there is nothing, but no fc.bias" in told(tmp_path / "other")
    saved_model(tmp_path / "cut")
    data = tmp_path / "cut" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:3000])
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")
    data.unlink()
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")
    (tmp_path / "cut" / "variables" / "variables.index").unlink()
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")


WITHOUT_DEVICES = """
import sys
from resnet.model import weights
from resnet.training import trained
for path in sys.argv[1:]:
    assert weights.detect_model(trained.read(path)) == "tiny"
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.set_visible_devices([], "GPU")
"""


def test_reading_and_guessing_leave_tensorflow_to_be_set_up(saved_model, filled_folder, spawn, tmp_path):
    """Threads and visible devices can't be set once TensorFlow has begun; the model must be known before."""
    out, _ = filled_folder({10: (0.5, True)})
    saved_model(tmp_path / "model")
    save_file(drawn(row("tiny")), tmp_path / "w.safetensors")
    done = spawn(None, out, tmp_path / "model", tmp_path / "w.safetensors", before=WITHOUT_DEVICES).finish()
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------- into another network
def test_a_head_serves_by_the_names_of_its_classes_and_is_new_for_others(filled, run_of, tmp_path):
    network, tensors = filled(3)
    weights.write(tmp_path / "from" / "w.safetensors", tensors, {})
    files.write_classes(tmp_path / "from", "abcdefg")
    (tmp_path / "data").mkdir()
    files.write_classes(tmp_path / "data", "gabcdef")
    run = run_of("model=tiny", "data=folder", f"data.dir={tmp_path}/data", f"init={tmp_path}/from/w.safetensors")
    head, moved = network.get_layer("fc"), [6, *range(6)]
    initialize(network, run)
    np.testing.assert_array_equal(head.bias.numpy(), tensors["fc.bias"][moved])
    np.testing.assert_array_equal(head.kernel.numpy(), tensors["fc.weight"][moved].T)
    files.write_classes(tmp_path / "data", "hijklmn")
    head.bias.assign(range(7))
    notes = initialize(network, run)
    assert head.bias.numpy().tolist() == [*range(7)]
    assert "the head is for other classes (class 1 of the network is 'a', and of the data 'h'): it is init" in notes[1]
