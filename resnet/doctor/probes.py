"""What is looked at in a child process (`python -m resnet.doctor.probes`), because it may crash or hang."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import shutil
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from resnet import uris
from resnet.distributed import gaudi
from resnet.track.client import connect

CONNECT_S = 5.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tensorflow() -> dict[str, Any]:
    """Versions, the CUDA it was built for, the GPUs it sees; and one product, which needs the CPU's instructions."""
    import tensorflow as tf

    product = float(tf.reduce_sum(tf.ones([2, 2]) @ tf.ones([2, 2])))
    keras = sys.modules[tf.keras.layers.Layer.__module__.partition(".")[0]]
    build = tf.sysconfig.get_build_info()
    gpus = [tf.config.experimental.get_device_details(one) for one in tf.config.list_physical_devices("GPU")]
    return {
        "version": tf.__version__,
        "keras": keras.__version__,
        "cuda": str(build.get("cuda_version") or "") if build.get("is_cuda_build") else "",
        "gpus": [
            f"{one.get('device_name', 'GPU')}, capability {'.'.join(map(str, one.get('compute_capability', ())))}"
            for one in gpus
        ],
        "computes": product == 8,
    }


def horovod() -> dict[str, Any]:
    """The version, and which of its engines it was built with."""
    import horovod
    import horovod.tensorflow as hvd

    engines = {"Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built(), "NCCL": bool(hvd.nccl_built())}
    return {"version": horovod.__version__, **engines}


def habana() -> dict[str, Any]:
    """The kinds of the cards, and whether the plug-in is installed; neither is touched."""
    return {"cards": gaudi.kinds(), "plugin": importlib.util.find_spec(gaudi.PLUGIN) is not None}


def semaphores() -> dict[str, Any]:
    """Whether processes can share a semaphore, for which Linux needs /dev/shm; raises what is raised if not."""
    multiprocessing.get_context("spawn").Lock()
    shm = Path("/dev/shm")
    return {"free": shutil.disk_usage(shm).free if shm.is_dir() else None}


def disk(path: str) -> dict[str, Any]:
    """Bytes of the disk that a folder is on, or would be."""
    place = next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.exists())
    total, _, free = shutil.disk_usage(place)
    return {"total": total, "free": free}


def store(uri: str) -> dict[str, Any]:
    """What answers at an MLflow store. Nothing is created there: neither a file nor a database's tables."""
    database = uris.sqlite_path(uri)
    if database is not None:
        if not database.exists():
            return {"answer": "a SQLite file that is not there yet; the first run creates it"}
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            [(count,)] = connection.execute("SELECT count(*) FROM experiments").fetchall()
        return {"answer": f"a SQLite file of {count:,} experiments"}
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        connect(uri).search_experiments(max_results=1)
        return {"answer": f"a server ({parts.scheme}) that answers"}
    if parts.scheme == "file":
        number = sum(one.is_dir() for one in Path(unquote(parts.path)).iterdir())
        return {"answer": f"a folder of {number:,} experiments"}
    port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
    socket.create_connection((parts.hostname or "localhost", port), CONNECT_S).close()
    return {"answer": f"a database ({parts.scheme}) whose port is open"}


ALL = {function.__name__: function for function in (tensorflow, horovod, habana, semaphores, disk, store)}


def main() -> None:
    name, *words = sys.argv[1:]
    print("\n" + json.dumps(ALL[name](*words)))


if __name__ == "__main__":
    main()
