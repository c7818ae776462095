"""Trainings as the report reads them from a real MLflow store."""

import csv
import json

import numpy as np
import pytest

from resnet import UserError, uris
from resnet.report import __main__ as report
from resnet.report import load, tables

LARS = ("recipe=resnet50_lars_8x", "data.dir=/shards", "cluster=hls1")
TOP1 = {1: 0.7571, 2: 0.7583, 3: 0.7566}  # by seed


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def stored(invent, ship, tmp_path_factory):
    """(uri, ids by name): the LARS runs, a sweep with its parent, a killed run, and something that is no training."""
    from resnet.track import store

    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = store.connect(uri)
    first, second = client.create_experiment("resnet"), client.create_experiment("it's others")
    ids = {"parent": client.create_run(first, run_name="sweep", tags={"sweep": "parent"}).info.run_id}
    for seed in TOP1:
        out = folder / "runs" / str(seed)
        made = invent(out, (625, TOP1[seed], 11800.0 + seed, 75.5 - seed), *LARS, f"seed={seed}")
        ids[seed] = ship(client, first, made, "resnet50 lars b2048", recipe="resnet50_lars_8x")
        (out / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": ids[seed]}))
    for number, lr in enumerate((0.015, 0.03)):
        made = invent(folder / "sweep" / str(number), (44, 0.98, 137.0, 1.9), "recipe=quickstart", f"optim.lr={lr}")
        ids[f"job{number}"] = ship(client, first, made, f"job {number}", **{"mlflow.parentRunId": ids["parent"]})
    made = invent(folder / "dead", (44, 0.9, 100.0, 2.0), "recipe=quickstart", "seed=5", reached=0.5)
    ids["dead"] = ship(client, second, made, "dead", status="KILLED")
    ids["alien"] = client.create_run(second, run_name="of another program").info.run_id
    return uri, ids, folder


def names(found):
    return [run.name for run in found]


def test_an_experiment_is_all_its_trainings_and_not_the_parent_of_a_sweep(stored):
    uri, _, _ = stored
    assert sorted(names(load.trainings(["resnet"], uri))) == ["job 0", "job 1", *["resnet50 lars b2048"] * 3]
    (dead,) = load.trainings(["it's others"], uri)
    (row,) = tables.run_table([dead]).to_dict("records")
    assert row["status"] == "killed" and np.isnan([row["top1"], row["minutes"]]).all()
    assert row["epochs"] == 5 and dead.curves["eval/top1"]


def test_a_job_that_its_search_has_pruned_is_shown_as_that(stored):
    from resnet.track import store

    uri, ids, _ = stored
    client = store.connect(uri)
    client.set_tag(ids["dead"], "pruned", "true")
    (dead,) = load.trainings(["it's others"], uri)
    client.delete_tag(ids["dead"], "pruned")
    assert dead.status == "pruned"


def test_a_run_id_is_that_run_and_a_sweeps_is_its_jobs(stored):
    uri, ids, _ = stored
    assert names(load.trainings([ids["job1"], ids["dead"]], uri)) == ["job 1", "dead"]
    assert sorted(names(load.trainings([ids["parent"]], uri))) == ["job 0", "job 1"]


def test_a_run_gives_the_same_from_mlflow_and_from_its_folder_and_counts_once(stored, tmp_path):
    uri, ids, folder = stored
    one, other = tmp_path / "one", tmp_path / "other"
    report.write([str(folder / "runs"), f"out={one}"])
    report.write([*(ids[seed] for seed in TOP1), f"out={other}", f"uri={uri}"])

    def without_place(path):
        return [{name: value for name, value in row.items() if name != "place"} for row in rows(path)]

    for name in ("runs.csv", "spread.csv", "curves.csv"):
        assert without_place(one / name) == without_place(other / name)
    assert float(rows(other / "spread.csv")[0]["top1_mean"]) == pytest.approx(np.mean(list(TOP1.values())))
    report.write([str(folder / "runs"), str(folder / "runs" / "2"), ids[1], f"out={other}", f"uri={uri}"])
    assert len(rows(other / "runs.csv")) == 3


def test_a_store_can_be_named_by_its_file(stored):
    _, ids, folder = stored
    assert len(load.trainings([ids[1]], str(folder / "mlflow.db"))) == 1


def refused(*words):
    """The one line that the command refuses these words with."""
    with pytest.raises(UserError) as caught:
        report.write(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_in_no_store_is_told_with_what_there_is(stored, tmp_path):
    uri, ids, _ = stored
    out = f"out={tmp_path / 'report'}"
    assert "did you mean resnet? There are:" in refused("resnt", f"uri={uri}", out)
    assert "no such run" in refused("0" * 32, f"uri={uri}", out)
    assert "nothing in it is a training" in refused(ids["alien"], f"uri={uri}", out)
    assert not (tmp_path / "report").exists()


def test_a_store_that_does_not_answer_is_told_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv(uris.STORE, "")  # so that what the command puts there goes with the test
    told = refused("resnet", "uri=http://me:secret@127.0.0.1:9", f"out={tmp_path / 'report'}")
    assert told.startswith("uri=http://127.0.0.1:9: MLflow does not answer") and "secret" not in told
