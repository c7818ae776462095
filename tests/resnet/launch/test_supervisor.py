"""A run in processes that this one starts: what comes out, and who is blamed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rank_runs import PARENT, STARTER, logged, work

from resnet import UserError, cli, rank, rundir, train
from resnet.config import fingerprint
from resnet.launch import rank_status, supervisor
from resnet.rundir import lock, result


# ----------------------------------------------------------------------------------------------------------- ends well
def test_a_run_of_two_is_one_stream_and_one_result(deeds, pair, capfd):
    deeds("done", "done")
    run = pair()
    came, _ = work(run)
    assert came == {"fingerprint": fingerprint.fingerprint(run), "steps": 1} == result.read(Path(run.out))
    printed = capfd.readouterr()
    assert printed.out == f"2 ranks; logs in {run.out}/logs\nthis is rank 0\n"
    host = os.uname().nodename
    assert printed.err == f"[rank 1 on {host}] this is rank 1\n[rank 1 on {host}] a warning\n"
    assert (logged(run, 0), logged(run, 1)) == ("this is rank 0\n", "this is rank 1\na warning\n")
    starters = (Path(run.out) / "logs" / "starter.log").read_text()
    assert starters.startswith("$ ") and starters.endswith("--rank\n")
    assert [record.state for record in rank_status.read_all(Path(run.out))] == ["done", "done"]
    assert rundir.load(Path(run.out)) == run


def test_the_front_end_reports_and_trains_a_finished_run_no_more(deeds, pair, capfd, monkeypatch):
    shown = []
    monkeypatch.setattr("resnet.training.progress.report", lambda made, run: shown.append((made, run)))
    deeds("done", "done")
    run = pair()
    train.main([run])
    train.main([run])
    assert [made["steps"] for made, _ in shown] == [1, 1]
    assert "this run has finished already" in capfd.readouterr().out


def test_a_job_of_a_sweep_becomes_the_parent_of_its_ranks(deeds, pair, capfd, monkeypatch):
    monkeypatch.setattr("resnet.training.progress.report", lambda *_: None)
    deeds("done", "done")
    run = pair()
    rundir.claim(run, Path(run.out))
    monkeypatch.setattr(sys, "argv", ["resnet.rank", run.out])
    assert rank.main() == 0
    assert "this is rank 0\n" in capfd.readouterr().out
    assert len({record.pid for record in rank_status.read_all(Path(run.out))} | {os.getpid()}) == 3


def test_the_parent_never_imports_tensorflow(deeds, pair, tmp_path):
    deeds("raise", "done")
    run = pair()
    rundir.save(run, Path(run.out))
    code = f"""
import sys
from pathlib import Path
from resnet import cli, rundir
from resnet.launch import launchers, supervisor
launchers.PROGRAM = ({str(tmp_path / "stub.py")!r},)
try:
    supervisor.run(rundir.load(Path({run.out!r})), Path({run.out!r}))
except cli.Failed:
    print(sorted({{"tensorflow", "mlflow", "horovod.tensorflow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------------------ ends badly
def test_a_python_error_of_one_rank_comes_last_with_its_host_and_log(deeds, pair, capfd):
    deeds("peer", "raise")
    run = pair()
    came, seconds = work(run)
    assert type(came) is cli.Failed and seconds < 15
    first, *trace = str(came).splitlines()
    host, pid = os.uname().nodename, list(rank_status.read_all(Path(run.out)))[1].pid
    log = f"{run.out}/logs/rank-1.log"
    assert first == f"rank 1 on {host} (pid {pid}) failed; its log is {log}; its own traceback:"
    assert trace[0] == "Traceback (most recent call last):" and trace[-1] == "RuntimeError: boom in rank 1"
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err  # each is told once, and the cause last
    assert "boom in rank 1" in logged(run, 1) and "Horovod has been shut down" in logged(run, 0)
    kinds = [(record.state, record.kind) for record in rank_status.read_all(Path(run.out))]
    assert kinds == [("failed", "peer"), ("failed", "error")]


def test_the_exit_status_is_1_and_the_traceback_the_last_thing_said(deeds, pair, capfd, exit_status):
    deeds("raise", "peer")
    run = pair()
    assert exit_status(train.main, [run]) == 1
    err = capfd.readouterr().err
    assert "\nerror: rank 0 on " in err and err.endswith("\nRuntimeError: boom in rank 0\n")


def test_what_the_user_can_mend_is_told_in_one_line_and_not_tried_again(deeds, pair, capfd):
    deeds("peer", "user")
    run = pair("cluster.max_restarts=3")
    came, _ = work(run)
    assert type(came) is UserError and str(came) == "optim.lr=9: the loss is nan; lower it"
    assert "Traceback" not in capfd.readouterr().err
    assert (Path(run.out) / "starts-1").read_text() == "1"


def test_a_rank_that_dies_without_a_word_is_blamed_and_not_the_one_that_noticed(deeds, pair):
    deeds("peer", "abort")
    run = pair()
    came, seconds = work(run)
    record = list(rank_status.read_all(Path(run.out)))[1]
    log = f"{run.out}/logs/rank-1.log"
    assert str(came).startswith(f"rank 1 on {record.host} (pid {record.pid}) was killed by SIGABRT; its log is {log}")
    assert "Fatal Python error: Aborted" in str(came)
    assert seconds < 15


def test_a_frozen_rank_is_blamed_for_the_stall_and_killed_and_the_stacks_of_others_come_out(
    deeds, pair, capfd, monkeypatch
):
    monkeypatch.setattr(supervisor, "GRACE_S", 2.5)
    deeds("stall", "freeze")
    came, seconds = work(pair())
    assert str(came).startswith("rank 1 on ") and "was it stopped or frozen?" in str(came)
    assert seconds < 20
    assert "Current thread" in capfd.readouterr().out


@pytest.mark.parametrize("words", ["", "cluster.starter=mpirun"])
def test_a_rank_that_hangs_while_another_has_failed_is_ended(deeds, pair, monkeypatch, starter, words):
    """mpirun and srun end the others too; should a starter not do it, we do."""
    starter(STARTER.replace("rank.terminate()", "rank.wait()"))
    if words:
        monkeypatch.setattr(supervisor, "LINGER_S", 0.3)
    deeds("sleep", "raise")
    came, seconds = work(pair(*words.split()))
    assert str(came).endswith("RuntimeError: boom in rank 1") and seconds < 20


def test_a_starter_that_fails_is_told_with_its_last_words(deeds, pair, starter):
    deeds("done", "done")
    starter("echo no network; exit 7", "/bin/bash")
    run = pair("cluster.max_restarts=3", "cluster.starter=mpirun")
    came, _ = work(run)
    log = f"{run.out}/logs/starter.log"
    expected = f"mpirun ended before any rank had started (exit status 7); its log is {log} and ends with:\nno network"
    assert str(came) == expected


def test_ranks_that_do_not_start_in_time_are_counted(deeds, pair, starter):
    deeds("sleep", "sleep", "sleep")
    starter(STARTER.replace("range(size)", "range(1)"))
    came, seconds = work(pair("cluster.start_s=3", "cluster.starter=mpirun"))
    assert str(came).startswith("1 of 2 ranks did not start within cluster.start_s=3 (rank 1); the starter's log is")
    assert seconds < 20


def test_a_result_written_before_the_trouble_stands(deeds, pair, capfd):
    deeds("done", "late kill")
    came, _ = work(pair())
    assert came["steps"] == 1
    assert "was killed by SIGKILL; the result was written before, and stands" in capfd.readouterr().err


STUBBORN = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.mark.parametrize("code", ["import time; print(flush=True); time.sleep(60)", STUBBORN])
def test_ranks_that_an_earlier_start_has_left_are_ended_first(deeds, pair, tmp_path, capfd, monkeypatch, code):
    monkeypatch.setattr(rank_status, "LINGER_S", 0.3)
    deeds("done", "done")
    run = pair()
    rank_status.folder(Path(run.out)).mkdir(parents=True)
    left = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        left.stdout.readline()  # it has begun
        for rank, process in enumerate((other, left)):
            created = psutil.Process(process.pid).create_time() - 60 * (
                process is other
            )  # that number was another's once
            machine, now = os.uname().nodename, time.time()
            entered = rank_status.RankStatus(rank, process.pid, "a", machine, None, "running", now, created)
            rank_status.write(Path(run.out), entered)
        assert supervisor.run(run, Path(run.out))["steps"] == 1
        assert not psutil.pid_exists(left.pid) and other.poll() is None
    finally:
        left.kill()
        other.kill()
        left.communicate()
        other.wait()
    assert f"a rank of an earlier start still runs (pid {left.pid})" in capfd.readouterr().err
    assert not list(tmp_path.glob("run/logs/.rank*"))


def test_a_second_start_in_the_same_folder_is_refused_and_leaves_the_first_as_it_is(deeds, pair):
    deeds("sleep", "sleep")
    run = pair()
    out = Path(run.out)
    with lock.hold(out):
        rank_status.folder(out).mkdir()
        rank_status.write(
            out, rank_status.RankStatus(0, os.getpid(), "a", os.uname().nodename, None, "running", time.time())
        )
        rundir.save(run, out)
        before = sorted(path.name for path in out.rglob("*"))
        second = [sys.executable, "-c", PARENT, "no program", str(out)]
        done = subprocess.run(second, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"UserError: out={out}: process {os.getpid()} on {os.uname().nodename} trains here" in done.stderr
    assert sorted(path.name for path in out.rglob("*")) == before
