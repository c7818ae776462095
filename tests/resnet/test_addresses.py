"""Addresses against a server on the loopback that delays, truncates, fails, stalls or dies."""

import asyncio
import builtins
import threading
import time

import far
import fsspec
import pytest

from resnet import UserError, addresses, files, retries

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "x").write_bytes(CONTENT)
    (tmp_path / "data" / "classes.txt").write_text("cat\ndog\n")
    with far.Server(tmp_path) as running:
        yield running


# ----------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_files_are_listed_and_read_by_ranges(server, scheme):
    root = {"http": server.address, "file": f"file://{server.folder}", "memory": "memory://bucket"}[scheme]
    if scheme == "memory":
        fsspec.filesystem("memory").pipe({"/bucket/data/train/x": CONTENT, "/bucket/data/classes.txt": b"cat\ndog\n"})
    assert set(addresses.listing(f"{root}/data")) == {"train", "classes.txt"}
    assert addresses.listing(f"{root}/none") == {}
    assert addresses.read(f"{root}/data/train/x") == CONTENT
    assert addresses.read(f"{root}/data/train/x", 1000, 1010) == CONTENT[1000:1010]
    assert addresses.read(f"{root}/data/train/x", len(CONTENT) - 5, len(CONTENT) + 100) == CONTENT[-5:]
    assert addresses.read(f"{root}/data/train/x", 7, 7) == b""
    assert [size for size, _ in addresses.stamps([f"{root}/data/train/x", f"{root}/data/classes.txt"])] == [256_000, 8]
    assert files.read_text(f"{root}/data/classes.txt") == "cat\ndog\n"
    with pytest.raises(FileNotFoundError):
        addresses.read(f"{root}/data/none", 0, 10)
    with (
        pytest.raises(
            UserError, match=r"none: cannot be read at byte 5 \(No such file or directory\); is it still there"
        ),
        files.explain_io_errors(f"{root}/none", 5),
    ):
        addresses.read(f"{root}/none")


# --------------------------------------------------------------------------------------------------------------- retries
def test_what_passes_is_tried_again(server):
    server.fail, server.truncate = 0.3, 0.3
    for number in range(40):
        start = number * 6000
        assert addresses.read_exactly(f"{server.address}/data/train/x", start, start + 6000) == CONTENT[start:][:6000]
    assert len(server.requests) > 55


def test_a_server_that_dies_for_a_while_is_waited_for(server, monkeypatch, capsys):
    monkeypatch.setattr(retries, "SAY_S", 0.2)
    server.dead = True
    timer = threading.Timer(1.0, setattr, (server, "dead", False))
    timer.start()
    start = time.monotonic()
    assert addresses.read(f"{server.address}/data/train/x", 0, 100) == CONTENT[:100]
    assert 0.9 < time.monotonic() - start < 5
    assert 3 < len(server.requests) < 40  # with growing pauses
    lines = capsys.readouterr().err.splitlines()
    assert lines and lines[0].startswith(f"{server.address}/data/train/x: Server") and "for at most 180 s" in lines[0]


def test_a_server_that_stays_dead_is_given_up(server, monkeypatch):
    monkeypatch.setattr(retries, "GIVE_UP_S", 0.3)
    server.status = 503
    with pytest.raises(retries.Unreachable, match=r"503.*, \d+ times in \d s"):
        addresses.read(f"{server.address}/data/train/x", 0, 100)


def test_a_server_that_stalls_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(addresses, "TIMEOUT_S", 0.3)
    server.stalled = True
    threading.Timer(0.5, setattr, (server, "stalled", False)).start()
    assert addresses.read(f"{server.address}/data/train/x", 0, 100) == CONTENT[:100]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error", "line"), [(403, PermissionError, "403"), (404, FileNotFoundError, "No such")]
)
def test_what_does_not_pass_ends_at_once(server, status, error, line):
    server.status = status
    for call in (addresses.read, addresses.stamp):
        server.requests.clear()
        with pytest.raises(error, match=line):
            call(f"{server.address}/data/train/x")
        assert len(server.requests) <= 2  # HEAD and GET
    with (
        pytest.raises(
            UserError, match=r"x: cannot be read at byte 0 \(.*check the access" if status == 403 else "there"
        ),
        files.explain_io_errors(f"{server.address}/data/train/x"),
    ):
        addresses.read(f"{server.address}/data/train/x")


def test_a_server_without_ranges_is_recognised(server):
    server.ranges = False
    with pytest.raises(retries.Unreachable, match="sends more than the range"):
        addresses.read(f"{server.address}/data/train/x", 10, 20)


def test_a_wait_ends_when_the_reading_does(server):
    server.dead, stop = True, threading.Event()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    with pytest.raises(retries.Unreachable):
        addresses.read(f"{server.address}/data/train/x", 0, 10, stop)
    assert time.monotonic() - start < 2


class BotoError(Exception):
    __module__ = "botocore.exceptions"

    def __init__(self, status):
        super().__init__("boto says")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    __module__ = "botocore.exceptions"


class TransferError(Exception):
    __module__ = "aiohttp.client_exceptions"


class AzureError(Exception):
    __module__ = "azure.core.exceptions"

    def __init__(self, status):
        super().__init__("azure says")
        self.status_code = status


def missing(cause):
    """What adlfs and fsspec's HTTP make of a request's error."""
    error = FileNotFoundError("x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AzureError(404), FileNotFoundError),
        (AzureError(403), PermissionError),
        (AzureError(503), None),
        (missing(AzureError(404)), FileNotFoundError),
        (missing(TransferError("no answer")), None),
        (BotoError(500), None),
        (BotoError(503), None),
        (BotoError(429), None),
        (BotoError(403), PermissionError),
        (BotoError(404), FileNotFoundError),
        (BotoError(400), retries.Unreachable),
        (NoCredentialsError("Unable to locate credentials"), retries.Unreachable),
        (TransferError("payload is not completed"), None),
        (ConnectionResetError(104, "reset"), None),
        (TimeoutError(), None),
        (asyncio.TimeoutError(), None),
        (OSError(16, "Please reduce your request rate"), None),
        (PermissionError(13, "denied"), PermissionError),
        (OSError(22, "The requested range is not satisfiable"), retries.Unreachable),
        (KeyError("x"), retries.Unreachable),
    ],
)
def test_errors_that_pass_are_told_from_those_that_do_not(error, kind):
    reason = retries.explanation(error)
    assert reason is None if kind is None else type(reason) is kind


# --------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter22@host/x",
        "https://me:hun/ter22@host/x",
        "https://hunter22@host/x",
        "s3://key:hunter22@bucket/x",
        "https://host/x?sig=hunter22",
        "https://host/x?X-Amz-Signature=hunter22&b=c@d",
    ],
)
def test_an_address_with_a_secret_is_refused_without_showing_it(run_of, address):
    with pytest.raises(UserError) as caught:
        run_of("data=imagenet", f"data.dir='{address}'")
    assert "hunter" not in str(caught.value) and "ter22" not in str(caught.value)
    assert str(caught.value).startswith("data.dir=") and "an address with a user, password or ?query" in str(
        caught.value
    )


def test_errors_show_nothing_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:swordfish@proxy:1")

    def fail():
        raise KeyError("hunter22 at http://me:swordfish@proxy:1\nand more")

    with pytest.raises(retries.Unreachable) as caught:
        retries.retried("s3://bucket/x", fail)
    assert "hunter22" not in str(caught.value) and "swordfish" not in str(caught.value)
    assert str(caught.value).startswith("KeyError: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, scheme, package):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] in (package, "fsspec" if scheme == "az" else package):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    extra = addresses.EXTRAS[scheme]
    with pytest.raises(UserError) as caught:
        addresses.system(f"{scheme}://bucket/x", "data.dir=")
    line = f"data.dir={scheme}://bucket/x: a package is not installed; pip install -e '.[{extra}]'"
    assert str(caught.value) == line


def test_an_address_of_no_known_kind_is_refused():
    with pytest.raises(UserError, match=r"^data.dir=nosuch://bucket: no address that can be read \(Protocol not known"):
        addresses.system("nosuch://bucket", "data.dir=")
