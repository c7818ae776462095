"""Ranges by HTTP itself against a server on the loopback: the same bytes and the same ends as by fsspec."""

import far
import pytest

from resnet import addresses, ranges, retries

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    monkeypatch.setattr(ranges, "elsewhere", set())
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (tmp_path / "a b%").mkdir()
    (tmp_path / "a b%" / "x").write_bytes(CONTENT)
    with far.Server(tmp_path) as running:
        running.place = f"{running.address}/a b%25/x"
        yield running


def test_bytes_are_those_of_the_file_by_one_connection(server):
    for start, end in ((0, 1), (1000, 1010), (0, len(CONTENT)), (len(CONTENT) - 5, len(CONTENT))):
        assert ranges.read(server.place, start, end, 5) == CONTENT[start:end]
    assert ranges.read(server.place, len(CONTENT) - 5, len(CONTENT) + 100, 5) == CONTENT[-5:]
    assert len([name for name in vars(ranges.connections) if name.startswith(server.address)]) == 1
    assert all(method == "GET" for method, _, _ in server.requests) and len(server.requests) == 5


def test_a_connection_that_the_server_has_closed_is_opened_again(server):
    ranges.read(server.place, 0, 5, 5)
    vars(ranges.connections)[server.address].sock.shutdown(2)
    assert ranges.read(server.place, 0, 5, 5) == CONTENT[:5]


def test_faults_are_those_that_retries_know(server):
    for status, kind in (
        (500, type(None)),
        (403, PermissionError),
        (404, FileNotFoundError),
        (416, retries.Unreachable),
    ):
        server.status = status
        with pytest.raises(ranges.Status) as caught:
            ranges.read(server.place, 0, 5, 5)
        assert type(retries.explanation(caught.value)) is kind
    server.status, server.truncate = None, 1
    with pytest.raises(ConnectionError) as cut:
        ranges.read(server.place, 0, 50_000, 5)
    server.truncate, server.stalled = 0, True
    with pytest.raises(TimeoutError) as silent:
        ranges.read(server.place, 0, 5, 0.1)
    assert retries.explanation(cut.value) is retries.explanation(silent.value) is None
    server.stalled = False
    assert addresses.read_exactly(server.place, 0, 5) == CONTENT[:5]


def test_a_server_without_ranges_is_left_to_fsspec(server):
    server.ranges = False
    assert ranges.read(server.place, 10, 20, 5) is None
    assert not ranges.serves(server.place)
    with pytest.raises(retries.Unreachable, match="sends more than the range"):
        addresses.read_exactly(server.place, 10, 20)


def test_proxies_and_logins_are_left_to_fsspec(server, monkeypatch, tmp_path):
    assert ranges.serves(server.place) and not ranges.serves("s3://bucket/x") and not ranges.serves("memory://x/y")
    (tmp_path / "netrc").write_text("machine h login l password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not ranges.serves(server.place)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not ranges.serves(server.place)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ranges.serves(server.place)
