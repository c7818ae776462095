"""Signals that ask a training to stop."""

import os
import signal
import threading
import time

import pytest

from resnet import cli
from resnet.training.signals import Signals


def arrives(signals):
    """Whether the handler has run soon: a signal may reach another thread first."""
    deadline = time.monotonic() + 10
    while not signals.stop and time.monotonic() < deadline:
        time.sleep(0.001)
    return signals.stop


@pytest.mark.parametrize("number", cli.STOPPING)
def test_a_signal_asks_to_stop_and_is_heard_at_once_in_a_thread(number):
    heard, before = threading.Event(), signal.getsignal(number)
    with Signals(heard.set) as signals:
        assert not signals.stop
        os.kill(os.getpid(), number)
        assert arrives(signals) and heard.wait(10)
    assert signal.getsignal(number) is before
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name == "signals" and not thread.join(10) and thread.is_alive()
    ]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


def test_a_second_interrupt_ends_at_once():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert arrives(signals)
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_an_ignored_signal_stays_ignored():
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.stop
    finally:
        signal.signal(signal.SIGHUP, before)
