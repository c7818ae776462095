"""Checkpoints hold what TensorFlow's own would, of the moment they were asked for, written while training goes on."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

from resnet import UserError
from resnet.config.optim import Sgd
from resnet.optim import optimizers
from resnet.optim.loss_scale import LossScaleOptimizer
from resnet.training import checkpoint


@dataclass
class State:
    images: int = 3


@pytest.fixture
def weights():
    """What a run of float16 with averaged weights saves, of a small network."""

    def network():
        layers = [tf.keras.layers.Input([2]), tf.keras.layers.Dense(3), tf.keras.layers.BatchNormalization()]
        return tf.keras.Sequential(layers)

    trained = network()
    optimizer = LossScaleOptimizer(optimizers.build(Sgd(lr=0.1), trained.trainable_variables))
    return tf.train.Checkpoint(network=trained, optimizer=optimizer, average=network())


@pytest.fixture
def held(monkeypatch):
    """An event that writing waits for."""
    event, write = threading.Event(), checkpoint.TensorSlots.write

    def waiting(self, path, values):
        assert event.wait(60)
        write(self, path, values)

    monkeypatch.setattr(checkpoint.TensorSlots, "write", waiting)
    yield event
    event.set()


def read(prefix):
    """Every tensor of a checkpoint by name, and the bytes of its object graph."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_it_holds_what_tensorflows_own_does(weights, tmp_path):
    for number, variable in enumerate(weights.network.weights):
        variable.assign(tf.fill(variable.shape, number + 0.5))
    weights.write(str(tmp_path / "own"))
    with checkpoint.CheckpointWriter(tmp_path, weights, 3) as writer:
        saved = writer.save(7, 0.5, State())
    assert saved == checkpoint.Saved(tmp_path / "checkpoints/step-00000007", 7, 0.5, {"images": 3})
    assert sorted(path.name for path in saved.path.iterdir()) == [
        "commit.json",
        "weights.data-00000-of-00001",
        "weights.index",
    ]
    own, ours = read(tmp_path / "own"), read(saved.path / "weights")
    assert (
        own.keys() == ours.keys() and len(own) == 20
    )  # 6 of each network, 4 velocities, 3 of the scale, the object graph
    for name, value in own.items():
        assert np.array_equal(value, ours[name]) and np.asarray(value).dtype == np.asarray(ours[name]).dtype, name
    for variable in weights.network.weights:
        variable.assign(tf.zeros(variable.shape))
    assert checkpoint.restore(tmp_path, weights) == (saved, [])
    assert [float(np.max(variable)) for variable in weights.network.weights] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]


def test_it_is_of_the_moment_it_was_asked_for_though_training_goes_on(weights, tmp_path, held):
    network, optimizer = weights.network, weights.optimizer
    before = [variable.numpy() for variable in network.weights]
    with checkpoint.CheckpointWriter(tmp_path, weights, 3) as writer:
        saved = writer.save(1, None, State())
        for _ in range(3):
            optimizer.apply([tf.ones(variable.shape) for variable in network.trainable_variables], tf.constant(1.0))
        network.weights[-1].assign_add(tf.ones(network.weights[-1].shape))
        assert not saved.path.exists()
        held.set()
    assert checkpoint.verify(saved) is None
    moved = [variable.numpy() for variable in network.weights]
    checkpoint.restore(tmp_path, weights)
    assert all(np.array_equal(old, now.numpy()) for old, now in zip(before, network.weights, strict=True))
    assert (
        sum(not np.array_equal(old, new) for old, new in zip(before, moved, strict=True)) == 5
    )  # of 6; one stood still


def test_one_is_written_after_the_other(weights, tmp_path, held):
    with checkpoint.CheckpointWriter(tmp_path, weights, 3) as writer:
        writer.save(1, None, State())
        threading.Timer(0.2, held.set).start()
        writer.save(2, None, State())
        assert checkpoint.path_of(tmp_path, 1).exists()
    assert [saved.step for saved in checkpoint.list_checkpoints(tmp_path)] == [1, 2]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError("ours")])
def test_what_goes_wrong_is_told_by_the_next_call_and_once(weights, tmp_path, monkeypatch, error):
    def failing(_self, _path, _values):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.TensorSlots, "write", failing)
        writer = checkpoint.CheckpointWriter(tmp_path, weights, 3)
        writer.save(1, None, State())
        with pytest.raises(UserError if isinstance(error, OSError) else ZeroDivisionError) as caught:
            writer.save(2, None, State())
    if isinstance(error, OSError):
        assert "step-00000001: the checkpoint could not be written (No space left on device)" in str(caught.value)
        assert list((tmp_path / "checkpoints").iterdir()) == []
    writer.save(2, None, State())
    writer.wait()
    assert [saved.step for saved in checkpoint.list_checkpoints(tmp_path)] == [2]


def test_an_error_of_the_run_waits_for_what_is_being_written_and_a_second_interrupt_does_not(weights, tmp_path, held):
    def ended_by(error, step):
        with checkpoint.CheckpointWriter(tmp_path, weights, 3) as writer:
            writer.save(step, None, State())
            raise error

    with pytest.raises(KeyboardInterrupt):
        ended_by(KeyboardInterrupt(), 1)
    assert checkpoint.list_checkpoints(tmp_path) == []
    threading.Timer(0.2, held.set).start()
    with pytest.raises(RuntimeError):
        ended_by(RuntimeError(), 2)
    assert 2 in [saved.step for saved in checkpoint.list_checkpoints(tmp_path)]


def test_what_a_killed_run_was_writing_is_cleared_away_by_the_next_start(weights, tmp_path):
    torn = tmp_path / "checkpoints" / ".step-00000009.123.part"
    torn.mkdir(parents=True)
    (torn / "weights.index").touch()
    assert checkpoint.restore(tmp_path, weights) == (None, [])
    assert not torn.exists()
