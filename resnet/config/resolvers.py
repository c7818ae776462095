"""OmegaConf's resolvers for option files: `lr: ${linear_lr:0.1}`. OmegaConf fills the parameters _root_ and _parent_."""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from resnet import UserError, addresses, files, home, photos, shell, uris
from resnet.config import topology
from resnet.config.data import Disk, Order
from resnet.config.sweep import Where


def linear_lr(one_server: float, several: float | None = None, *, _root_: DictConfig) -> float:
    """Peak lr of the linear scaling rule, from a rate per 256 images (arXiv:1706.02677 sec. 2.1).

    The published SGD recipe has another rate on several servers; there is one server until `cluster` says otherwise, or the
    sweep, whose jobs get their servers from Slurm.
    """
    by_slurm = "sweep" in _root_ and _root_.sweep.on is Where.slurm
    if several is not None and (_root_.sweep.slurm.nodes if by_slurm else topology.host_count(_root_.cluster)) > 1:
        return float(several) * int(_root_.batch) / 256
    return float(one_server) * int(_root_.batch) / 256


def sqrt_lr(peak: float, batch: int, *, _root_: DictConfig) -> float:
    """Peak lr that grows by the square root of the batch, from that for `batch` images (arXiv:1904.00962 sec. 4)."""
    return float(peak) * math.sqrt(int(_root_.batch) / int(batch))


def lars_row(column: str, *, _root_: DictConfig) -> Any:
    """A column of the row of optim.rows that the global batch falls in; None for an optimizer without rows."""
    if "rows" not in _root_.optim:
        return None
    for row in _root_.optim.rows:
        if row.up_to is None or _root_.batch <= row.up_to:
            return row[column]
    raise UserError(f"batch={_root_.batch}: no row of optim.rows holds it; end them with one of up_to: null")


def require(knob: str) -> None:
    """Raise UserError: a recipe leaves the knob to its user. With ??? instead, merging would keep the knob's default."""
    raise UserError(f"{knob}: must be given, as in {knob}=...")


def tracking_server() -> str:
    """The store of MLflow's own environment variable."""
    uri = uris.from_environment()
    if uri is None:
        raise UserError(f"track.uri: must be given, as in track.uri=http://host:5000; or set {uris.TRACKING}")
    return uris.take(uri)


def tracking_store() -> str:
    """The same, else mlflow.db in the working folder. The name of that is taken as it is: `${` may stand in it."""
    if uris.from_environment():
        return tracking_server()
    runtime: Any = HydraConfig.get().runtime
    return uris.sqlite(Path(str(runtime._get_node("cwd")), "mlflow.db"))


def counted_classes(*, _parent_: DictConfig) -> int:
    """How many classes the shards in data.dir are of: as many as are named beside them. Photographs are prepared first."""
    if OmegaConf.is_missing(_parent_, "dir"):
        raise UserError("data.dir: must be given, as in data.dir=<folder of shards, or of photographs>")
    folder = files.absolute(_parent_.dir, Path.cwd())
    if photos.are_in(folder):
        links, share = _parent_.links.value, _parent_.max_rejected
        labels, prepared = (
            value and files.absolute(value, Path.cwd()) for value in (_parent_.labels, _parent_.prepared)
        )
        known = photos.Photos(folder, labels, _parent_.label_column, links, share, prepared)
        folder = str(photos.place(photos.prepare(known), prepared))
    names, _ = files.classes_beside(folder)
    if names is None:
        command = shell.command("resnet.prepare", "source=folder", "dir=IMAGES", f"out={folder}")
        raise UserError(
            f"data.dir={folder}: no {files.CLASSES} here to tell the classes; prepare images with: {command}; or give "
            "data.classes=<how many>"
        )
    return len(names)


def order_by_address(*, _parent_: DictConfig) -> str:
    """The order of training images for data.dir: blocks where each read is a round trip, of an address, or a seek, of a disk."""
    remote = not OmegaConf.is_missing(_parent_, "dir") and addresses.is_remote(_parent_.dir)
    return (Order.blocks if remote or _parent_.disk is Disk.hdd else Order.images).name


def cache(name: str) -> str:
    """A folder for what can be made again."""
    return str(home.cache() / name)


@functools.cache
def scratch() -> str:
    """A folder for what Hydra writes before jobs are checked; gone with this process."""
    folder = tempfile.mkdtemp(prefix="resnet-sweep-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


ALL: dict[str, Callable[..., object]] = {  # by their names in option files
    "linear_lr": linear_lr,
    "sqrt_lr": sqrt_lr,
    "lars_row": lars_row,
    "slurm_tasks": topology.allocated_tasks,
    "must_be_given": require,
    "tracking_server": tracking_server,
    "tracking_store": tracking_store,
    "counted_classes": counted_classes,
    "order_by_address": order_by_address,
    "scratch": scratch,
    "cache": cache,
}
