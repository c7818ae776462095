"""`python -m resnet.track sync RUN`: send MLflow what it has not got of a run."""

from __future__ import annotations

from pathlib import Path

from resnet import UserError, cli, home, uris
from resnet.track.sync import sync

HELP = """Send to MLflow what is missing there of a run: python -m resnet.track sync RUN [RUN ...] [uri=STORE]

RUN is a run's folder. uri= names another store than that of the training. Sending twice changes nothing."""


def main() -> None:
    with cli.command(HELP) as (action, *typed):
        words = uris.take_words(typed, "uri")
        folders = [home.expand(word) for word in words if not word.startswith("uri=")]
        stores = [word.removeprefix("uri=") for word in words if word.startswith("uri=")]
        if action != "sync" or not folders:
            raise UserError(
                f"resnet.track {' '.join([action, *words])}: say sync and a run's folder; --help tells more"
            )
        uri = uris.absolute(stores[-1], Path.cwd()) if stores else None
        for out in folders:
            print(f"{out}: {sync(out, uri)}")


if __name__ == "__main__":
    main()
