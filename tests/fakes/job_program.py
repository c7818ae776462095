"""Stands in for resnet.rank in a job's process: does what $DEED says, or <out>/deed."""

import os
import signal
import sys
import time
from pathlib import Path


def main(out):
    print("in the job", flush=True)
    leader, cores = os.getsid(0) == os.getpid(), sorted(os.sched_getaffinity(0))
    (out / "facts").write_text(f"{os.getpid()} {os.getppid()} {leader} {cores} {os.environ.get('CARD')}")
    match os.environ.get("DEED") or (out / "deed").read_text():
        case "exit 3":
            sys.exit(3)
        case "raise":
            raise ValueError("an error of the job")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            wait(out)


def wait(out):
    """For signals, and a little longer: each is heard once."""
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: heard.append(number))
    (out / "up").touch()
    while not heard:
        time.sleep(0.01)
    time.sleep(0.3)
    (out / "heard").write_text(str(heard))
    sys.exit(143)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
