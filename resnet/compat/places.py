"""What a command finds on this machine: cards, their arithmetic, and the images."""

from __future__ import annotations

import contextlib
import os
import re

from resnet import UserError, addresses, files, home
from resnet.compat.option import OFF
from resnet.compat.request import Request
from resnet.data import shards
from resnet.distributed import gaudi
from resnet.launch.launchers import SSH_WORDS
from resnet.shell import quoted

# where the original looked for shards that nobody named: releases 0.13 to 0.15, and from 1.0 on
STANDARD = (
    "/data/tensorflow_datasets/imagenet/tf_records",
    "/software/data/tf/data/imagenet/tf_records",
    "/data/tensorflow/imagenet/tf_records",
)
# one rank, many ranks, and how many these are
CLUSTERS = {"gaudi": ("gaudi1", "hls1", 8), "gpu": ("gpu1", "gpu8", 8), "cpu": ("local", "cpu2", 2)}
RESIZING = {"data.eval_resample": "original"}


class MissingImages(UserError):
    """The folder that demo_resnet_hvd.sh needs."""


def dtype(request: Request) -> dict[str, str]:
    """The arithmetic. Habana's own conversion to bfloat16 is for Gaudi only; elsewhere Keras' policy stands in."""
    options = request.options
    way = options.get("converts", "")
    if re.fullmatch(OFF, way):
        way = options.get("conversion", "") if options["dtype"] == "bf16" else ""
    else:
        options["dtype"] = "bf16"
    if not way or "dtype" in request.overridden:
        return {"dtype": options["dtype"]}
    if not cards(request):
        request.notes.append(f"{way}: Habana's conversion to bfloat16 is for Gaudi; dtype=bf16 instead")
        return {"dtype": "bf16"}
    return {"dtype": "fp32", "dtype.gaudi_conversion": quoted("full" if way in ("1", "true", "True") else way)}


def cards(request: Request) -> int:
    """The Gaudi cards that the command may use."""
    return 0 if "no_hpu" in request.options else gaudi.cards()


def ranks_of(request: Request) -> str:
    """The ranks on each machine as a number, or all."""
    options = request.options
    several = "workers" in options or options.get("strategy") == "hpu"
    if "per_host" in options and not several:
        request.notes.append(f"num_workers_per_hls={options['per_host']}: counts with use_horovod only, as there")
    return options.get("per_host", options.get("workers", "all")) if several else "1"


def machine(request: Request) -> dict[str, str]:
    """The cluster: Gaudi cards where there are any, else this CPU, as many ranks as are wanted."""
    options, note = request.options, request.notes.append
    here, gpus = cards(request), int(options.get("gpus", "0"))
    workers, all_of_them = ranks_of(request), here or 2
    kind = "gaudi" if here else "cpu"
    if gpus > 1 and workers == "1":  # 1 is the flag's default, and what it was with Gaudi cards
        kind, workers = "gpu", str(gpus)
    one, many, usual = CLUSTERS[kind]
    ranks = all_of_them if workers == "all" else int(workers)
    hosts = [f"{host}:{ranks}" for host in options["hosts"].split(",")] if "hosts" in options else []
    total = ranks * max(1, len(hosts))
    interface = options.get("interface")
    if hosts and kind == "gaudi":  # what the original gave mpirun on several servers
        request.env |= {} if SSH_WORDS in request.environ else {SSH_WORDS: "-p 3022"}
        if interface:
            request.env |= {"OMPI_MCA_btl_tcp_if_include": interface, "HCCL_SOCKET_IFNAME": interface}
    elif interface:
        note(f"MPI_TPC_INCLUDE={interface}: means something for several machines with Gaudi cards only")
    if "cluster" in request.overridden:
        if hosts and workers == "all":
            raise UserError(
                "MULTI_HLS_IPS: with a cluster= of your own tell how many ranks on each, by NUM_WORKERS_PER_HLS"
            )
        words = {"cluster.ranks": str(total)} if workers not in ("all", "1") or hosts else {}
    else:
        words = {"cluster": many if total > 1 or hosts else one}
        words |= {"cluster.ranks": str(total)} if words["cluster"] == many and total != usual else {}
        if kind == "cpu":
            ranked = f"{total} rank{'s' if total > 1 else ''}"
            note(f"no Gaudi card on this machine: {ranked} on CPU; for GPUs add -- cluster=gpu1, or gpu8")
    return words | ({"cluster.hosts": f"[{','.join(hosts)}]"} if hosts else {})


def images(request: Request) -> dict[str, str]:
    """The data. Its folder is looked into, for the layout it has and the classes that its shards are of."""
    folder = request.options.get("shards") or next(filter(os.path.isdir, STANDARD), "")
    if "synthetic" in request.options:
        return {"data": "synthetic"}
    if "data" in request.overridden and not {"data=imagenet", "data=folder"} & set(request.extra):
        return {}  # nor would data.dir go with it: the digits would be written there
    if request.command == "demo_resnet_hvd.sh":
        folder = request.options.get("shards", "")
        if not (folder and (addresses.is_remote(folder) or home.expand(folder).is_dir())):
            way_out = "give the folder of the shards, or add -- data=digits for a try"
            problem = f"IMAGENET_DIR={folder}: no such folder" if folder else "IMAGENET_DIR is not set"
            raise MissingImages(f"{problem}; {way_out}")
    if not folder:
        request.notes.append("no folder of shards is named: the embedded digits (10 classes, 32 px)")
        return {"data": "digits"}
    place = shards_in(folder)
    if place != folder:
        request.notes.append(f"{folder}: the shards lie in {place}")
    with contextlib.suppress(OSError, UserError):
        names, path = (None, "") if addresses.is_remote(place) else files.classes_beside(str(home.expand(place)))
        if names and (classes := len(names)) != 1000:
            request.notes.append(f"{place}: {classes} classes, as its {path.rpartition('/')[2]} says, so data=folder")
            return {"data": "folder", "data.dir": quoted(place), **RESIZING}
    return {"data": "imagenet", "data.dir": quoted(place), **RESIZING}


def shards_in(folder: str) -> str:
    """The folder itself, its tf_records or its parent, whichever has shards: all three stood in the original's examples."""
    if addresses.is_remote(folder):
        return folder
    here = home.expand(folder)
    for place in (here, here / "tf_records", here.absolute().parent):
        with contextlib.suppress(UserError):  # cannot be listed: the training will say so
            if any(all(shards.listing(str(place), pattern) for pattern in pair) for pair in shards.LAYOUTS):
                return folder if place == here else str(place)
    return folder
