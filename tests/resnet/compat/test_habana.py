"""The original's commands: every option of every one, as the words of resnet.train that do the same, and real processes."""

import re
import shlex
from pathlib import Path

import pytest

from resnet.compat import habana, habana_options
from resnet.config import fingerprint

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "launch"
DATA = "/data/shards"
HERE = "/usr"  # a folder that exists, as IMAGENET_DIR must
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
        "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=256 epochs=1",
    "demo_resnet -d fp32 -a /s":
        "model=resnet50 optim=sgd dtype=fp32 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=128 epochs=1",
    "demo_resnet -d fp32 -rs 101 -a /s":
        "model=resnet101 optim=sgd dtype=fp32 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=128 epochs=1",
    "demo_resnet -d bf16 -s 1000 -l 50 -a /s":
        "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=256 epochs=1 "
        "steps=1000 eval_steps=50",
    "demo_resnet -d fp32 -e 9 -b 128 -a /s -m /m/ck_81":
        "model=resnet50 optim=sgd dtype=fp32 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=128 epochs=9 out=/m/ck_81",
    "demo_resnet -rs 101 --resnext -d bf16 -b 256 -a /s -m /m/resnext101":
        "model=resnext101 optim=sgd schedule=cosine optim.lr=${linear_lr:0.256} optim.weight_decay=6.103515625e-05 "
        "dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original cluster=gaudi1 batch=256 epochs=1 "
        "optim.momentum=0.875 out=/m/resnext101 schedule.horizon_epochs=90",
    "demo_resnet -d bf16 -rs 101 -s 2 -l 1 -a /s -m /x":
        "model=resnet101 optim=sgd dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=256 epochs=1 "
        "steps=2 eval_steps=1 out=/x",
    # those that its published figures came of: the recipes of these names
    "demo_keras_resnet -d bf16 -e 90 -a /s": "recipe=resnet50_keras_sgd_1x data.dir=/s cluster=gaudi1",
    "demo_resnet -rs 50 -d bf16 -b 256 -e 90 -a /s": "recipe=resnet50_sgd_1x data.dir=/s cluster=gaudi1",
    "demo_resnet --enable-lars-optimizer -rs 50 -d bf16 -b 256 -e 38 -a /s":
        "recipe=resnet50_lars_1x data.dir=/s cluster=gaudi1",
    "demo_resnet --resnext -d bf16 -e 90 -a /s": "recipe=resnext101_1x data.dir=/s cluster=gaudi1",
    **{f"RESNET_SIZE={size} USE_LARS_OPTIMIZER={lars} IMAGENET_DIR=/usr demo_resnet_hvd.sh":
           f"recipe=resnet{size}_{optim}_8x data.dir=/usr cluster=hls1 eval_every_epochs=8"
       for size in (50, 101, 152) for lars, optim in ((0, "sgd"), (1, "lars"))},
    "RESNET_SIZE=101 IMAGENET_DIR=/usr demo_resnet_hvd.sh --resnext":
        "recipe=resnext101_8x data.dir=/usr cluster=hls1 eval_every_epochs=8",
    "RESNET_SIZE=101 TRAIN_EPOCHS=250 IMAGENET_DIR=/usr demo_resnet_hvd.sh --resnext":
        "recipe=resnext101_250ep_8x data.dir=/usr cluster=hls1 eval_every_epochs=8",
    # MixUp with 250 epochs, no checkpoints, and LARS with a bigger batch on one card
    "demo_resnet --resnext -rs 50 -d bf16 -e 250 -n -c 0 -a /s":
        "model=resnext50 optim=sgd schedule=cosine optim.lr=${linear_lr:0.256} optim.weight_decay=6.103515625e-05 dtype=bf16 "
        "data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=256 epochs=250 optim.momentum=0.875 mixup=0.2 eval=false "
        "save_every_steps=2147483647",
    "demo_resnet --enable-lars-optimizer -d bf16 -b 512 -e 38 -a /s":
        "model=resnet50 optim=lars optim.lr=2.5 dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=512 epochs=38",
    # two servers with what one had
    "MULTI_HLS_IPS=a,b IMAGENET_DIR=/usr demo_resnet_hvd.sh":
        "model=resnet50 optim=lars optim.lr=9.5 schedule.warmup_epochs=3 schedule.horizon_epochs=38 dtype=bf16 data=imagenet "
        "data.dir=/usr data.eval_resample=original cluster=hls1 cluster.ranks=16 cluster.hosts=[a:8,b:8] batch=4096 epochs=38 "
        "eval_every_epochs=8",
    # the Keras program of release 1.14, as its description has it
    "resnet_ctl_imagenet_main.py -bs 256 -te 40 -ebe 40 -dt bf16 --data_dir /s --optimizer LARS --base_learning_rate 2.5 "
    "--warmup_epochs 3 --lr_schedule polynomial --label_smoothing 0.1 --weight_decay 0.0001 --single_l2_loss_op "
    "--enable_tensorboard":
        "model=resnet50 optim=lars dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=gaudi1 batch=256 epochs=40 "
        "eval_every_epochs=40 label_smoothing=0.1 track.tensorboard=true",
    **{f"MULTI_HLS_IPS=a,b resnet_ctl_imagenet_main.py -dt bf16 -te 40 --data_dir /s --optimizer LARS --base_learning_rate 13 "
       f"--warmup_epochs 7 --momentum 0.9 --lr_schedule polynomial --label_smoothing 0.1 --weight_decay 0.0001 {more}":
           "model=resnet50 optim=lars dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original "
           "cluster=hls1 cluster.ranks=16 "
           f"cluster.hosts=[a:8,b:8] batch=4096 epochs=40 label_smoothing=0.1{words}"
       for more, words in (("--lars_decay_epochs 41 --use_horovod -bs 256", ""),
                           ("--distribution_strategy hpu -bs 4096", " schedule.horizon_epochs=40"))},
    "imagenet_main.py --use_horovod -dt bf16 -dlit fp32 -bs 128 -te 90 -ebe 90 --weight_decay 7.93E-05 --data_dir /s":
        "model=resnext101 optim=sgd schedule=cosine optim.lr=${linear_lr:0.256} optim.weight_decay=7.93E-05 dtype=bf16 "
        "data=imagenet data.dir=/s data.eval_resample=original "
        "cluster=hls1 batch=1024 epochs=90 label_smoothing=0.1 optim.momentum=0.875 "
        "eval_every_epochs=90",
}
# fmt: on


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_becomes_this_line_and_its_recipe_is_what_its_options_say(
    words, line, run_at, tmp_path, monkeypatch
):
    command, argv, environ = typed(line)
    said = words(command, *argv, **environ)
    assert sorted(said) == sorted(LINES[line].split(" "))
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
--epochs-between-evals 4 -> eval_every_epochs=4
--stop_threshold .759 -> stop_at_top1=.759
"""
OPTIONS = {
    "demo_resnet": f"""{BOTH}
-rs 152 -> model=resnet152
-l 50 -> eval_steps=50
-c 5005 -> save_every_steps=5005
--dummy_epoch ->
--enable-lars-optimizer -> optim=lars schedule.horizon_epochs=38
--resnext -> {COSINE} schedule.horizon_epochs=90
--use-train-and-evaluate ->""",
    "demo_keras_resnet": f"""{BOTH}
-l 50 -> steps_per_loop=50
-c -m /m -> out=/m
-t -> track.tensorboard=true
--use_hpu_strategy -> cluster=hls1""",
    "demo_resnet_hvd.sh": f"""
--resnext -> {COSINE} optim=sgd epochs=90
IMAGENET_DIR=/tmp -> data.dir=/tmp
RESNET_SIZE=200 -> model=resnet200
USE_LARS_OPTIMIZER=0 -> optim=sgd epochs=90
BATCH_SIZE=64 -> batch=128 optim.lr=9.5
TRAIN_EPOCHS=9 -> epochs=9 schedule.horizon_epochs=38
TRAIN_STEPS=7 -> steps=7
NO_EVAL=1 -> eval=false
NUM_WORKERS_PER_HLS=4 -> cluster.ranks=4 batch=1024
MULTI_HLS_IPS=10.0.0.1,b -> cluster.ranks=4 cluster.hosts=[10.0.0.1:2,b:2] batch=1024
USE_MLPERF=1 -> mlperf=true eval_every_epochs=4 eval_offset_epochs=6 stop_at_top1=0.759
MPI_MAP_BY=slot ->
MPI_MAP_BY_PE=6 -> cluster.threads=6
STOP_THRESHOLD=0.75 -> stop_at_top1=0.75
MPI_TPC_INCLUDE=eth1 ->
HLS_TYPE=HLS1 ->""",
}
SHARDS = "data=imagenet data.dir=/data/shards data.eval_resample=original cluster=gaudi1"
ONE = f"model=resnet50 optim=sgd dtype=bf16 {SHARDS} batch=256 epochs=1"
KERAS = "optim.lr=${linear_lr:0.1} optim.weight_decay=0.0002 schedule.warmup_epochs=5 label_smoothing=0"
BASES = {
    "demo_resnet": ONE,
    "demo_keras_resnet": f"{ONE} {KERAS}",
    # on two cards, of which nothing was published
    "demo_resnet_hvd.sh": "model=resnet50 optim=lars dtype=bf16 data=imagenet data.dir=/usr data.eval_resample=original "
    "cluster=hls1 "
    "cluster.ranks=2 batch=512 epochs=38 eval_every_epochs=8",
}
EVERYWHERE = {"--print"}


def options_of(command):
    """All options, variables and keys of a command by their first name."""
    sources = habana_options.COMMANDS[command][1].values()
    return {option.names.split()[0]: option for options in sources for option in options}


def given(command, name, value, more):
    """(argv, environment) that give one option."""
    if command == "demo_resnet_hvd.sh":
        environ = {"IMAGENET_DIR": HERE, "NUM_WORKERS_PER_HLS": "2"}
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
            argv, environ = given(command, spelling, value, more)
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
    data = {"IMAGENET_DIR": HERE}
    assert words("demo_resnet_hvd.sh", TRAIN_STEPS="-1", BATCH_SIZE="", **data) == words("demo_resnet_hvd.sh", **data)
    said = words("demo_resnet", "--dtype=bf16", "--data-dir=/a=b", "--steps=3")
    assert said[3:5] == ["data=imagenet", 'data.dir="/a=b"']


def test_mlperf_is_lars_to_its_target_evaluated_every_four_epochs(words):
    said = words("demo_resnet_hvd.sh", USE_MLPERF="1", IMAGENET_DIR=HERE, STOP_THRESHOLD="0.7")
    assert said[:3] == ["recipe=resnet50_lars_8x", f"data.dir={HERE}", "cluster=hls1"]
    assert said[3:] == ["mlperf=true", "stop_at_top1=0.7", "eval_every_epochs=4", "eval_offset_epochs=6"]


def test_an_export_follows_the_training_of_a_folder_that_is_named(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c", "-m", "my run")
    assert train[-1] == 'out="my run"'
    assert export == ["resnet.export", f"{tmp_path}/my run", f"out={tmp_path}/my run/exported"]
    _, (train, export) = asked("demo_keras_resnet", *BF16, "-c")
    (out,) = [word.removeprefix("out=") for word in train if word.startswith("out=")]
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", out)
    assert export == ["resnet.export", f"{tmp_path}/{out}", f"out={tmp_path}/{out}/exported"]
