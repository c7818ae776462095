"""`python -m resnet.train`: compose the run, refuse what cannot work, train here or in ranks, show the result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnet import UserError, cli
from resnet.config.fingerprint import fingerprint
from resnet.config.run import Run
from resnet.launch import launchers, rank_status, supervisor
from resnet.rundir import lock, result
from resnet.sweep import command
from resnet.track import sync


def main(runs: Iterable[Run] | None = None) -> None:
    """The console script. `runs` are those of the command line unless they are given, as `resnet.rank` does."""
    with cli.reported():
        for run in command.command_line() if runs is None else runs:
            out = Path(run.out)
            if run.cluster.dry_run:
                print(launchers.dry_run_text(run, out))
                continue
            if runs is None:
                check_plan(run)
            launchers.refuse_if_nested(run.cluster)
            content = result.read(out)
            if content and content.get("fingerprint") == fingerprint(run):
                print(f"{out}: this run has finished already")
                sync.send_rest(run, out)
            else:
                try:
                    content = supervisor.run(run, out) if launchers.needed(run.cluster) else train_here(run, out)
                except cli.Stopped as stopped:
                    raise cli.Pruned(*stopped.args) if (out / result.PRUNE).exists() else stopped from None
            from resnet.training import progress

            try:
                progress.report(content, run)
            except (KeyError, TypeError, ValueError) as error:  # somebody else's
                reason = f"{type(error).__name__}: {error}"
                path = out / result.FILE
                raise UserError(f"{path}: not the result of this run ({reason}); remove it, and start again") from error


def train_here(run: Run, out: Path) -> dict[str, Any]:
    """Train in this process; the content of result.json."""
    launchers.check(run)
    os.environ.update(launchers.device_environment(run))
    with lock.hold(out):
        rank_status.kill_stale_ranks(out)
        from resnet.training import loop  # TensorFlow: after everything that can be refused

        return loop.train(run, out)


def check_plan(run: Run) -> None:
    """Raise UserError for images that are not there, fewer than a batch, or of other classes: before TensorFlow is imported."""
    from resnet.data import classes, source  # NumPy: an answer to --help or to a typo must not wait for it
    from resnet.optim import schedule

    schedule.plan(run, source.open_source(run.data).train_images)
    classes.check_run(Path(run.out), run.data)


if __name__ == "__main__":
    main()
