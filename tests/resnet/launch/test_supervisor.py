"""A run in processes that this one starts: what comes out, who is blamed, what is stopped, what is started again.

The ranks do what DEED tells them instead of training, so that nothing here waits for TensorFlow; their starter is a few
lines that do what horovodrun does, except where the real one is tried.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from resnet import UserError, cli, rank, rundir, train
from resnet.config import fingerprint
from resnet.launch import launchers, rank_status, supervisor
from resnet.rundir import lock, result
from resnet.track import store

STUB = """
import json, os, signal, socket, sys, time
from pathlib import Path
from types import SimpleNamespace
import resnet.training
from resnet import UserError, cli, rank
from resnet.config import fingerprint
from resnet.launch import rank_status
from resnet.rundir import result

class HorovodInternalError(RuntimeError):
    pass

def others_end(out):  # by their own word, or killed
    while True:
        time.sleep(0.05)
        for record in rank_status.read_all(out):
            if record.rank != rank_status.rank_from_env() and (not record.running or not Path(f"/proc/{record.pid}").exists()):
                return

def body(run, out, on_stall):
    number = rank_status.rank_from_env()
    deed, *words = json.loads(os.environ["DEED"])[number].split("|")
    def starts_of(other):
        file = out / f"starts-{other}"
        return int(file.read_text() or 0) if file.exists() else 0

    starts = starts_of(number) + 1
    (out / f"starts-{number}").write_text(str(starts))
    if deed.startswith("once "):
        deed = deed.removeprefix("once ") if starts == 1 else "done"
    print(f"this is rank {number}", flush=True)
    while any(starts_of(other) < starts for other in range(run.cluster.ranks)):
        time.sleep(0.02)  # until all are here
    match deed:
        case "raise":
            raise RuntimeError(f"boom in rank {number}")
        case "user":
            raise UserError("optim.lr=9: the loss is nan; lower it")
        case "peer":
            others_end(out)
            raise HorovodInternalError("Horovod has been shut down. This was caused by an exception on one of the ranks")
        case "kill":
            os.kill(os.getpid(), 9)
        case "late kill":
            while not result.read(out):
                time.sleep(0.02)
            os.kill(os.getpid(), 9)
        case "abort":
            os.abort()
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(600)
        case "stall":
            time.sleep(0.5)
            print("Current thread (most recent call first)", file=sys.stderr, flush=True)
            on_stall(f"rank {number}: no step finished for 5 s (cluster.stall_s)")
            os._exit(75)
        case "stop":  # and take words[0] seconds to save
            signals = []
            signal.signal(signal.SIGTERM, lambda name, _frame: signals.append(name))
            (out / f"ready-{number}").touch()
            while not signals:
                time.sleep(0.02)
            time.sleep(float(words[0]))
            (out / f"heard-{number}").write_text(json.dumps(signals))
            raise cli.Stopped(f"saved step-9; go on with: python -m resnet.train resume={out}")
    if number == 0:
        result.write(out, {"fingerprint": fingerprint.fingerprint(run), "steps": starts})
    else:
        print("a warning", file=sys.stderr)

if os.environ.get("ELSEWHERE"):
    socket.gethostname = lambda: "elsewhere"
sys.modules["resnet.training.loop"] = resnet.training.loop = SimpleNamespace(train=body)  # without TensorFlow
if __name__ == "__main__":
    sys.exit(rank.main())
"""
# horovodrun's ways: the first that ends badly has the others ended, by SIGKILL after 1 s (its own: 5 s); SIGTERM does that to all.
STARTER = """
import os, signal, subprocess, sys, time
words = sys.argv[sys.argv.index("-np") + 1:]
size = int(words[0])
program = words[words.index(sys.executable):]
print("I start", size, flush=True)
ranks = [
    subprocess.Popen(program, env={**os.environ, "HOROVOD_RANK": str(n), "HOROVOD_SIZE": str(size),
                                   "HOROVOD_HOSTNAME": os.environ.get("ELSEWHERE", "localhost")})
    for n in range(size)
]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
codes = {}
while len(codes) < size and not asked and not any(codes.values()):
    for n, rank in enumerate(ranks):
        if n not in codes and rank.poll() is not None:
            codes[n] = rank.returncode
            if rank.returncode:
                code = rank.returncode if rank.returncode > 0 else 128 - rank.returncode
                print(f"Process {n} exit with status code {code}.", flush=True)
                break
    time.sleep(0.02)
for rank in ranks:
    rank.terminate() if rank.poll() is None else None
deadline = time.monotonic() + 1
while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
    time.sleep(0.02)
for rank in ranks:
    rank.kill()
    rank.wait()
sys.exit(1 if asked or any(codes.values()) else 0)
"""


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


def work(run):
    """(result or exception, seconds)"""
    began = time.monotonic()
    try:
        came = supervisor.run(run, Path(run.out))
    except (Exception, KeyboardInterrupt) as error:
        came = error
    for record in rank_status.read_all(Path(run.out)):
        assert not psutil.pid_exists(record.pid), f"rank {record.rank} lives on"
    return came, time.monotonic() - began


def logged(run, number):
    return rank_status.log(Path(run.out), number).read_text()


def soon(condition, limit_s=60):
    """Wait for it."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def later(condition, deed):
    """Do it from another thread, once that is so."""
    thread = threading.Thread(target=lambda: (soon(condition), deed()), daemon=True)
    thread.start()
    return thread


# ----------------------------------------------------------------------------------------------------------- ends well
def test_a_run_of_two_is_one_stream_and_one_result(deeds, pair, capfd):
    deeds("done", "done")
    run = pair()
    came, _ = work(run)
    assert came == {"fingerprint": fingerprint.fingerprint(run), "steps": 1} == result.read(Path(run.out))
    printed = capfd.readouterr()
    assert printed.out == f"2 ranks, started by horovodrun; logs in {run.out}/logs\nthis is rank 0\n"
    host = os.uname().nodename
    assert printed.err == f"[rank 1 on {host}] this is rank 1\n[rank 1 on {host}] a warning\n"
    assert (logged(run, 0), logged(run, 1)) == ("this is rank 0\n", "this is rank 1\na warning\n")
    starters = (Path(run.out) / "logs" / "starter.log").read_text()
    assert starters.startswith("$ ") and starters.endswith("--rank\nI start 2\n")
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
launchers.PROGRAM, launchers.which = ({str(tmp_path / "stub.py")!r},), lambda name: {str(tmp_path / "bin" / "horovodrun")!r}
try:
    supervisor.run(rundir.load(Path({run.out!r})), Path({run.out!r}))
except cli.Failed:
    print(sorted({{"tensorflow", "mlflow", "horovod"}} & set(sys.modules)))
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


def test_a_frozen_rank_is_blamed_for_the_stall_and_killed_and_the_stacks_of_others_come_out(deeds, pair, capfd):
    deeds("stall", "freeze")
    came, seconds = work(pair())
    assert str(came).startswith("rank 1 on ") and "was it stopped or frozen?" in str(came)
    assert seconds < 20
    assert "Current thread" in capfd.readouterr().out


def test_a_rank_that_hangs_while_another_has_failed_is_ended(deeds, pair, monkeypatch, program):
    """mpirun and srun end the others too; should a starter not do it, we do."""
    patient = program("patient", STARTER.replace("rank.terminate()", "rank.wait()"), sys.executable)
    monkeypatch.setattr(launchers, "which", lambda _name: patient)
    monkeypatch.setattr(supervisor, "LINGER_S", 0.3)
    deeds("sleep", "raise")
    came, seconds = work(pair())
    assert str(came).endswith("RuntimeError: boom in rank 1") and seconds < 20


def test_a_starter_that_fails_is_told_with_its_last_words(deeds, pair, monkeypatch, program):
    deeds("done", "done")
    sick = program("sick", "echo no network; exit 7")
    monkeypatch.setattr(launchers, "which", lambda _name: sick)
    run = pair("cluster.max_restarts=3")
    came, _ = work(run)
    log = f"{run.out}/logs/starter.log"
    expected = (
        f"horovodrun ended before any rank had started (exit status 7); its log is {log} and ends with:\nno network"
    )
    assert str(came) == expected


def test_ranks_that_do_not_start_in_time_are_counted(deeds, pair, monkeypatch, program):
    deeds("sleep", "sleep", "sleep")
    lazy = program("lazy", STARTER.replace("range(size)", "range(1)"), sys.executable)
    monkeypatch.setattr(launchers, "which", lambda _name: lazy)
    came, seconds = work(pair("cluster.start_s=3"))
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
    left = subprocess.Popen([sys.executable, "-c", code, run.out], stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "another folder"])
    try:
        left.stdout.readline()  # it has begun
        for rank, process in enumerate((other, left)):
            entered = rank_status.RankStatus(rank, process.pid, "a", os.uname().nodename, None, "running", time.time())
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
    assert str(came) == f"saved step-9; go on with: python -m resnet.train resume={run.out}"
    assert [json.loads((out / f"heard-{rank}").read_text()) for rank in (0, 1)] == [[15], [15]]
    assert [record.state for record in rank_status.read_all(out)] == ["stopped", "stopped"]
    assert before == [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)]


def test_the_exit_status_after_a_signal_is_143_and_the_way_on_is_told_once(deeds, pair, capfd, exit_status):
    deeds("stop|0", "stop|0")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert exit_status(train.main, [run]) == 143
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("go on with: ") == 1
    assert printed.err.endswith(
        f"stopped by a signal; saved step-9; go on with: python -m resnet.train resume={run.out}\n"
    )


def test_a_signal_before_training_has_begun_ends_the_ranks_too(deeds, pair):
    deeds("sleep", "sleep")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("starts-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    came, seconds = work(run)
    assert type(came) is cli.Stopped and seconds < 15
    assert str(came).startswith(
        "nothing was saved since the last checkpoint; go on with: python -m resnet.train resume="
    )


def test_a_second_interrupt_ends_everything_at_once(deeds, pair):
    deeds("stop|600", "stop|600")
    run = pair()
    ready = lambda: len(list(Path(run.out).glob("ready-*"))) == 2  # noqa: E731
    later(ready, lambda: (os.kill(os.getpid(), 2), time.sleep(0.3), os.kill(os.getpid(), 2)))
    came, seconds = work(run)
    assert type(came) is KeyboardInterrupt and seconds < 20


def test_ranks_on_another_host_are_stopped_and_killed_through_ssh(deeds, pair, program, monkeypatch, tmp_path):
    program("ssh", f'echo "$5" >>{tmp_path}/hosts; shift 5; exec sh -c "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("ELSEWHERE", "b")
    deeds("stop|0", "stop|0")
    run = pair()
    later(lambda: len(list(Path(run.out).glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    came, _ = work(run)
    assert type(came) is cli.Stopped
    assert [json.loads((Path(run.out) / f"heard-{rank}").read_text()) for rank in (0, 1)] == [[15], [15]]
    assert (tmp_path / "hosts").read_text() == "b\n"  # one call for both ranks
    deeds("stall", "freeze")
    came, _ = work(pair("seed=2", f"out={tmp_path}/another"))
    assert str(came).startswith("rank 1 on b ")


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background would have it ignored
from pathlib import Path
from resnet import rundir
from resnet.launch import launchers, supervisor
launchers.PROGRAM = (sys.argv[1],)
supervisor.run(rundir.load(Path(sys.argv[2])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_ranks_do_not_outlive_a_parent_that_is_killed(deeds, pair, tmp_path, count):
    """With one process, and with the real horovodrun."""
    deeds("sleep", "sleep")
    run = pair(f"cluster.ranks={count}", "cluster.max_restarts=1")
    out = Path(run.out)
    rundir.save(run, out)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "stub.py"), str(out)])
    try:
        soon(lambda: len(list(out.glob("starts-*"))) == count)
    finally:
        parent.kill()
        parent.wait()
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
@pytest.mark.usefixtures("deeds")
def test_the_real_horovodrun(pair, tmp_path):
    """An error of one rank, a slow save of the other after a signal, and a rank killed, from start to restart; side by side."""
    cases = {
        ("peer", "raise"): "RuntimeError: boom in rank 1",
        ("stop|7", "stop|0"): "saved step-9; go on with: python -m resnet.train resume=",
        ("once peer", "once kill"): "was killed by SIGKILL; restart 1 of 1",
    }
    parents = []
    for number, deed in enumerate(cases):
        out = tmp_path / f"real-{number}"
        rundir.save(pair("cluster.max_restarts=1", f"out={out}"), out)
        command = [sys.executable, "-c", PARENT, str(tmp_path / "stub.py"), str(out)]
        environ = {**os.environ, "DEED": json.dumps(deed)}
        parents.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    soon(lambda: len(list(tmp_path.glob("real-1/ready-*"))) == 2)
    parents[1].send_signal(signal.SIGTERM)
    for parent, told in zip(parents, cases.values(), strict=True):
        _, err = parent.communicate(timeout=120)
        assert told in err
    assert [parent.returncode for parent in parents] == [1, 1, 0]
    assert result.read(tmp_path / "real-2")["steps"] == 2
    assert "bin/horovodrun " in (tmp_path / "real-0" / "logs" / "starter.log").read_text()


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
