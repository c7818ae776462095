"""Habana's Gaudi: finding cards, their environment variables, and their initialization in the one order that works.

Written by the interface that Habana documents for habana-tensorflow 1.14, and tested by loading that package without a card;
docs/gaudi.md says what has been tried. Nothing here imports TensorFlow before load().
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path

from resnet import UserError
from resnet.config import topology
from resnet.config.cluster import Cluster
from resnet.config.model import Dtype, Policy
from resnet.config.run import Run

ROOT = Path("/")  # tests look elsewhere
PLUGIN = "habana_frameworks"
CONVERSION = "TF_BF16_CONVERSION"
LISTS = ("full", "basic")  # of operations, shipped by Habana
HINT = "Gaudi needs Python 3.10 and pip install -e '.[gaudi]' (docs/gaudi.md)"


def kinds() -> list[str]:
    """The kind of each Gaudi card of this machine, without touching it.

    Loading the plug-in on a machine without a card breaks TensorFlow for the whole process.
    """
    known = [entry for entry in ROOT.glob("sys/class/accel/accel*") if re.fullmatch(r"accel\d+", entry.name)]
    if known:  # other vendors' accelerators are listed there as well
        paths = [entry / "device" / "device_type" for entry in known]
        types = [path.read_text().strip() for path in paths if path.is_file()]
        return [kind for kind in types if kind.upper().startswith("GAUDI")]
    nodes = [*ROOT.glob("dev/accel/accel*"), *ROOT.glob("dev/hl*")]
    return ["Gaudi" for node in nodes if re.fullmatch(r"(accel|hl)\d+", node.name)]


def cards() -> int:
    modules = os.environ.get("HABANA_VISIBLE_MODULES", "")
    return min(len(kinds()), len(modules.split(","))) if modules else len(kinds())


def check(cluster: Cluster, dtype: Dtype, ranks: int = 1) -> None:
    """Raise UserError without the plug-in or a card for each of the `ranks` here, or if bfloat16 is chosen twice."""
    named = f"cluster={cluster.name}"
    if (here := cards()) == 0:
        raise UserError(
            f"{named}: no Gaudi card on this machine (nothing in /sys/class/accel, /dev/accel, /dev/hl*); use "
            "cluster=local or cluster=gpu1"
        )
    if here < ranks:
        raise UserError(f"{named}: {ranks} ranks, and this machine has {here} Gaudi card(s); use cluster.ranks={here}")
    if importlib.util.find_spec(PLUGIN) is None:
        raise UserError(f"{named}: habana-tensorflow is not installed here; {HINT}")
    way = dtype.gaudi_conversion
    if way not in (None, *LISTS) and not Path(way).is_file():
        raise UserError(f"dtype.gaudi_conversion={way}: must be {' or '.join(LISTS)}, or a file of operations")
    if dtype.policy is Policy.mixed_bfloat16 and os.environ.get(CONVERSION, "0") != "0":
        raise UserError(
            f"dtype={dtype.name}: {CONVERSION}={os.environ[CONVERSION]} is set as well, and would convert twice; unset it, or "
            "use dtype=fp32"
        )


def environment(run: Run) -> dict[str, str]:
    """Environment variables of the plug-in, as the original set them for releases 0.13 to 1.14.

    TF_BF16_CONVERSION (dtype.gaudi_conversion) makes Habana's graph compiler convert operations to bfloat16, by its full or basic
    list or by a file of them. Variables that the user has set take precedence.
    """
    way = run.dtype.gaudi_conversion
    return {
        "TF_RECIPE_CACHE_PATH": f"{tempfile.gettempdir()}/resnet-recipes-{os.getuid()}",  # on a local disk
        "TF_ALLOW_CONTROL_EDGES_IN_HABANA_OPS": "1",
        "TF_DISABLE_MKL": "1",
        "HOROVOD_FUSION_THRESHOLD": "0",
        **({"TF_ENABLE_DYNAMIC_SHAPES": "false"} if run.model.groups > 1 else {}),
        **({CONVERSION: way if way in LISTS else str(Path(way).resolve())} if way else {}),
    }


def load() -> str:
    """Register this process's card with TensorFlow, before any operation and before horovod.init(); the card's name.

    Habana's library chooses the card by environment variables of mpirun or horovodrun; under srun this function sets one.
    """
    from habana_frameworks.tensorflow import load_habana_module

    if local := topology.srun_local_rank():
        os.environ.setdefault("HLS_MODULE_ID", local)
    load_habana_module()
    return kinds()[0].capitalize()
