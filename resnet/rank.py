"""`python -m resnet.rank <out>`: train the run that <out>/config.yaml describes, in a process of its own.

With `--rank` behind it the process is one of the run's ranks, which `resnet.ranks` has started: what it prints goes to
its log, and how it ends to its record (`resnet.roster`).
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import traceback
from pathlib import Path

from resnet import UserError, cli, rundir, train
from resnet.launch import launchers, rank_status
from resnet.training import loop

HOLD_S = 60.0  # for rank 0 to tell its end, before another one ends with a status that has it killed


def main() -> int:
    """Exit status of the training."""
    match sys.argv[1:]:
        case [folder]:
            out = Path(folder)
            with cli.reported():
                train.main([rundir.load(out)])
            return cli.DONE
        case [folder, "--rank"]:
            return one(Path(folder))
    print("usage: python -m resnet.rank <folder with config.yaml>", file=sys.stderr)
    return 2


def one(out: Path) -> int:
    """Be one rank; exit status of the training."""
    launchers.export_horovod_env()
    rank = rank_status.rank_from_env()
    rank_status.redirect(out, rank)
    rank_status.register(out, rank)
    faulthandler.enable()  # a crash leaves a stack in the log
    try:
        run = rundir.load(out)
        loop.train(run, out, stalled=lambda said: rank_status.finish(out, rank, "stalled", said))
        state, error, kind, code = "done", None, None, cli.DONE
    except UserError as fault:
        state, error, kind, code = "failed", str(fault), "user", cli.FAILED
    except cli.Stopped as stopped:
        state, error, kind, code = "stopped", str(stopped), None, cli.STOPPED
    except BaseException as fault:
        state, error, kind, code = "failed", traceback.format_exc(), rank_status.error_kind(fault), cli.FAILED
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a starter's, because another rank was faster: this one ends anyway
    rank_status.finish(out, rank, state, error, kind)
    if error:
        print(f"{state}: {error}", file=sys.stderr, flush=True)
    if state == "stopped":
        rank_status.wait_for_first(out, HOLD_S)
    return code


if __name__ == "__main__":
    sys.exit(main())
