"""Several jobs at a time: which place each gets, which one comes next, and how a signal ends them. No process, no TensorFlow."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from resnet import UserError
from resnet.config.cluster import Cluster, Device
from resnet.config.sweep import Sweep
from resnet.sweep import places, pool
from resnet.sweep.job import Job


def run_of(ranks=1, device=Device.cpu):
    return SimpleNamespace(cluster=Cluster(name="c", device=device, ranks=ranks))


def job(number, ranks=1, device=Device.cpu):
    return Job(number, run_of(ranks, device), [f"seed={number}"])


@pytest.fixture
def machine(monkeypatch):
    """`machine(cores=4, cards=2, jobs="2")`: Places of such a machine."""

    def make(cores=4, cards=0, **settings):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(10, 10 + cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{n}" for n in range(cards)))
        return places.Places(Sweep(**settings))

    return make


# ----------------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize(
    ("settings", "jobs", "each"),
    [
        ({}, 1, 4),
        ({"jobs": "2"}, 2, 2),
        ({"jobs": "3"}, 3, 1),
        ({"jobs": "auto"}, 4, 1),
        ({"jobs": "auto", "cores_each": 2}, 2, 2),
    ],
)
def test_the_cores_of_a_machine_are_divided(machine, settings, jobs, each):
    there = machine(4, **settings)
    assert (there.jobs, there.cores_each) == (jobs, each)


def test_as_many_jobs_as_cards_run_at_a_time_each_on_its_own(machine):
    there = machine(4, cards=3, jobs="auto")
    taken = [there.take(run_of(device=Device.gpu)) for _ in range(4)]
    assert taken[3] is None
    assert [place.environment for place in taken[:3]] == [{"CUDA_VISIBLE_DEVICES": f"GPU-{n}"} for n in range(3)]
    there.give_back(taken[1])
    assert there.take(run_of(device=Device.gpu)).units == ("GPU-1",)


def test_a_job_has_cores_for_each_of_its_ranks(machine):
    there = machine(4, jobs="4")
    pair, one, late = there.take(run_of(2)), there.take(run_of()), there.take(run_of(2))
    assert (pair.cores, one.cores, late) == ({10, 11}, {12}, None)
    assert pair.environment == {}


def test_one_job_at_a_time_has_the_whole_machine(machine):
    there = machine(4, cards=2)
    place = there.take(run_of(device=Device.gpu))
    assert (place.cores, place.environment) == (None, {})


@pytest.mark.parametrize(
    ("settings", "run", "error"),
    [
        ({"jobs": "2"}, run_of(3), "sweep.jobs=2: job 7 takes 6 cores, and this machine has 4; lower cluster.ranks or"),
        ({"jobs": "8"}, run_of(), "sweep.jobs=8: 8 jobs of 1 cores each do not fit on 4; use sweep.jobs=4"),
        (
            {"jobs": "2"},
            run_of(3, Device.gpu),
            "sweep.jobs=2: job 7 takes 3 cards, and this machine has 2; lower cluster.ranks",
        ),
    ],
)
def test_what_never_fits_is_refused(machine, settings, run, error):
    with pytest.raises(UserError, match=error):
        machine(4, cards=2, **settings).check(run, "job 7")


# ------------------------------------------------------------------------------------------------------------------- pool
class Events:
    """Jobs of one poll each, unless `codes` has none for them; `starts` has (number, cores) in their order."""

    def __init__(self, codes=None, search=()):
        self.codes, self.search, self.starts, self.ends, self.most = codes or {}, list(search), [], [], 0
        self.processes = {}

    def more(self):
        return self.search.pop(0) if self.search else None

    def start(self, one, place):
        self.starts.append((one.number, sorted(place.cores or ())))
        events = self

        class Process:
            code = events.codes.get(one.number, 0)
            signals = ()

            def poll(self):
                return self.code

            def send(self, number):
                self.signals = (*self.signals, number)
                if number == signal.SIGTERM and one.number not in events.deaf:
                    self.code = 143
                if number == signal.SIGKILL:
                    self.code = -9

        self.processes[one.number] = Process()
        return self.processes[one.number]

    deaf = ()

    def progress(self, one):
        return one.number in self.pruned

    pruned = ()

    def finish(self, one):
        self.ends.append((one.number, one.code))

    def show(self, running):
        self.most = max(self.most, len(running))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool, "POLL_S", 0.001)
    monkeypatch.setattr(pool, "KILL_S", 0.05)


def test_no_core_has_two_jobs_and_small_ones_pass_one_that_does_not_fit(machine):
    events = Events()
    pool.Pool(machine(4, jobs="4"), events).run([job(0, 3), job(1, 2), job(2), job(3, 4)])
    assert events.starts == [(0, [10, 11, 12]), (2, [13]), (1, [10, 11]), (3, [10, 11, 12, 13])]
    assert sorted(events.ends) == [(n, 0) for n in range(4)]


def test_a_search_is_asked_only_when_there_is_a_place(machine):
    events = Events(search=[job(n) for n in range(5)])
    pool.Pool(machine(2, jobs="2"), events).run([])
    assert [number for number, _ in events.starts] == list(range(5)) and events.search == []


def test_a_job_that_fails_gives_its_place_to_the_next(machine):
    events = Events({0: 75})
    pool.Pool(machine(1, jobs="1"), events).run([job(0), job(1)])
    assert events.ends == [(0, 75), (1, 0)]


def test_a_job_that_is_pruned_is_asked_to_stop_once(machine):
    events = Events({0: None})
    events.pruned = (0,)
    pool.Pool(machine(), events).run([job(0)])
    assert events.processes[0].signals == (signal.SIGTERM,) and events.ends == [(0, 143)]


def interrupt(*numbers):
    """Send signals to this process, a moment apart."""

    def send():
        for number in numbers:
            time.sleep(0.05)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_has_every_job_save_once_and_starts_no_other(machine, number, error):
    events = Events({0: None, 1: None})
    interrupt(number)
    with pytest.raises(error):
        pool.Pool(machine(2, jobs="2"), events).run([job(0), job(1), job(2)])
    assert [process.signals for process in events.processes.values()] == [(signal.SIGTERM,)] * 2
    assert sorted(events.ends) == [(0, 143), (1, 143)]


def test_a_second_interrupt_ends_what_does_not_listen(machine):
    events = Events({0: None})
    events.deaf = (0,)
    interrupt(signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pool.Pool(machine(), events).run([job(0)])
    assert events.processes[0].signals == (signal.SIGTERM, signal.SIGINT, signal.SIGKILL) and events.ends == [(0, -9)]


def test_no_process_is_left_when_a_job_cannot_be_started(machine):
    class Failing(Events):
        def start(self, one, place):
            if one.number == 1:
                raise UserError("a full disk")
            return super().start(one, place)

    events, there = Failing({0: None}), machine(2, jobs="2")
    with pytest.raises(UserError, match="a full disk"):
        pool.Pool(there, events).run([job(0), job(1)])
    assert events.ends == [(0, 143)] and there.running == 0
