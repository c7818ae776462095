"""What this project never does: run what it reads, listen, tell a secret, break a word apart, install what is not locked."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rank_runs import listeners

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "resnet").rglob("*.py"), ROOT / "launch" / "habana_model_runner.py"])
# Calls that run what they read, by their whole name or all but the first part of it, and by their last; packages whose files
# are programs; and packages that listen.
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
    "saved_model.load",
    "pyfunc.load_model",
    "shutil.unpack_archive",
}
LAST = {"extractall", "load_model", "load_op_library", "bind", "listen", "serve_forever", "RendezvousHTTPServer"}
PACKAGES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "runpy", "telnetlib"}
LISTENERS = {
    "socketserver",
    "http.server",
    "xmlrpc.server",
    "wsgiref",
    "asyncio",
    "flask",
    "fastapi",
    "uvicorn",
    "aiohttp",
}
# (file, call) that may stand: MLflow's server loads the model beside that very file, and waits in its own event loop; what
# Horovod needs to start; a job's process runs resnet.rank; a benchmark serves its own files on the loopback while it runs.
ALLOWED = {("pyfunc.py", "saved_model.load"), ("pyfunc.py", "asyncio"), ("rendezvous.py", "RendezvousHTTPServer")}
ALLOWED |= {("forked.py", "runpy"), ("far.py", "http.server")}


def dotted(node):
    """`a.b.c` of a name or attribute; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def offences(text, file="x.py"):
    """Every call and import in a program that could run what it reads, or listen."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(line, name) for name in names if name.split(".")[0] in PACKAGES or name in LISTENERS]
        if isinstance(node, ast.Attribute) and node.attr == "extract" and "tar" in dotted(node.value).lower():
            found.append((line, "extract"))
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            rest = name.partition(".")[2]
            if name in CALLS or ("." in rest and rest in CALLS) or name.rpartition(".")[2] in LAST:
                found.append((line, name))
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "allow_pickle", "unsafe") and not off:
                    found.append((line, f"{keyword.arg}="))
    return [(line, what) for line, what in found if not any(file == f and what.endswith(call) for f, call in ALLOWED)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_unpacked_or_given_to_a_shell(path):
    assert offences(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "import os; os.system(x)",
        "yaml.load(x)",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=y)",
        "tar.extract(m)",
        "archive.extractall()",
        "shutil.unpack_archive(x)",
        "subprocess.run(x, shell=True)",
        "tf.keras.models.load_model(x)",
        "tf.saved_model.load(x)",
        "socket.bind(x)",
        "import asyncio",
        "from http.server import HTTPServer",
        "mlflow.pyfunc.load_model(x)",
    ],
)
def test_each_of_these_would_be_seen(text):
    assert offences(text)


def test_what_only_looks_like_it_is_not_one():
    fine = "re.compile(x); re.match(x); yaml.safe_load(x); np.load(x, allow_pickle=False); subprocess.run([x]); model.evaluate(x)"
    assert offences(fine) == []


# ------------------------------------------------------------------------------------------------------------------- a live run
@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_run_listens_nowhere_and_tells_no_secret(tmp_path, sweep):
    """The store is away (port 9 discards), so that everything that could be told of it is."""
    secrets = {
        "RESNET_TEST_TOKEN": "s3cr3t-env",
        "MLFLOW_TRACKING_PASSWORD": "s3cr3t-pass",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-aws",
    }
    words = [
        *sweep,
        "model=tiny",
        "data=digits",
        "batch=32",
        "steps=3",
        "eval=false",
        f"out={tmp_path / 'run'}",
        "track=server",
        "track.uri='http://me:s3cr3t-uri@127.0.0.1:9'",
    ]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "resnet.train", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | secrets,
        )
        listening, looks = set(), 0
        while run.poll() is None:
            listening |= listeners(run.pid)
            looks += 1
    assert run.returncode == 0, (tmp_path / "said").read_text()
    assert looks > 50 and not listening
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "run" / ("0" if sweep else "") / "config.yaml") in files and "127.0.0.1:9" in (
        tmp_path / "said"
    ).read_text()
    assert [path for path in files if b"s3cr3t" in path.read_bytes()] == []


# ---------------------------------------------------------------------------------------------------------------- launch scripts
HOSTILE = 'it\'s; touch PWNED; $(touch PWNED) `touch PWNED` & "quoted" * \\ ä {a,b} = #'
RECORDER = """#!{python} -I
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.getcwd(), *sys.argv[1:]]) + "\\n")
"""
SCRIPTS = {
    "quickstart.sh": ["-m", "resnet.train", "recipe=quickstart"],
    "test.sh": ["-m", "pytest"],
    "demo_resnet": ["-m", "resnet.compat", "demo_resnet"],
    "demo_keras_resnet": ["-m", "resnet.compat", "demo_keras_resnet"],
    "demo_resnet_hvd.sh": ["-m", "resnet.compat", "demo_resnet_hvd.sh"],
    "habana_model_runner.py": ["-m", "resnet.compat", "habana_model_runner.py"],
    "imagenet_main.py": ["-m", "resnet.compat", "imagenet_main.py"],
    "resnet_ctl_imagenet_main.py": ["-m", "resnet.compat", "resnet_ctl_imagenet_main.py"],
    "slurm/one_node.sbatch": ["-m", "resnet.train", "cluster=slurm"],
    "slurm/several_nodes.sbatch": ["-m", "resnet.train", "cluster=slurm"],
}


@pytest.fixture
def checkout(tmp_path):
    """launch/ in a folder of a hostile name, with an interpreter that only writes down what it is given."""
    folder = tmp_path / HOSTILE
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "launch" / "setup.sh").write_text("#!/usr/bin/env bash\nexit 0\n")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER.format(python=Path(sys.executable).resolve()))  # a shebang takes no path with a space
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_launch_script_passes_on_what_it_is_given_in_a_folder_of_any_name(checkout, tmp_path, script):
    given = ["out=a b", HOSTILE, f"data.dir={checkout}", "", "*"]
    start = [sys.executable] if script.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*start, str(checkout / "launch" / script), *given],
        cwd=checkout,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(checkout / ".venv" / "bin" / "python"),
            "RECORD": str(tmp_path / "record"),
            "SLURM_JOB_ID": "7",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *_, (folder, *words) = map(json.loads, (tmp_path / "record").read_text().splitlines())
    assert words == [*SCRIPTS[script], *given] and folder == str(checkout)
    assert not list(tmp_path.rglob("PWNED"))


def test_every_launch_script_is_among_them():
    """But for those that get no word of the user's: setup.sh, lock.sh, try.sh; the others are called by these."""
    there = {
        str(path.relative_to(ROOT / "launch"))
        for path in (ROOT / "launch").rglob("*")
        if path.is_file() and path.open("rb").read(2) == b"#!" and "docker" not in path.parts
    }
    assert there - set(SCRIPTS) == {
        "setup.sh",
        "lock.sh",
        "horovod_cmake.sh",
        "original.sh",
        "slurm/train.sh",
        "slurm/try.sh",
    }


def test_an_environment_is_made_in_a_folder_of_any_name(tmp_path, checkout):
    """setup.sh itself: every command reaches the interpreter whole."""
    shutil.copy(ROOT / "launch" / "setup.sh", checkout / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    shutil.rmtree(checkout / ".venv")
    base = tmp_path / "python of; mine" / "python3"
    base.parent.mkdir()
    base.write_text(f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then printf 'py311 %s\\n' "$0"; exit; fi
if [[ $2 == venv ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
'{sys.executable}' -I -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>"$RECORD"
""")
    base.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": str(base), "RECORD": str(tmp_path / "record")}
    done = subprocess.run(
        ["bash", str(checkout / "launch" / "setup.sh")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, build, runtime, package = map(json.loads, (tmp_path / "record").read_text().splitlines())
    locks = checkout / "launch" / "locks"
    assert made == ["-m", "venv", str(checkout / ".venv")]
    assert build[-1] == str(locks / "build.txt") and runtime[-1] == str(locks / "py311.txt")
    assert package[-1] == str(checkout)
    assert not list(tmp_path.rglob("PWNED"))


# ------------------------------------------------------------------------------------------------------------- what is installed
def locked(name):
    """Package -> version of a lock."""
    text = (ROOT / "launch" / "locks" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\;]+)", text, re.M))


@pytest.mark.parametrize("path", sorted((ROOT / "launch" / "locks").glob("*.txt")), ids=lambda path: path.name)
def test_every_package_of_a_lock_has_a_version_and_a_checksum(path):
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text().strip())
    assert blocks
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", block) and "--hash=sha256:" in block, block


def test_ci_installs_from_the_locks_alone():
    for script in (ROOT / ".ci" / "run", ROOT / "launch" / "test.sh"):
        assert not re.search(r"\b(pip|uv)\b", script.read_text())
    text = (ROOT / "launch" / "setup.sh").read_text().replace("\\\n", " ")
    installs = [line.strip() for line in text.splitlines() if re.search(r"\bpip (install|wheel)\b", line)]
    assert len(installs) >= 5
    for line in installs:  # a lock, the checkout itself, or a wheel that was compiled from a lock, with its hash
        ours = "--no-deps" in line and '-e "$checkout"' in line
        assert "--require-hashes" in line or ours, line


def direct():
    """Names of the packages that setup.cfg and the locks' .in files ask for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines += [path.read_text() for path in (ROOT / "launch" / "locks").glob("*.in")]
    words = [line.split("#")[0].strip() for text in lines for line in text.splitlines()]
    return {re.split(r"[ \[=<>~;]", word)[0].lower() for word in words if word and not word.startswith("-")}


def licence(name):
    """What an installed package says of its licence, in a word or two."""
    told = importlib.metadata.metadata(name)
    classified = [
        line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or [] if line.startswith("License :: OSI")
    ]
    return told.get("License-Expression") or " ".join(classified) or (told.get("License") or "").split("\n")[0]


def listed():
    """name -> (version, licence) in docs/licences.md."""
    rows = re.findall(r"^\| `(\S+)` \| (\S+) \| (.+?) \|", (ROOT / "docs" / "licences.md").read_text(), re.M)
    return {name: (version, said) for name, version, said in rows}


def test_every_direct_dependency_is_listed_with_the_locked_version():
    pinned = {**locked("py311-test"), **locked("horovod"), **locked("build"), **locked("py311")}
    others = locked("py312")
    assert set(listed()) == direct()
    for name, (version, _) in listed().items():
        assert version == pinned.get(name, others.get(name, "-")), name


@pytest.mark.parametrize("name", sorted(listed()))
def test_a_listed_licence_is_what_the_package_says(name):
    version, said = listed()[name]
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    if installed != version:
        pytest.skip(f"another version here, {installed}")
    assert licence(name) in ("", said)


# --------------------------------------------------------------------------------------------------------------------- promises
def promises():
    """(promise, `path::name` of a test) of docs/reliability.md."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    return [(told, test) for told, held in rows for test in re.findall(r"`(tests/[^`]+)`", held)]


def test_every_promise_is_held_by_a_test_that_exists():
    assert len(promises()) > 30
    for told, test in promises():
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{told}: {test}"


def test_no_promise_is_held_by_nothing():
    text = (ROOT / "docs" / "reliability.md").read_text()
    tables = re.findall(r"^\| guarantee \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        assert re.fullmatch(r"\| [^|]+ \|( `tests/[^`|]+\.py::test_\w+`,?)+ \|", row), row
