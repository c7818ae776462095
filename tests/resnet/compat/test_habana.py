"""The original's commands: every option of every one, as the words of resnet.train that do the same, and real processes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from resnet.compat import habana, habana_options
from resnet.config import fingerprint

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "launch"
DATA = "/data/shards"
BF16 = ["-d", "bf16", "-a", DATA]


def typed(line):
    """(command, argv, environment) of a line with variables before its command."""
    parts = shlex.split(line)
    number = next(number for number, part in enumerate(parts) if part in habana_options.COMMANDS)
    return parts[number], parts[number + 1 :], dict(part.split("=", 1) for part in parts[:number])


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


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_becomes_this_line_and_its_recipe_is_what_its_options_say(
    words, line, run_at, tmp_path, monkeypatch
):
    command, argv, environ = typed(line)
    said = words(command, *argv, **environ)
    assert said == LINES[line].split(" ")
    named = run_at(tmp_path, *said)
    if said[0].startswith("recipe="):
        monkeypatch.setattr(habana, "published", lambda *_: None)
        spelt = words(command, *argv, **environ)
        assert not [word for word in spelt if word.startswith("recipe=")]
        assert fingerprint.flat(run_at(tmp_path, *spelt)) | {"recipe": named.recipe} == fingerprint.flat(named)


def test_what_differs_from_a_published_command_is_no_recipe(words):
    for more in (
        "-b 255",
        "-e 89",
        "-s 5",
        "-d fp32",
        "-- optim.lr=1",
        "-- label_smoothing=0",
        "-o -- cluster.ranks=4",
    ):
        said = words("demo_resnet", *BF16, "-e", "90", *more.split())
        assert not [word for word in said if word.startswith("recipe=")], more
    said = words("demo_resnet", *BF16, "-e", "90", "-v", "7", "--stop_threshold", "0.76", "--", "track=off")
    assert said[0] == "recipe=resnet50_sgd_1x" and said[-3:] == ["log_every_steps=7", "stop_at_top1=0.76", "track=off"]


# ------------------------------------------------------------------------------------------------------------ every option
# What is typed -> the words that are then there or differ (-word: gone). Ignored options are at the end.
COSINE = (
    "model=resnext101 schedule=cosine optim.lr=${linear_lr:0.256} optim.momentum=0.875 "
    "optim.weight_decay=6.103515625e-05"
)
BOTH = """
-d fp32 -> dtype=fp32 batch=128
-b 32 -> batch=32
-e 2.5 -> epochs=2.5
-a /other -> data.dir=/other
-m /my/model -> out=/my/model
-o -> cluster=hls1 batch=2048
-s 1000 -> steps=1000
-n -> eval=false
-v 10 -> log_every_steps=10
-k -> cluster.prefetch=false
-r -s 9 -> steps=9 cluster.max_restarts=10
"""
OPTIONS = {
    "demo_resnet": f"""{BOTH}
-rs 152 -> model=resnet152
-l 50 -> eval_steps=50
-c 5005 -> save_every_steps=5005
--epochs-between-evals 4 -> eval_every_epochs=4
--enable-lars-optimizer -> optim=lars schedule.horizon_epochs=38
--stop_threshold .759 -> stop_at_top1=.759
--resnext -> {COSINE} schedule.horizon_epochs=90
--use-train-and-evaluate ->""",
    "demo_keras_resnet": f"""{BOTH}
-l 50 -> steps_per_loop=50
-c -m /m -> out=/m""",
    "demo_resnet_hvd.sh": f"""
--resnext -> {COSINE} optim=sgd epochs=90
IMAGENET_DIR=/other -> data.dir=/other
RESNET_SIZE=200 -> model=resnet200
USE_LARS_OPTIMIZER=0 -> optim=sgd epochs=90
BATCH_SIZE=64 -> batch=128
TRAIN_EPOCHS=40 -> epochs=40
TRAIN_STEPS=7 -> steps=7
NO_EVAL=1 -> eval=false
NUM_WORKERS_PER_HLS=4 -> cluster.ranks=4 batch=1024
MULTI_HLS_IPS=10.0.0.1,b -> cluster.ranks=4 cluster.hosts=[10.0.0.1:2,b:2] batch=1024
USE_MLPERF=1 -> mlperf=true eval_every_epochs=4 stop_at_top1=0.759
STOP_THRESHOLD=0.75 -> stop_at_top1=0.75
MPI_TPC_INCLUDE=eth1 ->
HLS_TYPE=HLS1 ->""",
    "habana_model_runner.py": """
batch_size=64 -> batch=64
data_dir=/other -> data.dir=/other
disable_warmup=True -> schedule.warmup_epochs=0
display_steps=1 -> log_every_steps=1
enable_checkpoint_and_export=false ->
enable_lars=True -> optim=lars schedule.horizon_epochs=38
epochs_between_evals=1 -> eval_every_epochs=1
eval_only=False ->
experimental_preloading=0 -> cluster.prefetch=false
export_dir=False ->
fine_tune=True -> finetune.freeze=head
label_smoothing=0.0 -> label_smoothing=0.0
model_dir=/my/model -> out=/my/model
num_gpus=2 -> cluster=gpu8 cluster.ranks=2 batch=256
pretrained_model_checkpoint_path=/w/50.npz -> init=/w/50.npz
resnet_size=18 -> model=resnet18
return_before_eval=True -> eval=false
save_checkpoint_steps=10000 -> save_every_steps=10000
steps_per_loop=50 -> steps_per_loop=50
train_epochs=3 -> epochs=3
train_steps=20 -> steps=20
use_horovod=True -> cluster=hls1 batch=1024
weight_decay=0.0001 -> optim.weight_decay=0.0001
TF_ENABLE_BF16_CONVERSION=1 -> dtype=bf16 batch=256
clean=True ->
data_format=channels_last ->
data_loader_image_type=bf16 ->
distribution_strategy=off ->
hooks=LoggingTensorHook ->
image_bytes_as_serving_input=False ->
mini_imagenet=False ->
resnet_version=1 ->
use_train_and_evaluate=False ->
TF_PRELIMINARY_CLUSTER_SIZE=150 ->
TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD=700 ->
HBN_TF_REGISTER_DATASETOPS=1 ->
HCL_CONFIG_PATH=/h.json ->""",
}
ONE = "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/data/shards cluster=gaudi1 batch=256 epochs=1"
BASES = {
    "demo_resnet": ONE,
    "demo_keras_resnet": ONE,
    # on two cards, of which nothing was published
    "demo_resnet_hvd.sh": "model=resnet50 optim=lars dtype=bf16 data=imagenet data.dir=/data/shards cluster=hls1 "
    "cluster.ranks=2 batch=512 eval_every_epochs=8",
    "habana_model_runner.py": ONE.replace("bf16", "fp32").replace("256", "128") + " out=/m",
}
EVERYWHERE = {"--print", "--model", "--hb_config"}


def options_of(command):
    """All options, variables and keys of a command by their first name."""
    sources = habana_options.COMMANDS[command][1].values()
    return {option.names.split()[0]: option for options in sources for option in options}


def given(command, name, value, more, tmp_path):
    """(argv, environment) that give one option."""
    if command == "habana_model_runner.py":
        content = {
            "model": "resnet_estimator",
            "parameters": {"data_dir": DATA, "model_dir": "/m"},
            "env_variables": {},
        }
        content["env_variables" if name.isupper() else "parameters"][name] = {"True": True, "False": False}.get(
            value, value
        )
        (tmp_path / "run.yaml").write_text(json.dumps(content))  # JSON is YAML
        return ["--model", "resnet_estimator", "--hb_config", tmp_path / "run.yaml"], {}
    if command == "demo_resnet_hvd.sh":
        environ = {"IMAGENET_DIR": DATA, "NUM_WORKERS_PER_HLS": "2"}
        return ([name], environ) if name.startswith("-") else ([], {**environ, name: value})
    return [*BF16, name, *([value] if value else []), *more], {}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_variable_and_key_becomes_these_words_in_all_its_spellings(asked, command, run_at, tmp_path):
    base, together, left = dict(word.split("=") for word in BASES[command].split()), {}, options_of(command)
    for row in OPTIONS[command].split("\n"):
        if not row.strip():
            continue
        (first, *more), change = row.partition(" ->")[0].split(), row.partition(" ->")[2].split()
        name, _, value = first.partition("=")
        option = left.pop(name)
        if option.kind and not value:
            value = more.pop(0)
        expected = base | dict(word.split("=", 1) for word in change)
        names = option.names.split()
        for spelling in dict.fromkeys([*names, *(f"--{n[2:].replace('-', '_')}" for n in names if n.startswith("--"))]):
            argv, environ = given(command, spelling, value, more, tmp_path)
            request, lines = asked(command, *argv, **environ)
            assert lines[0][0] == "resnet.train"
            assert dict(word.split("=", 1) for word in lines[0][1:]) == expected, spelling
            (note,) = request.notes or [""]
            assert note.endswith(option.help) is not bool(option.key) or name == "MPI_TPC_INCLUDE", spelling
            assert not note or spelling in note or name.startswith(("MPI_", "--use")), spelling
        if {"optim", "schedule", "eval"} & {word.partition("=")[0] for word in change}:
            run_at(tmp_path, *lines[0][1:])
        elif "init" not in expected:
            together |= dict(word.split("=", 1) for word in change)
    run_at(tmp_path, *(f"{knob}={value}" for knob, value in (base | together).items()))
    assert set(left) <= EVERYWHERE


def test_minus_one_means_no_limit_and_an_equals_sign_is_a_blank(words):
    for option in ("-s -1", "-l -1"):
        assert words("demo_resnet", *BF16, *option.split()) == words("demo_resnet", *BF16)
    assert words("demo_resnet_hvd.sh", TRAIN_STEPS="-1", BATCH_SIZE="") == words("demo_resnet_hvd.sh")
    said = words("demo_resnet", "--dtype=bf16", "--data-dir=/a=b", "--steps=3")
    assert said[3:5] == ["data=imagenet", 'data.dir="/a=b"']


def test_mlperf_is_lars_to_its_target_evaluated_every_four_epochs(words):
    said = words("demo_resnet_hvd.sh", USE_MLPERF="1", IMAGENET_DIR=DATA, STOP_THRESHOLD="0.7")
    assert said[:3] == ["recipe=resnet50_lars_8x", f"data.dir={DATA}", "cluster=hls1"]
    assert said[3:] == ["mlperf=true", "stop_at_top1=0.7", "eval_every_epochs=4"]


def test_an_export_follows_the_training_of_a_folder_that_is_named(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c", "-m", "my run")
    assert train[-1] == 'out="my run"'
    assert export == ["resnet.export", f"{tmp_path}/my run", f"out={tmp_path}/my run/exported"]
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c")
    (out,) = [word.removeprefix("out=") for word in train if word.startswith("out=")]
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", out)
    assert export == ["resnet.export", f"{tmp_path}/{out}", f"out={tmp_path}/{out}/exported"]
