"""A machine with eight Gaudi cards, and a command line of the original as the words that it becomes."""

import functools

import pytest

from resnet.compat import habana, places
from resnet.compat.request import read_request
from resnet.config import compose
from resnet.distributed import gaudi


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight Gaudi cards, or with `machine(0)` none; and not the folder that the original took shards from."""

    def has(cards):
        monkeypatch.setattr(gaudi, "cards", lambda: cards)

    monkeypatch.setattr(places, "STANDARD", ())
    has(8)
    return has


@pytest.fixture(scope="module", autouse=True)
def parts():
    """Parts of runs are composed once each: Hydra takes a tenth of a second for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "one_group", functools.cache(compose.one_group))
        yield


def translate(command, *argv, **environ):
    """The request of a command line, and the lines that it becomes."""
    request = read_request(command, [str(word) for word in argv], environ)
    return request, habana.commands(request)


@pytest.fixture
def asked():
    """`asked("demo_resnet", "-d", "bf16", NAME="value")`: (request, lines)."""
    return translate


@pytest.fixture
def words():
    """`words("demo_resnet", "-d", "bf16")`: the words of its resnet.train."""

    def train(command, *argv, **environ):
        _, ((module, *said),) = translate(command, *argv, **environ)
        assert module == "resnet.train"
        return said

    return train
