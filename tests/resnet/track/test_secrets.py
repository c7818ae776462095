"""Where a user and password go: to the store that the user named, in its header, and nowhere else."""

import base64
import contextlib
import logging
import os
import sys
import time
from urllib.parse import quote

import mlflow_rest
import psutil
import pytest

from resnet import UserError, cli, rundir, uris
from resnet.config import fingerprint
from resnet.launch import supervisor
from resnet.report import __main__ as report
from resnet.sweep.command import command_line
from resnet.track import __main__ as command
from resnet.track import client, store, sync
from resnet.track.tracker import Tracker

USER, PASSWORD = "some-user", "s3cr@t!%41w0rd"  # typed as it is; MLflow is given it decoded
DECODED = "s3cr@t!Aw0rd"
PARTS = {"s3cr", "t!%41", "t!Aw0rd", "%41w0rd", quote(PASSWORD, safe=""), quote(DECODED, safe=""), USER}
HEADER = "Basic " + base64.b64encode(f"{USER}:{DECODED}".encode()).decode()
CREDENTIALS = {
    "MLFLOW_TRACKING_USERNAME": "my-user",
    "MLFLOW_TRACKING_PASSWORD": "my-password",
    "MLFLOW_TRACKING_TOKEN": "my-token",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """None of it stays, or comes from outside."""
    for name in (uris.STORE, uris.TRACKING, *CREDENTIALS, "NETRC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(client, "replaced", {})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def leaks(text):
    return sorted(part for part in PARTS if part in text)


def clean(folder):
    """Whether no file of a folder has any part of it, in its name or content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return not [path for path in files if leaks(f"{path.name}{path.read_bytes().decode(errors='replace')}")]


@pytest.fixture
def track(run_at, tmp_path):
    """`track(uri)`: a tracker of a run in tmp_path/run whose user typed this store."""

    def make(uri, out=tmp_path / "run"):
        (word,) = uris.take_words([f"track.uri='{uri}'"])
        run = run_at(tmp_path, word, "model=tiny", "data=digits", f"out={out}")
        rundir.claim(run, out)
        tracker = Tracker(out, run.track, fingerprint.flat(run), {"recipe": "none"})
        tracker.log(1, {"train/loss": 1.0})
        return tracker

    return make


def headers(server):
    return {request[2].get("Authorization") for request in server.requests}


def test_a_password_reaches_its_server_in_the_header_and_nothing_else(track, tmp_path, capfd, caplog):
    with mlflow_rest.Server() as server:
        caplog.set_level(logging.DEBUG)
        tracker = track(f"http://{USER}:{PASSWORD}@{server.address}")
        assert tracker.close("FINISHED") is None
        assert sync.sync(tracker.out) == tracker.run_id
        assert headers(server) == {HEADER} and len(server.requests) > 10
        assert not leaks("".join(f"{path} {body}" for _, path, _, body in server.requests))
    printed = "".join(capfd.readouterr())
    assert "View run" in printed and f"http://{server.address}/#/" in printed
    assert not leaks(printed) and not leaks(caplog.text) and clean(tmp_path)


@pytest.mark.parametrize("status", [401, 500, None])
def test_a_store_that_refuses_or_is_away_is_told_without_a_password(status, track, tmp_path, capfd, monkeypatch):
    with mlflow_rest.Server(status=status or 200) as server:
        address = f"http://{USER}:{PASSWORD}@{server.address}" if status else f"http://{USER}:{PASSWORD}@127.0.0.1:9"
        monkeypatch.setenv("https_proxy", f"http://{USER}:{PASSWORD}@127.0.0.1:9")
        tracker = track(address)
        trouble = tracker.close("FINISHED")
        shown = uris.strip(address)
        assert trouble.startswith(f"MLflow ({shown}): ") and f"sync {tracker.out} uri={shown} sends the rest" in trouble
        settings = tracker.sender.settings
        supervisor.ignoring_mlflow_errors(store.start_parent, tmp_path, settings, "sweep", {}, {})
        supervisor.ignoring_mlflow_errors(store.count_restart, settings, "a" * 32)
        monkeypatch.setattr(sys, "argv", ["resnet.track", "sync", str(tracker.out), f"uri={address}"])
        with pytest.raises(SystemExit):
            command.main()
        with pytest.raises(SystemExit), cli.reported():
            report.write(["resnet", f"uri={address}", f"out={tmp_path / 'report'}"])
    printed = trouble + "".join(capfd.readouterr())
    assert printed.count(shown) >= 3 and not leaks(printed) and clean(tmp_path)


@pytest.mark.parametrize(
    "word",
    [
        "track.uri=http://{0}@host x",
        "tracking.uri=http://{0}/x@host",
        "track.uri='http://{0}@h' 'batch=[",
        "sweep.x=http://{0}@h",
    ],
)
def test_a_command_line_that_is_refused_is_told_without_its_password(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["resnet.train", *word.format(f"{USER}:{PASSWORD}").split()])
    with pytest.raises(SystemExit), cli.reported():
        command_line()
    printed = "".join(capsys.readouterr())
    assert printed.startswith("error: ") and not leaks(printed)


# ---------------------------------------------------------------------------------------------- a stranger's config.yaml
@pytest.fixture
def strangers(run_at, tmp_path, monkeypatch):
    """`strangers(uri)`: the folder of a run that somebody else has made, and this user's own credentials around it."""

    def make(uri):
        out = tmp_path / "theirs"
        run = run_at(tmp_path, f"track.uri='{uri}'", "model=tiny", "data=digits", f"out={out}")
        rundir.claim(run, out)
        text = (out / "config.yaml").read_text()
        (out / "config.yaml").write_text(text.replace("http://", "http://their-user@"))
        (out / "metrics.jsonl").write_text('{"step": 1, "time_ms": 1, "train/loss": 1.0}\n')
        (out / "authorized_keys").write_text("theirs")
        (tmp_path / "home" / ".mlflow").mkdir(parents=True)
        lines = "mlflow_tracking_username = my-user\nmlflow_tracking_password = my-password\n"
        (tmp_path / "home" / ".mlflow" / "credentials").write_text(f"[mlflow]\n{lines}")
        (tmp_path / "home" / ".netrc").write_text("default login my-user password my-password\n")
        os.environ.pop(uris.STORE, None)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        return out

    return make


def test_a_store_that_only_config_yaml_names_gets_no_credentials(strangers):
    with mlflow_rest.Server() as server:
        uri = f"http://{server.address}"
        out = strangers(uri)
        sync.sync(out)
        assert headers(server) == {"Basic " + base64.b64encode(b"anonymous:anonymous").decode()}
        assert any(b"train/loss" in body for *_, body in server.requests)
        server.requests.clear()
        uris.name(uri)
        sync.sync(out, uri)
        assert headers(server) == {"Basic " + base64.b64encode(b"my-user:my-password").decode()}
    assert {name: os.environ[name] for name in CREDENTIALS} == CREDENTIALS and "NETRC" not in os.environ


def test_a_store_that_only_config_yaml_names_is_told_to_be_so_when_it_refuses(strangers):
    with (
        mlflow_rest.Server(status=401) as server,
        pytest.raises(UserError, match=f"name it: .*uri=http://{server.address} of"),
    ):
        sync.sync(strangers(f"http://{server.address}"))


def test_a_store_that_only_config_yaml_names_has_no_files_put_elsewhere(strangers, tmp_path):
    with mlflow_rest.Server(artifacts=(tmp_path / "home" / ".ssh").as_uri()) as server:
        out = strangers(f"http://{server.address}")
        with pytest.raises(UserError, match=r"wants the run's files in file:.*\.ssh; if you trust it, name it"):
            sync.sync(out)
        assert not (tmp_path / "home" / ".ssh").exists()
    with pytest.raises(UserError, match=r"only the run's config\.yaml names it"):
        client.connect("postgresql://theirs/db")
    uri = uris.sqlite(tmp_path / "mlflow.db")
    with pytest.raises(UserError, match="wants the run's files in s3://bucket"):
        client.check_artifacts(uri, "s3://bucket/x")
    client.check_artifacts(uri, (tmp_path / "mlruns" / "resnet" / "a").as_uri())


@pytest.mark.parametrize(("words", "named"), [("", False), ("track.uri=http://theirs:1", True)])
def test_resuming_a_run_names_no_store(words, named, strangers, monkeypatch):
    out = strangers("http://theirs:1")
    monkeypatch.setattr(sys, "argv", ["resnet.train", f"resume={out}", *words.split()])
    (run,) = command_line()
    assert (run.track.uri, uris.named(run.track.uri)) == ("http://theirs:1", named)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["", "cluster=cpu2", "-m seed=1,2"])
def test_a_password_is_nowhere_in_a_real_training(words, tmp_path):
    """Its output, files and the command lines of all its processes."""
    with mlflow_rest.Server() as server:
        address = f"track.uri='http://{USER}:{PASSWORD}@{server.address}'"
        settings = ["model=tiny", "data=digits", "batch=64", "steps=3", "eval=false", "track.log_model=false"]
        command_line = [sys.executable, "-m", "resnet.train", *settings, address, *words.split()]
        shown = set()
        with (tmp_path / "output").open("wb") as output:
            process = psutil.Popen(command_line, stdout=output, stderr=output)
            while process.poll() is None:
                for child in process.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        shown.add(" ".join(child.cmdline()))
                time.sleep(0.02)
        assert process.returncode == 0 and headers(server) == {HEADER}
    assert not [line for line in shown if leaks(line)] and clean(tmp_path)
