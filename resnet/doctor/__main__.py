"""`python -m resnet.doctor`: the page that a report of an error needs. It changes nothing, and ends with exit status 0."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from resnet import cli, home, uris
from resnet.cli import knob
from resnet.config.checks import check
from resnet.doctor import facts, page

HELP = "Show what this machine has, and what of the suite works on it: python -m resnet.doctor [knob=value ...]"


@dataclass(kw_only=True)
class Knobs:
    """What is looked at, and how."""

    out: str = knob("runs", "folder whose disk is looked at")
    uri: str | None = knob(None, "MLflow store to ask (MLFLOW_TRACKING_URI, or mlflow.db in the working folder)")
    paths: bool = knob(False, "show paths and hosts too, which can name you")
    limit_s: float = knob(60.0, "seconds after which something that does not answer is left")

    def __post_init__(self) -> None:
        check(0 < self.limit_s <= 3600, "limit_s", self.limit_s, "must be above 0 and at most 3600")


def store(uri: str | None) -> str:
    """The store to ask; what is secret of its address goes to the environment."""
    if uri is not None:
        return uris.absolute(uri, Path.cwd())
    named = uris.from_environment()
    return uris.take(named) if named else uris.sqlite(Path.cwd() / "mlflow.db")


def main() -> None:
    with cli.reported():
        words = uris.take_words(sys.argv[1:], "uri")
        if {"--help", "-h", "help"} & set(words):
            print("\n".join([HELP, "", *cli.help_lines(Knobs, list(cli.hints(Knobs)))]))
            return
        knobs = cli.parse(Knobs, cli.split(words), "resnet.doctor")
        known = facts.collect(str(home.expand(knobs.out)), store(knobs.uri), knobs.limit_s)
        print(page.text(known, paths=knobs.paths))


if __name__ == "__main__":
    main()
