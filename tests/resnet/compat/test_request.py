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
    "estimator": "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/software/tf_records cluster=gaudi1 batch=128 "
    "epochs=1 out=/model optim.weight_decay=0.0001 label_smoothing=0.0 log_every_steps=1 eval_every_epochs=1 "
    "save_every_steps=10000",
    "keras": "model=resnet50 optim=sgd dtype=bf16 data=imagenet data.dir=/software/tf_records/ cluster=gaudi1 batch=256 "
    "epochs=1 steps=20 out=/model steps_per_loop=50 log_every_steps=50 cluster.prefetch=false",
}


def test_the_published_estimator_file(asked, described, run_at, tmp_path):
    request, (train, export) = asked(*described(ESTIMATOR))
    assert train == ["resnet.train", *SAID["estimator"].split()]
    assert export == ["resnet.export", "/model", "out=/model/exported"]
    run_at(tmp_path, *train[1:])
    ignored = "resnet_version use_train_and_evaluate clean mini_imagenet image_bytes_as_serving_input data_format hooks"
    notes = {note.split(":")[0] for note in request.notes}
    assert notes == {"LD_PRELOAD", "TF_PRELIMINARY_CLUSTER_SIZE", *ignored.split()}
    assert request.env == {}


def test_the_published_keras_file(asked, described, run_at, tmp_path):
    request, (train,) = asked(*described(KERAS, "resnet_keras"))
    assert train == ["resnet.train", *SAID["keras"].split()]
    run_at(tmp_path, *train[1:])
    ignored = "TF_PRELIMINARY_CLUSTER_SIZE_THRESHOLD distribution_strategy data_format data_loader_image_type"
    notes = {note.split(":")[0] for note in request.notes}
    assert notes == {"LD_PRELOAD", "TF_PRELIMINARY_CLUSTER_SIZE", *ignored.split()}


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
    commands = "demo_resnet, demo_keras_resnet, demo_resnet_hvd.sh, habana_model_runner.py"
    assert f"there are {commands}" in capsys.readouterr().err
