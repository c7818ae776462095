"""Processes that are forked from one which has imported what they need: they start at once.

The process that forks has touched no device, run no operation of TensorFlow and started no thread of it, so that nothing of one
process reaches another.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess

LOST = 255  # exit status of a process whose parent, the server of multiprocessing that it was forked from, is gone

is_fork = False  # whether this process is one


class Forked:
    """Such a process, with the methods of subprocess.Popen that its owner uses."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        process.start()
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return code

    def send(self, number: int) -> None:
        """Send a signal; SIGKILL reaches all that the process has started in its own session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if number == signal.SIGKILL else os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)


def fork(module: str, words: Sequence[str], environment: Mapping[str, str], log: int) -> Forked:
    """`python -m <module> <words>` in a fork of this process, which must be one itself; it prints to the descriptor `log`."""
    assert is_fork
    context = multiprocessing.get_context("fork")
    return Forked(context.Process(target=run_module, args=(module, words, environment, log), name=module))


def run_module(module: str, words: Sequence[str], environment: Mapping[str, str], log: int | None) -> None:
    """In the fork: be `python -m <module> <words>`, in a session of its own."""
    global is_fork
    is_fork = True
    os.setsid()
    threading.Thread(target=end_with_parent, daemon=True, name="parent").start()
    if log is not None:
        for number in (1, 2):
            os.dup2(log, number)
    os.environ.clear()
    os.environ.update(environment)
    for number in (*signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def end_with_parent() -> None:
    """Ask this process to save and end once the one that has started it is gone."""
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
