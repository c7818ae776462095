"""From overrides to a checked run; and runs lent to the commands beside training."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from resnet import UserError, rundir
from resnet.config import compose, fingerprint
from resnet.config.model import Policy
from resnet.config.optim import Lars, Sgd
from resnet.config.schedule import Piecewise
from resnet.config.track import Mlflow, Off


# ------------------------------------------------------------------------------------------------------- precedence
def test_nothing_said_is_resnet50_on_the_digits_with_sgd(frozen, tmp_path):
    run = frozen()
    assert (run.model.name, run.data.name, run.dtype.policy) == ("resnet50", "digits", Policy.float32)
    assert isinstance(run.optim, Sgd) and isinstance(run.schedule, Piecewise) and isinstance(run.track, Mlflow)
    assert run.schedule.warmup_epochs == 3
    assert (run.batch, run.epochs, run.recipe, run.cluster.ranks) == (256, 90.0, None, 1)
    assert Path(run.out).parent == tmp_path / "runs"


def test_a_part_beats_the_defaults_and_the_command_line_beats_the_part(frozen):
    assert frozen().data.image_size == 32  # of data=digits; the dataclass says 224
    assert frozen("data.image_size=24").data.image_size == 24
    assert frozen("data.image_size=24", "data=digits").data.image_size == 24


RECIPE = """# @package _global_
# for a test
defaults:
  - override /optim: lars
  - override /model: resnet18
  - _self_
batch: 64
label_smoothing: 0.3
schedule: {warmup_epochs: 1}
data: {image_size: 24}
"""


def test_a_recipe_beats_the_parts_and_config_yaml(recipe):
    run = recipe(RECIPE)
    assert run.recipe == "mine"
    assert run.model.name == "resnet18" and isinstance(run.optim, Lars)
    assert (run.batch, run.label_smoothing, run.data.image_size) == (64, 0.3, 24)
    assert run.schedule.warmup_epochs == 1  # optim=lars says 3


@pytest.mark.parametrize(
    ("words", "optim", "schedule"),  # (lr, momentum, decay), (name, warm-up, horizon)
    [
        ("recipe=quickstart", (0.03, 0.9, 5e-4), ("cosine", 2, None)),
        ("recipe=quickstart optim=lars", (2.5, 0.9, 1e-4), ("cosine", 2, None)),
        ("recipe=quickstart_fast optim=lars", (2.5, 0.9, 1e-4), ("cosine", 0.5, None)),
        ("recipe=quickstart optim=lars optim.lr=0.4", (0.4, 0.9, 1e-4), ("cosine", 2, None)),
        ("recipe=quickstart schedule=polynomial", (0.03, 0.9, 5e-4), ("polynomial", 2, None)),
        ("recipe=resnext101_8x optim=lars", (9.5, 0.9, 1e-4), ("cosine", 3, None)),
        ("recipe=resnet50_lars_32k", (21.2, 0.94, 2.5e-5), ("polynomial", 16, 58)),
        ("recipe=resnet50_lars_32k optim=sgd", (16.384, 0.9, 1e-4), ("piecewise", 16, None)),
        ("recipe=resnet50_lars_32k schedule=cosine", (21.2, 0.94, 2.5e-5), ("cosine", 16, None)),
        ("recipe=resnet50_fast schedule=cosine", (1.7, 0.9, 1e-4), ("cosine", 2, None)),
    ],
)
def test_a_recipe_s_rate_belongs_to_its_optimizer_and_its_curve_to_its_schedule(frozen, words, optim, schedule):
    run = frozen(*words.split(), *(() if "quickstart" in words else ("data.dir=/shards",)))
    assert (run.optim.lr, run.optim.momentum, run.optim.weight_decay) == pytest.approx(optim)
    shape = run.schedule.name, run.schedule.warmup_epochs, getattr(run.schedule, "horizon_epochs", None)
    assert shape == schedule


def test_a_rate_without_an_optimizer_is_for_the_default_one(recipe):
    body = "# @package _global_\nbatch: 64\noptim: {lr: 0.7}\n"
    assert (recipe(body).optim.lr, recipe(body, "optim=lars").optim.lr) == (0.7, 2.5)


def test_a_recipe_without_self_in_its_defaults_means_the_same(recipe):
    assert recipe(RECIPE.replace("  - _self_\n", ""), "out=x") == recipe(RECIPE, "out=x")


def test_the_command_line_beats_the_recipe_whatever_the_order(recipe):
    said = ["batch=128", "model=tiny", "schedule.warmup_epochs=2", "data.image_size=16", "optim.lr=0.7"]
    for words in (said, said[::-1]):
        run = recipe(RECIPE, *words)
        assert (run.batch, run.model.name, run.schedule.warmup_epochs) == (128, "tiny", 2)
        assert (run.data.image_size, run.optim.lr) == (16, 0.7)
        assert run.label_smoothing == 0.3


# ------------------------------------------------------------------------------------------------------------ paths
def test_paths_are_absolute_and_know_the_home_folder(frozen, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    run = frozen("out=a/../b", "data.dir='~/shards'", "track.uri='sqlite:///c.db'")
    assert run.out == str(tmp_path / "b")
    assert run.data.dir == "/home/me/shards"
    assert run.track.uri == f"sqlite:///{tmp_path}/c.db"
    assert frozen("out='~'").out == "/home/me"
    assert frozen("out=/x/y").out == "/x/y"


def test_addresses_stay_as_they_are(frozen):
    run = frozen("data=imagenet", "data.dir='gs://bucket//imagenet'", "track.uri='http://127.0.0.1:5000'")
    assert run.data.dir == "gs://bucket//imagenet"
    assert run.track.uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize("name", ["it's two words", 'say "x", #1', "a=b;c:[d] 100 % ü"])
def test_a_folder_may_have_any_name(frozen, tmp_path, name):
    quoted = name.replace("'", "\\'")
    run = frozen(f"out='{quoted}'")
    assert run.out == str(tmp_path / name)
    rundir.save(run, Path(run.out))
    assert rundir.load(Path(run.out)) == run


def test_the_store_lies_beside_the_runs_and_the_digits_in_the_cache(frozen, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/some cache")
    run = frozen()
    assert run.track.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert run.data.dir == "/some cache/resnet/digits"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert frozen().data.dir == "/home/me/.cache/resnet/digits"


def test_two_starts_in_one_second_have_folders_of_their_own(frozen):
    assert frozen().out != frozen().out


# ------------------------------------------------------------------------------------- for the commands beside training
LENT_RUNS = [
    ["model=tiny", "optim=lars", "batch=96", "dtype=bf16", "out=x"],
    ["model=tiny", "schedule=cosine", "ema.decay=0.9", "finetune.freeze=[conv1,layer1.0]", "init=/w.npz", "mixup=0.2"],
    ["model=tiny", "mixup=0.2", "cutmix=1", "mix_switch=0.3", "mix_by=image", "loss=bce"],
    ["model=resnext50", "finetune.lr_multipliers={layer1.0: 0.5, fc: 10}", "data=synthetic", "data.classes=7"],
    [
        "recipe=quickstart",
        "data.train_size=24",
        "progressive.start_size=8",
        "progressive.multiple=8",
        "progressive.end_epochs=2",
        "data.mean=[1,2,3]",
        "augment=randaugment",
        "augment.repeats=4",
    ],
]


@pytest.mark.parametrize("words", LENT_RUNS, ids=" ".join)
def test_a_lent_run_is_the_saved_one_but_for_what_is_named(frozen, words):
    saved = frozen(*words)
    lent = compose.for_inference([], saved)
    names = ("progressive", "augment", "mixup", "cutmix", "mix_switch", "mix_by")
    training = {name: getattr(saved, name) for name in names}
    assert dataclasses.replace(lent, **training) == saved
    before = fingerprint.flat(lent)
    for word, name, value in (
        ("batch=3", "batch", 3),
        ("eval_steps=2", "eval_steps", 2),
        ("data.std=[1,1,1]", "data.std", [1] * 3),
    ):
        now = fingerprint.flat(compose.for_inference([word], saved))
        assert {knob: now[knob] for knob in now if now[knob] != before[knob]} == {name: value}


def test_a_part_that_is_named_replaces_the_saved_one_whole(frozen):
    saved = frozen("model=tiny", "model.batch_norm_momentum=0.5", "dtype=bf16", "cluster.threads=1")
    assert compose.for_inference(["model=tiny"], saved).model == frozen("model=tiny").model
    assert compose.for_inference(["dtype=fp32"], saved).dtype == frozen("dtype=fp32").dtype
    assert compose.for_inference(["cluster=local"], saved).cluster == frozen("cluster=local").cluster
    assert compose.for_inference(["model.groups=2"], saved).model == dataclasses.replace(saved.model, groups=2)


def test_how_the_network_was_taught_to_see_is_kept_over_other_data_unless_it_is_typed(frozen, tmp_path):
    seen = ["data.image_size=40", "data.eval_resize=44", "data.mean=[1,2,3]", "data.std=[4,5,6]"]
    saved = frozen("model=tiny", *seen, "data.flip=true", "data.on_corrupt=skip")
    other = frozen("data=imagenet", "data.dir=shards", *seen).data
    assert compose.for_inference(["data=imagenet", "data.dir=shards"], saved).data == other
    assert compose.for_inference(["data.dir=shards", "data=imagenet"], saved).data == other
    words = ["data=imagenet", "data.dir=shards", "data.image_size=32", "data.std=[7,8,9]"]
    wanted = dataclasses.replace(other, image_size=32, std=[7, 8, 9])
    assert compose.for_inference(words, saved).data == compose.for_inference(words[::-1], saved).data == wanted
    synthetic = compose.for_inference(["data=synthetic", "data.classes=10"], saved).data  # which has no eval_resize
    assert (synthetic.image_size, synthetic.mean, synthetic.std) == (40, [1, 2, 3], [4, 5, 6])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\nc\n")
    folder = compose.for_inference(["data=folder", "data.dir=shards"], saved).data
    assert (folder.classes, folder.image_size, folder.dir) == (3, 40, str(tmp_path / "shards"))
    assert compose.for_inference(["data.dir=shards"], saved).data == dataclasses.replace(
        saved.data, dir=str(tmp_path / "shards")
    )


def test_the_offset_of_labels_is_of_the_shards_it_was_for(frozen):
    saved = frozen("data=imagenet", "data.dir=shards", "data.label_offset=0")
    assert compose.for_inference(["batch=8"], saved).data.label_offset == 0
    assert compose.for_inference(["data.dir=others"], saved).data.label_offset is None
    assert compose.for_inference(["data.dir=others", "data.label_offset=1"], saved).data.label_offset == 1


def test_a_run_whose_images_are_gone_is_lent_all_the_same(frozen, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\nc\n")
    saved = frozen("data=folder", "data.dir=shards")
    shutil.rmtree(tmp_path / "shards")
    assert compose.for_inference(["batch=8"], saved) == dataclasses.replace(saved, batch=8)
    with pytest.raises(UserError, match=r"no classes\.txt here to tell the classes"):
        compose.for_inference(["data=folder", "data.dir=shards"], saved)


def test_without_a_saved_run_it_is_composed_of_the_words(raw, tmp_path):
    assert raw is not None
    run = compose.for_inference(["model=tiny", "data=synthetic", "data.classes=7", "batch=8", "dtype=bf16"])
    assert (run.model.name, run.data.name, run.data.classes, run.batch) == ("tiny", "synthetic", 7, 8)
    assert (run.dtype.policy, run.track, run.recipe, run.out) == (Policy.mixed_bfloat16, Off(), None, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=1",
        "steps=3",
        "out=x",
        "track=off",
        "recipe=quickstart",
        "init=x",
        "foo=1",
        "+data.x=1",
        "~model",
        "schedule=cosine",
        "seed=2",
        "eval=false",
        "resume=x",
        "=1",
        "hydra.run.dir=x",
        "datas.dir=x",
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_words_that_only_training_takes_are_not_lent(frozen, word, alone):
    with pytest.raises(UserError) as error:
        compose.for_inference(["batch=8", word], None if alone else frozen("model=tiny"))
    told = "not for this command; it takes model, data, dtype, cluster, their knobs, batch and eval_steps"
    assert str(error.value) == f"{word}: {told}"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.eval_resize=16", "data.eval_resize=16: the centre crop of data.image_size=32 must fit in"),
        ("data.mena=1", "data.mena: no such knob; did you mean data.mean?"),
        ("model=tine", "model=tine: no such option; did you mean tiny?"),
        ("batch=x", "batch=x: must be a whole number"),
        ("batch=1,2", "batch=1,2: several values"),
        ("eval_steps=0", "eval_steps=0: must be above 0, or null"),
        ("data.name=imagenet", "data.name=imagenet: a name goes with its settings; use data=imagenet instead"),
        ("model.depths=[1,2]", "model.depths=[1, 2]: give four numbers above 0"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_lent_is_checked_like_a_run(frozen, word, told, alone):
    with pytest.raises(UserError) as error:
        compose.for_inference([word], None if alone else frozen("model=tiny"))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("knob", ["model.name=mine", "dtype.name=mine", "cluster.name=mine"])
def test_a_name_of_ones_own_is_no_option_and_needs_none(frozen, knob):
    saved = frozen("model=tiny", knob)
    assert compose.for_inference(["batch=8"], saved) == dataclasses.replace(saved, batch=8)


@pytest.mark.parametrize("size", [24, 36])
def test_any_size_can_be_evaluated_after_crops_that_grew(frozen, size):
    growing = ("progressive.start_size=32", "progressive.multiple=32", "progressive.end_epochs=2")
    saved = frozen("model=tiny", "data.image_size=64", "data.eval_resize=72", *growing)
    assert compose.for_inference([f"data.image_size={size}"], saved).data.image_size == size
