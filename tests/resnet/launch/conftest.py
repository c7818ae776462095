"""Stand-ins: ranks that do as they are told instead of training, and a launcher that does what horovodrun does."""

import json
import os
import shlex
import sys

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
def deeds(tmp_path, monkeypatch, program):
    """`deeds("done", "raise")`: what rank 0, rank 1, ... will do; they are started by our horovodrun."""
    (tmp_path / "stub.py").write_text(STUB)
    own = program("horovodrun", STARTER, sys.executable)
    monkeypatch.setattr(launchers, "PROGRAM", (str(tmp_path / "stub.py"),))
    monkeypatch.setattr(launchers, "which", lambda name: own if name == "horovodrun" else None)

    def tell(*words):
        monkeypatch.setenv("DEED", json.dumps(words))

    return tell


@pytest.fixture
def pair(run_of):
    """`pair("cluster.max_restarts=1")`: a run of two ranks."""
    tiny = ("model=tiny", "steps=2", "eval=false", "track=off", "cluster=cpu2", "batch=32")
    return lambda *words: run_of(*tiny, *words)
