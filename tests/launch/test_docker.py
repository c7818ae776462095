"""The images of launch/docker, as far as they can be checked without building them: there is no registry to build from."""

import configparser
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "launch" / "docker"
DEVICES = ["cpu", "gpu", "gaudi"]
KNOWN = ["ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"]


def instructions(device):
    """[(instruction, its words)] of an image, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / f"Dockerfile.{device}").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines]


def runs(device):
    """The shell commands of an image, without the mounts that stand before them."""
    return [re.sub(r"^(--mount=\S+\s+)+", "", words) for name, words in instructions(device) if name == "RUN"]


def pins(path):
    """{package: version} of a lock."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE))


def ignored():
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("device", DEVICES)
def test_only_known_instructions_and_no_port(device):
    assert {name for name, _ in instructions(device)} <= set(KNOWN)  # no EXPOSE, no ADD, no VOLUME


@pytest.mark.parametrize("device", DEVICES)
def test_the_base_is_one_release(device):
    defaults = dict(words.split("=") for name, words in instructions(device) if name == "ARG")
    bases = [words.split()[0] for name, words in instructions(device) if name == "FROM"]
    for base in bases:
        tag = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], base).rpartition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", tag) and "latest" not in tag, base
    assert len({base.partition(":")[0] for base in bases}) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_copied_is_there_and_is_sent(device):
    stages = {words.partition(" AS ")[2] for name, words in instructions(device) if name == "FROM"}
    for words in (words.split() for name, words in instructions(device) if name == "COPY"):
        if words[0].startswith("--from="):
            assert words[0].partition("=")[2] in stages
            continue
        *sources, _ = words
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored()), source


def test_no_environment_no_run_and_no_history_is_sent():
    """Whatever git ignores in a checkout of ours; and nothing that git knows is held back, but its own files."""
    patterns = ignored()
    for path in (".git", ".venv", "runs", "mlruns", "mlflow.db", ".pytest_cache", "resnet/__pycache__"):
        assert any(fnmatch.fnmatch(path, pattern) for pattern in patterns), path
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    held = {
        path.split("/")[0]
        for path in known
        if any(fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path.split("/")[0], pattern) for pattern in patterns)
    }
    assert held <= {".ci"}


@pytest.mark.parametrize("device", DEVICES)
def test_the_shell_in_it_is_clean(device):
    for command in runs(device):
        shellcheck = Path(sys.executable).parent / "shellcheck"
        done = subprocess.run([shellcheck, "--shell=sh", "-"], input=command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("device", DEVICES)
def test_packages_of_the_system_leave_no_lists(device):
    for command in runs(device):
        if "apt-get" in command:
            assert command.startswith("apt-get update ")
            assert "install -y --no-install-recommends" in command and "rm -rf /var/lib/apt/lists/*" in command


@pytest.mark.parametrize("device", DEVICES)
def test_scripts_and_locks_that_it_names_exist(device):
    named = re.findall(r"(?:/opt/resnet/)?(launch/[\w./-]+)", " ".join(runs(device)))
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("device", DEVICES)
def test_it_runs_as_a_user_under_a_process_one_that_passes_signals_on(device):
    told = dict(instructions(device))  # the last of each
    assert told["USER"] == "resnet" and told["WORKDIR"] == "/runs"
    assert told["ENTRYPOINT"] == '["tini", "--"]' and told["CMD"].startswith('["python')
    final = [command for command in runs(device) if "tini" in command]
    assert final and "openssh-server" in final[-1] and "procps" in final[-1] and "/etc/ssh/ssh_host_*" in final[-1]
    names = [name for name, _ in instructions(device)]
    assert names.index("USER") > max(number for number, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_cpu_image_is_what_setup_makes_on_its_python():
    python = re.search(r"FROM python:(3\.\d+)\.", (DOCKER / "Dockerfile.cpu").read_text())[1]
    first_choice = re.search(r"^versions=\((3\.\d+)", (ROOT / "launch" / "setup.sh").read_text(), re.M)[1]
    assert python == first_choice
    assert any(command.endswith("launch/setup.sh test") for command in runs("cpu"))


def test_the_gpu_image_has_the_tensorflow_of_the_lock_for_its_python():
    locked = pins(ROOT / "launch" / "locks" / "py312.txt")  # Ubuntu 24.04's
    assert pins(DOCKER / "gpu.txt") == {"tensorflow": locked["tensorflow-cpu"]}
    assert re.search(r"--hash=sha256:[0-9a-f]{64}$", (DOCKER / "gpu.txt").read_text().strip())
    (compile_horovod,) = [command for command in runs("gpu") if "horovod.txt" in command]
    for part in (
        "HOROVOD_GPU_OPERATIONS=NCCL",
        "HOROVOD_WITH_MPI=1",
        "HOROVOD_WITH_GLOO=1",
        "HOROVOD_WITH_TENSORFLOW=1",
        "HOROVOD_CMAKE=/opt/resnet/launch/horovod_cmake.sh",
    ):
        assert part in compile_horovod


def test_the_gaudi_image_keeps_to_the_versions_of_the_extra():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extra = [Requirement(line) for line in config["options.extras_require"]["gaudi"].strip().splitlines()]
    wanted = {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in extra}
    text = (DOCKER / "Dockerfile.gaudi").read_text()
    assert f"tensorflow-installer-tf-cpu-{wanted['tensorflow-cpu']}:" in text
    assert f"tensorflow-cpu=={wanted['tensorflow-cpu']} habana-tensorflow=={wanted['habana-tensorflow']}" in text
    assert f"habana-horovod=={wanted['habana-tensorflow']}" in text
    release, _, build = wanted["habana-tensorflow"].rpartition(".")
    assert f"ARG TAG={release}-{build}\n" in text and f"/gaudi-docker/{release}/ubuntu22.04/" in text


def test_the_gaudi_images_pins_are_the_lock_without_what_tensorflow_wants_otherwise(tmp_path):
    """The very command, but for where it reads and writes."""
    (command,) = [command for command in runs("gaudi") if "/tmp/pins" in command]
    command = command.partition("&&")[0].replace("/opt/resnet", str(ROOT)).replace("/tmp/pins", str(tmp_path / "pins"))
    subprocess.run(
        ["sh", "-c", command.replace(str(ROOT), f"'{ROOT}'").replace(str(tmp_path), f"'{tmp_path}'")], check=True
    )
    locked = pins(ROOT / "launch" / "locks" / "py310.txt")
    assert pins(tmp_path / "pins") == {
        name: version for name, version in locked.items() if name not in ("tensorflow-cpu", "ml-dtypes")
    }
    assert "hash" not in (tmp_path / "pins").read_text()  # or pip would want one of everything
