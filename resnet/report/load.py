"""Trainings as the report needs them: out of run folders (config.yaml, metrics.jsonl, result.json) and out of MLflow."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resnet import UserError, files, home, uris
from resnet.cli import nearest
from resnet.config import track
from resnet.rundir import metrics, result
from resnet.track import store

CURVES = ("train/loss", "train/top1", "train/epoch", "eval/loss", "eval/top1", "ema/loss", "ema/top1")
FINISHED = ("finished", "stopped at top-1")
STATUS = {"FAILED": "failed", "KILLED": "killed"}  # of the MLflow run, in <out>/mlflow.json
USER_KEYS = "finetune.lr_multipliers."  # the user chooses its keys, so it is one knob, as in MLflow
DEPTH = 3  # levels below a folder in which runs are searched for: runs/<sweep>/<job>
PARENT, RUN_ID = "mlflow.parentRunId", re.compile(r"[0-9a-f]{32}")
PAGE = 1000  # results of MLflow to a request


@dataclass(frozen=True)
class Training:
    """A run. `key` is the same in its folder and in MLflow; `settings` is every knob by its dotted name, as text."""

    key: str
    name: str
    place: str  # its folder, or its MLflow run
    status: str
    settings: Mapping[str, str]
    final: Mapping[str, float]  # final/top1, final/images_per_s, ...; of an earlier end where the run was resumed
    curves: Mapping[str, Mapping[int, float]]  # metric -> {step: value}, steps rising

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    @property
    def recipe(self) -> str | None:
        name = self.settings.get("recipe", "None")
        return None if name in ("None", "none", "") else name

    @property
    def epochs(self) -> float | None:
        """Epochs trained, which may be fewer than the recipe's."""
        logged = list(self.curves.get("train/epoch", {}).values())
        return logged[-1] if logged else self.final.get("epochs") if self.finished else None

    @property
    def steps_per_epoch(self) -> float | None:
        logged = [step / epoch for step, epoch in self.curves.get("train/epoch", {}).items() if epoch > 0]
        return logged[-1] if logged else None


def trainings(words: Sequence[str], uri: str = "mlflow.db") -> list[Training]:
    """The trainings that the words name. Raises UserError if a word names none. MLflow is asked only about what is no folder."""
    runs: list[Training] = []
    for word in words:
        folder = home.expand(word)
        try:
            here = list(from_folders(folder)) if folder.is_dir() else []
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
        if not here and folder.is_dir() and ("/" in word or word.startswith(".")):
            raise UserError(f"{word}: no run in this folder, nor in folders up to {DEPTH} deep in it")
        if not here and not folder.is_dir() and "/" in word:
            raise UserError(f"{word}: no such folder")
        runs += here or from_mlflow(word, uri)
    return runs


# ---------------------------------------------------------------------------------------------------------------- folders
def from_folders(top: Path, depth: int = DEPTH) -> Iterator[Training]:
    """Every training in `top`, itself included, 9 before 10. Raises OSError and UserError for what cannot be read."""
    settings = read_settings(top / "config.yaml") if os.path.lexists(top / metrics.FILE) else {}
    if settings:
        final = result.read(top)
        if final is None and (top / result.FILE).exists():
            raise UserError(f"{top / result.FILE}: cannot be read as JSON; leave this folder out, or fix the file")
        if not final or final.get("status") != "lr_find":  # a range test trains nothing
            yield from_folder(top, settings, final or {})
    elif depth:
        children = [child for child in top.iterdir() if child.is_dir() and not child.name.startswith(".")]
        for child in sorted(children, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)]):
            yield from from_folders(child, depth - 1)


def read_settings(path: Path) -> dict[str, str]:
    """The settings in a config.yaml; empty if there is none, or not of a training."""
    if not path.is_file():
        return {}
    try:
        settings = dotted(yaml.safe_load(files.read_bytes(path, 400_000)))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML; leave this folder out, or fix the file") from error
    return settings if {"model.name", "batch"} <= settings.keys() else {}


def dotted(node: Any, prefix: str = "") -> dict[str, str]:
    """Every leaf of nested mappings as text, by the name that fingerprint.flat and MLflow have for it: `optim.lr`."""
    if not isinstance(node, dict) or not node or prefix == USER_KEYS:
        return {prefix.removesuffix("."): str(node)}
    return {name: text for key, value in node.items() for name, text in dotted(value, f"{prefix}{key}.").items()}


def from_folder(out: Path, settings: dict[str, str], final: dict[str, Any]) -> Training:
    """The training in the folder `out`."""
    logged = metrics.read(out / metrics.FILE)
    curves = {name: curve for name in CURVES if (curve := finite(logged.get(name, {})))}
    if finite(final).get("steps", 0) < max((max(curve) for curve in curves.values()), default=0):
        final = {}  # the run was resumed after that result
    state: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        state = dict(files.read_json(out / store.FILE))
    plain = f"{settings['model.name']} {settings.get('optim.name', '')} b{settings['batch']}"
    return Training(
        key=str(state.get("run_id") or out.resolve()),
        name=settings.get("track.run_name") or plain,
        place=str(out),
        status=str(
            final.get("status")
            or ("pruned" if (out / result.PRUNE).exists() else None)
            or STATUS.get(str(state.get("status")))
            or "unfinished"
        ),
        settings=settings,
        final=finite(final),
        curves=curves,
    )


def number(text: object) -> float | None:
    """A finite number, or None."""
    with contextlib.suppress(ValueError):
        value = float(str(text))
        return value if math.isfinite(value) else None
    return None


def finite(values: Mapping[Any, object]) -> dict[Any, float]:
    """Those of the values that are finite numbers."""
    return {key: value for key, text in values.items() if (value := number(text)) is not None}


# ----------------------------------------------------------------------------------------------------------------- MLflow
def from_mlflow(word: str, uri: str) -> list[Training]:
    """The trainings of the experiment `word`, of the sweep with this run id, or the run with it. Raises UserError if none."""
    uri = uris.name(uri) if "://" in uri else uris.sqlite(home.expand(uri))
    database = uris.sqlite_path(uri)
    if database and not database.is_file():
        raise UserError(f"uri={uri}: no such file; give uri=<store>, cd to where you trained, or name runs' folders")
    try:
        client = store.connect(uri)
        experiment = client.get_experiment_by_name(word)
        experiments = [experiment] if experiment else list(pages(client.search_experiments))
        if not experiment and not RUN_ID.fullmatch(word):
            known = nearest(word, [one.name for one in experiments])
            raise UserError(f"{word}: no folder of runs, experiment or run id in {uri}; experiments {known}")
        queries = [""] if experiment else [f"tags.`{PARENT}` = '{word}'", f"attributes.run_id = '{word}'"]
        query = {
            "experiment_ids": [one.experiment_id for one in experiments],
            "order_by": ["attributes.start_time ASC"],
        }
        searches = (list(pages(client.search_runs, filter_string=text, **query)) for text in queries)
        runs = next(filter(None, searches), []) if experiments else []
        suitable = [run for run in runs if {"model.name", "batch"} <= run.data.params.keys()]
        if not suitable:
            what = "nothing in it is a training of this suite" if runs else "it holds no runs"
            raise UserError(f"{word}: {what if experiment or runs else 'no such run'} (uri={uri})")
        return [from_mlflow_run(client, run) for run in suitable]
    except UserError:
        raise
    except Exception as error:  # MLflow's own, its database's or the network's
        raise UserError(f"uri={uri}: MLflow does not answer ({track.error_line(error)})") from error


def pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    """Every result of a search."""
    page = search(max_results=PAGE, **query)
    yield from page
    while page.token:
        page = search(max_results=PAGE, page_token=page.token, **query)
        yield from page


def from_mlflow_run(client: Any, run: Any) -> Training:
    """One of MLflow's runs."""
    curves: dict[str, dict[int, float]] = {}
    for name in CURVES:
        history = client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else []
        for point in sorted(history, key=lambda point: point.timestamp):
            if math.isfinite(point.value):
                metrics.add_point(curves.setdefault(name, {}), point.step, point.value)
    return Training(
        key=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        place=f"MLflow {run.info.run_id[:8]}",
        status="pruned" if run.data.tags.get("pruned") == "true" else run.info.status.lower(),
        settings={"recipe": run.data.tags.get("recipe", "None"), **run.data.params},
        final=run.data.metrics,
        curves=curves,
    )
