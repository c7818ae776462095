"""Every recipe against the published numbers, worked out beside the program: what it is, its steps, its learning rates."""

import functools
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from resnet import UserError, files, rundir
from resnet.config import compose, errors
from resnet.config.model import Block, Model, Policy
from resnet.config.optim import Lars, Sgd
from resnet.model import resnet
from resnet.optim import optimizers, schedule

ROOT = Path(__file__).resolve().parents[2]
EVERY = {path.stem: path.read_text() for path in sorted((ROOT / "experiments" / "recipe").glob("*.yaml"))}
TODAY = re.compile(r".*_(tv2|rsb_a\d|fast|fast_\d+)|resnetrs50|finetune_strong")  # of test_recipes_of_today.py
FILES = {name: text for name, text in EVERY.items() if name == "quickstart_fast" or not TODAY.fullmatch(name)}


class Row(NamedTuple):
    """What a recipe must be. Nothing here is computed by the program; LARS has 0.001 as its trust coefficient."""

    model: str
    batch: int
    epochs: float
    steps: tuple[int, int]  # of an epoch, floor(images / batch); of the run
    optim: str
    peak: float
    decay: float
    rates: str  # a row of RATES
    momentum: float = 0.9
    mixup: float = 0.0
    eval_every: float = 1.0  # epochs
    first_eval: float = 0.0  # after this epoch; 0: after eval_every
    smoothing: float = 0.1
    sizes: tuple = (None, None, 224, 256)  # of training crops at first and at last, of evaluation, and its short side
    images: int = 1_281_167


# fmt: off
ROWS = {
    # the published tables
    "resnet50_keras_sgd_1x": Row("resnet50", 256, 90, (5004, 450_360), "sgd", 0.1, 2e-4, "keras_1x", smoothing=0.0),
    "resnet50_sgd_1x": Row("resnet50", 256, 90, (5004, 450_360), "sgd", 0.128, 1e-4, "sgd_1x"),
    "resnet50_lars_1x": Row("resnet50", 256, 38, (5004, 190_152), "lars", 2.5, 1e-4, "lars_1x"),
    "resnet50_sgd_8x": Row("resnet50", 2048, 90, (625, 56_250), "sgd", 1.024, 1e-4, "sgd_8x"),
    "resnet50_lars_8x": Row("resnet50", 2048, 38, (625, 23_750), "lars", 9.5, 1e-4, "lars_8x"),
    "resnet101_sgd_8x": Row("resnet101", 2048, 90, (625, 56_250), "sgd", 1.024, 1e-4, "sgd_8x"),
    "resnet101_lars_8x": Row("resnet101", 2048, 38, (625, 23_750), "lars", 9.5, 1e-4, "lars_8x"),
    "resnet152_sgd_8x": Row("resnet152", 2048, 90, (625, 56_250), "sgd", 1.024, 1e-4, "sgd_8x"),
    "resnet152_lars_8x": Row("resnet152", 2048, 38, (625, 23_750), "lars", 9.5, 1e-4, "lars_8x"),
    "resnext101_1x": Row("resnext101", 256, 90, (5004, 450_360), "sgd", 0.256, 6.103515625e-05, "cosine_1x", 0.875),
    "resnext101_8x": Row("resnext101", 2048, 90, (625, 56_250), "sgd", 2.048, 6.103515625e-05, "cosine_8x", 0.875),
    "resnext101_250ep_8x": Row("resnext101", 2048, 250, (625, 156_250), "sgd", 2.048, 6.103515625e-05, "cosine_250ep_8x",
                               0.875, mixup=0.2),
    "resnet50_250ep_8x": Row("resnet50", 2048, 250, (625, 156_250), "sgd", 1.024, 1e-4, "sgd_250ep_8x", mixup=0.2),
    # better points
    "resnet50_sgd_cosine": Row("resnet50", 2048, 90, (625, 56_250), "sgd", 2.048, 3.0517578125e-05, "cosine_8x", 0.875),
    "resnet50_lars_2k_36ep": Row("resnet50", 2048, 35, (625, 21_875), "lars", 9.0, 5e-5, "lars_2k", eval_every=4, first_eval=3),
    "resnet50_lars_4k": Row("resnet50", 4096, 39, (312, 12_168), "lars", 13.0, 1e-4, "lars_4k", eval_every=4, first_eval=3),
    "resnet50_lars_8k": Row("resnet50", 8192, 41, (156, 6396), "lars", 17.0, 1e-4, "lars_8k", eval_every=4, first_eval=1),
    "resnet50_lars_16k": Row("resnet50", 16384, 47, (78, 3666), "lars", 26.5, 5e-5, "lars_16k", eval_every=4, first_eval=3),
    "resnet50_lars_32k": Row("resnet50", 32768, 56, (39, 2184), "lars", 21.2, 2.5e-5, "lars_32k", 0.94, eval_every=4),
    "resnet50_lars_64k": Row("resnet50", 65536, 88.5, (19, 1682), "lars", 24.699, 1e-4, "lars_64k", 0.951807, eval_every=4),
    # ours
    "quickstart": Row("resnet50", 32, 10, (44, 440), "sgd", 0.03, 5e-4, "quickstart", eval_every=2,
                      sizes=(None, None, 32, 32), images=1437),
    "quickstart_fast": Row("resnet50", 32, 5, (44, 220), "sgd", 0.03, 5e-4, "quickstart_fast", eval_every=5,
                           sizes=(None, None, 16, 16), images=1437),
    "fashion": Row("resnet18", 128, 26, (468, 12168), "sgd", 0.1, 5e-4, "fashion", eval_every=2,
                   sizes=(None, None, 28, 28), images=60_000),
    "finetune_folder": Row("resnet50", 32, 15, (31, 465), "sgd", 0.00125, 1e-4, "finetune", images=1000),
}

# Step -> learning rate: the second step, the end of the warm-up, both sides of every boundary, the middle of a curve, the
# last step. Written out from the formulas of the papers and of recipes.md; the first step's is 0 in every recipe.
RATES = {
    "sgd_1x": {1: 8.526512124e-06, 15_011: 0.1279914735, 15_012: 0.128, 150_119: 0.128, 150_120: 0.0128,
               300_239: 0.0128, 300_240: 0.00128, 400_319: 0.00128, 400_320: 0.000128, 450_359: 0.000128},
    "keras_1x": {1: 3.996802558e-06, 25_019: 0.0999960032, 25_020: 0.1, 150_119: 0.1, 150_120: 0.01, 300_239: 0.01,
                 300_240: 0.001, 400_319: 0.001, 400_320: 0.0001, 450_359: 0.0001},
    "sgd_8x": {1: 0.0005461333333, 1874: 1.023453867, 1875: 1.024, 18_749: 1.024, 18_750: 0.1024, 37_499: 0.1024,
               37_500: 0.01024, 49_999: 0.01024, 50_000: 0.001024, 56_249: 0.001024},
    "lars_1x": {1: 0.0001665334399, 15_011: 2.499833467, 15_012: 2.5, 15_013: 2.499971453, 102_582: 0.625075,
                190_151: 0.0001000000815},
    "lars_8x": {1: 0.005066666667, 1874: 9.494933333, 1875: 9.5, 1876: 9.499131458, 12_812: 2.375292146,
                23_749: 0.0001000198529},
    "lars_2k": {1: 0.0048, 1874: 8.9952, 1875: 9, 1876: 8.999127304, 12_187: 2.250293185, 21_874: 0.008390838126},
    "lars_4k": {1: 0.005952380952, 2183: 12.99404762, 2184: 13, 2185: 12.99754915, 7488: 3.250075,
                12_167: 0.04522664267},
    "lars_8k": {1: 0.02179487179, 779: 16.97820513, 780: 17, 781: 16.99426502, 3744: 4.250075, 6395: 0.04749348575},
    "lars_16k": {1: 0.04853479853, 545: 26.4514652, 546: 26.5, 547: 26.48420039, 2223: 6.625075, 3665: 0.1301929743},
    "lars_32k": {1: 0.03397435897, 623: 21.16602564, 624: 21.2, 625: 21.1741228, 1443: 5.300075, 2183: 0.04941286103},
    "lars_64k": {1: 0.04193378608, 588: 24.65706621, 589: 24.699, 590: 24.65538168, 1155: 6.174835909,
                 1681: 0.03094080376},
    "cosine_1x": {1: 6.394884093e-06, 40_031: 0.2559936051, 40_032: 0.256, 40_033: 0.256, 245_196: 0.128,
                  450_359: 3.751607648e-12},
    "cosine_8x": {1: 0.0004096, 4999: 2.0475904, 5000: 2.048, 5001: 2.047999998, 30_625: 1.024,
                  56_249: 1.923897662e-09},
    "cosine_250ep_8x": {1: 0.0004096, 4999: 2.0475904, 5000: 2.048, 5001: 2.048, 80_625: 1.024,
                        156_249: 2.208914671e-10},
    "sgd_250ep_8x": {1: 0.0005461333333, 1874: 1.023453867, 1875: 1.024, 1876: 1.024, 79_062: 0.5120052097,
                     156_249: 1.060195043e-10},
    "quickstart_fast": {1: 0.001363636364, 21: 0.02863636364, 22: 0.03, 23: 0.02999811192,
                        121: 0.015, 219: 1.888084892e-06},
    "quickstart": {1: 0.0003409090909, 87: 0.02965909091, 88: 0.03, 89: 0.02999940259, 264: 0.015,
                   439: 5.974104279e-07},
    "fashion": {1: 0.0002136752137, 467: 0.09978632479, 468: 0.1, 469: 0.0999999982, 6318: 0.05, 12167: 1.802469929e-09},
    "finetune": {1: 4.032258065e-05, 30: 0.001209677419, 31: 0.00125, 32: 0.001249983625, 248: 0.000625,
                 464: 1.637451373e-08},
}
# fmt: on

TRIED_SMALL = ("data=digits", "cluster=local", "batch=64")
USERS = ("init=weights.safetensors", "data.classes=5")  # what only the user of finetune_folder knows


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """`frozen("recipe=quickstart", ...)`: the checked run, composed once."""
    compose.register()
    folder = tmp_path_factory.mktemp("cwd")

    @functools.cache
    def make(*overrides):
        with initialize_config_dir(str(files.tree("conf")), version_base="1.3"), errors.explain():
            config = hydra_compose("config", [f"out={folder}/run", *overrides], return_hydra_config=True)
        config.hydra.runtime.cwd = str(folder)
        HydraConfig.instance().set_config(config)
        return compose.freeze(config)

    yield make
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="module")
def of(frozen):
    """`of("resnet50_fast")`: the recipe as it is meant, its data in a folder somewhere."""
    return lambda name: frozen(f"recipe={name}", "data.dir=/shards", *(USERS if name == "finetune_folder" else ()))


every_recipe = pytest.mark.parametrize("name", FILES)


# --------------------------------------------------------------------------------------------------------- the files
def test_every_recipe_has_a_row_here_and_in_the_ledger():
    assert sorted(FILES) == sorted(ROWS), "a recipe needs a row in ROWS"
    ledger = (ROOT / "experiments" / "README.md").read_text()
    assert set(EVERY) == set(re.findall(r"^\| `(\w+)` \|", ledger, re.M))


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_is_headed_by_what_it_is_its_source_the_expected_top1_and_the_machine(name):
    lines = EVERY[name].split("defaults:")[0].splitlines()
    assert lines[0] == "# @package _global_"
    assert [line.partition(":")[0] for line in lines[2:5]] == ["# source", "# expected", "# machine"]
    assert all(len(line) > 12 for line in lines[1:4])
    assert all(len(line) <= 125 for line in lines) and len(lines) <= 6
    assert ("not measured here" in lines[3]) == (not name.startswith(("quickstart", "fashion")))


# ------------------------------------------------------------------------------------------------- the published numbers
@every_recipe
def test_a_recipe_is_what_was_published(of, name):
    run, row = of(name), ROWS[name]
    assert (run.model.name, run.batch, run.epochs) == (row.model, row.batch, row.epochs)
    assert (run.optim.name, run.optim.momentum) == (row.optim, row.momentum)
    assert run.optim.lr == pytest.approx(row.peak, rel=1e-12)
    assert run.optim.weight_decay == row.decay
    assert (run.label_smoothing, run.mixup) == (row.smoothing, row.mixup)
    assert (run.eval_every_epochs, run.eval_offset_epochs) == (row.eval_every, row.first_eval)
    start, train, evaluation, resize = row.sizes
    assert (run.progressive.start_size, run.data.train_size) == (start, train)
    assert (run.data.image_size, run.data.eval_resize) == (evaluation, resize)
    if isinstance(run.optim, Lars):
        assert (run.optim.trust_coefficient, run.optim.epsilon) == (0.001, 0.0)
    else:
        assert isinstance(run.optim, Sgd) and run.optim.nesterov == (name == "fashion")
    data = {"quickstart": "digits", "quickstart_fast": "digits", "finetune_folder": "folder", "fashion": "fashion"}
    assert run.data.name == data.get(name, "imagenet")
    assert run.dtype.policy is (Policy.float32 if run.data.name in ("digits", "folder") else Policy.mixed_bfloat16)
    assert run.eval and run.stop_at_top1 is run.steps is None  # eval=false would be refused beside a stop_at_top1
    assert run.ema.on == name.endswith(("_fast", "fashion"))


@every_recipe
def test_a_recipe_has_the_published_steps_and_learning_rates(of, name):
    run, row = of(name), ROWS[name]
    plan = schedule.plan(run, row.images)
    assert (plan.steps_per_epoch, plan.total_steps) == row.steps
    assert plan.steps_per_epoch == math.floor(row.images / row.batch)
    assert plan.eval_every == row.eval_every * plan.steps_per_epoch
    rates = {0: 0.0, **RATES[row.rates]}
    assert max(rates) == plan.total_steps - 1
    np.testing.assert_allclose(plan.lr(list(rates)), list(rates.values()), rtol=1e-9, atol=1e-15)
    everywhere = plan.lr(np.arange(plan.total_steps))
    between = (run.schedule.warmup_epochs * plan.steps_per_epoch) % 1  # two steps, where the warm-up ends
    assert everywhere.argmax() in rates and everywhere.max() == pytest.approx(row.peak, rel=1e-4 if between else 1e-12)


@every_recipe
def test_a_recipe_decays_all_but_what_its_optimizer_spares(of, name):
    """With no gradient a weight moves by its decay alone: 3 - 0.5 * decay * 3, 1 + momentum times as much with Nesterov's."""
    run = of(name)
    spared = {"lars": {"gamma", "beta", "bias"}, "sgd": {"gamma", "beta"}}[run.optim.name]
    names = ["conv1/kernel", "fc/kernel", "fc/bias", "bn1/gamma", "bn1/beta"]
    variables = [tf.Variable([3.0, 3.0], name=one) for one in names]
    optimizers.build(run.optim, variables).apply([tf.zeros(2)] * len(names), tf.constant(0.5))
    for one, variable in zip(names, variables, strict=True):
        decay = 0.0 if one.partition("/")[2] in spared else ROWS[name].decay
        moves = 1 + run.optim.momentum * (run.optim.name == "sgd" and run.optim.nesterov)
        np.testing.assert_allclose(variable.numpy(), 3 - np.float32(1.5 * decay * moves), rtol=1e-7, err_msg=one)


@pytest.mark.parametrize(
    ("name", "first", "last"),  # of the evaluations in the logs, four epochs apart (parity.md section 6)
    [("2k_36ep", 3, 35), ("4k", 3, 39), ("8k", 1, 41), ("16k", 3, 47)],
)
def test_a_recipe_of_mlperf_evaluates_where_its_logs_do_and_ends_with_the_last(of, name, first, last):
    plan = schedule.plan(of(f"resnet50_lars_{name}"), 1_281_167)
    epochs = [step / plan.steps_per_epoch for step in range(1, plan.total_steps + 1) if plan.evaluates(step)]
    assert epochs == list(range(first, last + 1, 4))


# ----------------------------------------------------------------------------------------------------------- tried small
@every_recipe
def test_a_recipe_can_be_tried_small(frozen, name):
    users = USERS[:1] if name == "finetune_folder" else ()
    run = frozen(f"recipe={name}", *TRIED_SMALL, "steps=2", "eval=false", "track=off", "dtype=fp32", *users)
    assert (run.batch, run.steps, run.data.name, run.data.classes) == (64, 2, "digits", 10)
    plan = schedule.plan(run, 1437)
    assert (plan.steps_per_epoch, plan.total_steps) == (22, 2)
    if ROWS[name].optim == "sgd" and not name.startswith("quickstart"):
        assert run.optim.lr == pytest.approx(ROWS[name].peak * 64 / ROWS[name].batch)  # the linear rule


def test_the_example_of_trying_small_takes_the_settings_of_the_small_batch(frozen):
    run = frozen("recipe=resnet101_lars_8x", "data=digits", "cluster=local", "batch=64", "steps=3")
    assert (run.model.name, run.data.image_size, run.steps) == ("resnet101", 32, 3)
    assert (run.optim.lr, run.schedule.warmup_epochs, run.epochs) == (2.5, 3, 38)


def test_sizes_of_a_recipe_stay_over_other_data_unless_the_command_line_names_them(frozen):
    run = frozen("recipe=resnet50_fast", *TRIED_SMALL)
    assert (run.data.image_size, run.train_size, run.progressive.start_size) == (256, 192, 160)
    run = frozen(
        "recipe=resnet50_fast", *TRIED_SMALL, "data.image_size=64", "data.train_size=64", "progressive.start_size=32"
    )
    assert (run.data.image_size, run.train_size, run.progressive.start_size) == (64, 64, 32)


# ------------------------------------------------------------------------------------------------------------ fine-tuning
def test_finetuning_counts_the_classes_and_trains_the_head_faster(frozen, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    run = frozen("recipe=finetune_folder", f"data.dir={tmp_path}", "init=/weights.safetensors")
    assert (run.data.name, run.data.classes, run.init) == ("folder", 3, "/weights.safetensors")
    assert (run.finetune.freeze, run.finetune.lr_multipliers) == ("none", {"fc": 10})
    rundir.save(run, tmp_path)
    assert rundir.load(tmp_path) == run
    head = frozen("recipe=finetune_folder", f"data.dir={tmp_path}", "init=/w.npz", "finetune.freeze=head", "batch=256")
    assert (head.finetune.freeze, head.optim.lr) == ("head", pytest.approx(0.01))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data.dir=/shards", "data.classes=5"), r"^init: .*must be given, as in init="),
        (("init=w",), r"^data\.dir: must be given, as in data\.dir="),
    ],
)
def test_finetuning_asks_for_what_only_the_user_knows(frozen, words, told):
    with pytest.raises(UserError, match=told) as caught:
        frozen("recipe=finetune_folder", *words)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------- 50 steps, against NumPy written from the papers
STEPS = 50
SMALL = Model("small", Block.bottleneck, [1] * 4, groups=2, width=2, filters=4, zero_init_residual=False)
SMALL.depths = [1]  # one stage is enough here; only the configuration insists on four


def paper_lr(name, step, per_epoch):
    """arXiv:1706.02677 sec. 2.2 (warm-up and drops), arXiv:1708.03888 sec. 5 (polynomial), arXiv:1608.03983 eq. 5."""
    horizon, warm_up = {
        "resnet50_sgd_8x": (90, 3),
        "resnext101_8x": (90, 8),
        "resnet50_lars_8x": (38, 3),
        "resnet50_lars_32k": (58, 16),
    }[name]
    peak, epoch = ROWS[name].peak, step / per_epoch
    if epoch < warm_up:
        return peak * epoch / warm_up
    if name == "resnet50_sgd_8x":
        return peak * 0.1 ** ((epoch >= 30) + (epoch >= 60) + (epoch >= 80))
    left = 1 - (epoch - warm_up) / (horizon - warm_up)
    if name == "resnext101_8x":
        return peak * (1 + math.cos(math.pi * (1 - left))) / 2
    return 1e-4 + (peak - 1e-4) * left**2


def paper_weights(name, w, gradients, rates, kind):
    """The last weights of arXiv:1706.02677 eq. 9 (SGD) or of arXiv:1708.03888 alg. 1 (LARS), in float64."""
    momentum, decay = ROWS[name].momentum, ROWS[name].decay
    w, v = w.astype(np.float64), np.zeros(w.shape)
    for g, lr in zip(gradients, rates, strict=True):
        g = g.astype(np.float64)
        if ROWS[name].optim == "sgd":
            v = momentum * v + (g if kind in ("gamma", "beta") else g + decay * w)
            w = w - lr * v
        elif kind == "kernel":
            local = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w))
            v = momentum * v + lr * local * (g + decay * w)
            w = w - v
        else:
            v = momentum * v + lr * g
            w = w - v
    return w


@pytest.fixture(scope="module")
def network():
    """All kinds of variables, each with its kind by its layer and shape: kernels (plain, grouped, the head's), ..."""
    built = resnet.build(SMALL, 10, "float32")
    kinds = []
    for layer in built.layers:
        norm = isinstance(layer, tf.keras.layers.BatchNormalization)
        for v in layer.trainable_variables:
            which = ["gamma", "beta"][v is layer.beta] if norm else "bias" if len(v.shape) == 1 else "kernel"
            kinds.append((v, which))
    return built, kinds


@pytest.mark.parametrize(
    ("name", "per_epoch"),  # few steps an epoch, so that 50 of them see the warm-up and what comes after it
    [("resnet50_sgd_8x", 1), ("resnext101_8x", 1), ("resnet50_lars_8x", 2), ("resnet50_lars_32k", 1)],
)
def test_50_steps_of_a_recipe_are_the_formulas_of_the_papers(of, network, name, per_epoch):
    run = of(name)
    lr = schedule.plan(run, per_epoch * run.batch).lr
    rates = [paper_lr(name, step, per_epoch) for step in range(STEPS)]
    np.testing.assert_allclose(lr(np.arange(STEPS)), rates, rtol=1e-6)
    built, kinds = network
    assert {id(v) for v, _ in kinds} == {id(v) for v in built.trainable_variables}
    assert {kind for _, kind in kinds} == {"kernel", "gamma", "beta", "bias"}
    random = np.random.default_rng(5)
    variables = [v for v, _ in kinds]
    starts = [random.normal(0, 0.5, v.shape).astype(np.float32) for v in variables]
    size = 0.002  # of the gradients: the weights stay near 1, where float32 has seven digits
    grads = [[random.normal(0, size, v.shape).astype(np.float32) for v in variables] for _ in range(STEPS)]
    for variable, value in zip(variables, starts, strict=True):
        variable.assign(value)
    optimizer = optimizers.build(run.optim, variables)

    @tf.function
    def steps(gradients, rates):
        for step in tf.range(STEPS):
            optimizer.apply([gradient[step] for gradient in gradients], rates[step])

    steps(
        [tf.stack(of_variable) for of_variable in zip(*grads, strict=True)],
        tf.constant(lr(np.arange(STEPS)), tf.float32),
    )
    for (variable, kind), start, of_variable in zip(kinds, starts, zip(*grads, strict=True), strict=True):
        wanted = paper_weights(name, start, of_variable, rates, kind)
        off = np.abs(variable.numpy() - wanted).max() / np.abs(wanted).max()
        assert off < 1e-6, (variable.name, off)
        assert np.abs(wanted - start).max() > 1e-3, variable.name
