"""What a run stood in: tags, packages, changes of its checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from resnet.config.track import Mlflow
from resnet.track import provenance, sender, store
from resnet.track.tracker import Tracker


def git(folder, *words):
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    done = subprocess.run(["git", *who, *words], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_run_tells_the_commit_of_the_checkout_and_whether_it_was_changed(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "file").write_text("1")
    git(tmp_path, "init", "-q")
    assert provenance.source_tags(tmp_path / "code") == {}  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = {"mlflow.source.git.commit": git(tmp_path, "rev-parse", "HEAD"), "git.dirty": "false"}
    assert provenance.source_tags(tmp_path / "code") == clean
    (tmp_path / "untracked").write_text("")
    assert provenance.source_tags(tmp_path / "code") == clean
    (tmp_path / "code" / "file").write_text("2")
    assert provenance.source_tags(tmp_path / "code") == {**clean, "git.dirty": "true"}


def test_the_checkout_of_another_user_is_read_if_it_is_the_one_that_runs(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "first", "--allow-empty")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert provenance.source_tags(tmp_path) == {}  # a checkout around ours, whose configuration can name programs
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.source_tags(tmp_path)["git.dirty"] == "false"


def test_outside_of_a_checkout_or_without_git_there_is_no_commit_to_tell(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.source_tags(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert provenance.source_tags(Path(provenance.__file__).parent) == {}


def test_tags_tell_recipe_seed_device_and_versions(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(__version__="2.99"))
    tags = provenance.tags(
        SimpleNamespace(recipe=None, seed=7, out="/runs/x", track=Mlflow("mlflow", "file:///x", tags={"owner": "me"})),
        "a card",
    )
    assert tags["owner"] == "me"
    assert (tags["recipe"], tags["seed"], tags["device"], tags["out"]) == ("none", "7", "a card", "/runs/x")
    assert tags["version.tensorflow"] == "2.99" and tags["version.resnet"]
    assert sys.version.startswith(tags["version.python"])
    assert all(isinstance(value, str) for value in tags.values())


# ---------------------------------------------------------------------------------------------------- what surrounds a run
def test_every_installed_package_is_listed_as_pip_does(tmp_path):
    listed = provenance.environment(tmp_path).read_text().splitlines()
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True
    ).stdout.split()
    assert {word for word in frozen if re.fullmatch(r"[\w.-]+==\S+", word)} <= set(listed)
    assert listed == sorted(listed, key=str.lower)


def test_uncommitted_changes_are_kept_and_nothing_where_there_are_none(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "track.py").write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(code / "track.py"))
    assert provenance.changes(tmp_path) is None
    (code / "track.py").write_text("two\n")
    assert "+two" in provenance.changes(tmp_path).read_text()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path.parent / "nowhere" / "track.py"))
    assert provenance.changes(tmp_path) is None


def test_the_environment_is_recorded_though_the_store_never_answers(tmp_path, monkeypatch):
    def away(_uri):
        raise ConnectionError("away")

    monkeypatch.setattr(store, "connect", away)
    monkeypatch.setattr(sender, "PAUSE_S", 0.01)
    tracker = Tracker(tmp_path, Mlflow(uri="http://127.0.0.1:9"), {}, {}, writers=provenance.WRITERS)
    assert "ConnectionError: away" in tracker.close("FINISHED")
    assert f"numpy=={np.__version__}\n" in (tmp_path / "environment.txt").read_text()
