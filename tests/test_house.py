"""The house rules that a reader of the code relies on."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "preparation", "reporting", "settings")  # of resnet/

# What a module of resnet/ may import of resnet/. A lower floor never knows a higher one, and leaves never each other.
FLOORS = [
    {"checks"},
    {f"settings.{group}" for group in ("cluster", "data", "dtype", "extras", "model", "optim", "schedule", "track")},
    {
        "config",
        "paths",
        "roster",
        "shards",
        "meter",
        "knobs",
        "lines",
        "augment",
        "watchdog",
        "profiler",
        "signals",
        "lock",
        "stamp",
        "guard",
        "events",
        "gauges",
        "served",
        "reporting.training",
        "reporting.plot",
        "vocabulary",
    },
    {f"preparation.{leaf}" for leaf in ("archive", "bar", "images", "manifest", "tfexample", "workers")},
    {"preparation.journal", "preparation.listing"},
    {f"preparation.{part}" for part in ("audit", "folders", "imagenet", "summary", "writer")},
    {"preparation.build"},
    {
        "prepare",
        "reader",
        "request",
        "gaudi",
        "store",
        "catalogue",
        "surroundings",
        "orphans",
        "streams",
        "comparison",
        "convolution",
        "elementwise",
        "benchmarks.outcome",
        "benchmarks.turns",
    },
    {
        "source",
        "complaints",
        "resolvers",
        "once",
        "sender",
        "normalization",
        "benchmarks.photos",
        "benchmarks.logged",
        "benchmarks.flops",
        "benchmarks.timm_step",
    },
    {"schedule", "model", "data", "optim", "average", "device", "result", "starter"},
    {
        "scores",
        "verdict",
        "step",
        "checkpoint",
        "track",
        "mlperf",
        "progress",
        "lr_find",
        "benchmarks.trainings",
        "benchmarks.keras_step",
    },
    {"compose", "recovery", "benchmarks.sides", "benchmarks.keras_start"},
    {"run_folder"},
    {
        "launch",
        "ranks",
        "preparation.sheet",
        "benchmarks.input",
        "benchmarks.accuracy",
        "benchmarks.scaling",
        "benchmarks.tracking",
        "benchmarks.soak",
        "benchmarks.step",
        "benchmarks.train",
        "benchmarks.start",
        "benchmarks.everything",
        "weights",
        "original",
        "reporting.folders",
        "reporting.tracked",
    },
    {"bench", "reporting.published"},
    {"trained", "learner", "serve", "pictures", "reporting.groups"},
    {"keepsakes", "benchmarks.our_step", "benchmarks.our_input", "benchmarks.our_evaluation"},
    {"train", "reporting.table"},
    {"rank", "evaluate", "reporting.figures"},
    {"export", "reporting.page"},
    {"report"},
]
SIDEWAYS = {
    ("track", "run_folder"),  # inside a function: the command that sends what MLflow has not got
    ("track", "evaluate"),
    ("track", "serve"),
    ("prepare", "preparation.sheet"),  # inside a function: the only command that needs TensorFlow
    ("compose", "launch"),  # Hydra is told of the launcher, inside a function
}
ONLY_IN = {
    "hydra": {"complaints", "compose", "once", "run_folder", "launch", "train", "reporting.published"},
    "omegaconf": {"complaints", "compose", "resolvers", "run_folder", "launch", "once", "reporting.published"},
    "mlflow": {"store", "sender", "serve", "served"},
    "mlperf_logging": {"mlperf"},
    "horovod": {"device", "starter"},  # in starter its rendezvous server alone, without TensorFlow
    "habana_frameworks": {"gaudi"},
}


@functools.cache
def modules():
    """name -> parsed module, of resnet/ and of the packages in it."""
    paths = [path for path in (ROOT / "resnet").rglob("*.py") if path.stem != "__init__"]
    return {
        ".".join(path.relative_to(ROOT / "resnet").with_suffix("").parts): ast.parse(path.read_text()) for path in paths
    }


def imported(tree):
    """(name of every package imported, name of every module of resnet imported) anywhere in a module."""
    outside, inside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            outside.add(node.module.split(".")[0])
            if node.module in ("resnet", *(f"resnet.{package}" for package in PACKAGES)):
                inside |= {f"{node.module}.{alias.name}".removeprefix("resnet.") for alias in node.names}
            elif node.module.startswith("resnet."):
                inside.add(node.module.removeprefix("resnet."))
    return outside, inside


def test_every_module_has_a_floor():
    assert set(modules()) == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(set().union(*FLOORS)))
def test_a_module_imports_only_from_below(name):
    floor = {module: number for number, floor in enumerate(FLOORS) for module in floor}
    outside, inside = imported(modules()[name])
    for other in inside & set(floor):
        assert floor[other] < floor[name] or (name, other) in SIDEWAYS, f"{name} imports {other}"
    for package, allowed in ONLY_IN.items():
        assert package not in outside or name in allowed, f"{name} imports {package}"


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_the_code_is_clean(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short_and_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    for word in text.replace("`", " ").replace("(", " ").replace(")", " ").split():
        if (
            word.split("/")[0] in {"conf", "experiments", "resnet", "launch", "tests", "docs"}
            and "/" in word
            and "<" not in word
        ):
            assert (ROOT / word.rstrip(".,;:")).exists(), word


def test_no_path_of_a_machine_is_tracked():
    done = subprocess.run(
        ["git", "grep", "-nIE", "/" + "(work|root|home/[a-z]+)/"], cwd=ROOT, capture_output=True, text=True
    )
    containers = ("launch/docker/", "launch/k8s/")  # whose paths are those of no machine
    elsewhere = ("tests/", *containers)  # tests make some up
    hits = [line for line in done.stdout.splitlines() if not line.startswith(elsewhere)]
    assert not hits, hits
