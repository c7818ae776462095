"""What is left of a sweep whose disk is full, and of two sweeps in one folder."""

import errno

import pytest
from sweep_runs import PAIR, family, rows

from resnet import files, rundir
from resnet.rundir import lock
from resnet.track import store


@pytest.fixture
def full(monkeypatch):
    """`full("summary.md")`: there is no space for files of this name."""
    write, names = files.write_text, set()

    def write_text(path, text):
        if path.name in names:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(files, "write_text", write_text)
    return names.add


def test_a_full_disk_costs_the_table_in_the_folder_not_the_one_on_the_terminal_nor_mlflow(sweep, machine, home, full):
    machine.top1 = {0: 0.5, 1: 0.75}
    full("summary.md")
    code, out, err = sweep(f"-m model=tiny steps=2 eval=false seed=1,2 out=mine track.uri=sqlite:///{home}/mlflow.db")
    assert (code, len(rows(out))) == (1, 2)
    line = f"error: out={home}/mine: cannot be written to (No space left on device); give another folder\n"
    assert err == line
    parent, children = family(store.connect(f"sqlite:///{home}/mlflow.db"), home / "mine")
    assert parent.info.status == "FINISHED" and len(children) == 2
    assert parent.data.tags["sweep.best"] == "job 1 (seed=2)"


def test_a_job_for_which_there_is_no_space_ends_the_sweep_and_resume_goes_on(sweep, machine, home, monkeypatch):
    claim = rundir.claim

    def claiming(run, out):
        if out.name == "1":
            with files.writing_to(out):
                raise OSError(errno.ENOSPC, "No space left on device")
        claim(run, out)

    with monkeypatch.context() as context:
        context.setattr(rundir, "claim", claiming)
        code, out, err = sweep(PAIR)
    assert (code, [row[4] for row in rows(out)]) == (1, ["finished", "interrupted"])
    assert err == f"error: out={home}/mine/1: cannot be written to (No space left on device); give another folder\n"
    machine.started.clear()
    code, out, _ = sweep("sweep.resume=mine")
    assert (code, len(machine.started), [row[4] for row in rows(out)]) == (0, 1, ["finished"] * 2)


def test_a_second_sweep_in_the_folder_is_refused(sweep, machine, home, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_S", 0)
    assert sweep(PAIR)[0] == 0
    machine.started.clear()
    with lock.hold(home / "mine"):
        code, out, err = sweep(PAIR)
    assert (code, out, machine.started) == (1, "", [])
    assert err.startswith(f"error: out={home}/mine: another process ") and err.count("\n") == 1
