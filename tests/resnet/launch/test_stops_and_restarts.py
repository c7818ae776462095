"""A run in processes that this one starts: what is stopped, what is started again; and the real launchers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rank_runs import PARENT, later, listeners, logged, soon, work

from resnet import cli, rundir, train
from resnet.launch import launchers, rank_status
from resnet.rundir import result
from resnet.track import store


# ----------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_every_rank_save_once_and_goes_no_further(deeds, pair, number):
    deeds("stop|1.5", "stop|0")  # rank 1 is first, and must not have rank 0 killed
    run = pair("cluster.max_restarts=3")
    out = Path(run.out)
    before = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)]
    later(lambda: (out / "ready-0").exists() and (out / "ready-1").exists(), lambda: os.kill(os.getpid(), number))
    came, _ = work(run)
    assert type(came) is cli.Stopped
    assert str(came) == f"saved step-9; resume with: python -m resnet.train resume={run.out}"
    assert [json.loads((out / f"heard-{rank}").read_text()) for rank in (0, 1)] == [[15], [15]]
    assert [record.state for record in rank_status.read_all(out)] == ["stopped", "stopped"]
    assert before == [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)]


def test_the_exit_status_after_a_signal_is_143_and_the_way_on_is_told_once(deeds, pair, capfd, exit_status):
    deeds("stop|0", "stop|0")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert exit_status(train.main, [run]) == 143
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("resume with: ") == 1
    assert printed.err.endswith(
        f"stopped by a signal; saved step-9; resume with: python -m resnet.train resume={run.out}\n"
    )


def test_a_signal_before_training_has_begun_ends_the_ranks_too(deeds, pair):
    deeds("sleep", "sleep")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("starts-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    came, seconds = work(run)
    assert type(came) is cli.Stopped and seconds < 15
    assert str(came).startswith(
        "nothing was saved since the last checkpoint; resume with: python -m resnet.train resume="
    )


def test_a_second_interrupt_ends_everything_at_once(deeds, pair):
    deeds("stop|600", "stop|600")
    run = pair()
    ready = lambda: len(list(Path(run.out).glob("ready-*"))) == 2  # noqa: E731
    later(ready, lambda: (os.kill(os.getpid(), 2), time.sleep(0.3), os.kill(os.getpid(), 2)))
    came, seconds = work(run)
    assert type(came) is KeyboardInterrupt and seconds < 20


def test_ranks_on_another_host_are_stopped_and_killed_through_ssh(deeds, pair, program, starter, monkeypatch, tmp_path):
    starter()
    program("ssh", f'echo "$6" >>{tmp_path}/hosts; shift 6; exec sh -c "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("ELSEWHERE", "b")
    deeds("stop|0", "stop|0")
    run = pair("cluster.starter=mpirun")
    later(lambda: len(list(Path(run.out).glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    came, _ = work(run)
    assert type(came) is cli.Stopped
    assert [json.loads((Path(run.out) / f"heard-{rank}").read_text()) for rank in (0, 1)] == [[15], [15]]
    assert (tmp_path / "hosts").read_text() == "b\n"  # one call for both ranks
    deeds("stall", "freeze")
    came, _ = work(pair("seed=2", f"out={tmp_path}/another", "cluster.starter=mpirun"))
    assert str(came).startswith("rank 1 on b ")


@pytest.mark.parametrize("count", [1, 2])
def test_ranks_do_not_outlive_a_parent_that_is_killed(deeds, pair, tmp_path, count):
    deeds("sleep", "sleep")
    run = pair(f"cluster.ranks={count}", "cluster.max_restarts=1")
    out = Path(run.out)
    rundir.save(run, out)
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "stub.py"), str(out)])
    try:
        soon(lambda: len(list(out.glob("starts-*"))) == count)
    finally:
        process.kill()
        process.wait()
    soon(lambda: not any(psutil.pid_exists(record.pid) for record in rank_status.read_all(out)), 20)


# ------------------------------------------------------------------------------------------------------------ restarts
@pytest.mark.parametrize(
    "deed", ["kill", *(pytest.param(deed, marks=pytest.mark.slow) for deed in ("raise", "stall", "freeze"))]
)
def test_a_death_is_followed_by_another_start_in_the_same_folder(deeds, pair, capfd, deed):
    deeds("once stall" if deed in ("freeze", "stall") else "once peer", f"once {deed}")
    came, _ = work(pair("cluster.max_restarts=2"))
    assert came["steps"] == 2  # the second start
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "restart" in line)
    assert line.startswith("rank ") and line.endswith("; restart 1 of 2 from the newest checkpoint")


def test_restarts_are_used_up(deeds, pair, capfd):
    deeds("peer", "raise")
    run = pair("cluster.max_restarts=2")
    came, _ = work(run)
    assert " failed (restarts: 2); its log is " in str(came) and str(came).endswith("RuntimeError: boom in rank 1")
    assert capfd.readouterr().err.count("from the newest checkpoint") == 2
    assert (Path(run.out) / "starts-1").read_text() == "3"
    assert logged(run, 1).count("RuntimeError: boom") == 3


def test_one_rank_is_started_again_too_without_a_starter(deeds, run_of, capfd):
    deeds("once kill")
    came, _ = work(run_of("model=tiny", "steps=2", "eval=false", "track=off", "cluster.max_restarts=1"))
    assert came["steps"] == 2
    printed = capfd.readouterr()
    assert printed.out == "this is rank 0\nthis is rank 0\n"
    assert "was killed by SIGKILL; restart 1 of 1 from the newest checkpoint" in printed.err


def test_mlflow_has_one_run_with_the_restarts_counted_and_its_end(deeds, pair, tmp_path):
    run = pair("cluster.max_restarts=1", "track=mlflow", f"track.uri=sqlite:///{tmp_path}/mlflow.db")
    out = Path(run.out)
    out.mkdir()
    run_id = store.start_parent(out, run.track, "a run", {}, {})
    client = store.connect(run.track.uri)
    deeds("once peer", "once kill")
    came, _ = work(run)
    assert came["steps"] == 2
    assert client.get_run(run_id).data.tags["restarts"] == "1"
    assert client.get_run(run_id).info.status == "RUNNING"  # these ranks tell MLflow nothing
    (out / result.FILE).unlink()
    deeds("kill", "peer")
    work(run)
    found = client.get_run(run_id)
    assert (found.data.tags["restarts"], found.info.status) == ("2", "FAILED")
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_an_mlflow_in_trouble_costs_a_line(deeds, pair, tmp_path, monkeypatch, capfd):
    run = pair("cluster.max_restarts=1", "track=mlflow", f"track.uri=sqlite:///{tmp_path}/mlflow.db")

    def away(*_words, **_more):
        raise ConnectionError("no answer\nat all")

    monkeypatch.setattr(store, "connect", away)
    monkeypatch.setattr(store, "run_id", lambda *_words: "x")
    deeds("once peer", "once kill")
    came, _ = work(run)
    assert came["steps"] == 2
    assert "MLflow: ConnectionError: no answer\n" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------- the real starters
SAVED = "saved step-9; resume with: python -m resnet.train resume="
KILLED = "was killed by SIGKILL; restart 1 of 1"


@pytest.mark.parametrize(
    ("deed", "told", "code"),
    [
        pytest.param(("stop|7", "stop|0"), SAVED, 1, marks=pytest.mark.slow),  # it gives ranks 5 s to end
        (("once peer", "once kill"), KILLED, 0),
    ],
    ids=["signal", "kill"],
)
def test_the_real_horovodrun(deeds, pair, tmp_path, deed, told, code):
    """A slow save after a signal, or a rank killed, from start to restart; it listens on no other address all the while."""
    run = pair("cluster.max_restarts=1", "cluster.starter=horovodrun")
    rundir.save(run, Path(run.out))
    deeds(*deed)
    command, seen, signalled = [sys.executable, "-c", PARENT, str(tmp_path / "stub.py"), run.out], set(), False
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            seen |= listeners(process.pid)
            if not signalled and len(list(Path(run.out).glob("ready-*"))) == 2:
                process.send_signal(signal.SIGTERM)
                signalled = True
            time.sleep(0.1)
        assert told in process.stderr.read()
    assert process.returncode == code and seen == {"127.0.0.1"}
    assert code or result.read(Path(run.out))["steps"] == 2


GLOO = """
import sys
from types import SimpleNamespace
import resnet.training
from resnet import rank

def body(run, out, on_stall):
    import tensorflow as tf
    import horovod.tensorflow as hvd
    hvd.init()
    total = hvd.allreduce(tf.constant([1.0 + hvd.rank()]), op=hvd.Sum).numpy()
    (out / f"rank-{hvd.rank()}").write_text(f"{hvd.size()} {hvd.local_rank()} {hvd.local_size()} {hvd.cross_size()} {total}")

sys.modules["resnet.training.loop"] = resnet.training.loop = SimpleNamespace(train=body)
if __name__ == "__main__":
    sys.exit(rank.main())
"""
SRUN = """
for word in "$@"; do case $word in --ntasks=*) n=${word#*=};; -*) ;; *) break;; esac; shift; done
export SLURM_STEP_ID=0 SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=$n SLURMD_NODENAME=node1
for ((r = 0; r < n; r++)); do SLURM_PROCID=$r SLURM_LOCALID=$r "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait $pid || code=$?; done
exit $code
"""


def test_srun_starts_ranks_that_find_each_other_by_gloo(pair, program, monkeypatch, tmp_path):
    """A stand-in for srun, but Horovod's own rendezvous, environment and collective."""
    (tmp_path / "stub.py").write_text(GLOO)
    own = program("srun", SRUN)
    monkeypatch.setattr(launchers, "PROGRAM", (str(tmp_path / "stub.py"),))
    monkeypatch.setattr(launchers, "which", lambda name: own if name == "srun" else None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = pair()
    came, _ = work(run)
    assert str(came).startswith("all ranks ended well, and there is no result")
    assert [(Path(run.out) / f"rank-{rank}").read_text() for rank in (0, 1)] == ["2 0 2 1 [3.]", "2 1 2 1 [3.]"]
    assert all((record.host, record.step) == ("node1", "7.0") for record in rank_status.read_all(Path(run.out)))


def test_a_signal_goes_to_the_step_and_not_to_srun(deeds, pair, program, monkeypatch, tmp_path):
    """srun takes SIGTERM as the order to kill its tasks at once (Slurm 22.05, tried); scancel reaches them."""
    pids = tmp_path / "pids"
    started = f"echo ${{pids[@]}} >'{pids}'\ntrap 'kill -KILL ${{pids[@]}}' TERM\ncode=0"
    own = program("srun", SRUN.replace("code=0", started))
    program("scancel", f"[[ $* == '--signal=TERM 7.0' ]] && kill -TERM $(<'{pids}')")
    deeds("stop|0.5", "stop|0.5")
    monkeypatch.setattr(launchers, "which", lambda name: own if name == "srun" else None)
    monkeypatch.setenv("PATH", f"{Path(own).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    came, _ = work(run)
    assert type(came) is cli.Stopped
    assert [json.loads((Path(run.out) / f"heard-{rank}").read_text()) for rank in (0, 1)] == [[15], [15]]
