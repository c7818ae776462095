"""`python -m resnet.rank <out>`: train the run that <out>/config.yaml describes, in a process of its own.

With `--rank` behind it the process is one of the run's ranks, which `resnet.launch.supervisor` has started: what it prints
goes to its log, and how it ends to its status file.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import traceback
from pathlib import Path

from resnet import UserError, cli, rundir, uris
from resnet.config import topology
from resnet.launch import rank_status, rendezvous

HOLD_S = 60.0  # for rank 0 to end, before another rank ends with a status that has rank 0 killed


def main() -> int:
    match sys.argv[1:]:
        case [folder]:
            from resnet import train

            with cli.reported():
                train.main([rundir.load(Path(folder))])
            return cli.DONE
        case [folder, "--rank"]:
            with cli.tolerant_output():
                code = run_rank(Path(folder))
                cli.leave(code)
            return code
    print("usage: python -m resnet.rank <folder with config.yaml>", file=sys.stderr)
    return 2


def run_rank(out: Path) -> int:
    """Be one rank; the exit status of the training."""
    rendezvous.export_horovod_env()
    uris.reveal()
    rank = topology.process_rank()
    rank_status.redirect(out, rank)
    rank_status.register(out, rank)
    faulthandler.enable()  # a crash leaves a stack in the log
    state, error, kind, code = "done", None, None, cli.DONE
    try:
        from resnet.training import loop  # TensorFlow: its messages go to the log

        run = rundir.load(out)
        loop.train(run, out, on_stall=lambda line: rank_status.finish(out, rank, "stalled", line))
    except UserError as exception:
        state, error, kind, code = "failed", str(exception), "user", cli.FAILED
    except cli.Stopped as exception:
        state, error, code = "stopped", str(exception), cli.STOPPED
    except BaseException as exception:
        state, error, kind, code = "failed", traceback.format_exc(), rank_status.error_kind(exception), cli.FAILED
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's: another rank failed first, and we are ending anyway
    rank_status.finish(out, rank, state, error, kind)
    if error:
        print(f"{state}: {error}", file=sys.stderr, flush=True)
    if state == "stopped":
        rank_status.wait_for_first(out, HOLD_S)
    return code


if __name__ == "__main__":
    sys.exit(main())
