"""Trainings as the report reads them from their folders, and the published rows they stand beside."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from resnet.report import load, published, tables

ROOT = Path(__file__).resolve().parents[2]
LARS = ("recipe=resnet50_lars_8x", "data.dir=/shards", "cluster=hls1")


def row_of(out):
    """The row of the table that is of the run in a folder."""
    (row,) = tables.run_table(load.trainings([str(out)])).to_dict("records")
    return row


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["optim.lr=9"], ["optim.lr 9.0, not 9.5"]),
        (["seed=5", "log_every_steps=7", "cluster=local", "dtype=fp32"], []),
        (["eval_steps=3"], ["evaluated on 3 batches only"]),
        (
            ["mixup=0.2", "model.zero_init_residual=false"],
            ["model.zero_init_residual false, not true", "mixup 0.2, not 0.0"],
        ),
        (["data=digits", "batch=256"], ["optim.lr 2.5, not 9.5", "data digits, not imagenet", "batch 256, not 2048"]),
    ],
)
def test_what_makes_another_training_than_the_recipe_is_named(invent, tmp_path, words, reasons):
    words = [word for word in LARS if not {word} & {"data.dir=/shards"} or "data=digits" not in words] + words
    row = row_of(invent(tmp_path / "run", (5, 0.75, 1.0, 1.0), *words).out)
    assert row["other_training"] == reasons
    machine = ["cards 1, not 8", "dtype fp32, not bf16"] if "dtype=fp32" in words else []
    assert row["other_machine"] == machine


def test_a_run_that_stopped_early_is_another_training(invent, tmp_path):
    made = invent(tmp_path / "run", (5, 0.75, 1.0, 1.0), *LARS, reached=0.5)
    (made.out / "result.json").write_text(json.dumps({"status": "finished", "steps": made.records[-1][0]}))
    assert row_of(made.out)["other_training"] == ["stopped after 19 of 38 epochs"]


def test_a_run_that_went_on_after_its_end_has_not_ended(invent, tmp_path):
    out = invent(tmp_path / "run", (5, 0.5, 100.0, 10.0), "epochs=2").out
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train/loss": 1.0, "train/epoch": 2.2}\n')
    row = row_of(out)
    assert (row["status"], row["epochs"]) == ("unfinished", 2.2) and math.isnan(row["top1"])


def test_a_run_that_did_not_end_well_is_told_by_the_note_in_its_folder(invent, tmp_path):
    out = invent(tmp_path / "run", (5, 0.5, 100.0, 10.0), "epochs=2", reached=0.5).out
    for noted, told in (("KILLED", "killed"), ("FAILED", "failed"), (None, "unfinished"), ("FINISHED", "unfinished")):
        (out / "mlflow.json").write_text(json.dumps({"uri": "http://x", "run_id": "5" * 32, "status": noted}))
        (run,) = load.trainings([str(out)])
        assert (run.status, run.key) == (told, "5" * 32)
    (out / "prune").touch()  # its search has ended it
    assert load.trainings([str(out)])[0].status == "pruned"


def test_figures_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(invent, tmp_path):
    """In MLflow they stay with the run while it is RUNNING again."""
    (run,) = load.trainings([str(invent(tmp_path / "run", (5, 0.7641, 9800.0, 221.0), "epochs=2").out)])
    table = tables.run_table([run, dataclasses.replace(run, key="again", status="running")])
    assert table.loc[0, tables.FIGURES].tolist() == [0.7641, 9800.0, 221.0]
    assert table.loc[1, tables.FIGURES].isna().all()


def test_a_copy_of_a_configuration_is_no_run(invent, tmp_path):
    (tmp_path / "artifacts").mkdir()
    shutil.copy(invent(tmp_path / "run", (5, 0.5, 1.0, 1.0)).out / "config.yaml", tmp_path / "artifacts")
    assert list(load.from_folders(tmp_path / "artifacts")) == []


def test_a_run_in_several_starts_has_no_minutes(invent, tmp_path):
    out = invent(tmp_path / "resumed", (5, 0.5, 100.0, 10.0), "epochs=2").out
    told = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**told, "final/training_minutes": 25.0}))
    row = row_of(out)
    assert math.isnan(row["minutes"]) and row["top1"] == 0.5
    assert "several starts" in " ".join(row["remarks"])


# ------------------------------------------------------------------------------------------------------------ published
# Copied from the published tables, not from the program: recipe -> (API, epochs, cards, batch, top-1, images/s, minutes).
TABLE = {
    "resnet50_keras_sgd_1x": ("Keras SGD", 90, 1, 256, (0.7615, 0.7615), 1670, None),
    "resnet50_sgd_1x": ("SGD", 90, 1, 256, (0.764, 0.764), 1554, None),
    "resnet50_lars_1x": ("LARS", 38, 1, 256, (None, None), 1519, None),
    "resnet50_sgd_8x": ("SGD", 90, 8, 256, (0.756, 0.7615), 11801.3, 173),
    "resnet50_lars_8x": ("LARS", 38, 8, 256, (0.755, 0.759), 11956, 73),
    "resnet101_sgd_8x": ("SGD", 90, 8, 256, (None, None), 7399.5, None),
    "resnet101_lars_8x": ("LARS", 38, 8, 256, (0.766, 0.766), 7312.2, 127),
    "resnet152_sgd_8x": ("SGD", 90, 8, 256, (None, None), 5279.5, None),
    "resnet152_lars_8x": ("LARS", 38, 8, 256, (0.773, 0.773), 4444.4, 208),
}


@pytest.mark.parametrize("recipe", TABLE)
def test_the_published_rows_are_the_published_tables(recipe):
    row = published.rows().astype(object).where(published.rows().notna(), None).loc[recipe]
    ends = (row["top1_low"], row["top1_high"])
    assert TABLE[recipe] == (
        *row[["api", "epochs", "cards", "batch_per_card"]],
        ends,
        row["images_per_s"],
        row["minutes"],
    )
    assert row["model"] == "ResNet" + re.match(r"resnet(\d+)", recipe)[1]


def test_every_published_row_has_its_recipe_and_stands_in_the_ledger():
    recipes = {path.stem for path in (ROOT / "experiments" / "recipe").glob("*.yaml")}
    found = published.rows()
    unpublished = {"finetune_folder", "finetune_strong", "resnet50_250ep_8x"}
    assert recipes - set(found.index) == unpublished
    assert set(found.index) <= recipes
    ledger = (ROOT / "experiments" / "README.md").read_text()
    for recipe, row in found.iterrows():
        target = re.search(rf"^\| `{recipe}` \| [^|]+\| ([^|]+) \|", ledger, re.M)[1]
        ends = [end for end in (row["top1_low"], row["top1_high"]) if not math.isnan(end)]
        assert bool(ends) != target.startswith("none published")
        assert all(f"{100 * end:g}" in target for end in ends), (recipe, target)


@pytest.mark.parametrize(
    "recipe", [name for name, row in TABLE.items()] + ["quickstart", "quickstart_fast", "resnet50_lars_64k"]
)
def test_a_recipe_as_it_is_counts_as_the_published_training(invent, tmp_path, recipe):
    words = () if recipe.startswith("quickstart") else ("data.dir=/shards",)
    made = invent(tmp_path / "run", (2, 0.75, 1000.0, 10.0), f"recipe={recipe}", *words)
    assert row_of(made.out)["other_training"] == []
