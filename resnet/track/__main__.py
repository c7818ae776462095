"""`python -m resnet.track sync RUN`: send MLflow what it has not got of a run."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from resnet import UserError, cli, rundir
from resnet.config.fingerprint import flat
from resnet.config.track import Mlflow
from resnet.rundir import lock, result
from resnet.rundir.metrics import FILE
from resnet.serving import registry
from resnet.track.store import SyncState
from resnet.track.tracker import MODEL, TAGS, Tracker

HELP = """Send to MLflow what is missing there of a run: python -m resnet.track sync RUN [RUN ...] [uri=STORE]

RUN is a run's folder. uri= names another store than that of the training. Sending twice changes nothing."""


def sync(out: Path, uri: str | None = None) -> str:
    """Send MLflow what it lacks of the run in `out`, files included; returns the run's id. Raises UserError if it fails."""
    run = rundir.load(out)
    settings = run.track
    if uri:
        settings = Mlflow(uri=uri, run_name=getattr(settings, "run_name", out.name))
    if not isinstance(settings, Mlflow):
        raise UserError(f"{out}: was trained with track=off; name a store by uri=")
    if not (out / FILE).is_file():
        raise UserError(f"{out}: no {FILE} in it")
    with lock.hold(out):
        tags = json.loads((out / TAGS).read_text()) if (out / TAGS).is_file() else {}
        state = SyncState.read(out, settings.uri)
        status = (state and state.status) or ("KILLED" if result.read(out) is None else "FINISHED")
        tracker = Tracker(out, settings, flat(run), tags, sampling=False)
        for path in sorted(out.iterdir()):
            own = path.name in (FILE, TAGS) or path.name.startswith(".") or path.match("mlflow*.json")
            if path.is_file() and not own:
                tracker.artifact(path)
        if (out / MODEL / "MLmodel").is_file():
            tracker.defer(functools.partial(registry.log_model, folder=out / MODEL, register=settings.register))
        if error := tracker.close(status):
            raise UserError(f"{out}: {error}")
    return str(tracker.run_id)


def main() -> None:
    with cli.command(HELP) as (action, *words):
        uris = [word.removeprefix("uri=") for word in words if word.startswith("uri=")]
        folders = [Path(word).expanduser() for word in words if not word.startswith("uri=")]
        if action != "sync" or not folders:
            raise UserError(
                f"resnet.track {' '.join([action, *words])}: say sync and a run's folder; --help tells more"
            )
        for out in folders:
            print(f"{out}: {sync(out, uris[-1] if uris else None)}")


if __name__ == "__main__":
    main()
