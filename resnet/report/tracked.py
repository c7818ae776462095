"""Trainings out of MLflow: those of an experiment, of a sweep, or a single one."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.cli import nearest
from resnet.report.run import CURVES, Curve, Training
from resnet.track import store

PARENT = "mlflow.parentRunId"
RUN_ID = re.compile(r"[0-9a-f]{32}")
PAGE = 1000


def masked(text: str) -> str:
    """Without the user and password of a URI in it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


class Store:
    """An MLflow tracking store that is only read."""

    def __init__(self, uri: str) -> None:
        database = store.sqlite_path(uri)
        if database and not database.is_file():
            raise UserError(
                f"uri={uri}: no such file; give uri=<store>, stand in the folder you trained in, or name runs' folders"
            )
        self.uri = masked(uri)
        self.client = self.asked(lambda: store.connect(uri))

    def asked(self, question: Callable[[], Any]) -> Any:
        """The store's answer; UserError if there is none."""
        try:
            return question()
        except Exception as error:  # MLflow's own, its database's or the network's
            said = masked(str(error).partition("\n")[0])
            raise UserError(f"uri={self.uri}: MLflow does not answer ({type(error).__name__}: {said})") from error

    def trainings(self, word: str) -> list[Training]:
        """Those of the experiment `word`, of the sweep of this run id, or the one of it. Raises UserError if there are none."""
        experiment = self.asked(lambda: self.client.get_experiment_by_name(word))
        if experiment:
            runs = self.found([experiment.experiment_id])
        else:
            experiments = list(self.pages(self.client.search_experiments))
            if not RUN_ID.fullmatch(word):
                known = nearest(word, [one.name for one in experiments])
                raise UserError(f"{word}: no folder of runs, experiment or run id in {self.uri}; experiments {known}")
            ids = [one.experiment_id for one in experiments]
            runs = self.found(ids, f"tags.`{PARENT}` = '{word}'") or self.found(ids, f"attributes.run_id = '{word}'")
        trainings = [run for run in runs if {"model.name", "batch"} <= set(run.data.params)]
        if not trainings:
            what = "nothing in it is a training of this suite" if runs else "it holds no runs"
            raise UserError(f"{word}: {what if experiment or runs else 'no such run'} (uri={self.uri})")
        return [self.training(run) for run in trainings]

    def found(self, experiments: list[str], query: str = "") -> list[Any]:
        """MLflow's runs, the oldest first."""
        order = ["attributes.start_time ASC"]
        return list(
            self.pages(lambda **page: self.client.search_runs(experiments, query, order_by=order, **page))
            if experiments
            else ()
        )

    def pages(self, search: Callable[..., Any]) -> Iterator[Any]:
        """Everything that a search finds."""
        page = self.asked(lambda: search(max_results=PAGE))
        yield from page
        while token := page.token:
            page = self.asked(functools.partial(search, max_results=PAGE, page_token=token))
            yield from page

    def training(self, run: Any) -> Training:
        """One of MLflow's runs."""
        there = [name for name in CURVES if name in run.data.metrics]
        return Training(
            key=run.info.run_id,
            name=run.info.run_name or run.info.run_id[:8],
            place=f"MLflow {run.info.run_id[:8]}",
            status=run.info.status.lower(),
            settings={"recipe": run.data.tags.get("recipe", "None"), **run.data.params},
            figures=dict(run.data.metrics),
            curves={name: self.curve(run.info.run_id, name) for name in there},
        )

    def curve(self, run_id: str, name: str) -> Curve:
        """A metric's history; of a step that was taken twice the later counts."""
        history = self.asked(lambda: self.client.get_metric_history(run_id, name))
        finite = [point for point in history if math.isfinite(point.value)]
        return sorted({point.step: point.value for point in sorted(finite, key=lambda one: one.timestamp)}.items())


def trainings(words: list[str], uri: str) -> list[Training]:
    """Those that the words name, in their order."""
    uri = uri if "://" in uri else f"sqlite:///{Path(uri).expanduser()}"
    opened = Store(uri)
    return [training for word in words for training in opened.trainings(word)]
