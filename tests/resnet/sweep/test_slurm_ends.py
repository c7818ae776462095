"""A sweep on Slurm whose controller is away, that dies, is interrupted, or prunes a job, on a cluster of stand-ins."""

import contextlib
import os
import signal

import pytest
from slurm_cluster import LINE, job, starts, wait_until
from sweep_runs import Machine, rows

from resnet import cli
from resnet.config.sweep import Slurm
from resnet.rundir import lock, result
from resnet.sweep import slurm


# ------------------------------------------------------------------------------------------------- a controller in trouble
def test_a_controller_that_is_away_for_a_while_fails_no_job(sweep, cluster):
    away = cluster.home / "away"
    cluster.deed(0, f'touch "{away}"; sleep 0.5; rm "{away}"')
    code, out, err = sweep(f"{LINE} seed=1 sweep.slurm.array_limit=1")
    assert (code, err) == (0, "") and [row[4] for row in rows(out)] == ["finished"]
    assert len(cluster.calls("squeue")) > 3


def test_a_first_job_that_slurm_refuses_ends_the_sweep(sweep, cluster):
    (cluster.home / "refuse").write_text("sbatch: error: invalid partition specified: x")
    code, _, err = sweep(f"{LINE} seed=1 sweep.slurm.partition=x")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: sbatch --parsable ") and err.endswith("invalid partition specified: x\n")
    assert len(cluster.calls("sbatch")) == 1


def test_jobs_beyond_what_slurm_takes_wait_for_the_others(sweep, cluster):
    (cluster.home / "most").write_text("1")
    cluster.deed(0, "sleep 0.3")
    code, out, err = sweep(f"{LINE} seed=1,2,3")
    assert code == 0 and [row[4] for row in rows(out)] == ["finished"] * 3
    assert err.count("QOSMaxSubmitJobPerUserLimit; trying again every") in (1, 2)


# --------------------------------------------------------------------------------------------------- the sweep's own ends
def test_jobs_outlive_the_sweep_and_are_found_again(sweep, cluster, home, monkeypatch):
    """0 trains, 1 has finished, 2 has failed, 3 has left the queue without a trace."""
    cluster.deed(0, f"until (($(grep -c sbatch '{cluster.home}/log') == 5)); do sleep 0.02; done")
    cluster.deed(2, "exit 3")
    cluster.deed(3, "kill -9 $PPID; exit 0")
    out = home / "mine"

    def die(queue):
        wait_until(lambda: len(queue.live) == 4 and cluster.states() == ["RUNNING", "ENDED", "ENDED", "ENDED"])
        raise RuntimeError("the end of the parent")

    with monkeypatch.context() as patch:
        patch.setattr(slurm.Queue, "query", die)
        with pytest.raises(RuntimeError, match="the end of the parent"):
            sweep(f"{LINE} seed=1,2,3,4")
    assert cluster.calls("scancel") == []
    Machine().train(out / "1")
    cluster.deed(3, "true")
    (out / "0" / lock.FILE).write_text("held on a node")
    held = []
    monkeypatch.setattr(lock, "hold", lambda folder: held.append(folder) or contextlib.nullcontext())
    code, text, err = sweep("sweep.resume=mine")
    assert code == 1 and err.count("exit status") == 1 and "job 2 (seed=3): exit status 3" in err
    assert [row[4] for row in sorted(rows(text)[4:])] == ["finished", "finished", "failed", "finished"]
    assert held == [out]  # and no job's folder, or one that trains would be refused
    assert cluster.submitted() == [0, 1, 2, 3, 3]
    assert "job 0 (seed=1) is Slurm's job 17 already" in text


def test_a_controller_that_is_away_when_a_sweep_is_resumed_is_no_empty_queue(sweep, cluster, home):
    (home / "mine" / "0").mkdir(parents=True)
    (home / "mine" / "0" / "slurm.json").write_text('{"job": "17"}')
    (home / "mine" / "0" / ".lock").touch()
    (cluster.home / "away").touch()
    code, _, err = sweep(f"{LINE} seed=1")
    assert (
        code == 1
        and err.startswith("error: squeue --me")
        and err.endswith("Unable to contact slurm controller (connect failure)\n")
    )
    assert cluster.calls("sbatch") == []


def test_ctrl_c_has_running_jobs_save_and_takes_the_others_out_of_the_queue(sweep, cluster, home):
    cluster.deed(0, f"kill -INT {os.getpid()}; work")
    code, out, err = sweep(f"{LINE} seed=1,2 sweep.slurm.array_limit=1")
    assert code == cli.INTERRUPTED and "interrupted" in err.splitlines()[-1]
    assert (home / "mine" / "0" / "checkpoints" / "step-00000001").exists() and starts(home / "mine" / "1") == 0
    assert [row[4] for row in rows(out)] == ["interrupted"] * 2
    assert "| interrupted |" in (home / "mine" / "summary.md").read_text()
    cluster.deed(0, "true")
    code, out, _ = sweep("sweep.resume=mine")
    assert code == 0 and cluster.submitted() == [0, 1, 0, 1] and [row[4] for row in rows(out)] == ["finished"] * 2


@pytest.fixture
def queue(cluster, tmp_path):  # noqa: ARG001
    slurm.write_script(tmp_path)
    (tmp_path / "3").mkdir()
    return slurm.Queue(Slurm())


def ended(process):
    codes = []
    wait_until(lambda: codes.append(process.poll()) or codes[-1] is not None)
    return codes[-1]


def test_a_pruned_job_ends_with_its_own_status_and_is_not_queued_again(queue, cluster, tmp_path):
    cluster.deed(3, "work")
    process = queue.start(job(out=tmp_path))
    wait_until(lambda: process.poll() or starts(tmp_path / "3"))
    (tmp_path / "3" / result.PRUNE).touch()
    process.send(signal.SIGTERM)
    assert ended(process) == cli.PRUNED and slurm.exit_status(tmp_path / "3") == cli.PRUNED
    assert cluster.calls("scontrol") == [] and starts(tmp_path / "3") == 1


def test_a_job_is_pruned_while_it_waits_to_go_on(queue, cluster, tmp_path):
    (cluster.home / "hold").touch()
    process = queue.start(job(out=tmp_path))
    (tmp_path / "3" / result.PRUNE).touch()
    process.send(signal.SIGTERM)
    assert ended(process) == cli.PRUNED and starts(tmp_path / "3") == 0


def test_a_signal_that_slurm_did_not_take_is_sent_again(queue, cluster, tmp_path):
    cluster.deed(3, "work")
    process = queue.start(job(out=tmp_path))
    wait_until(lambda: process.poll() or starts(tmp_path / "3"))
    (cluster.home / "away").touch()
    process.send(signal.SIGTERM)
    assert process.poll() is None
    (cluster.home / "away").unlink()
    assert ended(process) == cli.STOPPED


def test_a_second_ctrl_c_has_slurm_end_the_job(queue, cluster, tmp_path):
    cluster.deed(3, "trap '' TERM; work")
    process = queue.start(job(out=tmp_path))
    wait_until(lambda: process.poll() or starts(tmp_path / "3"))
    process.send(signal.SIGTERM)
    process.send(signal.SIGINT)
    process.send(signal.SIGKILL)
    assert ended(process) == cli.STOPPED
    assert cluster.calls("scancel")[-1] == ["scancel", "17"]
