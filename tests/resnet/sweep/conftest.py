"""Stand-ins for the processes of jobs, and a sweep that is typed."""

import os
import sys

import pytest
from hydra.core.hydra_config import HydraConfig
from slurm_cluster import Slurm
from sweep_runs import Machine

from resnet import train
from resnet.sweep import execution, local, pictures, pool, slurm


@pytest.fixture(autouse=True)
def nobody_started_us(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "HOROVOD_")):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to type in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    stand_in = Machine()
    monkeypatch.setattr(local, "start", stand_in.start)
    return stand_in


@pytest.fixture
def sweep(home, monkeypatch, capfd, exit_status):
    """`sweep("batch=32,64 ...")`: (exit status, stdout, stderr) of a sweep typed in an empty folder."""

    def type_in(line, folder=home):
        words = line.split() if isinstance(line, str) else line
        monkeypatch.setattr(sys, "argv", ["resnet.train", *words])
        monkeypatch.setattr(execution, "open_sweeps", [])
        monkeypatch.setattr(local, "start_server", lambda *, tracks: None)  # noqa: ARG005
        monkeypatch.chdir(folder)
        try:
            code = exit_status(train.main)
        finally:
            HydraConfig.instance().cfg = None
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return type_in


@pytest.fixture
def cluster(home, monkeypatch):
    """A cluster of stand-ins, polled often."""
    there = Slurm(home / "cluster")
    monkeypatch.setenv("FAKE_SLURM", str(there.home))
    monkeypatch.setenv("DEEDS", str(there.deeds))
    monkeypatch.setenv("PATH", f"{there.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(there.training))
    for module, name, seconds in (
        (slurm, "POLL_S", 0.03),
        (slurm, "RETRY_S", 0.1),
        (pool, "ELSEWHERE_S", 0.01),
        (pool, "POLL_S", 0.01),
        (pool, "KILL_S", 0.1),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(pictures, "parallel_coordinates", lambda *_words: None)  # matplotlib
    yield there
    there.close()
