"""The files of launch/ that have the original's names, as processes; their help, and the page about them."""

import itertools
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

from resnet.compat import habana, habana_options

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = ROOT / "launch"
SMALL = ("-d", "fp32", "-b", "16")
LOCAL = ("model=tiny", "track=off", "cluster=local")


@pytest.mark.parametrize("command", habana_options.COMMANDS)
def test_help_and_the_page_of_documentation_have_every_option(command, capsys, exit_status):
    assert exit_status(habana.main, [command, "--help"]) == exit_status(habana.main, [command, "-h"]) == 0
    told, page = " ".join(capsys.readouterr().out.split()), (ROOT / "docs" / "original.md").read_text()
    for option in itertools.chain(*habana_options.COMMANDS[command][1].values()):
        assert all(name in told for name in option.names.split()) and option.help in told, option.names
        names = ", ".join(f"`{name}`" for name in option.names.split())
        assert f"| {names} | {option.help} |\n" in page or option is habana_options.PRINT, option.names


def test_the_page_has_no_option_that_does_not_exist():
    page = (ROOT / "docs" / "original.md").read_text()
    options = [o for _, sources in habana_options.COMMANDS.values() for o in itertools.chain(*sources.values())]
    rows = {(", ".join(f"`{name}`" for name in option.names.split()), option.help) for option in options}
    for row in re.findall(r"^\| (`.*) \| (.*) \|$", page, re.M):
        assert row in rows


@pytest.fixture
def call(tmp_path):
    """`call("demo_resnet", ...)`: one of launch/'s files, from another folder, with this Python active."""

    def start(name, *argv, timeout=240, launch=LAUNCH, before=(), **environ):
        ours = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ}
        command = [*before, str(launch / name), *map(str, argv)]
        env = {**os.environ, **ours}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout)

    return start


@pytest.mark.parametrize(
    ("before", "command", "argv", "line"),
    [
        ("", "demo_resnet", "-d bf16 -rs 101 -a /s -s 2 -l 1 -m 'my run'", "model=resnet101 optim=sgd dtype=bf16 data=imagenet"),
        ("bash", "demo_keras_resnet", "-d fp32 -a /s -m 'my run'", "model=resnet50 optim=sgd optim.weight_decay=0.0002"),
        ("", "demo_resnet_hvd.sh", "--resnext -- data=digits 'out=\"my run\"'", "model=resnext101 optim=sgd schedule=cosine"),
        ("python3", "habana_model_runner.py", "--model resnet_keras --hb_config 'a run.yaml'", "model=resnet50 optim=sgd"),
    ],
)  # fmt: skip
def test_print_only_prints(call, tmp_path, before, command, argv, line):
    text = "{model: resnet_keras, env_variables: {HCL_CONFIG_PATH: /h}, parameters: {model_dir: my run, data_dir: /s}}"
    (tmp_path / "a run.yaml").write_text(text)
    done = call(command, "--print", *shlex.split(argv), before=before.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"python -m resnet.train {line} ")
    assert shlex.quote('out="my run"') in done.stdout and done.stdout.count("\n") == 1
    assert ("HCL_CONFIG_PATH: /h: ignored" in done.stderr) is (command == "habana_model_runner.py")
    assert [path.name for path in tmp_path.iterdir()] == ["a run.yaml"]


@pytest.mark.slow
def test_it_trains_on_the_embedded_data_with_two_steps(call, tmp_path):
    done = call("demo_resnet", *SMALL, "-s", 2, "-l", 1, "-m", "my run", "--", *LOCAL)
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
    assert all(
        os.access(path, os.X_OK)
        for path in [*scripts, LAUNCH / "habana_model_runner.py", *LAUNCH.glob("*imagenet_main.py")]
    )


def test_tensorflow_is_not_needed_to_print():
    code = "import sys; from resnet.compat import habana; habana.main(sys.argv[1:]); print('tensorflow' in sys.modules)"
    argv = [sys.executable, "-c", code, "demo_resnet", "-d", "bf16", "--print"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_two_workers_train_with_lars(call, tmp_path):
    small = {"NUM_WORKERS_PER_HLS": "2", "BATCH_SIZE": "16", "TRAIN_STEPS": "2"}
    words = ("model=tiny", "cluster=cpu2", "out=x", "data=digits")
    done = call("demo_resnet_hvd.sh", "--", *words, USE_LARS_OPTIMIZER="1", RESNET_SIZE="50", **small)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "x" / "result.json").read_text())
    assert (made["status"], made["steps"]) == ("finished", 2)
    assert (
        "optim=lars" in done.stdout and "batch=32" in done.stdout and (tmp_path / "x" / "logs" / "rank-1.log").exists()
    )


@pytest.mark.slow
def test_an_export_comes_of_it(call, tmp_path):
    done = call("demo_keras_resnet", *SMALL, "-s", 2, "-c", "-m", "y", "--", *LOCAL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "y" / "exported" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_signal_reaches_the_training_which_saves(tmp_path):
    argv = [LAUNCH / "demo_resnet", *SMALL, "-e", "500", "-m", "z", "--", *LOCAL]
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
