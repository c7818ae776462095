"""Starting from somebody's weights: what they are at first, what stands still, and how fast the rest moves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import FakeStep
from hydra.core.hydra_config import HydraConfig
from safetensors.numpy import save_file

from resnet import UserError, rundir
from resnet import train as trainer
from resnet.config.model import Block, Model
from resnet.config.optim import Lars, Sgd
from resnet.data import pipeline, source
from resnet.distributed.ranks import Ranks
from resnet.model import resnet, weights
from resnet.optim import optimizers
from resnet.training.loop import train
from resnet.training.state import TrainState
from resnet.training.step import TrainStep
from resnet.training.trained import read as read_weights

SETTINGS = Model(name="tiny", block=Block.bottleneck, depths=[1, 1, 1, 1], width=4, filters=4)
COMMON = ("model=tiny", "batch=64", "track=off", "schedule=constant", "eval=false", "log_every_steps=1")
STATISTICS = ("running_mean", "running_var")


def drawn(classes, seed=3):
    """Weights of a tiny network by timm's names, none of them 0: they all have a gradient."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in weights.shapes(SETTINGS, classes).items():
        if len(shape) > 1:
            made[name] = random.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
        else:
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.5, 0.5)
            made[name] = random.uniform(low, high, shape)
    return {name: tensor.astype(np.float32) for name, tensor in made.items()}


class StandStill(FakeStep):
    """A step that changes nothing."""

    def update(self, step, _lr):
        return self.loss(step)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """`weights_file(classes)`: the path of such weights."""
    folder = tmp_path_factory.mktemp("weights")
    for classes in (7, 10):
        save_file(drawn(classes), folder / f"{classes}.safetensors")
    return lambda classes: folder / f"{classes}.safetensors"


@pytest.fixture(scope="module")
def after(run_at, tmp_path_factory, weights_file):
    """`after(*overrides)`: (the run from the weights for 10 classes, the weights that it ended with)."""

    def make(*words, make_step=TrainStep):
        run = run_at(tmp_path_factory.mktemp("run"), *COMMON, f"init={weights_file(10)}", *words)
        train(run, Path(run.out), make_step=make_step)
        return run, read_weights(run.out)

    return make


@pytest.fixture(scope="module")
def plain(after):
    """A step at 0.5 of everything."""
    return after("optim.lr=0.5", "steps=1")


def moved(found, before):
    """Names of the tensors in which any number is another one."""
    assert found.keys() == before.keys()
    return {name for name, tensor in before.items() if not np.array_equal(found[name], tensor)}


# ------------------------------------------------------------------------------------------------------------------ freeze
def test_with_nothing_frozen_every_tensor_moves(plain):
    assert moved(plain[1], drawn(10)) == set(drawn(10))


@pytest.fixture(scope="module")
def head(after):
    """Three steps of the head alone."""
    return after("finetune.freeze=head", "optim.lr=0.5", "steps=3")


def test_with_all_but_the_head_frozen_the_head_alone_moves(head):
    assert moved(head[1], drawn(10)) == {"fc.weight", "fc.bias"}


def test_frozen_batch_norm_uses_the_statistics_that_it_keeps(head):
    """The loss of the first step is that of the network as it is evaluated."""
    run = head[0]
    pixels, labels, _ = next(iter(pipeline.train(source.open_source(run.data), run.batch, run.seed, 0)))
    network = resnet.build(run.model, 10, "float32")
    weights.load_into(network, drawn(10), "drawn")
    logits = network((pixels.numpy() - run.data.mean) / run.data.std, training=False).numpy().astype(np.float64)
    logged = logits - logits.max(1, keepdims=True)
    logged -= np.log(np.exp(logged).sum(1, keepdims=True))
    targets = 0.9 * np.eye(10)[labels] + 0.1 / 10
    first = json.loads((Path(run.out) / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train/loss"] == pytest.approx(-(targets * logged).sum(1).mean(), rel=1e-5)


def test_the_parts_that_are_named_stand_still_and_no_others(after):
    parts = ("conv1", "bn1", "layer1", "layer2.0.conv2", "layer2.0.downsample.1")
    _, found = after(f"finetune.freeze=[{','.join(parts)}]", "optim.lr=0.5", "steps=2")
    still = {name for name in found if name.startswith(tuple(f"{part}." for part in parts))}
    assert sum(name.endswith(STATISTICS) for name in still) == 2 * (1 + 4 + 1)
    assert moved(found, drawn(10)) == set(found) - still


@pytest.mark.parametrize(
    ("word", "error"),
    [
        (
            "finetune.freeze=[conv1,layer5]",
            "finetune.freeze=layer5: no layer of tiny is under this name; there are conv1,",
        ),
        ("finetune.lr_multipliers={head:10}", "finetune.lr_multipliers=head: no layer of tiny is under this name"),
        ("finetune.freeze=[conv1,bn1,layer1,layer2,layer3,layer4,fc]", "nothing would be trained; leave a part out"),
    ],
)
def test_what_cannot_be_frozen_or_multiplied_is_refused_by_name(run_of, word, error):
    with pytest.raises(UserError) as caught:
        TrainState(run_of(*COMMON, word), Ranks())
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_a_part_is_a_whole_name_of_what_has_weights():
    network = resnet.build(SETTINGS, 10, "float32")
    for part in ("layer", "layer1.1", "layer1.0.act1", "layer1.0.conv1.kernel", "FC", ""):
        with pytest.raises(UserError, match=f"finetune.freeze={part}: no layer of tiny is under this name"):
            resnet.freeze(network, ["fc", part])
        with pytest.raises(UserError, match=f"finetune.lr_multipliers={part}: no layer of tiny is under this name"):
            resnet.lr_factors(network, {"fc": 2, part: 3})
    assert all(layer.trainable for layer in network.layers)


# -------------------------------------------------------------------------------------------------------------- multipliers
def test_a_multiplier_moves_its_part_so_many_times_as_far_and_the_longest_name_counts(plain, after):
    _, found = after(
        "finetune.lr_multipliers={fc:10,layer1:0,layer1.0.conv2:3,layer1.0.bn3:0.5}", "optim.lr=0.5", "steps=1"
    )
    before = drawn(10)
    factors = {"fc": 10, "layer1.0.conv2": 3, "layer1.0.bn3": 0.5}
    for name in before:
        if name.endswith(STATISTICS):
            assert np.array_equal(found[name], plain[1][name])  # the forward pass was the same
            continue
        layer = name.rpartition(".")[0]
        factor = factors.get(layer, 0 if layer.startswith("layer1.") else 1)
        step = plain[1][name].astype(np.float64) - before[name]
        assert np.abs(step).max() > 1e-3, name
        np.testing.assert_allclose(found[name] - before[name], factor * step, rtol=1e-3, atol=5e-6, err_msg=name)
        if factor in (0, 1):
            assert np.array_equal(found[name], plain[1][name] if factor else before[name]), name


@pytest.mark.parametrize(
    "multipliers",
    [
        {"layer1": 2, "layer1.0": 3, "layer1.0.conv1": 5, "fc": 10},
        {"fc": 10, "layer1.0.conv1": 5, "layer1.0": 3, "layer1": 2},
    ],
)
def test_every_variable_has_the_factor_of_the_longest_name_that_fits(multipliers):
    settings = Model(name="x", block=Block.basic, depths=[2, 1, 1, 1], width=4, filters=4)
    network = resnet.build(settings, 3, "float32")
    found = dict(
        zip((v.name for v in network.trainable_variables), resnet.lr_factors(network, multipliers), strict=True)
    )
    some = {
        "conv1/kernel:0": 1,
        "layer1.0.conv1/kernel:0": 5,
        "layer1.0.bn1/gamma:0": 3,
        "layer1.0.conv2/kernel:0": 3,
        "layer1.1.conv1/kernel:0": 2,
        "layer2.0.conv1/kernel:0": 1,
        "fc/kernel:0": 10,
        "fc/bias:0": 10,
    }
    assert {name: found[name] for name in some} == some
    assert set(resnet.lr_factors(network, {})) == {1.0}


@pytest.mark.parametrize(
    "settings",
    [Sgd(lr=1, weight_decay=0.1), Sgd(lr=1, nesterov=True), Lars(lr=1, trust_coefficient=0.1, weight_decay=0.1)],
)
def test_each_optimizer_multiplies_the_rate_and_nothing_else(settings):
    """Three steps at 10 times the rate for one and a tenth for the other: as with these rates for all."""

    def stepped(rate, factors):
        random = np.random.default_rng(4)
        variables = [
            tf.Variable(random.normal(0, 1, shape).astype(np.float32), name=f"{layer}/{kind}")
            for layer in ("a", "b")
            for kind, shape in (("kernel", (3, 4)), ("bias", (4,)), ("gamma", (4,)))
        ]
        optimizer = optimizers.build(settings, variables, factors)
        for _ in range(3):
            gradients = [tf.constant(random.normal(0, 1, v.shape), tf.float32) for v in variables]
            optimizer.apply(gradients, tf.constant(rate, tf.float32))
        return [variable.numpy() for variable in variables]

    found = stepped(0.02, [10.0] * 3 + [0.1] * 3)
    # A gradient doesn't depend on the weights here, but decay and trust do, each on its own variable's alone.
    wanted = stepped(0.2, [1.0] * 6)[:3] + stepped(0.002, [1.0] * 6)[3:]
    for left, right, same in zip(found, wanted, stepped(0.02, [1.0] * 6), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
        assert np.abs(left - same).max() > 1e-3


def test_names_with_dots_survive_the_command_line_and_the_folder(run_of):
    word = "finetune.lr_multipliers={fc: 10, layer1.0: 0.5, layer4.0.conv1: 0}"
    run = run_of(*COMMON, word, "finetune.freeze=[bn1,layer2.0]")
    assert run.finetune.lr_multipliers == {"fc": 10, "layer1.0": 0.5, "layer4.0.conv1": 0}
    assert run.finetune.freeze == ["bn1", "layer2.0"]
    rundir.save(run, Path(run.out))
    assert rundir.load(Path(run.out)) == run
    (Path(run.out) / "checkpoints" / "step-00000001").mkdir(parents=True)
    rundir.check_folder(run, Path(run.out))
    with pytest.raises(UserError, match=r"finetune.freeze was .* and is none"):
        rundir.check_folder(run_of(*COMMON, word), Path(run.out))


@pytest.mark.parametrize("word", ["finetune.lr_multipliers={layer4:0.5}", "finetune.lr_multipliers.layer4=0.5"])
def test_multipliers_beside_those_of_the_recipe_are_told_how_to_be_written(
    monkeypatch, capsys, tmp_path, exit_status, word
):
    monkeypatch.chdir(tmp_path)
    words = ["recipe=finetune_folder", "init=x", "data=digits", word]
    monkeypatch.setattr(sys, "argv", ["resnet.train", *words])
    try:
        assert exit_status(trainer.main) == 1
    finally:
        HydraConfig.instance().cfg = None
    assert "++finetune.lr_multipliers={" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------------- init
def test_before_the_first_step_the_weights_are_those_of_the_file(after):
    run, found = after("steps=2", make_step=StandStill)
    assert moved(found, drawn(10)) == set()
    assert run.init and Path(run.init).is_absolute()


def test_a_run_that_goes_on_asks_no_more_for_the_file(run_at, tmp_path, weights_file, head, capsys):
    """The file is that of another run: its folder."""
    other = shutil.copytree(head[0].out, tmp_path / "other")
    words = (*COMMON, f"init={other}")
    run = run_at(tmp_path, *words, "steps=1")
    rundir.check_init(run)
    train(run, Path(run.out), make_step=StandStill)
    assert f"{other}: 87 tensors of tiny" in capsys.readouterr().out
    assert moved(read_weights(run.out), head[1]) == set()
    shutil.rmtree(other)
    run = run_at(tmp_path, *words, "steps=2")
    rundir.check_init(run)
    assert train(run, Path(run.out), make_step=StandStill)["steps"] == 2
    assert "tensors" not in capsys.readouterr().out
    assert moved(read_weights(run.out), head[1]) == set()
    with pytest.raises(UserError, match=r"another run is here \(init was .*other and is .*7.safetensors\)"):
        train(run_at(tmp_path, *words, f"init={weights_file(7)}", "steps=3"), Path(run.out))


def test_a_head_for_other_classes_starts_anew_and_is_told(run_of, weights_file, capsys):
    run = run_of(*COMMON, f"init={weights_file(7)}", "steps=1")
    train(run, Path(run.out), make_step=StandStill)
    assert (
        f"{weights_file(7)}: the head is for 7 classes and this run has 10: it is initialized anew"
        in capsys.readouterr().out
    )
    found, before = read_weights(run.out), drawn(7)
    fitting = [name for name in before if not name.startswith("fc.")]
    for name in fitting:
        assert np.array_equal(found[name], before[name]), name
    assert found["fc.weight"].shape == (10, 128) and not found["fc.bias"].any()
    assert 0.005 < found["fc.weight"].std() < 0.015  # as initialized: deviation 0.01


def test_weights_of_another_network_are_refused(run_of, weights_file):
    run = run_of(*COMMON, f"init={weights_file(10)}", "model.depths=[1,1,1,2]", "steps=1")
    with pytest.raises(
        UserError, match=r"10.safetensors: \d+ tensors do not fit tiny .*: use model=tiny, with no other"
    ):
        train(run, Path(run.out))


def test_a_file_that_is_not_there_is_told_before_tensorflow_is_imported(tmp_path):
    (tmp_path / "trap" / "tensorflow").mkdir(parents=True)
    (tmp_path / "trap" / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow was imported')\n")
    trap = os.pathsep.join(filter(None, [str(tmp_path / "trap"), os.environ.get("PYTHONPATH")]))
    for path in ("nowhere.safetensors", "runs/nowhere"):
        done = subprocess.run(
            [sys.executable, "-m", "resnet.train", *COMMON, f"init={path}", "out=run"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": trap},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines() == [
            f"error: init={tmp_path / path}: no such file or folder; give .safetensors, .npz, a SavedModel or a run's folder"
        ]
    assert not (tmp_path / "run").exists()
