"""The diagnosis of one attempt from what its ranks reported and its launcher printed; no processes."""

import pytest

from resnet.config import fingerprint
from resnet.launch import failure, rank_status
from resnet.rundir import result

PEER = "Horovod has been shut down"


@pytest.fixture
def diagnose(run_of, tmp_path):
    """`diagnose({0: ("failed", "peer", ...), 1: None})`: the outcome of these (state, kind, error, time) of ranks a, b, ..."""

    def make(ranks, starter="horovodrun", write=False, **more):
        run = run_of("model=tiny", "steps=2", "track=off", "cluster=cpu2", f"cluster.starter={starter}", "batch=32")
        statuses = {
            rank: rank_status.RankStatus(
                rank, 100 + rank, "ab"[rank], "machine", None, state, when, kind=kind, error=error
            )
            for rank, (state, kind, error, when) in ranks.items()
        }
        rank_status.folder(tmp_path).mkdir(exist_ok=True)
        for status in statuses.values():
            rank_status.write(tmp_path, status)
        if write:
            result.write(tmp_path, {"fingerprint": fingerprint.fingerprint(run), "steps": 2})
        facts = {"log": lambda _: "", "ranks": statuses, **more}
        return failure.diagnose(failure.Observation(run, tmp_path, **facts))

    return make


RUNNING = ("running", None, None, 0.0)


def test_of_two_errors_the_first_is_the_cause_and_the_other_is_a_note(diagnose):
    outcome = diagnose({0: ("failed", "error", "Traceback\nE: 0", 2.0), 1: ("failed", "error", "Traceback\nE: 1", 1.0)})
    assert outcome.line == "rank 1 on b (pid 101) failed" and outcome.retry and not outcome.user_error
    assert outcome.trace == "; its own traceback:\nTraceback\nE: 1" and outcome.where.endswith("logs/rank-1.log")
    assert list(outcome.notes) == ["[rank 0 on a] Traceback", "[rank 0 on a] E: 0"]


def test_an_error_of_its_own_comes_before_an_earlier_one_of_a_peer(diagnose):
    outcome = diagnose({0: ("failed", "peer", PEER, 1.0), 1: ("failed", "error", "E", 2.0)})
    assert outcome.line.startswith("rank 1 on b") and not outcome.notes


def test_peers_only(diagnose):
    outcome = diagnose({0: ("failed", "peer", PEER, 2.0), 1: ("failed", "peer", PEER, 1.0)})
    assert outcome.line == "rank 1 on b (pid 101) failed" and outcome.trace.endswith(PEER) and outcome.retry


def test_an_error_of_the_user_is_not_tried_again(diagnose):
    outcome = diagnose({0: ("failed", "peer", PEER, 1.0), 1: ("failed", "user", "optim.lr=9: lower it", 2.0)})
    assert (outcome.line, outcome.user_error, outcome.retry) == ("optim.lr=9: lower it", True, False)


def test_stalled_ranks(diagnose):
    stalled = "rank 0: no step finished for 5 s (cluster.stall_s):"
    outcome = diagnose({0: ("stalled", None, stalled, 1.0), 1: ("stalled", None, stalled, 2.0)})
    assert outcome.line == f"rank 0 on a (pid 100) stood still: {stalled[:-1]}" and outcome.retry


@pytest.mark.parametrize(
    ("starter", "output", "told"),
    [
        ("horovodrun", "Process 1 exit with status code 137.", "was killed by SIGKILL"),
        ("horovodrun", "Process 1 exit with status code 3.", "ended without a word, with exit status 3"),
        ("mpirun", "mpirun noticed that process rank 1 with PID 0 on node b exited on signal 11 (Segmentation fault).",
         "was killed by SIGSEGV"),
        ("mpirun", "  Process name: [[45213,1],1]\n  Exit code:    7", "ended without a word, with exit status 7"),
        ("srun", "srun: error: node2: task 1: Exited with exit code 9", "ended without a word, with exit status 9"),
        ("srun", "srun: error: node2: task 1: Killed", "ended: Killed"),
        ("horovodrun", "nothing that helps", "was killed or crashed without a word"),
    ],
)  # fmt: skip
def test_a_silent_rank_is_described_by_its_launcher(diagnose, starter, output, told):
    ranks = {0: ("failed", "peer", PEER, 5.0), 1: RUNNING}
    log = "one line\nFatal Python error: Aborted\na stack"
    outcome = diagnose(ranks, starter, output=output, exited_at={1: 5.5}, log=lambda _: log)
    assert outcome.line == f"rank 1 on b (pid 101) {told}" and outcome.retry
    assert outcome.trace == "; its own traceback:\nFatal Python error: Aborted\na stack"


def test_of_ranks_without_a_launcher_the_first_that_ended_badly_is_blamed(diagnose):
    outcome = diagnose({0: RUNNING, 1: RUNNING}, "null", codes={1: -11, 0: -15}, exited_at={0: 1.0, 1: 1.0})
    assert outcome.line == "rank 1 on b (pid 101) was killed by SIGSEGV" and outcome.retry
    outcome = diagnose({0: RUNNING, 1: ("done", None, None, 5.0)}, "null", codes={1: 0, 0: 3}, exited_at={0: 5.5})
    assert outcome.line == "rank 0 on a (pid 100) ended without a word, with exit status 3"
    outcome = diagnose({}, "null", codes={0: 1, 1: -15}, output="no module")
    assert outcome.line == "Python ended before any rank had started (exit status 1)"


def test_a_rank_that_outlives_the_others_was_frozen(diagnose):
    outcome = diagnose({0: ("failed", "peer", PEER, 5.0), 1: RUNNING}, exited_at={1: 25.0})
    assert "rank 1 on b (pid 101) stood still while the others waited for it" in outcome.line


@pytest.mark.parametrize(("late", "told"), [(True, " within cluster.start_s=120"), (False, "")])
def test_ranks_that_never_registered(diagnose, late, told):
    outcome = diagnose({0: ("failed", "peer", PEER, 5.0)}, late=late, output="ssh: no route")
    assert outcome.line == f"1 of 2 ranks did not start{told} (rank 1)" and not outcome.retry
    assert outcome.trace == " and ends with:\nssh: no route"


def test_a_result_stands_but_not_against_an_error_of_the_user(diagnose):
    outcome = diagnose({0: ("done", None, None, 1.0), 1: RUNNING}, write=True, exited_at={1: 2.0})
    assert outcome.result["steps"] == 2
    assert outcome.notes[-1].endswith("without a word; the result was written before, and stands")
    assert diagnose({0: ("failed", "user", "no", 1.0)}, write=True).user_error


def test_a_stop(diagnose):
    outcome = diagnose({0: ("stopped", None, "saved step-9; go on", 1.0), 1: ("failed", "peer", PEER, 2.0)})
    assert outcome.stopped == "saved step-9; go on"
    outcome = diagnose({0: RUNNING, 1: RUNNING}, interrupted=True)
    assert outcome.stopped.startswith(
        "nothing was saved since the last checkpoint; resume with: python -m resnet.train"
    )


def test_no_failure_and_no_result(diagnose):
    assert diagnose({0: ("done", None, None, 1.0), 1: ("done", None, None, 1.0)}).line == (
        "all ranks ended well, and there is no result"
    )
