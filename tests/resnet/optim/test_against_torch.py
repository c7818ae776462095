"""Optimizers, schedules, averages and layer-wise rates against what PyTorch and timm computed (tests/golden/oracle_optim.py)."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from resnet.config import compose
from resnet.config.optim import AdamW, Lamb, Sgd
from resnet.config.schedule import Cosine, Exponential, Linear
from resnet.model import resnet, weights
from resnet.optim import layer_decay, optimizers, schedule

GOLDEN = Path(__file__).parents[2] / "golden"
ORACLE = runpy.run_path(str(GOLDEN / "oracle_optim.py"))
VALUES = json.loads((GOLDEN / "optim.json").read_text())
CLASSES = {"SGD": Sgd, "SGDW": Sgd, "AdamW": AdamW, "Lamb": Lamb}


def settings_of(kind, knobs, decayed, clipped):
    """Ours for a row of the oracle's table."""
    own = {knob: value for knob, value in knobs.items() if knob in ("momentum", "weight_decay", "nesterov")}
    own |= {"epsilon": knobs["eps"]} if "eps" in knobs else {}
    own |= dict(zip(("beta1", "beta2"), knobs.get("betas", ()), strict=False))
    own |= {"decoupled": True} if kind == "SGDW" else {}
    clip = ORACLE["CLIP"] if clipped or knobs.get("max_grad_norm") else None
    return CLASSES[kind](lr=1, decay_norm="gamma" in decayed, decay_bias="bias" in decayed, clip_norm=clip, **own)


def trained(settings):
    """The weights after 10 steps and after all, flat."""
    variables = [tf.Variable(value, name=name) for name, value in ORACLE["draw"]().items()]
    optimizer = optimizers.build(settings, variables)
    apply, after = tf.function(optimizer.apply), {}
    for step, lr in enumerate(ORACLE["LRS"]):
        apply([tf.constant(gradient) for gradient in ORACLE["draw"](step).values()], tf.constant(lr, tf.float32))
        if str(step + 1) in VALUES["optimizers"]["sgd"]:
            after[str(step + 1)] = np.concatenate([variable.numpy().ravel() for variable in variables])
    return after


@pytest.mark.parametrize("row", ORACLE["OPTIMIZERS"])
def test_fifty_steps_are_those_of_pytorch_or_timm(row):
    after = trained(settings_of(*ORACLE["OPTIMIZERS"][row]))
    assert after.keys() == VALUES["optimizers"][row].keys() == {"10", "50"}
    for steps, wanted in VALUES["optimizers"][row].items():
        np.testing.assert_allclose(after[steps], wanted, rtol=2e-6, atol=2e-6, err_msg=steps)


def test_the_rows_of_the_table_differ():
    ends = [tuple(np.round(values["50"], 5)) for values in VALUES["optimizers"].values()]
    assert len(set(ends)) == len(ends) - 1  # LAMB clipped by itself, and by PyTorch
    norms = [np.sqrt(sum((g**2).sum() for g in ORACLE["draw"](step).values())) for step in range(50)]
    assert 5 < sum(norm > ORACLE["CLIP"] for norm in norms) < 45


@pytest.mark.parametrize(
    ("name", "settings", "epochs", "every"),
    [
        ("torchvision cosine", Cosine(warmup_epochs=5, warmup_start=0.01), 30, 10),
        (
            "torchvision exponential",
            Exponential(warmup_epochs=5, warmup_start=0.01, decay_rate=0.9, decay_epochs=1),
            30,
            10,
        ),
        (
            "torchvision step",
            Exponential(warmup_epochs=5, warmup_start=0.01, decay_rate=0.3, decay_epochs=7, staircase=True),
            30,
            10,
        ),
        ("timm cosine", Cosine(warmup_epochs=4, warmup_start=0.1, end_lr=0.01, cooldown_epochs=2), 26, 1),
        ("timm poly", Linear(warmup_epochs=4, warmup_start=0.1, end_lr=0.01, cooldown_epochs=2), 26, 1),
        (
            "timm step",
            Exponential(warmup_epochs=4, warmup_start=0.1, decay_rate=0.7, decay_epochs=2.5, staircase=True),
            26,
            1,
        ),
    ],
)
def test_the_learning_rates_are_those_of_torchvision_at_epochs_and_of_timm_at_steps(name, settings, epochs, every):
    wanted = VALUES["schedules"][name]
    rates = schedule.curve(settings, 0.5, epochs, 10)(np.arange(len(wanted)) * every)
    np.testing.assert_allclose(rates, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_average_is_that_of_torchvision(run_of, warmup):
    words = ("batch=64", "epochs=5", "schedule=constant", f"schedule.warmup_epochs={warmup}", "ema.start=copy")
    run = run_of(*words, "ema.torchvision_decay=0.9999", "ema.every_steps=32")
    decay, mean, means = schedule.average_decay(run, 96), 0.0, []
    for step in range(32, 5 * 96 + 1, 32):
        mean = decay(step) * mean + (1 - decay(step)) * step
        if step % 96 == 0:
            means.append(mean)
    np.testing.assert_allclose(means, VALUES["averages"][str(warmup)], rtol=1e-12)


def test_the_decay_of_torchvision_is_its_published_arithmetic(run_of):
    assert schedule.torchvision_decay(0.99998, 1024, 32, 600) == pytest.approx(
        0.998907733, abs=1e-9
    )  # V2: 8 x 128 images
    assert schedule.torchvision_decay(0.9, 1024, 32, 2) == 0  # and no less: each update is a copy
    rising = schedule.average_decay(
        run_of("batch=64", "epochs=5", "ema.torchvision_decay=0.9999"), 96
    )  # every 10 steps
    assert rising(10) == pytest.approx((11 / 20) ** 10) and rising(10_000) == pytest.approx(1 - 1e-4 * 64 * 10 / 5)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_layer_wise_rates_are_those_of_timm(model):
    network = resnet.build(compose.one_group("model", f"model={model}"), 10, "float32")
    factors = layer_decay.factors(network, 0.75)
    ours = {weights.timm_name(v.name): f for v, f in zip(network.trainable_variables, factors, strict=True)}
    assert ours == pytest.approx(VALUES["layer_decays"][model], rel=1e-12)
    assert (ours["fc.weight"], ours["layer4.1.conv1.weight"]) == (1, 0.75 if model == "resnet18" else 0.75**2)
