"""A job's process: its session, cores, environment, output and end."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from resnet.config.cluster import Cluster, Device
from resnet.sweep import local
from resnet.sweep.job import Job
from resnet.sweep.places import Place


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start("exit 3", Place(...))`: the process of a job that does this."""
    monkeypatch.setattr(local, "PROGRAM", "job_program")

    def make(deed, place=None, **named):
        run = SimpleNamespace(cluster=Cluster(name="local"), out=str(tmp_path))
        (tmp_path / "deed").write_text(deed)
        return local.start(Job(0, run, []), place or Place(Device.cpu), **{"quiet": True, **named})

    return make


def ended(process):
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.poll()


@pytest.mark.parametrize(("deed", "code"), [("nothing", 0), ("exit 3", 3), ("raise", 1), ("kill", -9)])
def test_how_a_job_ends_is_known(start, tmp_path, deed, code):
    assert ended(start(deed)) == code
    text = (tmp_path / "output.log").read_text()
    assert text.startswith("in the job\n") and ("ValueError: an error of the job" in text) == (deed == "raise")


def test_a_job_has_a_session_cores_and_an_environment_of_its_own(start, tmp_path, monkeypatch):
    monkeypatch.setenv("CARD", "7")
    core = min(os.sched_getaffinity(0))
    process = start("nothing", Place(Device.cpu, (str(core),)))
    assert ended(process) == 0
    pid, parent, leader, cores, card = (tmp_path / "facts").read_text().split(maxsplit=4)
    assert int(pid) == process.pid and int(parent) != os.getpid()
    assert (leader, cores, card) == ("True", f"[{core}]", "7")
    assert core != os.sched_getaffinity(0)


def test_a_signal_reaches_the_job_alone(start, tmp_path):
    process = start("wait")
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    assert ended(process) == 143 and (tmp_path / "heard").read_text() == "[15]"
