"""Requests that are tried again, after growing pauses, for what passes; the error to raise for what does not."""

from __future__ import annotations

import errno
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from resnet import UserError, uris

Result = TypeVar("Result")

LOCAL = ("file", "local", "memory")  # what fails there, fails again
PAUSE_S, MAX_PAUSE_S, GIVE_UP_S = 0.2, 10.0, 180.0  # between tries, growing; without an answer for so long
SAY_S = 5.0
NETWORK = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "azure", "requests", "urllib3")  # whose errors are no OSError
PASSING = (408, 425, 429)  # statuses that pass, beside 5xx
last_line = -1e9  # when say_rarely() printed
REASONS = {401: "HTTP 401, unauthorized", 403: "HTTP 403, forbidden"}


class Unreachable(OSError):
    """What lies at an address cannot be read, and trying again does not help."""


def retried(address: str, call: Callable[[], Result], stop: threading.Event | None = None) -> Result:
    """What `call` returns, which is tried again, after growing pauses, for what passes: timeouts, resets, 5xx.

    Raises FileNotFoundError, PermissionError and Unreachable at once for what does not pass, and Unreachable after GIVE_UP_S, or
    once `stop` is set.
    """
    begin = time.monotonic()
    local = address.partition("://")[0] in LOCAL
    for attempt in itertools.count():
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            waited = time.monotonic() - begin
            reason = explanation(error)
            if reason or local:
                raise reason or Unreachable(first_line(error)) from error
            if waited > GIVE_UP_S or (stop and stop.is_set()):
                raise Unreachable(f"{first_line(error)}, {attempt + 1} times in {waited:.0f} s") from error
            say_rarely(f"{address}: {first_line(error)}; trying again for at most {GIVE_UP_S:.0f} s", waited)
            pause = min(MAX_PAUSE_S, PAUSE_S * 2**attempt) * random.uniform(0.5, 1)
            (stop.wait if stop else time.sleep)(pause)
    raise AssertionError


def say_rarely(line: str, waited: float) -> None:
    """Print a line once something has waited for SAY_S seconds, one line every SAY_S seconds over all threads."""
    global last_line
    if waited > SAY_S and time.monotonic() - last_line > SAY_S:
        last_line = time.monotonic()
        print(line, file=sys.stderr, flush=True)


def explanation(error: BaseException) -> OSError | None:
    """The error to raise for what does not pass; None for what may."""
    if isinstance(error, FileNotFoundError) and type(error.__cause__).__module__.partition(".")[0] in NETWORK:
        error = error.__cause__ or error  # fsspec's HTTP calls everything so that a HEAD request does not answer
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if status and (status >= 500 or status in PASSING):
        return None
    if isinstance(error, PermissionError) or status in REASONS:
        reason = REASONS.get(status or 0) or getattr(error, "strerror", None) or "access denied"
        return PermissionError(errno.EACCES, uris.redact(reason))
    if isinstance(error, FileExistsError) or status == 412:
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if isinstance(error, (IsADirectoryError, NotADirectoryError, Unreachable)):
        return error
    beyond = isinstance(error, OSError) and error.errno == errno.EINVAL  # of s3fs, for a range behind the end
    network = type(error).__module__.partition(".")[0] in NETWORK and "Credential" not in type(error).__name__
    if status or beyond or not (network or isinstance(error, (OSError, EOFError, TimeoutError))):
        return Unreachable(f"HTTP {status}" if status else first_line(error))
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, gcsfs, botocore or azure, if it has one."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    names = ("status", "status_code", "code")
    status = metadata.get("HTTPStatusCode") or next(filter(None, (getattr(error, name, None) for name in names)), None)
    return int(str(status)) if str(status).isdigit() and int(str(status)) >= 400 else None


def first_line(error: BaseException) -> str:
    """An error for people: one line, nothing secret."""
    text = uris.redact(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
