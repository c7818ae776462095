"""Paths as URIs, and addresses without what is secret in them."""

import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from resnet import UserError, uris

NAMES = [
    "a b",
    "job%2Ffoo",
    "a%20b",
    "a?b",
    "a#b",
    "a&b=c",
    "a+b",
    "it's",
    'q"q',
    "back\\slash",
    "${x}",
    "ümläut",
    "%",
    "a;b@c",
]
PASSWORDS = ["plain-word", "s3cr@t@word", "p:w:w", "s3cr%40t", "%zz-word", "päss-word", "a,b;c!word"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """None of it stays, or comes from outside."""
    for name in (uris.STORE, uris.TRACKING, uris.HIDDEN):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", NAMES)
def test_sqlalchemy_and_we_read_a_path_back_from_its_uri(tmp_path, name):
    path = tmp_path / name / "mlflow.db"
    assert uris.sqlite_path(uris.sqlite(path)) == path == Path(make_url(uris.sqlite(path)).database)
    path.parent.mkdir()
    assert uris.absolute(uris.sqlite(path), Path("/")) == uris.sqlite(path)
    assert uris.absolute(f"sqlite:///{path}", Path("/")) == uris.sqlite(path)  # typed as it is
    assert uris.absolute("sqlite:///mlflow.db", path.parent) == uris.sqlite(path)


def test_plain_paths_and_queries_stay_as_they_were(tmp_path):
    assert uris.sqlite("/a b/mlflow.db") == "sqlite:////a b/mlflow.db"
    assert uris.absolute("sqlite:///x/../m.db?timeout=9", tmp_path) == f"sqlite:///{tmp_path}/m.db?timeout=9"
    assert uris.sqlite_path("sqlite:////m.db?timeout=9") == Path("/m.db")
    assert uris.absolute("http://host", tmp_path) == "http://host" and uris.sqlite_path("http://host") is None


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_is_cut_off_where_it_comes_in_and_found_again(password, quote):
    (word,) = uris.take_words([f"track.uri={quote}http://me:{password}@host:5000/x{quote}"])
    assert word == f"track.uri={quote}http://host:5000/x{quote}"
    assert uris.named("http://host:5000/x") and not uris.named("http://host:5000")
    user, decoded = uris.login("http://host:5000/x")
    assert (user, decoded) == ("me", password.replace("%40", "@"))
    assert uris.login("http://elsewhere") is None
    for text in (f"at http://me:{password}@host:5000/x", f"({password})", f"({decoded})", f"me:{password}"):
        assert password not in uris.redact(text) and decoded not in uris.redact(text)


def test_a_database_keeps_its_password_and_query_for_mlflow_alone():
    uri = "postgresql+psycopg2://me:p@ss-word@host:5432/db?sslpassword=hidden"
    assert uris.take(uri) == "postgresql+psycopg2://host:5432/db"
    assert uris.whole("postgresql+psycopg2://host:5432/db") == uri and uris.whole("mysql://h/d") == "mysql://h/d"
    assert "hidden" not in uris.redact("ssl hidden?") and "p@ss" not in uris.redact("p@ss-word")


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:pass/word@host",
        "http://me:pass?word@host",
        "http://me:pa#ssword@host/x",
        "http://host/?token=pass-word",
    ],
)
def test_what_cannot_be_told_apart_is_refused_without_showing_it(uri):
    with pytest.raises(UserError) as refused:
        uris.take_words([f"track.uri={uri}"])
    assert str(refused.value).startswith("track.uri=http://host")
    assert "pass" not in str(refused.value).partition(": in the user or password")[0] and "word@" not in str(
        refused.value
    )
    with pytest.raises(UserError):
        uris.take_words(["track.uri=http://a:b@h1,http://c:d@h2"])


def test_other_words_and_stores_stay_as_they_are():
    words = ["track.uri=sqlite:///a@b/c?d", "data.dir=gs://b/a@b", "track.uri=${oc.env:X}", "-m", "batch=32"]
    assert uris.take_words(words) == words
    assert uris.redact("false gs://b/a@b") == "false gs://b/a@b"


def test_secrets_of_the_environment_are_cut_from_lines(monkeypatch):
    for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert uris.redact(f"x value-of-{name} y") == "x *** y"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("https_proxy", "http://me:proxy-word@proxy:3128")
    assert uris.redact("false: cannot reach proxy with proxy-word") == "false: cannot reach proxy with ***"


def test_a_launcher_that_shows_the_environment_gets_secrets_under_one_name(monkeypatch):
    before = {uris.STORE: "http://me:pw@h", "MLFLOW_TRACKING_TOKEN": "t", "PATH": "p"}
    after = uris.hide(before)
    assert set(after) == {"PATH", uris.HIDDEN} and uris.HIDDEN.startswith("BASH_FUNC_")
    monkeypatch.setattr(os, "environ", dict(after))
    uris.reveal()
    assert os.environ == before
