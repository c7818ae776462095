"""Shared by all tests: nothing is read from or written to the user's own caches, and TensorFlow is quiet."""

import contextlib
import copy
import functools
import gc
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest

# Before anything imports TensorFlow or asks for a cache; each worker process has its own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="resnet-tests-")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
for name in [name for name in os.environ if name.startswith("MLFLOW_") or name == "RESNET_TRACK_URI"]:
    del os.environ[name]  # the user's own store gets nothing of the tests
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# A shell that starts the tests in the background has them ignore SIGINT, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again, for a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The digits and indexes that the tests made."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def registered_once():
    """Hydra is told once what exists here, not before each of the many runs that are composed: a sixth of the time they take."""
    from resnet.config import compose

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "register", functools.cache(compose.register))
        yield


@pytest.fixture(autouse=True)
def no_store_left():
    """The store that a command was given stays in the environment of its process: not for the next test."""
    from resnet import uris

    before = {name: os.environ.get(name) for name in uris.TRACKING_SECRETS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def parsed_once():
    """Hydra parses each option file of ours and of its own once, not for each of the many runs: a quarter of their time."""
    from hydra._internal.config_repository import ConfigRepository

    from resnet import files

    parse, parsed = ConfigRepository.load_config, {}
    ours = {"hydra.conf", str(files.tree("conf")), str(files.tree("experiments")), ""}

    def load(self, config_path):
        if not ours.issuperset(source.path for source in self.sources):  # a folder of a test's own
            return parse(self, config_path)
        if not (known := parsed.get(config_path)):
            known = parse(self, config_path)
            if known is None or known.path.startswith("structured:"):  # Hydra's store, which tests change
                return known
            parsed[config_path] = known
        return copy.deepcopy(known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Hydra composes a command twice, first for hydra.mode, which only sweeps and hydra's own words set: half of the time.

    What goes wrong there goes unheard, and wrong again the second time. Commands in processes of their own compose twice.
    """
    from hydra._internal.hydra import Hydra

    look = Hydra.get_mode

    def get_mode(self, config_name, overrides):
        own = any(word in argument for argument in sys.argv for word in ("-cd", "-cp", "--config"))
        if own or any(word in override for override in overrides for word in ("sweep", "hydra")):
            return look(self, config_name, overrides)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


@pytest.fixture(scope="session", autouse=True)
def migrated_once(tmp_path_factory):
    """MLflow's tables are made once, then copied: each time they cost a second, and a hundred writes that wait for the disk."""
    from resnet import uris
    from resnet.track import client

    tables, open_client = tmp_path_factory.mktemp("tables") / "mlflow.db", client.open_client

    def opened(uri):
        path = uris.sqlite_path(uri)
        new = client.tables(path) is None
        if new and tables.exists():
            shutil.copyfile(tables, path)
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                root = (os.environ[client.ARTIFACT_ROOT] + "/0",)  # as MLflow writes it
                connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", root)
        found = open_client(uri)
        if new and not tables.exists():
            with (
                contextlib.closing(sqlite3.connect(path)) as source,
                contextlib.closing(sqlite3.connect(tables)) as copy,
            ):
                source.backup(copy)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "open_client", opened)
        yield


@pytest.fixture(scope="session")
def composed():
    """`composed("model=tiny", ...)`: what Hydra composes of these overrides, its own part included. A copy: it composes once."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from resnet import files
    from resnet.config import compose
    from resnet.config.errors import explain

    @functools.cache
    def once(config, *overrides: str):
        compose.register()
        with initialize_config_dir(str(files.tree("conf")), version_base="1.3"), explain():
            return hydra_compose(config, list(overrides), return_hydra_config=True)

    return lambda *overrides, config="config": copy.deepcopy(once(config, *overrides))


@pytest.fixture(scope="session")
def run_at(composed):
    """`run_at(folder, "model=tiny", "steps=3", ...)`: the checked run of these overrides, in folder/run unless out= is given."""
    from hydra.core.hydra_config import HydraConfig

    from resnet.config import compose

    def make(folder, *overrides: str):
        config = composed(*overrides)
        if not any(word.startswith("out=") for word in overrides):
            config.out = str(folder / "run")
        config.hydra.runtime.cwd = str(folder)
        HydraConfig.instance().set_config(config)
        try:
            return compose.freeze(config)
        finally:
            HydraConfig.instance().cfg = None

    return make


@pytest.fixture
def run_of(run_at, tmp_path, monkeypatch):
    """`run_of("model=tiny", "steps=3", ...)`: the checked run of these overrides, its folder below tmp_path."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run_at(tmp_path, *overrides)


@pytest.fixture(scope="session")
def spawn(tmp_path_factory):
    """`spawn("resnet.train", "model=tiny", ..., cwd=folder)`: that process, under way; `.finish()` waits for it.

    Its environment is this one, changed by `env`. Both outputs go to the file `log` if one is given; `before` are statements
    that it executes first, or alone where the module is None.
    """
    import forked

    started = []

    def start(module, *words, cwd=".", env=None, before="", log=None):
        folder = tmp_path_factory.mktemp("output")
        files = (log, log) if log else (folder / "stdout", folder / "stderr")
        started.append(forked.Process(module, words, Path(cwd).resolve(), {**os.environ, **(env or {})}, before, files))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def exit_status():
    """`exit_status(train.main)`: the status that a command's main() would end the process with."""

    def call(main, *args):
        try:
            return main(*args) or 0
        except SystemExit as ended:
            return ended.code or 0

    return call


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """`with shared("name") as folder`: a folder of all workers, entered by one at a time: the first makes what all use."""
    from resnet import files

    root = tmp_path_factory.getbasetemp()

    @contextlib.contextmanager
    def enter(name):
        folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
        folder.mkdir(exist_ok=True)
        with files.locked(folder / "lock"):
            yield folder

    return enter
