"""The command line of resnet.train: one run, or a sweep, which ends here."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from resnet import UserError, files, rundir, uris
from resnet.config import compose, errors
from resnet.config.run import Run
from resnet.sweep import execution, sweeper
from resnet.sweep.argv import RESUME, best_argv, in_one_row, knob_of, resume_argv


def register() -> None:
    """Give Hydra the configuration and this suite's sweeper. Doing it twice is harmless."""
    compose.register()
    sweeper.ProcessSweeper.__module__ = "hydra_plugins.resnet"  # Hydra takes sweepers from this namespace package only
    try:
        space = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:
        space = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        space.__path__ = []
    space.resnet = sys.modules[sweeper.__name__]  # type: ignore[attr-defined]
    Plugins.instance().register(sweeper.ProcessSweeper)


@contextlib.contextmanager
def closing_sweeps() -> Iterator[None]:
    """Context of a whole command: its sweep is closed, however it ends. Raises UserError if jobs failed."""
    status = "FAILED"
    try:
        yield
        status = "FAILED" if any(sweep.failed for sweep in execution.open_sweeps) else "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        sweeps = execution.open_sweeps[:]
        execution.open_sweeps.clear()
        for sweep in sweeps:
            sweep.close(status)
    if failed := [line for sweep in sweeps for line in sweep.failed]:
        raise UserError(f"{len(failed)} of the sweep's jobs failed: {'; '.join(failed)}")


def check_alone(words: Sequence[str]) -> None:
    """Raise UserError for settings of a sweep beside a single run."""
    if typed := [word for word in words if knob_of(word).startswith("sweep.")]:
        raise UserError(f"{typed[0]}: is of sweeps, and this is one run; add -m, or choose a sweep, as in sweep=asha")


def command_line() -> list[Run]:
    """The run that the command line describes; none after --help, --cfg or a sweep. Raises UserError before TensorFlow loads.

    Hydra composes and steps aside: the run starts outside of it.
    """
    composed: list[Run | UserError] = []

    def compose_run(config: DictConfig) -> None:
        try:
            check_alone(sys.argv[1:])
            with errors.explain():
                composed.append(rundir.resume(config) if config.resume else sweeper.freeze(config))
        except UserError as error:  # raised below: Hydra would add lines of its own
            composed.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come out of Hydra whole
    register()
    sweeper.single.clear()
    os.environ.pop(uris.STORE, None)
    typed = uris.take_words(sys.argv[1:])
    if any(word.startswith((f"{RESUME}=", "resume=")) for word in typed):
        os.environ.setdefault(uris.STORE, "")  # the store of a file, if none was typed
    sys.argv[1:] = in_one_row(best_argv(resume_argv(typed)))
    errors.check_renamed(sys.argv[1:])
    with errors.explain(), closing_sweeps():
        hydra.main(version_base="1.3", config_path=str(files.tree("conf")), config_name="config")(compose_run)()
    runs = []
    for run in [*composed, *sweeper.single]:
        if isinstance(run, UserError):
            raise run
        rundir.check_folder(run, Path(run.out))
        rundir.check_init(run)
        runs.append(run)
    return runs
