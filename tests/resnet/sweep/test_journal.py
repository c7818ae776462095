"""Optuna's journal: kills, full disks, several processes, and files of strangers."""

import json
import math
import multiprocessing
import os
import resource
import signal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from resnet import UserError, cli
from resnet.config.sweep import Sampler, Sweep
from resnet.sweep import journal, study

optuna = pytest.importorskip("optuna")
SPACE = ("a=tag(log,interval(0.001,1.0))", "b=choice(1,2,3)")
FORKS = multiprocessing.get_context("fork")


def open_study(out, shared=None, *, seed=1, words=SPACE, **settings):
    out.mkdir(exist_ok=True)
    parsed = OverridesParser.create().parse_overrides(list(words))
    knobs = {override.get_key_element(): override for override in parsed}
    settings = Sweep(**{"sampler": Sampler.tpe, "study": shared and str(shared), **settings})
    return study.Study(settings, knobs, seed, out)


def run(one, count):
    """[(number, overrides)] of the next jobs, each with a result."""
    ran = []
    for _ in range(count):
        number, words = one.ask()
        one.tell(number, {"final/top1": 1 / (2 + number)}, pruned=False)
        ran.append((number, words))
    return ran


def test_optunas_own_backend_reads_the_file_and_its_entries_are_the_same(tmp_path):
    run(open_study(tmp_path), 3)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / study.FILE))
    ours = list(journal.Journal(tmp_path / study.FILE).read_logs(0))
    assert list(backend.read_logs(0)) == ours and len(ours) >= 20
    assert list(journal.Journal(tmp_path / study.FILE).read_logs(0))[7:] == ours[7:]
    study_of = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in study_of.trials] == ["COMPLETE"] * 3


# --------------------------------------------------------------------------------------------------------------------- resume
def test_a_search_that_was_killed_goes_on_with_the_numbers_that_it_had(tmp_path):
    one = open_study(tmp_path)
    ran = run(one, 3)
    left = one.ask()
    again = open_study(tmp_path)
    assert again.jobs() == [*((number, words, cli.DONE) for number, words in ran), (*left, None)]
    again.tell(left[0], {"final/top1": 0.5}, pruned=False)
    number, words = again.ask()
    assert number == 4 and words not in [words for _, words in (*ran, left)]
    assert len(open_study(tmp_path).jobs()) == 5


def test_values_that_a_kill_left_without_a_job_are_tried_all_the_same(tmp_path, monkeypatch):
    one = open_study(tmp_path, words=("a=1,2",), sampler=Sampler.random)
    one.study.ask(one.space)  # and here the process is killed
    later = open_study(tmp_path, words=("a=1,2",), sampler=Sampler.random)
    monkeypatch.setattr(study, "ASK_TIME", study.timedelta(0))
    assert sorted(words for _, words in run(later, 2)) == [["a=1"], ["a=2"]]


def test_a_search_whose_folder_was_moved_knows_its_jobs(tmp_path):
    ran = run(open_study(tmp_path / "before"), 2)
    (tmp_path / "before").rename(tmp_path / "after")
    assert [(number, words) for number, words, _ in open_study(tmp_path / "after").jobs()] == ran


def test_a_job_that_ends_twice_is_counted_once(tmp_path):
    one = open_study(tmp_path)
    number, _ = one.ask()
    for again in (one, open_study(tmp_path)):
        again.tell(number, {"final/top1": 0.5}, pruned=False)
    assert [trial.values for trial in one.study.trials] == [[0.5]]


# ------------------------------------------------------------------------------------------------------- kills and full disks
@pytest.mark.parametrize("rest", [b'{"op_code":5,"worker_id":"x","tri', b"{", b'{"op_code":4' * 20_000])
def test_a_line_that_a_kill_tore_does_no_harm(tmp_path, rest):
    before = run(open_study(tmp_path), 2)
    with (tmp_path / study.FILE).open("ab") as file:
        file.write(rest)
    after = open_study(tmp_path)
    assert [(number, words) for number, words, _ in after.jobs()] == before
    run(after, 1)
    assert len(open_study(tmp_path).jobs()) == 3
    assert all(json.loads(line) for line in (tmp_path / study.FILE).read_bytes().splitlines())


def test_a_first_line_that_was_torn_is_written_again(tmp_path):
    (tmp_path / study.FILE).write_bytes(journal.HEAD[:5])
    assert len(run(open_study(tmp_path), 2)) == 2


def fill(out, room):
    """In a process whose files cannot grow by more than `room` bytes: search on until that is an error."""
    one = open_study(out)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (out / study.FILE).stat().st_size + room
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(one, 100)
    except UserError as error:
        (out / "error").write_text(str(error)[:size])
    os._exit(0)


@pytest.mark.parametrize("room", range(0, 600, 37))
def test_on_a_full_disk_an_entry_is_written_whole_or_not_at_all(tmp_path, room):
    run(open_study(tmp_path), 1)
    process = FORKS.Process(target=fill, args=(tmp_path, room))
    process.start()
    process.join()
    said = (tmp_path / "error").read_text()
    assert said == f"{tmp_path / study.FILE}: cannot be written (File too large); make room, and resume"
    content = (tmp_path / study.FILE).read_bytes()
    assert content.endswith(b"\n") and all(json.loads(line) for line in content.splitlines())
    again = open_study(tmp_path)
    before = len(again.jobs())
    run(again, 2)
    assert len(open_study(tmp_path).jobs()) == before + 2


def hold(path, up):
    with path.open("r+b") as file:
        journal.fcntl.flock(file, journal.fcntl.LOCK_EX)
        up.set()
        signal.pause()


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path):
    run(open_study(tmp_path), 1)
    up = FORKS.Event()
    process = FORKS.Process(target=hold, args=(tmp_path / study.FILE, up))
    process.start()
    assert up.wait(30)
    process.kill()
    assert run(open_study(tmp_path), 1)[0][0] == 1


# ------------------------------------------------------------------------------------------------------------ several processes
def take_part(out, shared, seed, barrier):
    one = open_study(out, shared, seed=seed, trials=12)
    barrier.wait(30)
    run(one, 12)
    (out / "jobs.json").write_text(json.dumps(one.jobs()))
    os._exit(0)


def test_processes_that_share_a_study_try_different_values_and_learn_from_each_other(tmp_path):
    names, barrier = ("one", "two", "three"), FORKS.Barrier(3)
    open_study(tmp_path / "one", tmp_path / "shared")
    processes = [FORKS.Process(target=take_part, args=(tmp_path / n, tmp_path / "shared", 1, barrier)) for n in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    jobs = [json.loads((tmp_path / name / "jobs.json").read_text()) for name in names]
    assert [[number for number, _, _ in own] for own in jobs] == [list(range(12))] * 3
    assert len({tuple(overrides) for own in jobs for _, overrides, _ in own}) == 36
    last = open_study(tmp_path / "four", tmp_path / "shared")
    done = [trial for trial in last.study.trials if trial.state.name == "COMPLETE"]
    assert last.jobs() == [] and len(done) == 36
    assert [trial.number for trial in last.study.trials] == list(range(len(last.study.trials)))


def test_two_that_ask_for_the_same_at_once_get_different_values(tmp_path, monkeypatch):
    """Each sees the other's before it has looked: neither may end up with the other's values."""
    monkeypatch.setattr(study, "sampler", lambda _settings, _seed: optuna.samplers.RandomSampler(seed=5))
    one, two = (open_study(tmp_path / name, tmp_path / "shared") for name in ("one", "two"))
    assert len({tuple(ask.ask()[1]) for ask in (one, two, two, one)}) == 4


# ----------------------------------------------------------------------------------------------------------------- other files
@pytest.mark.parametrize("content", [b"a note\n", b"a note", b'{"a": 1}\n', b"[]\n", b"\0" * 100, b'{"op_code":0}\n'])
def test_a_file_that_is_no_journal_is_refused_in_a_line_and_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_study(tmp_path / "out", path)
    said = str(caught.value)
    assert said.startswith(f"sweep.study={path}: cannot be used (") and said.endswith("; give another file")
    assert "\n" not in said and path.read_bytes() == content


def test_what_cannot_be_a_journal_is_refused_in_a_line(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in (".", "fifo", "link"):
        with pytest.raises(UserError) as caught:
            open_study(tmp_path / "out", tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"goals": ["-eval/loss"]}, "its goals are sweep.goals="),
        ({"goals": ["final/top1", "-final/minutes"]}, "its goals are sweep.goals="),
        ({"words": ("a=tag(log,interval(0.001,1.0))", "b=choice(1,2,4)")}, "CategoricalDistribution does not support"),
        ({"words": ("a=1,2", "b=choice(1,2,3)")}, "Cannot set different distribution kind"),
    ],
)
def test_a_study_of_another_search_is_refused(tmp_path, change, reason):
    run(open_study(tmp_path / "one", tmp_path / "shared"), 2)
    with pytest.raises(UserError, match="cannot be used") as caught:
        open_study(tmp_path / "two", tmp_path / "shared", **change)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "job"),
    [
        ({"a": 0.01, "b": "${oc.env:HOME}"}, 0),
        ({"a": 0.01, "b": "1", "hydra.callbacks.x._target_": "os.system"}, 0),
        ({"a": 5.0, "b": "1"}, 0),
        ({"a": 0.01}, 0),
        ({"a": 0.01, "b": "1"}, "../../x"),
        ({"a": 0.01, "b": "1"}, -1),
        ({"a": 0.01, "b": "1"}, True),
    ],
)
def test_a_strangers_study_gives_jobs_no_values_but_those_of_the_space(tmp_path, params, job):
    one = open_study(tmp_path)
    floats, choices = optuna.distributions.FloatDistribution, optuna.distributions.CategoricalDistribution
    kinds = {name: floats(1e-9, 9) if name == "a" else choices([value]) for name, value in params.items()}
    if params.get("b") in ("1", "2", "3"):
        kinds["b"] = choices(["1", "2", "3"])
    trial = optuna.trial.create_trial(
        params=params, distributions=kinds, value=0.5, user_attrs={"sweep": one.id, "job": job}
    )
    one.study.add_trial(trial)
    with pytest.raises(UserError, match="cannot be used"):
        open_study(tmp_path)


def test_the_numbers_of_a_search_depend_on_its_seed_alone(tmp_path):
    assert run(open_study(tmp_path / "one"), 12) == run(open_study(tmp_path / "two"), 12)
    assert math.isfinite(float(run(open_study(tmp_path / "three", seed=2), 1)[0][1][0].partition("=")[2]))
