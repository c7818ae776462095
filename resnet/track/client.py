"""MLflow's client of a store: with whose user and password, and how a SQLite file is created. MLflow takes 2 s to import."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resnet import UserError, files, uris
from resnet.serving.registry import quiet

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # of the default experiment
LIMIT_S = 30.0  # for another process to create the database
PAUSES = (0.5, 1.0, 2.0)  # seconds between tries to open it
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
# By which MLflow would log in to any store; an anonymous login outranks what ~/.mlflow/credentials has.
ANONYMOUS: dict[str, str | None] = {
    USER: "anonymous",
    PASSWORD: "anonymous",
    "MLFLOW_TRACKING_TOKEN": None,
    "MLFLOW_TRACKING_AUTH": None,
    "MLFLOW_TRACKING_AWS_SIGV4": None,
    "MLFLOW_TRACKING_CLIENT_CERT_PATH": None,
    "NETRC": os.devnull,
}
complete: set[Path] = set()  # databases that this process has used
replaced: dict[str, str | None] = {}  # variables that log_in() has changed, with the user's own values


def connect(uri: str) -> Any:
    """An MlflowClient that fails fast.

    A store that only the run's own config.yaml names, which may be a stranger's, gets none of the user's credentials. Raises
    UserError for what has no place for files or databases to be trusted with.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors come as exceptions too
    from mlflow import MlflowClient

    database = uris.sqlite_path(uri)
    if database:
        return open_database(database, uri)
    log_in(uri)
    if uri.startswith(("http://", "https://")):
        return MlflowClient(uri)
    if not uris.named(uri):
        raise UserError(f"track.uri={uri}: only the run's config.yaml names it; {way_out(uri)}")
    return MlflowClient(uris.whole(uri))  # a database takes its password from nowhere else


def way_out(uri: str) -> str:
    return f"if you trust it, name it: track.uri={uri}, {uris.TRACKING}={uri}, or uri={uri} of resnet.track sync"


def log_in(uri: str) -> None:
    """Set the user and password that MLflow sends with its requests from here on, in the environment of this process."""
    change(replaced)
    replaced.clear()
    login = uris.login(uri)
    values = dict(zip((USER, PASSWORD), login, strict=True)) if login else {} if uris.named(uri) else ANONYMOUS
    replaced.update({name: os.environ.get(name) for name in values})
    change(values)


def change(variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def check_artifacts(uri: str, location: str) -> None:
    """Raise UserError if a store that the user did not name wants files elsewhere than with itself.

    Its server, or its database, could name any folder of this machine, or a bucket that the user may write to.
    """
    if uris.named(uri) or location.startswith("mlflow-artifacts:"):
        return
    database, path = uris.sqlite_path(uri), Path(unquote(urlsplit(location).path))
    home = database and (database.parent / "mlruns").resolve()
    if not home or urlsplit(location).scheme not in ("", "file") or home not in path.resolve().parents:
        raise UserError(f"track.uri={uri}: wants the run's files in {location}; {way_out(uri)}")


# ------------------------------------------------------------------------------------------------------------- SQLite
def open_database(database: Path, uri: str) -> Any:
    """The client of a SQLite file, which is created whole: MLflow's own processes may start at the same time.

    Two that create its tables at once would break it. Raises OSError or sqlite3.Error, at once, for what cannot be opened:
    MLflow would try for two minutes.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(database):
        if not database.exists():
            create(database)
        tables(database)
        if database not in complete:
            wait_for_tables(database)
        for pause in (*PAUSES, None):
            try:
                client = open_client(uri)
                break
            except Exception:
                if pause is None:
                    raise
                time.sleep(pause)
    complete.add(database)
    return client


@contextlib.contextmanager
def one_at_a_time(database: Path) -> Iterator[None]:
    """Hold the lock beside a database. Raises TimeoutError if another process does not release it."""
    path, deadline = database.with_name(f".{database.name}.lock"), time.monotonic() + 2 * LIMIT_S
    with open(path, "a", opener=files.regular) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {path}, and does not release it") from error
            time.sleep(0.05)
        yield


def create(database: Path) -> None:
    """Create the file with all tables, unless another process is faster: it gets its name when it is complete."""
    aside = files.part_of(database)
    try:
        with contextlib.closing(sqlite3.connect(aside)) as connection:
            connection.execute("PRAGMA user_version = 0")
        # MLflow writes its default, below the working folder, into SQL as it is: a folder's name could end the text.
        with quiet(**{ARTIFACT_ROOT: (database.parent / "mlruns").absolute().as_uri()}):
            open_client(uris.sqlite(aside))
        with contextlib.suppress(FileExistsError):
            os.link(aside, database)
            complete.add(database)
    finally:
        aside.unlink(missing_ok=True)


def open_client(uri: str) -> Any:
    """A client that has opened its SQLite file. The folder that MLflow makes of the URI, taken for a path, is removed again."""
    from mlflow import MlflowClient

    stray = Path(uri.removeprefix(uris.SQLITE)).parent
    before = stray.exists()
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    if not before:
        with contextlib.suppress(OSError):
            os.removedirs(stray)
    return client


def wait_for_tables(database: Path) -> None:
    """Return when no other process seems to be creating the tables: their version stands, or nothing is written."""
    deadline = time.monotonic() + LIMIT_S
    while time.time() - database.stat().st_mtime < 2 and time.monotonic() < deadline:
        before = tables(database)
        time.sleep(1)
        if before and tables(database) == before:
            return


def tables(database: Path) -> str | None:
    """The version of MLflow's tables; None while there are none. Raises sqlite3.DatabaseError for no database."""
    with contextlib.closing(sqlite3.connect(database, timeout=5)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
