"""Stands in for resnet.rank in a job's process: does what <out>/deed says."""

import os
import signal
import sys
import time
from pathlib import Path

out = Path(sys.argv[1])
print("in the job", flush=True)
(out / "facts").write_text(
    f"{os.getpid()} {os.getppid()} {os.getsid(0) == os.getpid()} {sorted(os.sched_getaffinity(0))} {os.environ.get('CARD')}"
)
match (out / "deed").read_text():
    case "exit 3":
        sys.exit(3)
    case "raise":
        raise ValueError("an error of the job")
    case "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    case "wait":
        heard = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: heard.append(number))
        (out / "up").touch()
        while not heard:
            time.sleep(0.01)
        (out / "heard").write_text(str(heard))
        sys.exit(143)
