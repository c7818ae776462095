"""Sends MLflow what it lacks of a run that has ended: after a kill, or while the store was away."""

from __future__ import annotations

import sys
from pathlib import Path

from resnet import UserError, files, rundir
from resnet.config.fingerprint import flat
from resnet.config.run import Run
from resnet.config.track import Mlflow
from resnet.rundir import lock, result
from resnet.rundir.metrics import FILE
from resnet.track import store
from resnet.track.store import SyncState
from resnet.track.tracker import MODEL, TAGS, Tracker


def sync(out: Path, uri: str | None = None) -> str:
    """Send MLflow what it lacks of the run in `out`, files included; returns the run's id. Raises UserError if it fails."""
    run = rundir.load(out)
    settings = run.track
    if uri and getattr(settings, "uri", None) != uri:
        settings = Mlflow(uri=uri, run_name=getattr(settings, "run_name", out.name))
    if not isinstance(settings, Mlflow):
        raise UserError(f"{out}: was trained with track=off; name a store by uri=")
    if not (out / FILE).is_file():
        raise UserError(f"{out}: no {FILE} in it")
    with lock.hold(out):
        return send(run, settings, out)


def send_rest(run: Run, out: Path) -> None:
    """Send what MLflow lacks of a finished run, if anything; a line says so. A run may be killed before MLflow has answered."""
    if not isinstance(run.track, Mlflow) or not (out / TAGS).is_file():
        return
    state = SyncState.read(out, run.track.uri)
    if (state and state.complete is not False) or (state is None and (out / store.FILE).exists()):
        return  # complete, of an older version, or sent to another store
    print(f"{out}: MLflow ({run.track.uri}) has not got all of it; sending the rest", flush=True)
    try:
        with lock.hold(out):
            send(run, run.track, out)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)


def send(run: Run, settings: Mlflow, out: Path) -> str:
    """Send what the store of `settings` lacks of `run`; returns MLflow's id of it. The caller holds the lock of `out`."""
    tags, state = read_tags(out / TAGS), SyncState.read(out, settings.uri)
    status = (state and state.status) or ("KILLED" if result.read(out) is None else "FINISHED")
    tracker = Tracker(out, settings, flat(run), tags, sampling=False)
    for path in sorted(out.iterdir()):
        own = path.name in (FILE, TAGS) or path.name.startswith(".") or path.match("mlflow*.json")
        if path.is_symlink() and not own:
            print(f"{path}: a link, which is not sent", file=sys.stderr)
        elif path.is_file() and not own:
            tracker.artifact(path)
    if (out / MODEL / "MLmodel").is_file():
        tracker.model(out / MODEL, settings.register)
    if error := tracker.close(status):
        raise UserError(f"{out}: {error}")
    return str(tracker.run_id)


def read_tags(path: Path) -> dict[str, str]:
    """The tags that a training has left; none without the file. Raises UserError for a damaged one."""
    try:
        return {str(name): str(value) for name, value in dict(files.read_json(path)).items()}
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it") from error
