"""Every file below conf/ and experiments/: it composes, freezes, says what it is, and holds the published numbers."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from resnet import rundir
from resnet.config import compose, fingerprint, help
from resnet.config.checks import MISSING
from resnet.config.data import Digits, Synthetic
from resnet.config.model import Block, Policy
from resnet.config.optim import Lars, Sgd
from resnet.config.run import VARIANTS
from resnet.config.schedule import Constant, Cosine, Piecewise, Polynomial

ROOT = Path(__file__).resolve().parents[2]
PARTS = sorted((path.parent.name, path.stem) for path in (ROOT / "conf").glob("*/*.yaml"))
WHOLES = sorted((path.parent.name, path.stem) for path in (ROOT / "experiments").glob("*/*.yaml"))
RECIPES = [name for group, name in WHOLES if group == "recipe"]
USERS = dict.fromkeys(
    ("finetune_folder", "finetune_strong"), ("init=/weights", "data.classes=16")
)  # what only the user of a recipe knows
SWEEPS = [name for group, name in WHOLES if group == "sweep"]


@pytest.fixture
def frozen(composed):
    """`frozen("model=tiny", ...)`: the checked run."""

    def make(*overrides):
        config = composed(*overrides)
        HydraConfig.instance().set_config(config)
        return compose.freeze(config)

    yield make
    HydraConfig.instance().cfg = None


def text(group, name):
    """The file of an option."""
    return next(
        path.read_text() for top in ("conf", "experiments") if (path := ROOT / top / group / f"{name}.yaml").exists()
    )


def schema(group, name):
    """The dataclass of an option."""
    return VARIANTS[group].get(name) or VARIANTS[group][""]


@pytest.mark.parametrize(("group", "name"), PARTS, ids=map("=".join, PARTS))
def test_every_part_composes_and_freezes_by_its_name(frozen, monkeypatch, group, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")  # which track=server asks for
    said = yaml.safe_load(text(group, name))
    said |= said.get(group, {})
    must = [knob.name for knob in dataclasses.fields(schema(group, name)) if knob.default == MISSING]
    only_the_user_knows = [f"{group}.{knob}=16" for knob in must if knob not in said]
    assert only_the_user_knows in ([], ["data.dir=16"])
    classes = ["data.classes=16"] if only_the_user_knows else []  # which may be counted in that folder
    part = getattr(frozen(f"{group}={name}", *only_the_user_knows, *classes), group)
    assert part.name == name
    assert type(part) is schema(group, name)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_freezes_and_comes_back_from_its_folder(frozen, tmp_path, name):
    run = frozen(f"recipe={name}", "data.dir=/shards", *USERS.get(name, ()))
    assert run.recipe == name
    rundir.save(run, tmp_path)
    assert rundir.load(tmp_path) == run


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_to_its_grid_and_every_point_freezes(composed, frozen, name):
    config = composed(f"sweep={name}")
    assert config.hydra.mode.name == "MULTIRUN"
    points = [[]]
    for knob, said in OmegaConf.to_container(config.hydra.sweeper.params).items():
        interval = re.fullmatch(r"tag\(log, interval\((.*), (.*)\)\)", str(said))
        values = interval.groups() if interval else str(said).split(",")
        points = [[*point, f"{knob}={value}"] for point in points for value in values]
    assert len(points) > 1
    for point in points:
        flat = fingerprint.flat(frozen(f"sweep={name}", *point))
        for knob, value in (word.split("=") for word in point):
            assert str(flat[f"{knob}.name" if knob in VARIANTS else knob]) == value


def test_lars_has_its_own_rate_and_warm_up_beside_sgd_in_a_sweep_of_optimizers(frozen):
    sgd, lars = (frozen("sweep=optim_model", f"optim={name}", "model=resnet18") for name in ("sgd", "lars"))
    assert (sgd.optim.lr, lars.optim.lr) == (pytest.approx(0.128 * 32 / 256), 2.5)
    assert sgd.schedule == lars.schedule == Polynomial(warmup_epochs=3, end_lr=1e-4)
    assert (sgd.epochs, lars.epochs, sgd.batch, lars.batch) == (8, 8, 32, 32)


def test_the_grid_of_batch_and_lr_has_four_points():
    params = yaml.safe_load(text("sweep", "batch_lr"))["hydra"]["sweeper"]["params"]
    assert {knob: len(values.split(",")) for knob, values in params.items()} == {"batch": 2, "optim.lr": 2}


@pytest.mark.parametrize(("group", "name"), PARTS + WHOLES, ids=map("=".join, PARTS + WHOLES))
def test_every_file_says_in_its_first_comment_what_it_is(group, name):
    lines = text(group, name).splitlines()
    said = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert said and len(said[0]) > 10
    assert len(said[0]) <= 110  # one line of --help
    packaged = lines[0] == "# @package _global_"
    assert packaged == (group in ("recipe", "sweep") or name == "lars")
    assert (group, name, said[0].removeprefix("# ")) in list(help.options())


@pytest.mark.parametrize(("group", "name"), PARTS, ids=map("=".join, PARTS))
def test_every_part_is_held_to_its_schema_and_says_only_what_differs(group, name):
    part = yaml.safe_load(text(group, name))
    path = f"/schema/{group}/{name}" if name in VARIANTS[group] else f"/schema/{group}"
    assert part["defaults"][0] in (f"{path}@_here_", f"{path}@{group}")
    assert part["defaults"][-1] == "_self_"
    defaults = {knob.name: knob.default for knob in dataclasses.fields(schema(group, name))}
    assert not [knob for knob, value in part.items() if defaults.get(knob) == value], "repeats a default"


def test_every_variant_has_a_file_and_every_group_a_default():
    for group, variants in VARIANTS.items():
        assert {name for name in variants if name} <= {name for of, name in PARTS if of == group}
    defaults = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["defaults"]
    named = {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}
    assert {group for group, _ in PARTS} <= set(named)
    assert named["recipe"] is None and named["sweep"] is None
    # config.yaml itself must come right after the schema, or it beats the recipes.
    assert defaults[:2] == ["schema/run@_here_", "_self_"]


# ------------------------------------------------------------------------------------------- the tables of recipes.md
@pytest.mark.parametrize(
    ("name", "block", "depths", "groups", "width"),
    [
        ("resnet18", "basic", [2, 2, 2, 2], 1, 64),
        ("resnet34", "basic", [3, 4, 6, 3], 1, 64),
        ("resnet50", "bottleneck", [3, 4, 6, 3], 1, 64),
        ("resnet101", "bottleneck", [3, 4, 23, 3], 1, 64),
        ("resnet152", "bottleneck", [3, 8, 36, 3], 1, 64),
        ("resnet200", "bottleneck", [3, 24, 36, 3], 1, 64),
        ("resnext50", "bottleneck", [3, 4, 6, 3], 32, 4),
        ("resnext101", "bottleneck", [3, 4, 23, 3], 32, 4),
        ("resnext152", "bottleneck", [3, 8, 36, 3], 32, 4),
    ],
)
def test_the_networks_are_the_published_ones(frozen, name, block, depths, groups, width):
    model = frozen(f"model={name}").model
    assert (model.block, model.depths, model.groups, model.width) == (Block[block], depths, groups, width)
    assert (model.filters, model.zero_init_residual) == (64, True)


def test_the_schedules_are_the_published_ones(frozen):
    piecewise = frozen("schedule=piecewise").schedule
    assert isinstance(piecewise, Piecewise)
    assert (piecewise.warmup_epochs, piecewise.boundaries_epochs, piecewise.factor) == (3, [30, 60, 80], 0.1)
    cosine = frozen("schedule=cosine").schedule
    assert isinstance(cosine, Cosine)
    assert (cosine.warmup_epochs, cosine.end_lr, cosine.horizon_epochs) == (8, 0, None)
    polynomial = frozen("schedule=polynomial").schedule
    assert isinstance(polynomial, Polynomial)
    assert (polynomial.warmup_epochs, polynomial.power) == (3, 2)
    constant = frozen("schedule=constant").schedule
    assert isinstance(constant, Constant) and constant.warmup_epochs == 0


def test_the_optimizers_are_the_published_ones(frozen):
    sgd, lars = frozen("optim=sgd").optim, frozen("optim=lars").optim
    assert isinstance(sgd, Sgd) and isinstance(lars, Lars)
    assert (sgd.momentum, sgd.weight_decay, sgd.nesterov, sgd.lr) == (0.9, 1e-4, False, 0.128)
    assert (lars.momentum, lars.trust_coefficient, lars.epsilon) == (0.9, 0.001, 0.0)


def test_the_data_are_the_published_ones(frozen):
    imagenet = frozen("data=imagenet", "data.dir=/shards").data
    assert (imagenet.classes, imagenet.image_size, imagenet.eval_resize) == (1000, 224, 256)
    assert (imagenet.min_area, imagenet.max_aspect, imagenet.flip) == (0.08, 4 / 3, True)
    assert imagenet.mean == [123.68, 116.78, 103.94] and imagenet.std == [58.393, 57.12, 57.375]
    digits = frozen("data=digits").data
    assert isinstance(digits, Digits) and digits.classes == 10
    assert not digits.flip  # a mirrored digit is another digit, or none
    synthetic = frozen("data=synthetic").data
    assert isinstance(synthetic, Synthetic)
    assert (synthetic.classes, synthetic.image_size) == (1000, 224)
    assert (synthetic.train_images, synthetic.eval_images) == (1_281_167, 50_000)


def test_the_dtypes_are_keras_policies(frozen):
    assert frozen("dtype=fp32").dtype.policy is Policy.float32
    assert frozen("dtype=bf16").dtype.policy is Policy.mixed_bfloat16


def test_the_quickstart_is_a_resnet50_on_the_digits_with_the_cosine(frozen):
    run = frozen("recipe=quickstart")
    assert (run.model.name, run.data.name, run.schedule.name, run.optim.name) == ("resnet50", "digits", "cosine", "sgd")
    assert run.data.image_size == 32 and run.eval and run.steps is None
    assert 0 < run.schedule.warmup_epochs < run.epochs
