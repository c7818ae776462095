"""The recipes of torchvision, "ResNet strikes back", FFCV and ResNet-RS: every knob that they set, and their curves."""

import json
import math

import numpy as np
import pytest

from resnet.config.fingerprint import flat
from resnet.config.help import recipe_notes
from resnet.optim import schedule

IMAGES = 1_281_167
USERS = ("init=weights.safetensors", "data.classes=5")

# What the sources say, knob by knob; a recipe that builds on another has the other's knobs and these.
SHARED = {"data.name": "imagenet", "data.image_size": 224, "dtype.name": "bf16", "data.eval_resample": "antialias"}
TV2 = SHARED | {
    "model.name": "resnet50",
    "batch": 1024,
    "epochs": 600,
    "optim.name": "sgd",
    "optim.lr": 0.5,
    "optim.momentum": 0.9,
    "optim.weight_decay": 2e-5,
    "optim.decay_norm": False,
    "optim.decay_bias": True,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 5,
    "schedule.warmup_start": 0.01,
    "schedule.end_lr": 0,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1,
    "mix_switch": 0.5,
    "mix_by": "batch",
    "loss": "softmax",
    "augment.name": "trivialaugment",
    "augment.interpolation": "bilinear",
    "augment.erasing": 0.1,
    "augment.erasing_mode": "const",
    "augment.repeats": 4,
    "data.train_size": 176,
    "data.eval_resize": 232,
    "data.eval_crop": None,
    "data.eval_interpolation": "bilinear",
    "data.eval_flip": False,
    "ema.torchvision_decay": 0.99998,
    "ema.every_steps": 32,
    "ema.start": "copy",
    "model.zero_init_residual": False,
}
A1 = SHARED | {
    "model.name": "resnet50",
    "batch": 2048,
    "epochs": 600,
    "optim.name": "lamb",
    "optim.lr": 5e-3,
    "optim.weight_decay": 0.01,
    "optim.decay_norm": False,
    "optim.decay_bias": False,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 5,
    "schedule.end_lr": 1e-6,
    "loss": "bce",
    "bce_threshold": None,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1,
    "augment.name": "randaugment",
    "augment.timm": "rand-m7-mstd0.5-inc1",
    "augment.interpolation": None,
    "augment.repeats": 3,
    "augment.erasing": 0,
    "model.stochastic_depth": 0.05,
    "model.zero_init_residual": True,
    "data.train_size": None,
    "data.eval_crop": 0.95,
    "data.eval_resize": None,
    "data.eval_interpolation": "bicubic",
    "ema.decay": None,
}
A2 = A1 | {"epochs": 300, "optim.weight_decay": 0.02, "mixup": 0.1, "label_smoothing": 0}
A3 = A2 | {
    "epochs": 100,
    "optim.lr": 8e-3,
    "augment.timm": "rand-m6-mstd0.5-inc1",
    "augment.repeats": 1,
    "model.stochastic_depth": 0,
    "data.train_size": 160,
}
FAST = SHARED | {
    "model.name": "resnet50",
    "model.antialias": "ffcv",
    "batch": 4096,
    "epochs": 16,
    "optim.name": "sgd",
    "optim.lr": 1.7,
    "optim.weight_decay": 1e-4,
    "schedule.name": "linear",
    "schedule.warmup_epochs": 2,
    "schedule.warmup_start": 1e-4,
    "schedule.end_lr": 0,
    "label_smoothing": 0.1,
    "mixup": 0,
    "augment.name": "none",
    "data.train_size": 192,
    "data.image_size": 256,
    "data.eval_resize": 292,
    "data.eval_flip": True,
    "progressive.start_size": 160,
    "progressive.start_epochs": 11,
    "progressive.end_epochs": 13,
    "ema.decay": None,
    "ema.half_life_steps": None,
}
RECIPES = {
    **{f"{name}_tv2": TV2 | {"model.name": name} for name in ("resnet50", "resnet101", "resnet152", "resnext50")},
    **{
        f"resnet{depth}_rsb_a{number}": row | {"model.name": f"resnet{depth}"}
        for depth in (18, 34, 50, 101, 152)
        for number, row in enumerate((A1, A2, A3), 1)
    },
    "resnet50d_rsb_a1": A1 | {"model.name": "resnet50d", "model.avg_down": True},
    "resnet50_fast": FAST,
    "resnet50_fast_32": FAST | {"epochs": 32, "progressive.start_epochs": 23, "progressive.end_epochs": 27},
    "resnet50_fast_88": FAST | {"epochs": 88, "progressive.start_epochs": 65, "progressive.end_epochs": 76},
    "resnetrs50": SHARED | {
        "model.name": "resnetrs50", "model.se_ratio": 0.25, "model.dropout": 0.25, "model.stochastic_depth": 0, "batch": 4096,
        "epochs": 350, "optim.lr": 1.6, "optim.momentum": 0.9, "optim.weight_decay": 4e-5, "schedule.name": "cosine",
        "schedule.warmup_epochs": 5, "label_smoothing": 0.1, "augment.name": "randaugment", "augment.timm": "rand-m10-p1",
        "data.image_size": 160, "ema.decay": 0.9999,
    },
    "finetune_strong": {
        "data.name": "folder", "batch": 32, "epochs": 30, "optim.lr": 0.00125, "augment.name": "trivialaugment",
        "augment.erasing": 0.1, "mixup": 0.1, "cutmix": 1, "finetune.layer_decay": 0.85, "ema.half_life_steps": 100,
        "schedule.name": "cosine", "finetune.lr_multipliers": {"fc": 10},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def of(run_at, tmp_path_factory):
    """`of("resnet50_tv2", ...)`: the recipe, its data in a folder somewhere unless the words say otherwise."""
    folder = tmp_path_factory.mktemp("cwd")
    return lambda name, *words: run_at(folder, f"recipe={name}", *(words or ("data.dir=/shards",)))


def equal(left, right):
    """Whether they are the same, to the last digits."""
    return math.isclose(left, right, rel_tol=1e-12) if isinstance(left, float) else left == right


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_was_published(of, name):
    words = ("data.dir=/shards", *USERS) if name.startswith("finetune") else ()
    knobs = flat(of(name, *words))
    assert {knob: knobs[knob] for knob, value in RECIPES[name].items() if not equal(knobs[knob], value)} == {}


@pytest.mark.parametrize(
    "name", ["resnet152_tv2", "resnet18_rsb_a3", "resnet50_fast_88", "resnetrs50", "finetune_strong"]
)
def test_a_recipe_can_be_tried_small(of, name):
    small = ("data=digits", "cluster=local", "batch=32", "steps=3", "eval=false", "dtype=fp32", "track=off")
    run = of(name, *small, *(USERS[:1] if name.startswith("finetune") else ()))
    assert (run.batch, run.steps, run.data.name) == (32, 3, "digits")


def test_the_curves_start_peak_and_end_where_the_sources_say(of):
    """By their formulas; rates that torchvision and timm change once an epoch are theirs at its first step."""
    runs = {name: of(name) for name in ("resnet50_tv2", "resnet50_rsb_a1", "resnet50_rsb_a3", "resnet50_fast")}
    plans = {name: schedule.plan(run, IMAGES) for name, run in runs.items()}
    cosine = plans["resnet50_tv2"]
    rate = 0.25 * (1 + math.cos(math.pi * 295 / 595))
    epochs = {0: 0.005, 1: 0.005 + 0.495 / 5, 5: 0.5, 300: rate}
    np.testing.assert_allclose(cosine.lr([1251 * epoch for epoch in epochs]), list(epochs.values()), rtol=1e-9)
    for name, peak in (("resnet50_rsb_a1", 5e-3), ("resnet50_rsb_a3", 8e-3)):
        last = plans[name].total_steps - 1
        np.testing.assert_allclose(plans[name].lr([0, 625 * 5, last]), [1e-4, peak, 1e-6], rtol=1e-3)
    points = np.arange(0, 16 * 312, 156)
    interpolated = np.interp(points / 312, [0, 2, 16], [1.7e-4, 1.7, 0])
    np.testing.assert_allclose(plans["resnet50_fast"].lr(points), interpolated, rtol=1e-9)


@pytest.mark.parametrize("name", ["resnet50_fast", "resnet50_fast_32", "resnet50_fast_88"])
def test_the_fast_recipes_grow_their_crops_as_theirs_do(of, name):
    """By get_resolution of ffcv-imagenet's train_imagenet.py: linear within the ramp, to the nearest multiple of 32."""
    epochs, *ramp = (RECIPES[name][knob] for knob in ("epochs", "progressive.start_epochs", "progressive.end_epochs"))
    sizes = [int(np.round(np.interp(epoch, ramp, (160, 192)) / 32)) * 32 for epoch in range(epochs)]
    plan = schedule.plan(of(name), IMAGES)
    assert [plan.size(epoch * 312) for epoch in range(epochs)] == sizes
    first = 312 * sizes.index(192)
    assert [plan.resizes(step) for step in (0, first - 1, first, first + 1)] == [False, False, True, False]


def test_the_average_of_torchvision_decays_as_its_script_says(of):
    run = of("resnet50_tv2")
    plan = schedule.plan(run, IMAGES)
    assert plan.average_every == 32
    assert plan.decay(100 * 1251) == pytest.approx(1 - 2e-5 * 1024 * 32 / 600)


def test_another_augment_leaves_out_what_is_only_of_the_recipes_own(of):
    run = of("resnet50_rsb_a1", "data.dir=/shards", "augment=none")
    assert (run.augment.name, run.augment.repeats) == ("none", 3)
    assert (
        "recipe=resnet50_rsb_a1: its augment=randaugment does not count; images are augmented by none"
        in recipe_notes(run)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("finetune")])
def test_a_recipe_takes_three_steps(spawn, tmp_path, name):
    small = ("data=digits", "cluster=local", "batch=32", "steps=3", "eval=false", "track=off", "out=run")
    done = spawn("resnet.train", f"recipe={name}", *small, cwd=tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3
