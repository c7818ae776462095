"""A run's numbers in metrics.jsonl and in a real MLflow store, read back with MLflow's own client."""

import json
import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from resnet import uris
from resnet.config.track import Mlflow, Off
from resnet.track import sender, store
from resnet.track.tracker import Tracker

LONG = "x" * 7000
PARAMS = {"batch": 64, "optim.lr": 0.1, "data.mean": [1.0, 2.0], "steps": None, "optim.rows": LONG}
TAGS = {"recipe": "quickstart", "device": "a card"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the store lies; its name has what people's folders have."""
    made = tmp_path_factory.mktemp("track") / 'job%2F it\'s a "folder"?; a=b&c+d \\e ${f} [x] #1 ü'
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def settings(folder):
    """`settings(run_name="...")`: MLflow in one SQLite file."""
    return lambda **more: Mlflow(**{"uri": uris.sqlite(folder / "mlflow.db"), "run_name": "a run", **more})


@pytest.fixture(scope="module")
def client(settings):
    """MLflow's client of that store."""
    return store.connect(settings().uri)


@pytest.fixture(scope="module")
def new(folder, settings):
    """`new("name")`: a tracker in a folder of its own, or in the one of that name."""

    def make(name, params=PARAMS, **more):
        out = folder / "runs" / name
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "config.yaml").exists():
            (out / "config.yaml").write_text(f"out: {name}\n")
        return Tracker(out, settings(**more), params, TAGS)

    return make


@pytest.fixture(scope="module")
def life(new, client):
    """One tracker's life from beginning to end, and its MLflow run."""
    tracker = new("life", run_name="tiny sgd", parent_run="its parent", system_metrics_s=0.2)
    tracker.log(1, {"train/loss": 2.5, "train/lr": 0.0, "train/images_per_s": None})
    for step in range(2, 12):
        tracker.log(step, {"train/loss": 2.5 / step, "train/lr": 0.1 * step, "train/images_per_s": 100.0 + step})
    tracker.log(12, {"train/loss": math.nan, "train/lr": math.inf, "eval/loss": -math.inf, "eval/top1": 0.1 + 0.2})
    (tracker.out / "result.json").write_text('{"status": "finished"}')
    tracker.artifact(tracker.out / "result.json")
    tracker.defer(lambda client, run_id: client.set_tag(run_id, "reached", "yes"))
    deadline = time.monotonic() + 60
    while '"system/' not in (tracker.out / "metrics.jsonl").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.close("FINISHED") is None
    return tracker, client.get_run(tracker.run_id)


def recorded(out):
    """(step, time, name, value) of every number in metrics.jsonl."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        step, when = line.pop("step"), line.pop("time_ms")
        for name, value in line.items():
            if not name.startswith("system/"):
                yield step, when, name, value


def shipped(client, run_id):
    """The same of MLflow, without what it samples of the machine."""
    for name in (name for name in client.get_run(run_id).data.metrics if not name.startswith("system/")):
        for point in client.get_metric_history(run_id, name):
            yield point.step, point.timestamp, name, point.value


# ---------------------------------------------------------------------------------------------------------- one life
def test_mlflow_has_what_metrics_jsonl_has_to_the_last_digit_and_millisecond(life, client):
    tracker, _ = life
    lines = sorted(recorded(tracker.out))
    assert len(lines) == 2 + 10 * 3 + 1
    assert sorted(shipped(client, tracker.run_id)) == lines


def test_a_metric_carries_the_time_at_which_it_was_logged(life):
    tracker, run = life
    times = [when for _, when, _, _ in recorded(tracker.out)]
    assert times == sorted(times)
    assert run.info.start_time - 60_000 < times[0] <= times[-1] <= run.info.end_time


def test_numbers_that_are_none_or_not_finite_are_left_out(life):
    tracker, _ = life
    assert [(step, name) for step, _, name, _ in recorded(tracker.out) if step in (1, 12)] == [
        (1, "train/loss"),
        (1, "train/lr"),
        (12, "eval/top1"),
    ]
    assert all(json.loads(line) for line in (tracker.out / "metrics.jsonl").read_text().splitlines())


def test_the_machine_is_sampled_beside_the_training(life):
    metrics = life[1].data.metrics
    sampled = {name for name in metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= sampled
    assert metrics["system/process_memory_megabytes"] > 1


def test_parameters_are_strings_cut_to_what_mlflow_takes(life):
    assert life[1].data.params == {
        "batch": "64",
        "optim.lr": "0.1",
        "data.mean": "[1.0, 2.0]",
        "steps": "None",
        "optim.rows": LONG[:6000],
    }


def test_a_run_has_its_name_tags_and_parent(life):
    tags = life[1].data.tags
    assert tags["mlflow.runName"] == "tiny sgd"
    assert tags["mlflow.parentRunId"] == "its parent"
    assert tags["recipe"] == "quickstart" and tags["device"] == "a card" and tags["reached"] == "yes"


def test_a_run_without_a_parent_has_no_tag_of_one(new, client):
    tracker = new("alone")
    assert tracker.close("FINISHED") is None
    assert "mlflow.parentRunId" not in client.get_run(tracker.run_id).data.tags


def test_the_configuration_and_the_result_are_kept_as_artifacts(life, client, tmp_path):
    tracker, _ = life
    assert {file.path for file in client.list_artifacts(tracker.run_id)} == {"config.yaml", "result.json"}
    for name in ("config.yaml", "result.json"):
        copy = client.download_artifacts(tracker.run_id, name, str(tmp_path))
        assert Path(copy).read_text() == (tracker.out / name).read_text()


def test_artifacts_lie_beside_the_database_wherever_the_ui_is_started(life, client, folder):
    experiment = client.get_experiment(life[1].info.experiment_id)
    assert experiment.name == "resnet"
    place = urlparse(experiment.artifact_location)
    assert place.scheme == "file" and unquote(place.path) == f"{folder}/mlruns/resnet"
    assert [e.name for e in client.search_experiments()].count("resnet") == 1


def test_an_experiment_opens_on_its_training_runs_in_the_ui_unless_its_kind_is_set(life, settings, client):
    kind = "mlflow.experimentKind"
    assert client.get_experiment(life[1].info.experiment_id).tags[kind] == "custom_model_development"
    old, other = client.create_experiment("old"), client.create_experiment("other", tags={kind: "genai_development"})
    for name in ("old", "other"):
        store.new_run(client, settings(experiment=name), "a run", {})
    assert client.get_experiment(old).tags[kind] == "custom_model_development"
    assert client.get_experiment(other).tags[kind] == "genai_development"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_the_one_that_was_closed_with(new, client, status):
    tracker = new(f"ends {status}")
    assert tracker.close(status) is None
    info = client.get_run(tracker.run_id).info
    assert (info.status, info.end_time is not None) == (status, True)


def test_more_parameters_and_metrics_than_one_request_takes_all_arrive(new, client):
    tracker = new("many", params={f"knob.{n}": n for n in range(250)})
    for step in range(1500):
        tracker.log(step, {"train/loss": float(step), "train/lr": 1.0})
    assert tracker.close("FINISHED") is None
    assert len(client.get_run(tracker.run_id).data.params) == 250
    assert sorted(shipped(client, tracker.run_id)) == sorted(recorded(tracker.out))


def test_without_mlflow_there_is_metrics_jsonl_and_nothing_else(tmp_path):
    program = (
        "import sys; from pathlib import Path; from resnet.track.tracker import Tracker; from resnet.config.track import Off\n"
        "tracker = Tracker(Path.cwd(), Off(), {}, {})\n"
        "tracker.log(3, {'train/loss': 1.5}); tracker.artifact(Path('x'))\n"
        "assert tracker.close('FINISHED') is None and tracker.run_id is None and 'mlflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [(step, name, value) for step, _, name, value in recorded(tmp_path)] == [(3, "train/loss", 1.5)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert store.start_parent(tmp_path, Off(), "sweep", {}, {}) is None
    store.close_run(Off(), "a run", "FINISHED")


def test_mlflow_is_not_imported_before_the_first_metrics_are_there(tmp_path):
    """Its import would take seconds from building the first step."""
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from resnet.track.tracker import Tracker; from resnet.config.track import Mlflow\n"
        "out = Path(sys.argv[1]); (out / 'config.yaml').write_text('a: 1')\n"
        "tracker = Tracker(out, Mlflow(uri=f'sqlite:///{out}/mlflow.db', run_name='x'), {}, {})\n"
        "time.sleep(0.5)\n"
        "assert 'mlflow' not in sys.modules\n"
        "tracker.log(1, {'train/loss': 1.0})\n"
        "while 'mlflow' not in sys.modules: time.sleep(0.01)\n"
        "os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr


# ---------------------------------------------------------------------------------------------------------- going on
def test_going_on_in_a_folder_goes_on_in_the_same_mlflow_run(new, client):
    first = new("twice")
    first.log(1, {"train/loss": 2.0})
    assert first.close("KILLED") is None
    second = new("twice", params={**PARAMS, "steps": 9, "added": 1})
    second.log(2, {"train/loss": 1.0})
    deadline = time.monotonic() + 30
    while second.run_id is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running = client.get_run(first.run_id).info
    assert second.close("FINISHED") is None
    assert (second.run_id, running.status) == (first.run_id, "RUNNING")
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {**client.get_run(first.run_id).data.params, "steps": "None", "added": "1"}
    assert sorted(shipped(client, first.run_id)) == sorted(recorded(first.out))
    assert len(list(recorded(first.out))) == 2


def test_a_folder_whose_mlflow_run_was_deleted_gets_a_new_one(new, client):
    first = new("deleted")
    assert first.close("FINISHED") is None
    client.delete_run(first.run_id)
    second = new("deleted")
    second.log(1, {"train/loss": 1.0})
    assert second.close("FINISHED") is None
    assert second.run_id != first.run_id
    assert client.get_run(second.run_id).data.metrics["train/loss"] == 1.0


def test_a_folder_known_to_another_store_only_gets_a_run_in_this_one(new, client):
    out = new("elsewhere").out
    kept = json.loads((out / store.FILE).read_text()) if (out / store.FILE).exists() else {}
    (out / store.FILE).write_text(json.dumps({**kept, "uri": "http://another", "run_id": "not here"}))
    assert store.run_id(out, "http://another") == "not here"
    tracker = new("elsewhere")
    assert tracker.close("FINISHED") is None
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


# -------------------------------------------------------------------------------------------- parents, and the dead
def test_a_sweep_has_one_parent_run_for_its_folder(settings, client, tmp_path):
    first = store.start_parent(tmp_path, settings(), "sweep x", {"batch": "32,64"}, {"sweep": "parent"})
    run = client.get_run(first)
    assert (run.info.status, run.data.params, run.data.tags["sweep"]) == ("RUNNING", {"batch": "32,64"}, "parent")
    (tmp_path / "summary.md").write_text("a table")
    store.close_run(settings(), first, "FAILED", artifacts=(tmp_path / "summary.md",))
    assert client.get_run(first).info.status == "FAILED"
    assert [file.path for file in client.list_artifacts(first)] == ["summary.md"]
    assert store.start_parent(tmp_path, settings(), "sweep x", {"batch": "32,64"}, {}) == first
    assert client.get_run(first).info.status == "RUNNING"


def test_a_run_that_died_without_a_word_is_closed_from_outside_and_only_that(settings, client):
    dead = store.new_run(client, settings(), "dead", {})
    assert client.get_run(dead).info.status == "RUNNING"
    store.close_run(settings(), dead, "KILLED", only_if_running=True)
    assert client.get_run(dead).info.status == "KILLED"
    store.close_run(settings(), dead, "FAILED", only_if_running=True)
    assert client.get_run(dead).info.status == "KILLED"
    store.close_run(settings(), None, "FAILED")  # a job that died before it had one


# --------------------------------------------------------------------------------------------------- a store in trouble
@pytest.fixture
def silent(monkeypatch):
    """The address of a server that takes connections and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def test_a_server_that_never_answers_costs_the_loop_nothing_and_the_end_little(new, silent):
    tracker = new("silent", uri=silent)
    began = time.monotonic()
    for step in range(500):
        tracker.log(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 20  # 500 s, if each asked the server
    began = time.monotonic()
    trouble = tracker.close("FINISHED")
    assert time.monotonic() - began < 60  # half of CLOSE_S
    assert silent in trouble and "\n" not in trouble
    assert len(list(recorded(tracker.out))) == 500


def test_closing_waits_for_so_long_and_no_longer(new, silent, monkeypatch):
    monkeypatch.setattr(sender, "CLOSE_S", 0.3)
    tracker = new("impatient", uri=silent)
    tracker.log(1, {"train/loss": 1.0})
    began = time.monotonic()
    assert "metrics.jsonl is complete; python -m resnet.track sync '" in tracker.close("FINISHED")
    assert time.monotonic() - began < 20


class Flaky:
    """A store whose answers fail for a while: every call of `fails` raises until there were so many."""

    def __init__(self, client, fails):
        self.client, self.fails = client, fails

    def __getattr__(self, name):
        def call(*words, **more):
            if self.fails.get(name, 0) > 0:
                self.fails[name] -= 1
                raise ConnectionError(f"{name} is away\nfor now")
            return getattr(self.client, name)(*words, **more)

        return call


@pytest.fixture
def flaky(client, monkeypatch):
    """`flaky(log_batch=3)`: these calls fail so many times first; nobody waits long."""

    def make(**fails):
        away = Flaky(client, fails)
        monkeypatch.setattr(store, "connect", lambda _uri: away)
        monkeypatch.setattr(sender, "PAUSE_S", 0.01)
        monkeypatch.setattr(sender, "SEND_S", 0.05)
        return away

    return make


def test_what_a_store_missed_while_it_was_away_arrives_later(new, client, flaky):
    away = flaky(create_run=1, log_batch=2)
    tracker = new("away")
    tracker.log(1, {"train/loss": 1.0})
    deadline = time.monotonic() + 60
    while any(away.fails.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    away.fails.update(log_batch=2)
    tracker.log(2, {"train/loss": 0.5})
    while any(away.fails.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.close("FINISHED") is None
    assert sorted(shipped(client, tracker.run_id)) == sorted(recorded(tracker.out))
    assert client.get_run(tracker.run_id).data.params["batch"] == "64"
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_store_that_stays_away_is_told_of_once_at_the_end(new, flaky):
    flaky(log_batch=10**9)
    tracker = new("gone")
    tracker.log(1, {"train/loss": 1.0})
    began = time.monotonic()
    trouble = tracker.close("FINISHED")
    assert time.monotonic() - began < 60  # half of CLOSE_S
    assert (
        trouble.startswith("MLflow (sqlite:///")
        and "ConnectionError: log_batch is away; metrics.jsonl is complete" in trouble
    )


def test_an_artifact_that_cannot_be_kept_costs_no_metric(new, client):
    tracker = new("no artifact")
    tracker.artifact(tracker.out / "not there")
    tracker.log(1, {"train/loss": 1.0})
    trouble = tracker.close("FINISHED")
    assert "not there" in trouble and "\n" not in trouble
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["train/loss"]) == ("FINISHED", 1.0)


def test_the_data_are_the_runs_dataset_input(new, client):
    told = {"name": "folder", "digest": "abc", "source": "/shards", "profile": {"classes": 3}}
    out = new("with data").out
    tracker = Tracker(out, Mlflow(uri=client.tracking_uri, run_name="x"), {}, {}, told)
    assert tracker.close("FINISHED") is None
    (found,) = client.get_run(tracker.run_id).inputs.dataset_inputs
    data = found.dataset
    assert (data.name, data.digest, json.loads(data.profile)) == ("folder", "abc", {"classes": 3})
    assert json.loads(data.source) == {"uri": "/shards"}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]
