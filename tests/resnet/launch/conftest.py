"""Stand-ins: ranks that do as they are told instead of training, a launcher."""

import json
import os
import shlex
import sys

import psutil
import pytest
from rank_runs import STARTER, STUB

from resnet.launch import launchers


@pytest.fixture(autouse=True)
def nobody_started_us(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "HOROVOD_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("ELSEWHERE", raising=False)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment in which nobody has set anything, programs of ours in tmp_path/bin, and four cores."""
    for name in list(os.environ):
        if name.startswith((*launchers.FORWARDED, "SLURM_", "OMPI_", "PMI_", "HOROVOD_")) and name != "XDG_CACHE_HOME":
            monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(launchers, "which", lambda name: f"/opt/{name}")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)


@pytest.fixture
def program(tmp_path):
    """`program("ssh", "exit 1")`: the path of a script of that name."""

    def make(name, script, interpreter="/bin/bash"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        # By way of sh: an interpreter whose path has a space in it cannot stand in the first line.
        path.with_suffix(".script").write_text(script + "\n")
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(interpreter)} {shlex.quote(f"{path}.script")} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def deeds(tmp_path, monkeypatch):
    """`deeds("done", "raise")`: what rank 0, rank 1, ... will do."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(launchers, "PROGRAM", (str(tmp_path / "stub.py"),))

    def tell(*words):
        monkeypatch.setenv("DEED", json.dumps(words))

    return tell


@pytest.fixture
def starter(monkeypatch, program):
    """`starter(script)`: what cluster.starter=mpirun starts."""
    monkeypatch.setattr(launchers, "horovod_features", lambda: {"gloo", "mpi"})

    def make(script=STARTER, interpreter=sys.executable):
        own = program("mpirun", script, interpreter)
        monkeypatch.setattr(launchers, "which", lambda name: own if name == "mpirun" else None)

    return make


@pytest.fixture
def pair(run_of):
    """`pair("cluster.max_restarts=1")`: a run of two ranks."""
    tiny = ("model=tiny", "steps=2", "eval=false", "track=off", "cluster=cpu2", "batch=32")
    return lambda *words: run_of(*tiny, *words)
