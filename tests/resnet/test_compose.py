"""From overrides to a checked run, and from a run's folder back to it."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from resnet import UserError, compose
from resnet.config import Run
from resnet.settings.dtype import Policy
from resnet.settings.optim import Lars, LarsRow, Sgd
from resnet.settings.schedule import Cosine, Piecewise, Polynomial
from resnet.settings.track import Mlflow, Off


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """`raw("model=tiny", ...)`: what Hydra composes, before freeze(); Hydra knows of it until the test ends."""
    monkeypatch.chdir(tmp_path)
    compose.register()

    def make(*overrides, config="config"):
        with initialize_config_dir(str(compose.tree("conf")), version_base="1.3"), compose.explained():
            made = hydra_compose(config, list(overrides), return_hydra_config=True)
        made.hydra.runtime.cwd = str(tmp_path)
        HydraConfig.instance().set_config(made)
        return made

    yield make
    HydraConfig.instance().cfg = None


@pytest.fixture
def frozen(raw):
    """`frozen("model=tiny", ...)`: the checked run."""
    return lambda *overrides: compose.freeze(compose.task_config(raw(*overrides)))


@pytest.fixture
def recipe(tmp_path, raw):
    """`recipe(text, *overrides)`: the run of a recipe file of the user's own."""

    def make(text, *overrides):
        folder = tmp_path / "own" / "recipe"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.yaml").write_text(text)
        searched = f"hydra.searchpath=[file://{folder.parent}]"
        return compose.freeze(compose.task_config(raw(searched, "recipe=mine", *overrides)))

    return make


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


def test_a_recipe_without_self_in_its_defaults_means_the_same(recipe):
    assert recipe(RECIPE.replace("  - _self_\n", ""), "out=x") == recipe(RECIPE, "out=x")


def test_the_command_line_beats_the_recipe_whatever_the_order(recipe):
    said = ["batch=128", "model=tiny", "schedule.warmup_epochs=2", "data.image_size=16", "optim.lr=0.7"]
    for words in (said, said[::-1]):
        run = recipe(RECIPE, *words)
        assert (run.batch, run.model.name, run.schedule.warmup_epochs) == (128, "tiny", 2)
        assert (run.data.image_size, run.optim.lr) == (16, 0.7)
        assert run.label_smoothing == 0.3


# ------------------------------------------------------------------------------------------------------- optim=lars
# recipes.md: global batch -> peak lr, warm-up, decay, epochs, horizon of the polynomial. 38 where the table leaves it open.
ROWS = {
    1: (2.5, 3, 1e-4, 38, 38),
    256: (2.5, 3, 1e-4, 38, 38),
    257: (9.5, 3, 1e-4, 38, 38),
    2048: (9.5, 3, 1e-4, 38, 38),
    2049: (13, 7, 1e-4, 40, 41),
    4096: (13, 7, 1e-4, 40, 41),
    4097: (17, 5, 1e-4, 42, 43),
    8192: (17, 5, 1e-4, 42, 43),
    8193: (10, 5, 1e-4, 38, 38),
    16383: (10, 5, 1e-4, 38, 38),
    16384: (25, 5, 1e-4, 38, 38),
    32767: (25, 5, 1e-4, 38, 38),
    32768: (32, 14, 1e-4, 38, 38),
    65536: (32, 14, 1e-4, 38, 38),
}


@pytest.mark.parametrize("batch", [256, 257, 4096, 65536])
def test_lars_takes_the_row_of_its_global_batch(frozen, batch):
    run = frozen("optim=lars", f"batch={batch}")
    lr, warmup, decay, epochs, horizon = ROWS[batch]
    assert (run.optim.lr, run.optim.weight_decay, run.epochs) == (lr, decay, epochs)
    assert isinstance(run.schedule, Polynomial)
    assert run.schedule.warmup_epochs == warmup
    assert (run.schedule.horizon_epochs or run.epochs) == horizon
    assert (run.schedule.power, run.schedule.end_lr) == (2, 1e-4)
    assert (run.optim.momentum, run.optim.trust_coefficient, run.optim.epsilon) == (0.9, 0.001, 0.0)


def test_the_rows_of_lars_are_the_published_ones_up_to_the_last_image(frozen):
    rows = frozen("optim=lars").optim.rows
    for batch, (lr, warmup, decay, epochs, horizon) in ROWS.items():
        root = OmegaConf.create({"batch": batch, "optim": {"rows": [dataclasses.asdict(row) for row in rows]}})
        row = {column: compose.lars_row(column, _root_=root) for column in vars(rows[0])}
        assert (row["lr"], row["warmup_epochs"], row["weight_decay"], row["epochs"]) == (lr, warmup, decay, epochs), (
            batch
        )
        assert (row["horizon_epochs"] or row["epochs"]) == horizon, batch


def test_every_row_of_lars_says_where_it_is_from(frozen):
    rows = frozen("optim=lars").optim.rows
    assert all(isinstance(row, LarsRow) and row.source for row in rows)
    limits = [row.up_to for row in rows]
    assert limits[-1] is None and limits[:-1] == sorted(set(limits[:-1]))


@pytest.mark.parametrize(
    ("word", "knob", "value"),
    [
        ("optim.lr=0.5", "optim.lr", 0.5),
        ("optim.weight_decay=0", "optim.weight_decay", 0.0),
        ("optim.momentum=0.5", "optim.momentum", 0.5),
        ("epochs=12", "epochs", 12.0),
        ("schedule.warmup_epochs=1", "schedule.warmup_epochs", 1.0),
        ("schedule.power=1", "schedule.power", 1.0),
        ("schedule.end_lr=0", "schedule.end_lr", 0.0),
        ("schedule.horizon_epochs=50", "schedule.horizon_epochs", 50.0),
        ("schedule=cosine", "schedule.name", "cosine"),
    ],
)
def test_what_the_command_line_names_beats_lars(frozen, word, knob, value):
    mine = compose.flat(frozen(word, "optim=lars"))
    lr, warmup, decay, epochs, _ = ROWS[256]
    row = {"optim.lr": lr, "optim.weight_decay": decay, "epochs": epochs, "schedule.warmup_epochs": warmup}
    assert {name: mine[name] for name in (*row, knob)} == {**row, knob: value}


def test_lars_with_the_cosine_keeps_lars_lr_and_warm_up(frozen):
    run = frozen("optim=lars", "schedule=cosine", "out=x")
    assert isinstance(run.schedule, Cosine)
    assert (run.optim.lr, run.schedule.warmup_epochs, run.epochs) == (2.5, 3, 38)
    assert frozen("schedule=cosine", "optim=lars", "out=x") == run


def test_a_batch_that_no_row_holds_is_refused_by_name(frozen):
    with pytest.raises(UserError, match=r"batch=257: no row of optim\.rows"):
        frozen(
            "optim=lars", "batch=257", "optim.rows=[{up_to: 256, lr: 1, warmup_epochs: 1, weight_decay: 0, epochs: 9}]"
        )


# -------------------------------------------------------------------------------------------------------- optim=sgd
@pytest.mark.parametrize("batch", [1, 64, 256, 2048, 8192])
def test_sgd_has_0_128_per_256_images_on_one_server(frozen, batch):
    assert frozen(f"batch={batch}").optim.lr == pytest.approx(0.128 * batch / 256, rel=1e-12)


def test_sgd_has_0_1_per_256_images_on_several_servers():
    def lr(**cluster):
        return compose.linear_lr(0.128, 0.1, _root_=OmegaConf.create({"batch": 4096, "cluster": cluster}))

    assert lr() == pytest.approx(2.048)
    assert lr(hosts=["a"]) == pytest.approx(2.048)
    assert lr(hosts=["a", "b"]) == pytest.approx(1.6)
    assert compose.linear_lr(0.256, _root_=OmegaConf.create({"batch": 1024, "cluster": {}})) == pytest.approx(1.024)


def test_the_lr_follows_the_batch_of_a_recipe_too(recipe):
    assert recipe("# @package _global_\nbatch: 512\n").optim.lr == pytest.approx(0.256)
    assert recipe("# @package _global_\nbatch: 512\n", "batch=1024").optim.lr == pytest.approx(0.512)


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
    compose.save(run, Path(run.out))
    assert compose.load(Path(run.out)) == run


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


# -------------------------------------------------------------------------------------------------- there and back
@pytest.fixture(scope="module")
def default_yaml(tmp_path_factory):
    """config.yaml of a run of which nothing was said, as it is printed."""
    program = [sys.executable, "-m", "resnet.train", "--cfg", "job", "--resolve"]
    return subprocess.run(
        program, cwd=tmp_path_factory.mktemp("empty"), capture_output=True, text=True, check=True
    ).stdout


SHAPES = [
    (),
    ("recipe=quickstart",),
    ("optim=lars", "dtype=bf16", "track=off"),
    ("optim=lars", "batch=4096", "schedule=cosine"),
    ("schedule=constant", "data=synthetic", "cluster=gpu1", "model=resnext50", "steps=7", "stop_at_top1=0.5"),
    ("data=imagenet", "data.dir=/x", "model=resnet18", "optim.nesterov=true", "schedule.boundaries_epochs=[1e-3,1000]",
     "schedule.warmup_epochs=0", "optim.weight_decay=1e-7", "eval=false", "seed=0"),
    ("track.run_name='a: b #c'", "track.experiment='null'", "out='3'"),
]  # fmt: skip


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_a_saved_run_is_loaded_as_it_was(frozen, words, monkeypatch, tmp_path):
    run = frozen(*words)
    compose.save(run, tmp_path / "saved")
    monkeypatch.chdir("/")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    again = compose.load(tmp_path / "saved")
    assert again == run
    for knob in dataclasses.fields(Run):
        assert type(getattr(again, knob.name)) is type(getattr(run, knob.name))
    assert compose.flat(again) == compose.flat(run)


def test_config_yaml_is_plain_resolved_and_complete(frozen, tmp_path):
    run = frozen("optim=lars")
    compose.save(run, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert "${" not in text and "???" not in text and "!!" not in text
    saved = yaml.safe_load(text)
    assert set(saved) == {knob.name for knob in dataclasses.fields(Run)}
    assert saved["optim"]["name"] == "lars" and saved["optim"]["lr"] == 2.5
    assert len(saved["optim"]["rows"]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]  # nothing is left of writing it


def test_every_knob_has_one_flat_name(frozen):
    flat = compose.flat(frozen("optim=lars"))
    assert flat["optim.trust_coefficient"] == 0.001
    assert flat["data.image_size"] == 32
    assert flat["model.block"] == "bottleneck" and flat["cluster.device"] == "cpu"
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())
    assert "optim.nesterov" not in flat


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}: no run here \(config\.yaml is missing\)"):
        compose.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "- 1", "a: [", "\tx", "model: 3", "{}", "batch: 3\nmodel: {name: tiny}", "\x00"],
    ids=repr,
)
def test_a_config_yaml_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        compose.load(tmp_path)
    assert f"{tmp_path}/config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda saved: saved["optim"].update(momentm=1), "optim.momentm"),
        (lambda saved: saved["optim"].update(lr="fast"), "optim.lr=fast"),
        (lambda saved: saved["optim"].update(lr=-1), "optim.lr=-1"),
        (lambda saved: saved["optim"].update(name="adam"), "adam"),
        (lambda saved: saved.update(batch=None), "batch"),
        (lambda saved: saved.pop("optim"), "optim"),
        (lambda saved: saved.update(extra=1), "extra"),
    ],
)
def test_a_config_yaml_that_was_edited_is_checked_again(default_yaml, tmp_path, edit, named):
    saved = yaml.safe_load(default_yaml)
    edit(saved)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError) as caught:
        compose.load(tmp_path)
    assert named in str(caught.value) and "\n" not in str(caught.value)


ODD = [
    "a${b}",
    "${batch}",
    r"\${b}",
    r"\\${b}\\",
    "a${oc.env:HOME}",
    "off",
    "1e3",
    "null",
    "a: b # c",
    "'\"",
    "é\n\t ",
    "\udc80",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_every_string_of_a_run_comes_back_as_it_was(frozen, raw, tmp_path, text):
    run = frozen("data=folder", "data.dir=/x", "data.classes=3", "init=/y", "optim=lars", "track.tags={a: b}")
    strings = [name for name, value in compose.flat(run).items() if isinstance(value, str)]
    strings = [name for name in strings if not hasattr(of(run, name), "name")]  # no Enum
    assert {"out", "init", "data.dir", "track.uri", "track.experiment", "track.run_name", "model.name"} <= set(strings)
    for name in strings:
        if name not in ("optim.name", "schedule.name", "data.name", "track.name", "finetune.freeze"):  # which choose
            put(run, name, f"sqlite:////{text}" if name == "track.uri" else f"/{text}")
    run.track.tags, run.cluster.hosts, run.finetune.freeze = {"a": text}, [f"{text}:1"], [text]
    run.optim.rows[0].source = text
    compose.save(run, tmp_path / "mine")
    assert compose.load(tmp_path / "mine") == run
    compose.check_folder(run, tmp_path / "mine")
    again = compose.resumed(raw("resume=mine"))
    again.out = run.out
    assert again == run


def of(run, name):
    """The knob of a dotted name, as it is."""
    for part in name.split("."):
        run = getattr(run, part)
    return run


def put(run, name, value):
    parent, _, knob = name.rpartition(".")
    setattr(of(run, parent) if parent else run, knob, value)


# ------------------------------------------------------------------------------------------------ the folder of a run
def test_a_folder_is_taken_once_and_again_by_the_same_run(frozen, tmp_path):
    run = frozen("out=mine")
    compose.claim(run, tmp_path / "mine")
    compose.claim(run, tmp_path / "mine")
    assert compose.load(tmp_path / "mine") == run


def test_what_does_not_move_the_weights_may_change_in_a_folder(frozen, tmp_path):
    compose.claim(frozen(), tmp_path / "mine")
    run = frozen("steps=9", "eval=false", "log_every_steps=1", "track=off", "cluster.threads=1", "data.dir=/moved",
                 "on_nan.policy=skip")  # fmt: skip
    compose.claim(run, tmp_path / "mine")
    assert compose.load(tmp_path / "mine") == run


def test_another_run_is_not_written_over_the_one_that_lies_there(frozen, tmp_path):
    compose.claim(frozen(), tmp_path / "mine")
    before = (tmp_path / "mine" / "config.yaml").read_bytes()
    for word, told in {
        "optim.lr=0.5": "optim.lr was 0.128 and is 0.5",
        "seed=2": "seed was 1 and is 2",
        "model=tiny": "model.name was resnet50 and is tiny",
        "optim=lars": "optim.name was sgd and is lars",
        "epochs=4": "epochs was 90.0 and is 4.0",
    }.items():
        other = frozen(word)
        for refuse in (compose.check_folder, compose.claim):
            with pytest.raises(UserError) as caught:
                refuse(other, tmp_path / "mine")
            assert f"out={tmp_path}/mine: another run lies here" in str(caught.value)
            assert told in str(caught.value) and "give another out=" in str(caught.value)
    assert (tmp_path / "mine" / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_by_name(frozen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"^out={tmp_path}/file/run: cannot be written to"):
        compose.save(frozen(), tmp_path / "file" / "run")


def test_a_result_counts_until_more_or_else_is_asked_for(frozen):
    run = frozen("steps=5", "track=off")
    mark = compose.fingerprint(run)
    for same in ({"log_every_steps": 7}, {"out": "there"}, {"save_every_steps": 2}, {"recipe": "its name"}):
        assert compose.fingerprint(dataclasses.replace(run, **same)) == mark
    for other in ({"steps": 6}, {"eval": False}, {"eval_steps": 1}, {"stop_at_top1": 0.9}, {"seed": 2}, {"epochs": 3}):
        assert compose.fingerprint(dataclasses.replace(run, **other)) != mark


# ----------------------------------------------------------------------------------------------------------- resume=
@pytest.fixture
def begun(frozen, tmp_path):
    """The folder of a run that was begun."""
    run = frozen("model=tiny", "optim=lars", "optim.lr=3", "out=begun", "track.run_name='my run'", "steps=4")
    compose.claim(run, tmp_path / "begun")
    return run


def test_resume_goes_on_with_the_settings_of_the_folder(begun, raw):
    assert compose.resumed(raw("resume=begun")) == begun


def test_resume_takes_what_does_not_move_the_weights_from_the_command_line(begun, raw):
    run = compose.resumed(raw("resume=begun", "steps=9", "eval=false", "track=off", "cluster.threads=1"))
    assert (run.steps, run.eval, run.cluster.threads) == (9, False, 1)
    assert isinstance(run.track, Off)
    assert (run.model, run.optim, run.schedule, run.out) == (begun.model, begun.optim, begun.schedule, begun.out)


@pytest.mark.usefixtures("begun")
def test_resume_takes_a_string_as_it_is(raw):
    assert compose.resumed(raw("resume=begun", r"track.run_name='a\${b}'")).track.run_name == "a${b}"


@pytest.mark.usefixtures("begun")
def test_resume_follows_a_folder_that_was_moved(raw, tmp_path):
    (tmp_path / "begun").rename(tmp_path / "moved here")
    assert compose.resumed(raw("resume='moved here'")).out == str(tmp_path / "moved here")


@pytest.mark.parametrize("word", ["optim.lr=1", "model=resnet18", "out=x", "recipe=quickstart", "+x=1"])
@pytest.mark.usefixtures("begun")
def test_resume_refuses_what_would_be_another_run(raw, word):
    with pytest.raises(UserError) as caught:
        compose.resumed(raw("resume=begun", word))
    message = str(caught.value)
    assert word in message or word.lstrip("+") in message
    assert "\n" not in message


def test_resume_of_nothing_is_refused_by_name(raw, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/nowhere: no run here"):
        compose.resumed(raw("resume=nowhere"))


# ------------------------------------------------------------------------------------- for the commands beside training
LENT_RUNS = [
    ["model=tiny", "optim=lars", "batch=96", "dtype=bf16", "out=x"],
    ["model=tiny", "schedule=cosine", "ema.decay=0.9", "finetune.freeze=[conv1,layer1.0]", "init=/w.npz", "mixup=0.2"],
    ["model=resnext50", "finetune.lr_multipliers={layer1.0: 0.5, fc: 10}", "data=synthetic", "data.classes=7"],
    [
        "recipe=quickstart",
        "data.train_size=24",
        "progressive.start_size=8",
        "progressive.multiple=8",
        "progressive.end_epochs=2",
        "data.mean=[1,2,3]",
    ],
]


@pytest.mark.parametrize("words", LENT_RUNS, ids=" ".join)
def test_a_lent_run_is_the_saved_one_but_for_what_is_named(frozen, words):
    saved = frozen(*words)
    lent = compose.lent([], saved)
    assert dataclasses.replace(lent, progressive=saved.progressive) == saved  # growing crops are training's alone
    before = compose.flat(lent)
    for word, name, value in (
        ("batch=3", "batch", 3),
        ("eval_steps=2", "eval_steps", 2),
        ("data.std=[1,1,1]", "data.std", [1] * 3),
    ):
        now = compose.flat(compose.lent([word], saved))
        assert {knob: now[knob] for knob in now if now[knob] != before[knob]} == {name: value}


def test_a_part_that_is_named_replaces_the_saved_one_whole(frozen):
    saved = frozen("model=tiny", "model.batch_norm_momentum=0.5", "dtype=bf16", "cluster.threads=1")
    assert compose.lent(["model=tiny"], saved).model == frozen("model=tiny").model
    assert compose.lent(["dtype=fp32"], saved).dtype == frozen("dtype=fp32").dtype
    assert compose.lent(["cluster=local"], saved).cluster == frozen("cluster=local").cluster
    assert compose.lent(["model.groups=2"], saved).model == dataclasses.replace(saved.model, groups=2)


def test_how_the_network_was_taught_to_see_is_kept_over_other_data_unless_it_is_typed(frozen, tmp_path):
    seen = ["data.image_size=40", "data.eval_resize=44", "data.mean=[1,2,3]", "data.std=[4,5,6]"]
    saved = frozen("model=tiny", *seen, "data.flip=true", "data.on_corrupt=skip")
    other = frozen("data=imagenet", "data.dir=shards", *seen).data
    assert compose.lent(["data=imagenet", "data.dir=shards"], saved).data == other
    assert compose.lent(["data.dir=shards", "data=imagenet"], saved).data == other
    words = ["data=imagenet", "data.dir=shards", "data.image_size=32", "data.std=[7,8,9]"]
    wanted = dataclasses.replace(other, image_size=32, std=[7, 8, 9])
    assert compose.lent(words, saved).data == compose.lent(words[::-1], saved).data == wanted
    synthetic = compose.lent(["data=synthetic", "data.classes=10"], saved).data  # which has no eval_resize
    assert (synthetic.image_size, synthetic.mean, synthetic.std) == (40, [1, 2, 3], [4, 5, 6])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\nc\n")
    folder = compose.lent(["data=folder", "data.dir=shards"], saved).data
    assert (folder.classes, folder.image_size, folder.dir) == (3, 40, str(tmp_path / "shards"))
    assert compose.lent(["data.dir=shards"], saved).data == dataclasses.replace(
        saved.data, dir=str(tmp_path / "shards")
    )


def test_a_run_whose_images_are_gone_is_lent_all_the_same(frozen, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("a\nb\nc\n")
    saved = frozen("data=folder", "data.dir=shards")
    shutil.rmtree(tmp_path / "shards")
    assert compose.lent(["batch=8"], saved) == dataclasses.replace(saved, batch=8)
    with pytest.raises(UserError, match=r"no classes\.txt here to tell the classes"):
        compose.lent(["data=folder", "data.dir=shards"], saved)


def test_without_a_saved_run_it_is_composed_of_the_words(raw, tmp_path):
    assert raw is not None
    run = compose.lent(["model=tiny", "data=synthetic", "data.classes=7", "batch=8", "dtype=bf16"])
    assert (run.model.name, run.data.name, run.data.classes, run.batch) == ("tiny", "synthetic", 7, 8)
    assert (run.dtype.policy, run.track, run.recipe, run.out) == (Policy.mixed_bfloat16, Off(), None, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["optim.lr=1", "steps=3", "out=x", "track=off", "recipe=quickstart", "init=x", "foo=1",
                                  "+data.x=1", "~model", "schedule=cosine", "seed=2", "eval=false", "resume=x", "=1",
                                  "hydra.run.dir=x", "datas.dir=x"])  # fmt: skip
@pytest.mark.parametrize("alone", [True, False])
def test_words_that_only_training_takes_are_not_lent(frozen, word, alone):
    with pytest.raises(UserError) as error:
        compose.lent(["batch=8", word], None if alone else frozen("model=tiny"))
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
        compose.lent([word], None if alone else frozen("model=tiny"))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("knob", ["model.name=mine", "dtype.name=mine", "cluster.name=mine"])
def test_a_name_of_ones_own_is_no_option_and_needs_none(frozen, knob):
    saved = frozen("model=tiny", knob)
    assert compose.lent(["batch=8"], saved) == dataclasses.replace(saved, batch=8)


@pytest.mark.parametrize("size", [24, 36])
def test_any_size_can_be_evaluated_after_crops_that_grew(frozen, size):
    growing = ("progressive.start_size=32", "progressive.multiple=32", "progressive.end_epochs=2")
    saved = frozen("model=tiny", "data.image_size=64", "data.eval_resize=72", *growing)
    assert compose.lent([f"data.image_size={size}"], saved).data.image_size == size


# ------------------------------------------------------------------------------------------------------ an installation
def test_parts_are_found_inside_an_installed_package_and_beside_it_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "resnet"
    shutil.copytree(compose.tree("conf"), package / "conf")
    monkeypatch.setattr(compose, "HERE", package)
    assert compose.tree("conf") == package / "conf"
    monkeypatch.setattr(compose, "HERE", tmp_path / "checkout" / "resnet")
    assert compose.tree("conf") == tmp_path / "checkout" / "conf"
