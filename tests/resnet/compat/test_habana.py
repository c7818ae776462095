"""The original's commands: every option of every one, as the words of resnet.train that do the same, and real processes."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from resnet import UserError, files
from resnet.compat import habana, habana_options
from resnet.compat.request import requested
from resnet.config import compose, fingerprint
from resnet.distributed import gaudi

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
DATA = "/data/shards"
BF16 = ["-d", "bf16", "-a", DATA]


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight Gaudi cards, or with `machine(0)` none; and not the folder that the original took shards from."""

    def has(cards):
        monkeypatch.setattr(gaudi, "cards", lambda: cards)

    monkeypatch.setattr(habana, "STANDARD", "/nowhere")
    has(8)
    return has


@pytest.fixture(scope="module", autouse=True)
def parts():
    """Parts of runs are composed once each: Hydra takes a tenth of a second for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "one_group", functools.cache(compose.one_group))
        yield


def asked(command, *argv, **environ):
    """The request of a command line."""
    request = requested(command, [str(word) for word in argv], environ)
    return request, habana.commands(request)


def words(command, *argv, **environ):
    """The words of its resnet.train."""
    _, ((module, *said),) = asked(command, *argv, **environ)
    assert module == "resnet.train"
    return said


def sentence(command, *argv, **environ):
    """The one line that a senseless command line gets."""
    with pytest.raises(UserError) as error:
        asked(command, *argv, **environ)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- whole lines
# fmt: off
LINES = {
    # the commands of the original's description
    "demo_resnet -d bf16 -a /s":
        "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/s cluster=gaudi1 batch=256 epochs=1",
    "demo_resnet -d fp32 -a /s":
        "model=resnet50 optim=sgd dtype=fp32 data=imagenet data.dir=/s cluster=gaudi1 batch=128 epochs=1",
    "demo_resnet -d fp32 -rs 101 -a /s":
        "model=resnet101 optim=sgd dtype=fp32 data=imagenet data.dir=/s cluster=gaudi1 batch=128 epochs=1",
    "demo_resnet -d bf16 -s 1000 -l 50 -a /s":
        "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/s cluster=gaudi1 batch=256 epochs=1 "
        "steps=1000 eval_steps=50",
    "demo_resnet -d fp32 -e 9 -b 128 -a /s -m /m/ck_81":
        "model=resnet50 optim=sgd dtype=fp32 data=imagenet data.dir=/s cluster=gaudi1 batch=128 epochs=9 out=/m/ck_81",
    "demo_resnet -rs 101 --resnext -d bf16 -b 256 -a /s -m /m/resnext101":
        "model=resnext101 optim=sgd schedule=cosine optim.lr=${linear_lr:0.256} optim.momentum=0.875 "
        "optim.weight_decay=6.103515625e-05 dtype=bf16 data=imagenet data.dir=/s cluster=gaudi1 batch=256 epochs=1 "
        "out=/m/resnext101 schedule.horizon_epochs=90",
    "demo_resnet -d bf16 -rs 101 -s 2 -l 1 -a /s -m /x":
        "model=resnet101 optim=sgd dtype=bf16 data=imagenet data.dir=/s cluster=gaudi1 batch=256 epochs=1 "
        "steps=2 eval_steps=1 out=/x",
    # those that its published figures came of: the recipes of these names
    "demo_keras_resnet -d bf16 -e 90 -a /s": "recipe=resnet50_keras_sgd_1x data.dir=/s cluster=gaudi1",
    "demo_resnet -rs 50 -d bf16 -b 256 -e 90 -a /s": "recipe=resnet50_sgd_1x data.dir=/s cluster=gaudi1",
    "demo_resnet --enable-lars-optimizer -rs 50 -d bf16 -b 256 -e 38 -a /s":
        "recipe=resnet50_lars_1x data.dir=/s cluster=gaudi1",
    "demo_resnet --resnext -d bf16 -e 90 -a /s": "recipe=resnext101_1x data.dir=/s cluster=gaudi1",
    **{f"RESNET_SIZE={size} USE_LARS_OPTIMIZER={lars} IMAGENET_DIR=/s demo_resnet_hvd.sh":
           f"recipe=resnet{size}_{optim}_8x data.dir=/s cluster=hls1 eval_every_epochs=8"
       for size in (50, 101, 152) for lars, optim in ((0, "sgd"), (1, "lars"))},
    "RESNET_SIZE=101 IMAGENET_DIR=/s demo_resnet_hvd.sh --resnext":
        "recipe=resnext101_8x data.dir=/s cluster=hls1 eval_every_epochs=8",
}
# fmt: on


def typed(line):
    """(command, argv, environment) of a line with variables before its command."""
    parts = shlex.split(line)
    number = next(number for number, part in enumerate(parts) if part in habana_options.COMMANDS)
    return parts[number], parts[number + 1 :], dict(part.split("=", 1) for part in parts[:number])


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_becomes_this_line(line, run_at, tmp_path):
    command, argv, environ = typed(line)
    said = words(command, *argv, **environ)
    assert said == LINES[line].split(" ")
    run_at(tmp_path, *said)


RECIPES = [line for line, said in LINES.items() if said.startswith("recipe=")]


@pytest.mark.parametrize("line", RECIPES)
def test_the_recipe_of_a_published_command_is_what_its_options_say(line, run_at, tmp_path, monkeypatch):
    command, argv, environ = typed(line)
    named = fingerprint.flat(run_at(tmp_path, *words(command, *argv, **environ)))
    monkeypatch.setattr(habana, "published", lambda *_: None)
    spelt = words(command, *argv, **environ)
    assert not [word for word in spelt if word.startswith("recipe=")]
    assert fingerprint.flat(run_at(tmp_path, *spelt)) | {"recipe": named["recipe"]} == named


@pytest.mark.parametrize(
    "more",
    ["-b 255", "-e 89", "-s 5", "-d fp32", "-- optim.lr=1", "-- label_smoothing=0", "-o -b 256 -- cluster.ranks=4"],
)
def test_what_differs_from_a_published_command_is_no_recipe(more):
    said = words("demo_resnet", *BF16, "-e", "90", *more.split())
    assert not [word for word in said if word.startswith("recipe=")]


def test_what_moves_no_weights_leaves_a_recipe_one():
    said = words("demo_resnet", *BF16, "-e", "90", "-v", "7", "--stop_threshold", "0.76", "--", "track=off")
    assert said[0] == "recipe=resnet50_sgd_1x" and said[-3:] == ["log_every_steps=7", "stop_at_top1=0.76", "track=off"]


# ------------------------------------------------------------------------------------------------------------ every option
# (command, the option by its first name) -> what is typed after it, and the words that are then there or differ (None: one
# that is gone); or what it is told, because it means nothing any more
EIGHT = {"cluster": "hls1", "batch": "2048"}
BOTH = {
    "-d": ("fp32", {"dtype": "fp32", "batch": "128"}),
    "-b": ("32", {"batch": "32"}),
    "-e": ("2.5", {"epochs": "2.5"}),
    "-a": ("/other", {"data.dir": "/other"}),
    "-m": ("/my/model", {"out": "/my/model"}),
    "-o": (None, EIGHT),
    "-s": ("1000", {"steps": "1000"}),
    "-n": (None, {"eval": "false"}),
    "-v": ("10", {"log_every_steps": "10"}),
    "-k": (None, {"cluster.prefetch": "false"}),
}
COSINE = {
    "model": "resnext101",
    "schedule": "cosine",
    "optim.lr": "${linear_lr:0.256}",
    "optim.momentum": "0.875",
    "optim.weight_decay": "6.103515625e-05",
    "schedule.horizon_epochs": "90",
}
OPTIONS = {
    "demo_resnet": {
        **BOTH,
        "-r": (None, {"steps": "9", "cluster.max_restarts": "10"}),
        "-rs": ("152", {"model": "resnet152"}),
        "-l": ("50", {"eval_steps": "50"}),
        "-c": ("5005", {"save_every_steps": "5005"}),
        "--use-train-and-evaluate": (None, "means nothing any more: one loop trains and evaluates"),
        "--epochs-between-evals": ("4", {"eval_every_epochs": "4"}),
        "--enable-lars-optimizer": (None, {"optim": "lars", "schedule.horizon_epochs": "38"}),
        "--stop_threshold": (".759", {"stop_at_top1": ".759"}),
        "--resnext": (None, COSINE),
    },
    "demo_keras_resnet": {
        **BOTH,
        "-r": (None, {"steps": "9", "cluster.max_restarts": "10"}),
        "-l": ("50", {"steps_per_loop": "50"}),
        "-c": (None, {"out": "/m"}),  # and more: see below
    },
    "demo_resnet_hvd.sh": {
        "--resnext": (None, {**COSINE, "optim": "sgd", "epochs": "90", "schedule.horizon_epochs": None}),
        "IMAGENET_DIR": ("/other", {"data.dir": "/other"}),
        "RESNET_SIZE": ("200", {"model": "resnet200"}),
        "USE_LARS_OPTIMIZER": ("0", {"optim": "sgd", "epochs": "90"}),
        "BATCH_SIZE": ("64", {"batch": "128"}),
        "TRAIN_EPOCHS": ("40", {"epochs": "40"}),
        "TRAIN_STEPS": ("7", {"steps": "7"}),
        "NO_EVAL": ("1", {"eval": "false"}),
        "NUM_WORKERS_PER_HLS": ("4", {"cluster.ranks": "4", "batch": "1024"}),
        "HLS_TYPE": ("HLS1", "means nothing any more: the cards find each other without a file of their type"),
        "MULTI_HLS_IPS": (
            "10.0.0.1,b",
            {"cluster.ranks": "4", "cluster.hosts": "[10.0.0.1:2,b:2]", "batch": "1024"},
        ),
        "MPI_TPC_INCLUDE": ("eth1", "means something for several machines with Gaudi cards only"),
        "USE_MLPERF": ("1", {"mlperf": "true", "eval_every_epochs": "4", "stop_at_top1": "0.759"}),
        "STOP_THRESHOLD": ("0.75", {"stop_at_top1": "0.75"}),
    },
    "habana_model_runner.py": {
        "batch_size": (64, {"batch": "64"}),
        "clean": (True, "means nothing any more: nothing is ever deleted; for a new run give another model_dir"),
        "data_dir": ("/other", {"data.dir": "/other"}),
        "data_format": ("channels_last", "means nothing any more: the layout of images is the program's own affair"),
        "data_loader_image_type": ("bf16", "means nothing any more: images are bytes until they are on the device"),
        "disable_warmup": (True, {"schedule.warmup_epochs": "0"}),
        "display_steps": (1, {"log_every_steps": "1"}),
        "distribution_strategy": ("off", "means nothing any more: use_horovod or num_gpus tells how many ranks"),
        "enable_checkpoint_and_export": ("false", {}),
        "enable_lars": (True, {"optim": "lars", "schedule.horizon_epochs": "38"}),
        "epochs_between_evals": (1, {"eval_every_epochs": "1"}),
        "eval_only": (False, {}),
        "experimental_preloading": (0, {"cluster.prefetch": "false"}),
        "export_dir": (False, {}),
        "fine_tune": (True, {"finetune.freeze": "head"}),
        "hooks": ("LoggingTensorHook", "means nothing any more: every metric is logged, see track="),
        "image_bytes_as_serving_input": (False, "means nothing any more: an export takes pixels and JPEG bytes"),
        "label_smoothing": (0.0, {"label_smoothing": "0.0"}),
        "mini_imagenet": (False, "means nothing any more: data_dir alone says which images"),
        "model_dir": ("/my/model", {"out": "/my/model"}),
        "num_gpus": (2, {"cluster": "gpu8", "cluster.ranks": "2", "batch": "256"}),
        "pretrained_model_checkpoint_path": ("/w/50.npz", {"init": "/w/50.npz"}),
        "resnet_size": (18, {"model": "resnet18"}),
        "resnet_version": (1, "means nothing any more: 1 is v1.5, as every network here is"),
        "return_before_eval": (True, {"eval": "false"}),
        "save_checkpoint_steps": (10000, {"save_every_steps": "10000"}),
        "steps_per_loop": (50, {"steps_per_loop": "50"}),
        "train_epochs": (3, {"epochs": "3"}),
        "train_steps": (20, {"steps": "20"}),
        "use_horovod": (True, {"cluster": "hls1", "batch": "1024"}),
        "use_train_and_evaluate": (False, "means nothing any more: one loop trains and evaluates"),
        "weight_decay": (0.0001, {"optim.weight_decay": "0.0001"}),
        "TF_ENABLE_BF16_CONVERSION": (1, {"dtype": "bf16", "batch": "256"}),
        "TF_PRELIMINARY_CLUSTER_SIZE": (150, "means nothing any more: a setting of Habana's compiler of release 0.13"),
        "TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD": (
            700,
            "means nothing any more: a setting of Habana's compiler of release 0.13",
        ),
        "HBN_TF_REGISTER_DATASETOPS": (1, "means nothing any more: cluster.prefetch needs no extension"),
        "HCL_CONFIG_PATH": ("/h.json", "means nothing any more: the cards find each other without it"),
    },
}
EVERYWHERE = {"--print", "-h", "--model", "--hb_config"}
CASES = [(command, name) for command, options in OPTIONS.items() for name in options]
BASES = {
    "demo_resnet": ("optim=sgd", "model=resnet50", "epochs=1", "cluster=gaudi1", "batch=256"),
    "demo_keras_resnet": ("optim=sgd", "model=resnet50", "epochs=1", "cluster=gaudi1", "batch=256"),
    # on four cards, of which nothing was published
    "demo_resnet_hvd.sh": (
        "optim=lars",
        "model=resnet50",
        "eval_every_epochs=8",
        "cluster=hls1",
        "cluster.ranks=2",
        "batch=512",
    ),
    "habana_model_runner.py": ("optim=sgd", "model=resnet50", "epochs=1", "cluster=gaudi1", "batch=128"),
}


def test_every_option_variable_and_key_has_its_golden_row():
    told = {"habana_model_runner.py": {*habana_options.PARAMETERS, *habana_options.RUNNER_ENVIRONMENT}}
    for command, said in habana_options.COMMANDS.items():
        options = {*said.options, *said.environment, *told.get(command, set())}
        assert {option.names.split()[0] for option in options} - EVERYWHERE == set(OPTIONS[command])


def spellings(command, name):
    """All that an option is called, and its long form with underscores, as the original's program has some."""
    said = habana_options.COMMANDS[command]
    found = [*said.options, *said.environment, *habana_options.PARAMETERS, *habana_options.RUNNER_ENVIRONMENT]
    names = next(option.names.split() for option in found if option.names.split()[0] == name)
    return dict.fromkeys([*names, *(f"--{n[2:].replace('-', '_')}" for n in names if n.startswith("--"))])


def given(command, name, value, tmp_path):
    """(argv, environment) that give one option."""
    if command == "habana_model_runner.py":
        kind = "env_variables" if name.isupper() else "parameters"
        lines = {"parameters": {"data_dir": DATA, "model_dir": "/m"}, "env_variables": {}}
        lines[kind][name] = value
        (tmp_path / "run.yaml").write_text(json.dumps({"model": "resnet_estimator", **lines}))  # JSON is YAML
        return ["--model", "resnet_estimator", "--hb_config", tmp_path / "run.yaml"], {}
    if command == "demo_resnet_hvd.sh":
        environ = {"IMAGENET_DIR": DATA, "NUM_WORKERS_PER_HLS": "2"}
        return ([name], environ) if name.startswith("-") else ([], {**environ, name: value})
    more = {"-r": ["-s", "9"], "--recover": ["-s", "9"], "-c": ["-m", "/m"], "--enable-checkpoint": ["-m", "/m"]}
    before = more.get(name.replace("_", "-"), []) if value is None else []
    return [*BF16, *before, name, *([] if value is None else [value])], {}


def shown(command, name, value):
    """An option with its value as people write it there."""
    return name if value is None else f"{name}{'=' if command == 'demo_resnet_hvd.sh' else ': '}{value}"


@pytest.mark.parametrize(("command", "name"), CASES)
def test_an_option_becomes_these_words(command, name, run_at, tmp_path):
    value, change = OPTIONS[command][name]
    base = dict(word.split("=") for word in (*BASES[command], "dtype=bf16", "data=imagenet", f"data.dir={DATA}"))
    if command == "habana_model_runner.py":
        base |= {"dtype": "fp32", "out": "/m"}
    expected = base | (change if isinstance(change, dict) else {})
    expected = {knob: said for knob, said in expected.items() if said is not None}
    for spelling in spellings(command, name):
        argv, environ = given(command, spelling, value, tmp_path)
        request, lines = asked(command, *argv, **environ)
        assert lines[0][0] == "resnet.train"
        said = dict(word.split("=", 1) for word in lines[0][1:])
        assert said == expected and len(said) == len(lines[0]) - 1
        if isinstance(change, str):
            typed_as = name if name.startswith("MPI_") else spelling  # whose second name is the original's slip, mended
            assert request.notes == [f"{shown(command, typed_as, value)}: {change}"]
    if "init" not in expected:
        run_at(tmp_path, *lines[0][1:])


@pytest.mark.parametrize("option", ["-s -1", "-l -1"])
def test_minus_one_means_no_limit(option):
    assert words("demo_resnet", *BF16, *option.split()) == words("demo_resnet", *BF16)
    assert words("demo_resnet_hvd.sh", TRAIN_STEPS="-1", BATCH_SIZE="") == words("demo_resnet_hvd.sh")


def test_long_options_take_their_value_after_an_equals_sign_too():
    assert words("demo_resnet", "--dtype=bf16", "--data-dir=/a=b", "--steps=3")[3:5] == [
        "data=imagenet",
        'data.dir="/a=b"',
    ]


def test_mlperf_is_lars_to_its_target_evaluated_every_four_epochs():
    said = words("demo_resnet_hvd.sh", USE_MLPERF="1", IMAGENET_DIR=DATA, STOP_THRESHOLD="0.7")
    assert said[:3] == ["recipe=resnet50_lars_8x", f"data.dir={DATA}", "cluster=hls1"]
    assert said[3:] == ["mlperf=true", "stop_at_top1=0.7", "eval_every_epochs=4"]


def test_an_export_follows_the_training_of_a_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c", "-m", "my run")
    assert train[-1] == 'out="my run"'
    assert export == ["resnet.export", f"{tmp_path}/my run", f"out={tmp_path}/my run/exported"]
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c")
    (out,) = [word.removeprefix("out=") for word in train if word.startswith("out=")]
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", out)
    assert export == ["resnet.export", f"{tmp_path}/{out}", f"out={tmp_path}/{out}/exported"]


# --------------------------------------------------------------------------------------------------------------- YAML files
ESTIMATOR = """
model: resnet_estimator
env_variables: {LD_PRELOAD: /usr/lib/no/libjemalloc.so.1, TF_ENABLE_BF16_CONVERSION: 1, TF_PRELIMINARY_CLUSTER_SIZE: 150}
parameters:
  {batch_size: 128, train_epochs: 1, data_dir: /software/tf_records, model_dir: /model, resnet_size: 50, resnet_version: 1,
   weight_decay: 0.0001, label_smoothing: 0.0, enable_lars: False, disable_warmup: False, display_steps: 1,
   epochs_between_evals: 1, save_checkpoint_steps: 10000, use_horovod: False, use_train_and_evaluate: False,
   eval_only: False, return_before_eval: False, export_dir: True, fine_tune: False, clean: False, mini_imagenet: False,
   image_bytes_as_serving_input: False, data_format: channels_last, hooks: LoggingTensorHook}
"""
KERAS = """
model: resnet_keras
env_variables:
  {LD_PRELOAD: /usr/lib/no/libjemalloc.so.1, TF_ENABLE_BF16_CONVERSION: 1, TF_PRELIMINARY_CLUSTER_SIZE: 20,
   TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD: 700}
parameters:
  {batch_size: 256, train_epochs: 1, train_steps: 20, data_dir: /software/tf_records/, model_dir: /model, steps_per_loop: 50,
   log_steps: 50, experimental_preloading: 0, enable_checkpoint_and_export: "false", distribution_strategy: "off",
   num_gpus: 0, data_format: channels_last, data_loader_image_type: bf16}
"""


@pytest.fixture
def described(tmp_path):
    """`described(text)`: the argv of habana_model_runner.py for a YAML file."""

    def make(text, model="resnet_estimator"):
        path = tmp_path / "a run.yaml"
        path.write_text(text)
        return ["habana_model_runner.py", "--model", model, "--hb_config", path]

    return make


SAID = {
    "estimator": "resnet.train model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/software/tf_records "
    "cluster=gaudi1 batch=128 epochs=1 out=/model optim.weight_decay=0.0001 label_smoothing=0.0 log_every_steps=1 "
    "eval_every_epochs=1 save_every_steps=10000",
    "keras": "resnet.train model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/software/tf_records/ "
    "cluster=gaudi1 batch=256 epochs=1 steps=20 out=/model steps_per_loop=50 log_every_steps=50 cluster.prefetch=false",
}


def test_the_published_estimator_file(described, run_at, tmp_path):
    request, (train, export) = asked(*described(ESTIMATOR))
    assert train == SAID["estimator"].split()
    assert export == ["resnet.export", "/model", "out=/model/exported"]
    run_at(tmp_path, *train[1:])
    told = {note.split(":")[0] for note in request.notes}
    assert told == {
        "LD_PRELOAD",
        "TF_PRELIMINARY_CLUSTER_SIZE",
        "resnet_version",
        "use_train_and_evaluate",
        "clean",
        "mini_imagenet",
        "image_bytes_as_serving_input",
        "data_format",
        "hooks",
    }
    assert request.env == {}


def test_the_published_keras_file(described, run_at, tmp_path):
    request, (train,) = asked(*described(KERAS, "resnet_keras"))
    assert train == SAID["keras"].split()
    run_at(tmp_path, *train[1:])
    assert {note.split(":")[0] for note in request.notes} == {
        "LD_PRELOAD",
        "TF_PRELIMINARY_CLUSTER_SIZE",
        "TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD",
        "distribution_strategy",
        "data_format",
        "data_loader_image_type",
    }


def test_a_variable_that_still_means_something_goes_to_the_run(described, tmp_path):
    (tmp_path / "lib.so").touch()
    text = f"{{model: resnet_estimator, env_variables: {{LD_PRELOAD: {tmp_path}/lib.so, TF_DISABLE_MKL: 1, A: b c}}}}"
    request, (train,) = asked(*described(text))
    assert request.env == {"LD_PRELOAD": f"{tmp_path}/lib.so", "TF_DISABLE_MKL": "1", "A": "b c"}
    assert habana.shown([train], request.env).startswith(
        f"env {shlex.quote(f'LD_PRELOAD={tmp_path}/lib.so')} TF_DISABLE_MKL=1 'A=b c' "
    )
    assert "dtype=fp32" in train


def test_eval_only_evaluates(described):
    text = "{eval_only: True, model_dir: /a=b, data_dir: /my data, batch_size: 32, export_dir: True}"
    _, lines = asked(*described(f"{{model: resnet_estimator, parameters: {text}}}"))
    said = ["dtype=fp32", "data=imagenet", 'data.dir="/my data"', "cluster=gaudi1", "batch=32"]
    assert lines == [["resnet.evaluate", "/a=b", *said]]


def test_export_dir_says_where(described):
    _, (_, export) = asked(*described("{model: resnet_estimator, parameters: {export_dir: /x y, model_dir: /m}}"))
    assert export == ["resnet.export", "/m", "out=/x y"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must hold model, and the mappings"),
        ("{model: resnet_estimator, parameter: {}}", "must hold model, and the mappings"),
        ("{model: resnet_estimator, parameters: [a]}", "must hold model, and the mappings"),
        ("{model: resnet_keras}", "is for model: resnet_keras"),
        (
            "{model: resnet_estimator, parameters: {batchsize: 3}}",
            "batchsize: no such parameter; did you mean batch_size?",
        ),
        (
            "{model: resnet_estimator, parameters: {batch_size: many}}",
            "batch_size: many: must be a whole number above 0",
        ),
        ("{model: resnet_estimator, parameters: {resnet_version: 2}}", "resnet_version: 2: must be 1: every network"),
        ("{model: resnet_estimator, parameters: {eval_only: True}}", "eval_only: needs model_dir"),
        ("{model: [", "cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense(described, text, said):
    assert said in sentence(*described(text))


# --------------------------------------------------------------------------------------------------------------- the machine
@pytest.mark.parametrize(
    ("cards", "argv", "said"),
    [
        (8, [], ["cluster=gaudi1", "batch=256"]),
        (8, ["-o"], ["cluster=hls1", "batch=2048"]),
        (4, ["-o"], ["cluster=hls1", "cluster.ranks=4", "batch=1024"]),
        (1, ["-o"], ["cluster=gaudi1", "batch=256"]),
        (0, [], ["cluster=local", "batch=256"]),
        (0, ["-o"], ["cluster=cpu2", "batch=512"]),
        (0, ["--", "cluster=gpu8"], ["batch=2048"]),
        (8, ["-o", "--", "cluster=cpu2"], ["batch=512"]),
        (8, ["-o", "--", "cluster.ranks=2"], ["cluster=hls1", "batch=512"]),
        (8, ["-o", "--", "batch=99"], ["cluster=hls1"]),
    ],
)
def test_the_batch_is_that_of_a_card_times_the_ranks(machine, cards, argv, said):
    machine(cards)
    extra = argv[argv.index("--") + 1 :] if "--" in argv else []
    kept = [word for word in words("demo_resnet", *BF16, *argv) if word.startswith(("cluster", "batch"))]
    assert kept == [*said, *extra]


def test_without_a_card_it_says_that_it_takes_the_cpu(machine):
    machine(0)
    request, _ = asked("demo_resnet", *BF16)
    assert request.notes == ["no Gaudi card on this machine: 1 rank on CPU; for GPUs add -- cluster=gpu1, or gpu8"]
    assert asked("demo_resnet", *BF16, "--", "cluster=gpu1")[0].notes == []
    assert (
        words("demo_resnet_hvd.sh", IMAGENET_DIR=DATA)
        == (
            f"model=resnet50 optim=lars dtype=bf16 data=imagenet data.dir={DATA} cluster=cpu2 batch=512 eval_every_epochs=8"
        ).split()
    )


def test_several_servers_get_what_the_original_gave_mpirun(machine):
    several = {"MULTI_HLS_IPS": "a,b", "MPI_TPC_INCLUDE": "eth1", "IMAGENET_DIR": DATA}
    request, (train,) = asked("demo_resnet_hvd.sh", **several)
    assert {"cluster=hls1", "cluster.ranks=16", "cluster.hosts=[a:8,b:8]", "batch=4096"} <= set(train)
    interface = {"OMPI_MCA_btl_tcp_if_include": "eth1", "HCCL_SOCKET_IFNAME": "eth1"}
    assert request.env == {"OMPI_MCA_plm_rsh_args": "-p 3022", **interface}
    request, _ = asked("demo_resnet_hvd.sh", **several, OMPI_MCA_plm_rsh_args="-p 22")
    assert request.env == interface
    machine(0)
    request, (train,) = asked("demo_resnet_hvd.sh", **several)
    assert "cluster.hosts=[a:2,b:2]" in train and request.env == {} and "MPI_TPC_INCLUDE=eth1" in request.notes[0]
    assert "NUM_WORKERS_PER_HLS" in sentence("demo_resnet_hvd.sh", "--", "cluster=gpu8", **several)
    said = words("demo_resnet_hvd.sh", "--", "cluster=gpu8", **several, NUM_WORKERS_PER_HLS="4")
    assert {"cluster.ranks=8", "cluster.hosts=[a:4,b:4]", "cluster=gpu8", "batch=2048"} <= set(said)


# ---------------------------------------------------------------------------------------------------------------- the curve
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--enable-lars-optimizer -e 3", ["schedule.horizon_epochs=38"]),  # its warm-up: it rises and stops
        ("--enable-lars-optimizer -e 4", []),
        ("--enable-lars-optimizer -e 40", []),
        ("--enable-lars-optimizer -e 42 -b 4096", ["schedule.horizon_epochs=null"]),  # the row's own is 41
        ("--enable-lars-optimizer -e 40 -b 4096", []),
        ("--resnext -e 8", ["schedule.horizon_epochs=90"]),
        ("--resnext -e 9", []),
        ("-e 1", []),
        ("--resnext -e 1 -- schedule=constant", []),
        ("--resnext -- epochs=20", []),
    ],
)
def test_a_curve_ends_with_the_run_or_where_the_published_one_does(run_at, tmp_path, argv, said):
    made = words("demo_resnet", *BF16, *argv.split())
    assert [word for word in made if word.startswith("schedule.")] == said
    run_at(tmp_path, *made)


# --------------------------------------------------------------------------------------------------------------- the images
def test_without_a_folder_it_takes_the_digits_and_says_so():
    request, (train,) = asked("demo_resnet", "-d", "bf16")
    assert "data=digits" in train and not [word for word in train if word.startswith("data.")]
    assert request.notes == ["no folder of shards is named: the embedded digits (10 classes, 32 px)"]


def test_without_a_folder_it_takes_the_original_s_if_it_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(habana, "STANDARD", str(tmp_path))
    assert f"data.dir={tmp_path}" in words("demo_resnet", "-d", "bf16")


def lay(folder, layout=("img_train/img_train", "img_val/img_val"), classes=None):
    """A folder that looks like one of shards."""
    for name in layout:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-00000-of-00001").touch()
    if classes:
        (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(classes)))
    return folder


@pytest.mark.parametrize("below", ["", "img_train", "img_val"])
def test_the_folder_may_be_the_shards_or_one_of_their_two(tmp_path, below):
    lay(tmp_path / "s")
    request, (train,) = asked("demo_resnet", "-d", "bf16", "-a", tmp_path / "s" / below)
    assert f"data.dir={tmp_path}/s" in train
    assert bool(request.notes) is bool(below)


def test_the_folder_may_have_them_in_tf_records(tmp_path):
    lay(tmp_path / "imagenet" / "tf_records", ("train/train", "validation/validation"))
    request, (train,) = asked("demo_resnet_hvd.sh", IMAGENET_DIR=f"{tmp_path}/imagenet/")
    assert f"data.dir={tmp_path}/imagenet/tf_records" in train
    assert request.notes == [f"{tmp_path}/imagenet/: the shards lie in {tmp_path}/imagenet/tf_records"]


@pytest.mark.parametrize(("classes", "data"), [(3, "folder"), (1000, "imagenet"), (None, "imagenet")])
def test_the_shards_tell_how_many_classes(tmp_path, run_at, classes, data):
    lay(tmp_path / "s", ("train", "validation"), classes)
    request, (train,) = asked("demo_resnet", "-d", "bf16", "-a", tmp_path / "s")
    assert f"data={data}" in train
    assert run_at(tmp_path, *train[1:]).data.classes == (classes or 1000)
    assert len(request.notes) == (data == "folder")


def test_a_remote_folder_is_not_looked_into():
    assert 'data.dir="gs://bucket/tf_records"' in words("demo_resnet", "-d", "bf16", "-a", "gs://bucket/tf_records")


def test_other_data_takes_no_folder_along():
    said = words("demo_resnet", *BF16, "--", "data=digits")
    assert not [word for word in said if word.startswith("data.dir")]
    assert f"data.dir={DATA}" in words("demo_resnet", *BF16, "--", "data=folder", "data.classes=5")


# ----------------------------------------------------------------------------------------------------------- names of folders
NAMES = [
    "/a b",
    "/it's",
    '/"quoted"',
    "/a;b",
    "/a=b,c",
    "/a${b}c",
    "/$HOME",
    "/back\\slash",
    "/ends\\",
    "/\\'",
    "/{a}",
    "/[a]",
    "/\u00e4\u00f6 \u4f60",
    "/a#b",
    "/(a)",
    "/a&b|c",
    "/*?",
    "/~",
    "/new\nline",
    "/tab\there",
    "/%d",
    "/`id`",
    "/!",
    "null",
    "true",
    "NaN",
    "x",
    "12",
    "1.10",
    "1e3",
    "-",
    "a:b",
    "???x",
    "/a\\${b}",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_comes_through_a_shell_to_hydra_as_it_is(name):
    data = f"/data{name}" if name[0] == "/" else name
    _, lines = asked("demo_resnet", "-d", "bf16", "-a", data, "-m", name)
    line = habana.shown(lines, {})
    python = shlex.quote(habana.python())
    assert line.startswith(f"{python} -m resnet.train ")
    script = line.replace(f"{python} -m resnet.train", "printf '%s\\0'", 1)
    told = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    read = {override.key_or_group: override.value() for override in OverridesParser.create().parse_overrides(told)}
    found = OmegaConf.create({key: read[key] for key in ("out", "data.dir")})
    assert (str(found["out"]), str(found["data.dir"])) == (name, data)


@pytest.mark.parametrize("name", ['/it\'s; "${b}" = {c}\\', "1.10", "\u00e4 b"])
def test_such_a_folder_is_the_run_s(run_at, tmp_path, name):
    run = run_at(tmp_path, *words("demo_resnet", "-d", "bf16", "-a", name, "-m", name))
    assert run.out == run.data.dir == files.absolute(name, Path.cwd())


# ------------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("demo_resnet", "-d: must be given, bf16 or fp32"),
        ("demo_resnet -d fp16", "-d fp16: must be bf16 or fp32"),
        ("demo_resnet -d bf16 --step 3", "--step: no such option; did you mean --steps?"),
        ("demo_resnet -d bf16 shards", "shards: no such option"),
        ("demo_resnet -d bf16 ''", ": no such option"),
        ("demo_resnet -d bf16 -s", "-s: needs a value, a whole number above 0"),
        ("demo_resnet -d bf16 -s -l 3", "-s: needs a value"),
        ("demo_resnet -d bf16 -a --steps=3", "-a: needs a value"),
        ("demo_resnet -d bf16 -m ''", "-m: needs a value"),
        ("demo_resnet -d bf16 -s 0", "-s 0: must be a whole number above 0, or -1 for no limit"),
        ("demo_resnet -d bf16 -b 1.5", "-b 1.5: must be a whole number above 0"),
        ("demo_resnet -d bf16 -e many", "-e many: must be a number"),
        ("demo_resnet -d bf16 -rs 20", "-rs 20: must be 18, 34, 50, 101, 152 or 200"),
        ("demo_resnet -d bf16 --no-eval=1", "--no-eval=1: takes no value"),
        ("demo_resnet -d bf16 -r", "-r: needs -s"),
        ("demo_resnet -d bf16 --resnext --enable-lars-optimizer", "--resnext: nobody published settings of LARS"),
        ("demo_resnet -d bf16 --resnext -rs 18", "--resnext: there is no ResNeXt-18"),
        ("demo_resnet -d bf16 -n --stop_threshold 0.7", "stop_at_top1=0.7: only an evaluation can tell"),
        ("demo_resnet -d bf16 -- -m", "-m: only knob=value may follow --"),
        ("demo_resnet -d bf16 -- recipe=quickstart", "recipe=: what the options say would win over it"),
        ("demo_keras_resnet -d bf16 -c -- out=x", "out=: a second command needs the folder too"),
        ("demo_resnet -d bf16 -- cluster=none", "cluster=none: no such option"),
        ("demo_keras_resnet -d bf16 -rs 101", "-rs: no such option"),
        ("demo_resnet_hvd.sh --help=1", "--help=1: takes no value"),
        ("NO_EVAL=maybe demo_resnet_hvd.sh", "NO_EVAL=maybe: must be 0 or 1, false or true"),
        ("MULTI_HLS_IPS=a,,b demo_resnet_hvd.sh", "MULTI_HLS_IPS=a,,b: must be names or addresses"),
        ("habana_model_runner.py --model resnet_keras", "--model and --hb_config: must be given"),
        ("habana_model_runner.py --model vgg --hb_config x", "--model vgg: must be resnet_estimator or resnet_keras"),
        ("habana_model_runner.py --model resnet_keras --hb_config /no.yaml", "--hb_config /no.yaml: cannot be read"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_so_in_one_and_ends_with_2(line, said, capsys, monkeypatch):
    command, argv, environ = typed(line)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert habana.main([command, *argv]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith(f"{command}: {said}")


def test_a_command_that_never_was(capsys):
    assert habana.main([]) == habana.main(["demo"]) == 2
    assert (
        "there are demo_resnet, demo_keras_resnet, demo_resnet_hvd.sh, habana_model_runner.py"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", habana_options.COMMANDS)
def test_help_and_the_page_of_documentation_have_every_option(command, capsys):
    assert habana.main([command, "--help"]) == habana.main([command, "-h"]) == 0
    told, page = capsys.readouterr().out, (ROOT / "docs" / "original.md").read_text()
    said = habana_options.COMMANDS[command]
    runner = command == "habana_model_runner.py"
    more = [*habana_options.PARAMETERS, *habana_options.RUNNER_ENVIRONMENT] if runner else []
    for option in [*said.options, *said.environment, *more]:
        assert re.search(rf"^  {', '.join(option.names.split())}\b.*  {re.escape(option.said)}$", told, re.M), (
            option.names
        )
        names = ", ".join(f"`{name}`" for name in option.names.split())
        assert f"| {names} | {option.said} |\n" in page or option in habana_options.OURS, option.names


def test_the_page_has_no_option_that_does_not_exist():
    page = (ROOT / "docs" / "original.md").read_text()
    said = [o for c in habana_options.COMMANDS.values() for o in (*c.options, *c.environment)]
    rows = {
        (", ".join(f"`{n}`" for n in o.names.split()), o.said)
        for o in [*said, *habana_options.PARAMETERS, *habana_options.RUNNER_ENVIRONMENT]
    }
    for row in re.findall(r"^\| (`.*) \| (.*) \|$", page, re.M):
        assert row in rows


# ------------------------------------------------------------------------------------------------------------ real processes
@pytest.fixture
def call(tmp_path):
    """`call("demo_resnet", ...)`: one of launch/'s files, from another folder, with this Python active."""

    def start(name, *argv, timeout=240, launch=LAUNCH, before=(), **environ):
        ours = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ}
        command = [*before, str(launch / name), *map(str, argv)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **ours},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


@pytest.mark.parametrize("before", [[], ["bash"]])
def test_print_only_prints(call, tmp_path, before):
    done = call("demo_resnet", *BF16, "-rs", 101, "-s", 2, "-l", 1, "-m", "my run", "--print", before=before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("python -m resnet.train model=resnet101 optim=sgd dtype=bf16 data=imagenet ")
    assert done.stdout.endswith(shlex.quote('out="my run"') + "\n") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_runner_is_a_python_file(call, described):
    argv = described(KERAS, "resnet_keras")
    for before in ([], ["python3"]):
        done = call(*argv, "--print", before=before)
        assert done.returncode == 0, done.stderr
        assert "resnet.train model=resnet50" in done.stdout and "hooks" not in done.stderr
        assert "TF_PRELIMINARY_CLUSTER_SIZE: 20: means nothing any more" in done.stderr


def test_it_trains_on_the_embedded_data_with_two_steps(call, tmp_path):
    done = call(
        "demo_resnet",
        "-d",
        "fp32",
        "-b",
        16,
        "-s",
        2,
        "-l",
        1,
        "-m",
        "my run",
        "--",
        "model=tiny",
        "track=off",
        "cluster=local",
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "my run" / "result.json").read_text())
    assert (made["status"], made["steps"]) == ("finished", 2)
    assert "batch=16" in done.stdout.splitlines()[0]


def test_a_training_that_fails_is_a_failure(call):
    done = call("demo_resnet", "-d", "fp32", "-a", "no such folder", "--", "track=off", "cluster=local")
    assert done.returncode == 1
    assert "error: data.dir=" in done.stderr and "Traceback" not in done.stderr


def test_no_python_is_told_with_the_way_out(call, tmp_path):
    launch = tmp_path / "a check out" / "launch"
    shutil.copytree(
        LAUNCH, launch, ignore=lambda _, names: [n for n in names if n in ("locks", "slurm", "k8s", "docker")]
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    fake = '#!/usr/bin/env bash\n[[ $1 != -c ]] || exit %d\nprintf \'%%s|\' "$PYTHONPATH" "$@"\n'
    done = call("demo_resnet", "-d", "bf16", launch=launch, PATH=str(tools))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "bash " in done.stderr and "launch/setup.sh" in done.stderr

    def python(path, status):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fake % status)
        path.chmod(0o755)

    python(launch.parent / ".venv" / "bin" / "python", 0)
    python(tools / "python", 1)  # one without the packages
    done = call("demo_resnet", "-a", "a b", launch=launch, PATH=str(tools), PYTHONPATH="/mine")
    assert done.stdout == f"{launch.parent}:/mine|-m|resnet.compat|demo_resnet|-a|a b|"
    python(tools / "python", 0)
    (launch.parent / ".venv" / "bin" / "python").unlink()
    done = call("demo_resnet_hvd.sh", launch=launch, PATH=str(tools), PYTHONPATH="")
    assert done.stdout == f"{launch.parent}|-m|resnet.compat|demo_resnet_hvd.sh|"


def test_the_scripts_are_clean():
    scripts = [LAUNCH / name for name in ("demo_resnet", "demo_keras_resnet", "demo_resnet_hvd.sh", "original.sh")]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert all(os.access(path, os.X_OK) for path in [*scripts, LAUNCH / "habana_model_runner.py"])


def test_tensorflow_is_not_needed_to_print():
    code = "import sys; from resnet.compat import habana; habana.main(sys.argv[1:]); print('tensorflow' in sys.modules)"
    argv = [sys.executable, "-c", code, "demo_resnet", *BF16, "--print"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_two_workers_train_with_lars(call, tmp_path):
    small = {"NUM_WORKERS_PER_HLS": "2", "BATCH_SIZE": "16", "TRAIN_STEPS": "2"}
    done = call(
        "demo_resnet_hvd.sh",
        "--",
        "model=tiny",
        "cluster=cpu2",
        "out=x",
        USE_LARS_OPTIMIZER="1",
        RESNET_SIZE="50",
        **small,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "x" / "result.json").read_text())
    assert (made["status"], made["steps"]) == ("finished", 2)
    assert (
        "optim=lars" in done.stdout and "batch=32" in done.stdout and (tmp_path / "x" / "logs" / "rank-1.log").exists()
    )


@pytest.mark.slow
def test_an_export_comes_of_it(call, tmp_path):
    done = call(
        "demo_keras_resnet",
        "-d",
        "fp32",
        "-b",
        16,
        "-s",
        2,
        "-c",
        "-m",
        "y",
        "--",
        "model=tiny",
        "track=off",
        "cluster=local",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "y" / "exported" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_signal_reaches_the_training_which_saves(tmp_path):
    argv = [
        LAUNCH / "demo_resnet",
        "-d",
        "fp32",
        "-b",
        "16",
        "-e",
        "500",
        "-m",
        "z",
        "--",
        "model=tiny",
        "track=off",
        "cluster=local",
    ]
    ours = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        argv, cwd=tmp_path, env=ours, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("z/checkpoints/*/commit.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "stopped by a signal; saved" in said
