"""A real MLflow server with its artifact proxy, killed while a run goes on and started again; and what `sync` sends later."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from resnet import UserError, rundir
from resnet.config import fingerprint
from resnet.track import store
from resnet.track.__main__ import main, sync
from resnet.track.tracker import Tracker

pytestmark = pytest.mark.timeout(300)


class Server:
    """`mlflow server` on 127.0.0.1."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        words = [
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "kept"),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            env=environment,
            cwd=self.folder,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def made(server, tmp_path_factory, run_at):
    """`made("name")`: a tracker of a run in a folder of that name."""

    def make(name):
        out = tmp_path_factory.mktemp(name)
        run = run_at(out, "track=server", f"track.uri={server.uri}", "model=tiny", "data=digits", f"out={out}")
        rundir.claim(run, out)
        return Tracker(out, run.track, fingerprint.flat(run), {"recipe": "none"})

    return make


def told(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return sorted(
        (name, line["step"], line["time_ms"], value)
        for line in lines
        for name, value in line.items()
        if name.startswith("train/")
    )


def known(client, run_id):
    found = [
        client.get_metric_history(run_id, name)
        for name in client.get_run(run_id).data.metrics
        if name.startswith("train/")
    ]
    return sorted((point.key, point.step, point.timestamp, point.value) for points in found for point in points)


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


@pytest.fixture(scope="module")
def missed(server, made):
    """(a tracker that went on while the server was away, one that was closed meanwhile, what its end said)."""
    alive, closed = made("killed"), made("synced")
    for step in range(300):
        alive.log(step, {"train/loss": 1 / (step + 1)})
    closed.log(1, {"train/loss": 2.0})
    for tracker in (alive, closed):
        until(lambda tracker=tracker: tracker.run_id and store.SyncState.read(tracker.out, server.uri).sent)
    server.kill()
    began = time.monotonic()
    for step in range(300, 600):
        alive.log(step, {"train/loss": 1 / (step + 1)})
    assert time.monotonic() - began < 20  # 300 lines of a file; asking a dead server takes five seconds
    for step in range(2, 50):
        closed.log(step, {"train/loss": 1.0})
    (closed.out / "result.json").write_text("{}")
    trouble = closed.close("FINISHED")
    server.start()
    for step in range(600, 900):
        alive.log(step, {"train/loss": 1 / (step + 1)})
    assert alive.close("FINISHED") is None
    return alive, closed, trouble


def test_a_server_killed_halfway_loses_nothing_and_stops_nothing(server, missed):
    tracker, _, _ = missed
    client = store.connect(server.uri)
    assert len(told(tracker.out)) == 900
    assert known(client, tracker.run_id) == told(tracker.out)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["config.yaml"]


def test_what_a_dead_server_missed_is_sent_by_sync_and_once(server, missed):
    _, tracker, trouble = missed
    assert f"python -m resnet.track sync {tracker.out} uri={server.uri} sends the rest" in trouble
    client = store.connect(server.uri)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    for _ in range(2):
        assert sync(tracker.out) == tracker.run_id
    assert known(client, tracker.run_id) == told(tracker.out) and len(told(tracker.out)) == 49
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(tracker.run_id)} == {"config.yaml", "result.json"}


def test_a_run_goes_to_another_store_whole(made, tmp_path):
    tracker = made("moved")
    for step in range(20):
        tracker.log(step, {"train/loss": float(step)})
    assert tracker.close("FAILED") is None
    before = (tracker.out / "metrics.jsonl").read_bytes() + b'{"step": 7, "time'  # a line that a kill tore
    (tracker.out / "metrics.jsonl").write_bytes(before)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = sync(tracker.out, uri)
    client = store.connect(uri)
    assert known(client, run_id) == sorted((*point[:3], point[3]) for point in told_whole(tracker.out))
    assert client.get_run(run_id).data.params["model.name"] == "tiny"
    assert (tracker.out / "metrics.jsonl").read_bytes() == before + b"\n"
    assert sync(tracker.out, uri) == run_id and sync(tracker.out) == tracker.run_id


def told_whole(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return sorted(
        (n, line["step"], line["time_ms"], v) for line in lines for n, v in line.items() if n.startswith("train/")
    )


def test_the_command_tells_what_it_cannot_send(tmp_path, run_of, monkeypatch, capsys, exit_status):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["resnet.track", *words])
        return exit_status(main), "".join(capsys.readouterr())

    done = subprocess.run([sys.executable, "-m", "resnet.track", "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == said("--help")
    assert done.returncode == 0 and "resnet.track sync RUN" in done.stdout
    assert said("send", "x") == (1, "error: resnet.track send x: say sync and a run's folder; --help tells more\n")
    code, text = said("sync", str(tmp_path / "nothing"))
    assert code == 1 and text.startswith("error:") and text.count("\n") == 1
    run = run_of("model=tiny", "data=digits", "track=off", f"out={tmp_path / 'run'}")
    rundir.claim(run, tmp_path / "run")
    with pytest.raises(UserError, match="track=off; name a store by uri="):
        sync(tmp_path / "run")
