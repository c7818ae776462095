"""What the original's commands are asked: YAML files, and lines that make no sense."""

import shlex

import pytest

from resnet import UserError
from resnet.compat import habana, habana_options


def typed(line):
    """(command, argv, environment) of a line with variables before its command."""
    parts = shlex.split(line)
    number = next(number for number, part in enumerate(parts) if part in habana_options.COMMANDS)
    return parts[number], parts[number + 1 :], dict(part.split("=", 1) for part in parts[:number])


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
    "estimator": "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/software/tf_records data.eval_resample=original "
    "cluster=gaudi1 batch=128 "
    "epochs=1 out=/model label_smoothing=0.0 log_every_steps=1 eval_every_epochs=1 save_every_steps=10000",
    "keras": "model=resnet50 optim=sgd optim.weight_decay=0.0002 optim.lr=${linear_lr:0.1} schedule.warmup_epochs=5 "
    "dtype=bf16 data=imagenet data.dir=/software/tf_records/ data.eval_resample=original "
    "cluster=gaudi1 batch=256 epochs=1 label_smoothing=0 "
    "steps=20 out=/model steps_per_loop=50 log_every_steps=50 cluster.prefetch=false",
}


def test_the_published_estimator_file(asked, described, run_at, tmp_path):
    request, (train, export) = asked(*described(ESTIMATOR))
    assert sorted(train) == sorted(["resnet.train", *SAID["estimator"].split()])
    assert export == ["resnet.export", "/model", "out=/model/exported"]
    run_at(tmp_path, *train[1:])
    ignored = "resnet_version use_train_and_evaluate clean mini_imagenet image_bytes_as_serving_input data_format hooks"
    notes = {note.split(":")[0] for note in request.notes}
    assert notes == {"LD_PRELOAD", "TF_PRELIMINARY_CLUSTER_SIZE", *ignored.split()}
    assert request.env == {}


def test_the_published_keras_file(asked, described, run_at, tmp_path):
    request, (train,) = asked(*described(KERAS, "resnet_keras"))
    assert sorted(train) == sorted(["resnet.train", *SAID["keras"].split()])
    run_at(tmp_path, *train[1:])
    ignored = "TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD data_format data_loader_image_type"
    notes = {note.split(":")[0] for note in request.notes}
    assert notes == {"LD_PRELOAD", "TF_PRELIMINARY_CLUSTER_SIZE", *ignored.split()}


# Parameters of files of releases 0.14 and 0.15, their folders apart: names and values are facts of the original's repository.
MULTI = "num_gpus: 1, distribution_strategy: off, data_format: channels_last, use_horovod: true, hls_type: HLS1, "
MULTI += "num_workers_per_hls: 8, experimental_preloading: 1, batch_size: 256, data_dir: /s"
ALONE = MULTI.replace("use_horovod: true, hls_type: HLS1, num_workers_per_hls: 8", "use_horovod: false")
ON8 = "dtype=bf16 data=imagenet data.dir=/s data.eval_resample=original cluster=hls1 batch=2048 cluster.prefetch=true "
ON1 = ON8.replace("hls1", "gaudi1").replace("2048", "256")
FILES = {
    # 200 steps, no evaluation
    f"resnet_estimator {MULTI}, max_train_steps: 200, resnet_size: 50, train_epochs: 1, enable_lars: false, disable_eval: true, "
    "dummy_epoch: false, use_train_and_evaluate: false":
        f"{ON8} model=resnet50 optim=sgd epochs=1 steps=200 eval=false label_smoothing=0",
    # LARS of the Estimator program, on eight cards and on one
    f"resnet_estimator {MULTI}, train_epochs: 40, enable_lars: true, label_smoothing: 0.1, epochs_for_lars: 40, "
    "start_learning_rate: 9.5, warmup_epochs: 2, train_offset: 0, is_mlperf_enabled: false, weight_decay: 0.0001":
        f"{ON8} model=resnet50 optim=lars schedule.warmup_epochs=2 epochs=40 label_smoothing=0.1",
    f"resnet_estimator {ALONE}, train_epochs: 40, enable_lars: true, epochs_for_lars: 38, start_learning_rate: 2.5, "
    "warmup_epochs: 3, dtype: bf16, data_loader_image_type: bf16":
        f"{ON1} model=resnet50 optim=lars epochs=40 schedule.horizon_epochs=null label_smoothing=0",
    # ResNeXt, as a flag and as one of store_true
    **{f"resnet_estimator {MULTI}, model_type: resnext, resnet_size: 101, weight_decay: 6.103515625e-05, momentum: 0.875, "
       f"label_smoothing: 0.1, warmup_epochs: 8, train_epochs: 90, {cosine}":
           f"{ON8} model=resnext101 optim=sgd schedule=cosine optim.lr=${{linear_lr:0.256}} optim.momentum=0.875 epochs=90 "
           "optim.weight_decay=6.103515625e-05 label_smoothing=0.1"
       for cosine in ("use_cosine_lr: true", "store_true: [use_cosine_lr]")},
    # the Keras program
    f"resnet_keras {MULTI}, optimizer: LARS, lr_schedule: polynomial, base_learning_rate: 9.5, warmup_epochs: 3, "
    "train_epochs: 40, label_smoothing: 0.1, weight_decay: 0.0001, enable_tensorboard: true, log_steps: 100":
        f"{ON8} model=resnet50 optim=lars epochs=40 label_smoothing=0.1 track.tensorboard=true log_every_steps=100",
    f"resnet_keras {ALONE}, optimizer: SGD, lr_schedule: piecewise, warmup_epochs: 5, train_epochs: 90, skip_eval: true":
        f"{ON1} model=resnet50 optim=sgd optim.lr=${{linear_lr:0.1}} optim.weight_decay=0.0002 schedule.warmup_epochs=5 "
        "epochs=90 eval=false label_smoothing=0",
    # nested maps and lists
    f"resnet_keras all: {{size: {{{ALONE}}}, more: {{profile_steps: [5, 8], hooks: [LoggingTensorHook, ProfilerHook]}}}}":
        f"{ON1} model=resnet50 optim=sgd optim.lr=${{linear_lr:0.1}} optim.weight_decay=0.0002 schedule.warmup_epochs=5 "
        "epochs=1 profile_steps=[5,8] label_smoothing=0",
}  # fmt: skip


@pytest.mark.parametrize("content", FILES)
def test_files_of_other_releases(asked, described, content, run_at, tmp_path):
    model, _, parameters = content.partition(" ")
    text = f"{{model: {model}, env_variables: {{TF_ENABLE_BF16_CONVERSION: 1}}, parameters: {{{parameters}}}}}"
    _, (train,) = asked(*described(text, model))
    assert sorted(train[1:]) == sorted(FILES[content].split())
    run_at(tmp_path, *train[1:])


def test_the_path_of_the_file_may_have_a_tilde_and_variables(asked, described, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    for path in ("~/a run.yaml", "$HERE/a run.yaml", "${HERE}/a run.yaml"):
        *argv, _ = described(KERAS, "resnet_keras")
        assert asked(*argv, path)[1][0][0] == "resnet.train"


def test_a_variable_that_still_means_something_goes_to_the_run(asked, described, tmp_path):
    (tmp_path / "lib.so").touch()
    text = f"{{model: resnet_estimator, env_variables: {{LD_PRELOAD: {tmp_path}/lib.so, TF_DISABLE_MKL: 1, A: b c}}}}"
    request, (train,) = asked(*described(text))
    assert request.env == {"LD_PRELOAD": f"{tmp_path}/lib.so", "TF_DISABLE_MKL": "1", "A": "b c"}
    assert habana.shell_line([train], request.env).startswith(
        f"env {shlex.quote(f'LD_PRELOAD={tmp_path}/lib.so')} TF_DISABLE_MKL=1 'A=b c' "
    )
    assert "dtype=fp32" in train


def test_eval_only_evaluates(asked, described):
    text = "{eval_only: True, model_dir: /a=b, data_dir: /my data, batch_size: 32, export_dir: True}"
    _, lines = asked(*described(f"{{model: resnet_estimator, parameters: {text}}}"))
    said = ["dtype=fp32", "data=imagenet", 'data.dir="/my data"', "cluster=gaudi1", "batch=32"]
    assert lines == [["resnet.evaluate", "/a=b", *said]]


def test_export_dir_says_where(asked, described):
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
            "batchsize: no such parameter; did you mean batch_size? --help lists all",
        ),
        (
            "{model: resnet_estimator, parameters: {pretrained_model_checkpoint_path: /m/model.ckpt-5}}",
            "pretrained_model_checkpoint_path: /m/model.ckpt-5: must be a .safetensors or .npz file: TensorFlow 1's checkpoints "
            "cannot be read yet, and the original ignored this; leave it out, or add -- init=",
        ),
        (
            "{model: resnet_estimator, parameters: {jpeg_data_dir: /j}}",
            "jpeg_data_dir: /j: not available: prepare once, python -m resnet.prepare source=imagenet dir= out=",
        ),
        ("{model: resnet_estimator, parameters: {optimizer: Adam}}", "optimizer: Adam: must be SGD or LARS"),
        (
            "{model: resnet_estimator, parameters: {store_true: [use_cosine]}}",
            "use_cosine: no such parameter; did you mean use_cosine",
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
def test_a_file_that_makes_no_sense(asked, described, text, said):
    with pytest.raises(UserError) as error:
        asked(*described(text))
    assert said in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("demo_resnet", "-d: must be given, bf16 or fp32"),
        ("demo_resnet -d fp16", "-d fp16: must be bf16 or fp32"),
        ("demo_resnet -d bf16 --step 3", "--step: no such option; did you mean --steps?"),
        ("demo_resnet -d bf16 shards", "shards: no such option"),
        ("demo_resnet -d bf16 ''", ": no such option"),
        ("demo_resnet -d bf16 -s", "-s: needs a value; it must be a whole number above 0, or -1"),
        ("demo_resnet -d bf16 -s -l 3", "-s: needs a value; it must be a whole number above 0, or -1"),
        ("demo_resnet -d bf16 -a --steps=3", "-a: needs a value; it must be a folder"),
        ("demo_resnet -d bf16 -m ''", "-m : must be a folder"),
        ("demo_resnet -d bf16 -s 0", "-s 0: must be a whole number above 0, or -1 for no limit"),
        ("demo_resnet -d bf16 -b 1.5", "-b 1.5: must be a whole number above 0"),
        ("demo_resnet -d bf16 -e many", "-e many: must be a number"),
        ("demo_resnet -d bf16 -rs 20", "-rs 20: must be 18, 34, 50, 101, 152 or 200"),
        ("demo_resnet -d bf16 --no-eval=1", "--no-eval=1: must be without a value"),
        ("demo_resnet -d bf16 -r", "-r: needs -s"),
        ("demo_resnet -d bf16 --resnext --enable-lars-optimizer", "--resnext: nobody published settings of LARS"),
        ("demo_resnet -d bf16 --resnext -rs 18", "--resnext: there is no ResNeXt-18"),
        ("demo_resnet -d bf16 -n --stop_threshold 0.7", "stop_at_top1=0.7: only an evaluation can tell"),
        ("demo_resnet -d bf16 -c 0", "0 steps between checkpoints: only without evaluation (-n)"),
        ("MPI_MAP_BY=numa demo_resnet_hvd.sh", "MPI_MAP_BY=numa: must be socket or slot"),
        (
            "imagenet_main.py --enable_lars",
            "model_type resnext: nobody published settings of LARS for it; give model_type resnet",
        ),
        (
            "resnet_ctl_imagenet_main.py --optimiser=SGD",
            "--optimiser: no such option; did you mean optimizer? --help lists all",
        ),
        ("resnet_ctl_imagenet_main.py --noskip_eval=1", "--noskip_eval: no such option"),
        ("demo_resnet -d bf16 -- -m", "-m: only knob=value may follow --"),
        ("demo_resnet -d bf16 -- recipe=quickstart", "recipe=: what the options say would win over it"),
        ("demo_keras_resnet -d bf16 -c -- out=x", "out=: a second command needs the folder too"),
        ("demo_resnet -d bf16 -- cluster=none", "cluster=none: no such option"),
        ("demo_keras_resnet -d bf16 -rs 101", "-rs: no such option"),
        ("demo_resnet_hvd.sh --help=1", "--help: no such option"),
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
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"{command}: {said}")


def test_a_command_that_never_was(capsys):
    assert habana.main([]) == habana.main(["demo"]) == 2
    commands = "demo_resnet, demo_keras_resnet, demo_resnet_hvd.sh, habana_model_runner.py, resnet_ctl_imagenet_main.py"
    assert f"there are {commands}" in capsys.readouterr().err


def test_without_images_the_horovod_script_ends_as_it_did(capsys, monkeypatch, words):
    for folder, problem in (("", " is not set"), ("/no such folder", "=/no such folder: no such folder")):
        monkeypatch.setenv("IMAGENET_DIR", folder)
        assert habana.main(["demo_resnet_hvd.sh", "--print"]) == 255
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith(f"demo_resnet_hvd.sh: IMAGENET_DIR{problem}; ")
    assert "data=digits" in words("demo_resnet_hvd.sh", "--", "data=digits")
