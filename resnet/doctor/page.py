"""The facts as lines for people: what there is, what of the suite works with it, and what to install for the rest."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet import files, uris
from resnet.doctor import facts
from resnet.doctor.bounded import LATE
from resnet.doctor.facts import Facts, size

WIDTH = 14  # of the first column
DISK_NEEDED = 2e9  # bytes: a ResNet-50's checkpoints (4 of 0.2 GB), its model, and the packages' caches
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/dev", "/opt")  # name nobody
ENVIRONMENT = "bash launch/setup.sh, or pip install -e '.[cpu]'"


# ------------------------------------------------------------------------------------------------------------------ facts
def lines(known: Facts) -> list[str]:
    """A line for each fact; the reason in its place where there is none."""
    sections: dict[str, Callable[[], str]] = {
        "suite": facts.suite,
        "Python": facts.python,
        "packages": lambda: (
            ", ".join(f"{name} {version}" for name, version in known.packages.items()) or "none of ours"
        ),
        "TensorFlow": lambda: tensorflow(known),
        "Horovod": lambda: horovod(known),
        "GPU": lambda: gpu(known),
        "Gaudi": lambda: gaudi(known),
        "processor": facts.processor,
        "memory": facts.memory,
        "/dev/shm": lambda: shared_memory(known),
        "disk at out": lambda: "{free} free of {total}".format(
            **{k: size(v) for k, v in known.answers["disk"].items()}
        ),
        "MLflow store": lambda: str(known.answers["store"]["answer"]),
        "programs": lambda: ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in known.programs.items()),
    }
    probes = {"disk at out": "disk", "MLflow store": "store"}
    rows = []
    for name, section in sections.items():
        try:
            text = section()
        except Exception as error:  # a page with a gap is better than none
            text = known.reasons.get(probes.get(name, ""), f"cannot be known ({type(error).__name__}: {error})")
        rows.append(f"{name:<{WIDTH}}{text}")
    return rows


def tensorflow(known: Facts) -> str:
    if reason := known.reasons.get("tensorflow"):
        return f"not known: {reason}" if reason.startswith(LATE) else f"cannot be imported: {reason}"
    one = known.answers["tensorflow"]
    wrong = "" if one["computes"] else "; a product of two matrices is wrong"
    cuda = f"built for CUDA {one['cuda']}" if one["cuda"] else "built without CUDA"
    return f"{one['version']} with Keras {one['keras']}, {cuda}{wrong}"


def horovod(known: Facts) -> str:
    if reason := known.reasons.get("horovod"):
        return f"not known: {reason}" if reason.startswith(LATE) else f"cannot be imported: {reason}"
    one = known.answers["horovod"]
    engines = ", ".join(f"{engine} {'yes' if one[engine] else 'no'}" for engine in ("Gloo", "MPI", "NCCL"))
    return f"{one['version']}: {engines}"


def gpu(known: Facts) -> str:
    driver = "; ".join(known.cards) or known.reasons.get("nvidia", "no nvidia-smi")
    own = "; ".join(known.answers.get("tensorflow", {}).get("gpus", [])) or "none"
    return f"by the driver: {driver}; by TensorFlow: {own}"


def gaudi(known: Facts) -> str:
    one = known.answers["habana"]
    plugin = "habana-tensorflow is installed" if one["plugin"] else "habana-tensorflow is not installed"
    return f"{len(one['cards'])} cards{''.join(f' ({kind})' for kind in one['cards'][:1])}, {plugin}"


def shared_memory(known: Facts) -> str:
    if "semaphores" in known.reasons:
        return f"processes cannot share a semaphore: {known.reasons['semaphores']}"
    free = known.answers["semaphores"]["free"]
    return "not there" if free is None else f"{size(free)} free"


# ------------------------------------------------------------------------------------------------------------ what works
def works(known: Facts) -> Iterator[tuple[str, str | None]]:
    """(what of the suite, what is missing for it); None where it works."""
    answers, packages = known.answers, known.packages
    missing = [name for name in ("hydra-core", "mlflow", "numpy", "pillow") if name not in packages]
    late = {
        name: f"an answer ({reason}); give a larger limit_s" for name, reason in known.reasons.items() if LATE in reason
    }
    base = None if answers.get("tensorflow", {}).get("computes") and not missing else ENVIRONMENT
    if base and not missing and {"tensorflow", "tensorflow-cpu"} & packages.keys():
        base = late.get("tensorflow", "the TensorFlow that is installed to work; see above")
    gloo = answers.get("horovod", {}).get("Gloo")
    tools = [tool for tool in ("cmake", "g++", "make") if not known.programs.get(tool)]
    build = "bash launch/setup.sh test" + (
        f", which needs {', '.join(tools)} (apt-get install cmake g++ make)" if tools else ""
    )
    yield "training on the CPU (cluster=local)", base
    yield "several ranks (cluster=cpu2)", base or (None if gloo else late.get("horovod", f"Horovod with Gloo: {build}"))
    yield "GPUs (cluster=gpu1)", gpu_missing(known)
    yield "Gaudi (cluster=gaudi1)", gaudi_missing(known)
    native = {"avx512_bf16", "amx_bf16"} & known.flags
    yield "dtype=bf16 at full speed on the CPU", None if native else "a CPU with AVX512_BF16; here dtype=fp32 is faster"
    yield (
        "MLflow store (track.uri)",
        None if "store" in answers else f"a store that answers: {known.reasons.get('store')}",
    )
    yield "searches (sweep.sampler)", None if "optuna" in packages else "pip install -e '.[optuna]'"
    semaphores = "a /dev/shm that can be written to; without it one process works alone"
    yield "several processes of resnet.prepare", None if "semaphores" in answers else late.get("semaphores", semaphores)
    yield (
        "data=fashion",
        None if known.fashion else "apt-get install dataset-fashion-mnist (docs/data.md: without root)",
    )
    free = answers.get("disk", {}).get("free", 0)
    yield (
        "room for a run at out",
        None if free >= DISK_NEEDED else f"{size(DISK_NEEDED)} free; use out= on another disk",
    )


def gpu_missing(known: Facts) -> str | None:
    if known.answers.get("tensorflow", {}).get("gpus"):
        return None
    if not known.cards:
        return "an NVIDIA GPU and its driver (nvidia-smi lists none)"
    if not known.answers.get("tensorflow", {}).get("cuda"):
        return "a TensorFlow with CUDA: pip install -e '.[gpu]' in an environment without tensorflow-cpu"
    return "CUDA's libraries, which TensorFlow does not load: pip install -e '.[gpu]', and read what TF_CPP_MIN_LOG_LEVEL=0 shows"


def gaudi_missing(known: Facts) -> str | None:
    one = known.answers.get("habana", {"cards": [], "plugin": False})
    if not one["cards"]:
        return "a Gaudi card and its driver (docs/gaudi.md)"
    return None if one["plugin"] else "Python 3.10 and pip install -e '.[gaudi]' (docs/gaudi.md)"


def text(known: Facts, *, paths: bool) -> str:
    """The page. Without `paths`, what could name a person or a machine of theirs is left out."""
    rows = [*lines(known), "", "What works here"]
    for what, missing in works(known):
        rows.append(f"{'no' if missing else 'yes':<5}{what}{f': it needs {missing}' if missing else ''}")
    page = "\n".join(rows)
    return uris.redact(page) if paths else anonymous(uris.redact(page))


def anonymous(page: str) -> str:
    """The page without personal paths: known folders by their names, of others the last part, and no host of a URL."""
    places = {str(files.HERE.parent): "<checkout>", sys.prefix: "<environment>", str(Path.cwd()): "<working folder>"}
    places[os.path.expanduser("~")] = "~"  # noqa: PTH111  as it stands in messages, even if it cannot be resolved
    for place in sorted((one for one in places if one.count("/") > 1 or one == "/root"), key=len, reverse=True):
        page = page.replace(place, places[place])
    page = re.sub(r"\b([a-z+]+)://[^\s/'\"]+", r"\1://<host>", page)
    page = re.sub(r"(host=')[^']+", r"\1<host>", page)

    def short(match: re.Match[str]) -> str:
        path = match[0]
        return (
            path if f"{path}/".startswith(tuple(f"{top}/" for top in SYSTEM)) else f"<path>/{path.rpartition('/')[2]}"
        )

    return re.sub(r"(?<![\w.~>/:])/(?:[^\s/'\"():;,]+/)+[^\s/'\"():;,]*", short, page)
