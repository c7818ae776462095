"""What every command shares: `knob=value` words to a checked dataclass, one-line errors, exit statuses.

The small commands have no Hydra, and no OmegaConf either: its YAML would not read `out=1e3` or `dir=a: b` as text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import signal
import subprocess
import sys
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TextIO, TypeVar

from resnet import UserError, addresses, home, uris

# Exit statuses, beside the watchdog's. STOPPED: a signal ended the run after it had saved; the same command resumes it.
DONE, FAILED, INTERRUPTED, STOPPED = 0, 1, 130, 143
PRUNED = 144  # a search has stopped the run early

# SIGHUP comes from a terminal that closes, the last three from Slurm (--signal) and other schedulers before they end a job.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

Knobs = TypeVar("Knobs")
REQUIRED = dataclasses.MISSING
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def knob(default: Any, help_text: str) -> Any:
    """A field of such a dataclass, with its line of --help."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def split(words: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"{word}: write knob=value; --help lists the knobs")
        if name in values:
            raise UserError(f"{name}: given twice, as {values[name]!r} and {text!r}")
        values[name] = text
    return values


def parse(kind: type[Knobs], values: dict[str, str], command: str) -> Knobs:
    """A checked `kind` with these values. `command` is its name in errors. Raises UserError."""
    types = hints(kind)
    for name in values:
        if name not in types:
            raise UserError(f"{name}: {command} has no such knob; {nearest(name, list(types))}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.default is REQUIRED and field.name not in values:
            raise UserError(f"{field.name}: {command} needs it ({field.metadata['help']})")
    return kind(**{name: value(name, text, types[name]) for name, text in values.items()})


def hints(kind: type) -> dict[str, Any]:
    """The knobs of a dataclass by name, with their types."""
    types = typing.get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def nearest(word: str, words: Sequence[str]) -> str:
    """`did you mean ...?` and what exists, as one clause. Of dotted names those in the same group are listed."""
    group, _, leaf = word.rpartition(".")
    close = difflib.get_close_matches(word, words, 1, 0.75)
    close = close or [name for name in words if difflib.get_close_matches(leaf, [name.rpartition(".")[2]], 1, 0.75)][:1]
    beside = [name for name in words if name.rpartition(".")[0] == group]
    beside = beside or [name for name in words if "." not in name] or list(words)
    return f"{f'did you mean {close[0]}? There' if close else 'there'} are: {', '.join(beside)}"


def value(name: str, text: str, kind: Any) -> Any:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if text not in options:
            raise UserError(f"{name}={text}: {nearest(text, options)}")
        return text
    if NoneType in options:
        return None if text == "null" else value(name, text, options[0])
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}={text}: must be {KINDS[kind]}") from None


def help_lines(kind: type, names: Sequence[str]) -> list[str]:
    """A line of --help for each of these knobs, with its default."""
    lines = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is REQUIRED or field.default is None else field.default
        shown = str(default).lower() if isinstance(default, bool) else default
        if field.name in names:
            lines.append(f"  {f'{field.name}={shown}':<20} {field.metadata['help']}")
    return lines


def weights_and_overrides(words: Sequence[str], command: str) -> tuple[str, list[str], str | None]:
    """(weights, overrides, value of out=) of a command line. Raises UserError unless there is one path of weights."""
    knobs = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    paths = [word if addresses.is_remote(word) else str(home.expand(word)) for word in words if word not in knobs]
    if len(paths) != 1:
        raise UserError(f"{command}: give one run's folder or weights file, not {len(paths)}; --help tells more")
    outs = [word.removeprefix("out=") for word in knobs if word.startswith("out=")]
    return paths[0], [word for word in knobs if not word.startswith("out=")], outs[-1] if outs else None


class Stopped(Exception):
    """A signal asked the run to end; the message says what it saved and how to resume."""

    by, status = "stopped by a signal", STOPPED


class Pruned(Stopped):
    """The same of a run that a search ends early."""

    by, status = "pruned by its search", PRUNED


class Failed(Exception):
    """Ranks failed; the message says which one did first, and ends with its own traceback."""


# Work of other threads that did not end in time, and would keep the process from ending: whether it still runs, and what to
# print then; nothing where nothing is lost.
unfinished: list[tuple[Callable[[], bool], str]] = []


@contextlib.contextmanager
def reported(interrupted: str = "the checkpoints written so far are whole") -> Iterator[None]:
    """Print what the user can fix, or how a run was stopped, as one line, and exit with its status."""
    line, status = "", DONE
    unfinished.clear()  # what an earlier command of this process has left is no reason to end it at the end of this one
    with tolerant_output():
        try:
            home.provide()
            yield
        except (UserError, Failed) as error:
            line, status = f"error: {error}", FAILED
        except Stopped as stopped:
            line, status = f"{stopped.by}; {stopped}", stopped.status
        except KeyboardInterrupt:
            line, status = f"interrupted; {interrupted}", INTERRUPTED
        if line:
            print(uris.USERINFO.sub("", line), file=sys.stderr)
        leave(status)
    if status:
        sys.exit(status)


def leave(status: int) -> None:
    """End the process now if something is still `unfinished`: the end of the interpreter would wait for it, maybe for ever."""
    if lines := [line for running, line in unfinished if running()]:
        if any(lines):
            print(f"{'; '.join(filter(None, lines))}; the process ends without it", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Context in which a closed stdout or stderr, or a full disk behind it, raises nothing: what is printed there is lost."""
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(TolerantStream(sys.stdout or nowhere)) as out,
        contextlib.redirect_stderr(TolerantStream(sys.stderr or nowhere)) as err,
    ):
        try:
            yield
        finally:
            out.end()
            err.end()


class TolerantStream:
    """A text stream whose writes raise no OSError."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def end(self) -> None:
        """Flush; what cannot be written is dropped, or it would fail again at the end of the interpreter."""
        try:
            self.stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def command(help_text: str) -> Iterator[list[str]]:
    """The words of the command line, errors reported; or print the help and exit."""
    with reported():
        words = sys.argv[1:]
        if not words or {"--help", "-h"} & set(words):
            print(help_text)
            sys.exit(DONE)
        yield words


class SignalRelay:
    """Context: signals of STOPPING are recorded, and passed on to the child of `run`, instead of ending this process."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.pending: deque[int] = deque()  # until there is a child
        self.child: subprocess.Popen[bytes] | None = None
        self.handlers: dict[int, Any] = {}

    @property
    def at_once(self) -> bool:
        """Whether a Ctrl-C after the first signal asks to end everything at once."""
        return signal.SIGINT in self.received[1:]

    def __enter__(self) -> SignalRelay:
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, _frame: object) -> None:
        """Handle a signal. All but SIGINT ask a child to save and end, as SIGTERM does."""
        self.received.append(number)
        self.pending.append(number if number == signal.SIGINT else signal.SIGTERM)
        self.deliver()

    def deliver(self) -> None:
        with contextlib.suppress(IndexError):  # a signal that came in between has delivered the rest
            while self.child and self.pending:
                self.child.send_signal(self.pending.popleft())

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """The exit status of a child process; negative for a signal. In its own session, so that a Ctrl-C reaches it once."""
        self.child = subprocess.Popen(command, env=env, start_new_session=True)
        self.deliver()
        try:
            return self.child.wait()
        finally:
            self.child = None
