"""What a run says of the recipe that it came from."""

import pytest

from resnet.config.help import recipe_notes

SGD = "its rate and decay are for optim=sgd and do not count; optim=lars trains with a peak lr of 2.5 and a weight decay of 0.0"


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ("recipe=quickstart", []),
        ("recipe=quickstart optim=lars", [SGD]),
        (
            "recipe=quickstart_fast optim=lars schedule=piecewise model=tiny",
            [SGD, "of its schedule=cosine only the warm-up counts; the curve is piecewise"],
        ),
        (
            "recipe=resnet50_sgd_8x model=resnext50 cluster=gpu8",
            ["settings are for model=resnet50, and train resnext50"],
        ),
        (
            "recipe=resnet50_sgd_8x",
            ["for 8 cards of 256 images; here 1 rank of 2048", "cluster=gpu8 or hls1", "resnet50_sgd_1x"],
        ),
        (
            "recipe=resnet50_fast cluster=cpu2",
            ["for 8 cards of 512 images; here 2 ranks of 2048", "for 2 ranks, batch=1024"],
        ),
        ("recipe=resnet50_lars_16k", ["for 64 cards", "cluster=slurm", "for 1 rank, batch=256 and an optim.lr for it"]),
        (
            "recipe=resnet50_sgd_1x cluster=hls1",
            ["for 1 card of 256 images; here 8 ranks of 32", "for 8 ranks, batch=2048"],
        ),
        ("recipe=resnet50_sgd_8x batch=64", []),  # tried small
    ],
)
def test_a_run_says_where_it_departs_from_its_recipe(frozen, words, notes):
    run = frozen(*words.split(), *(() if "quickstart" in words else ("data.dir=/shards",)))
    lines = recipe_notes(run)
    text = "\n".join(lines)
    assert all(part in text for part in notes) and bool(lines) == bool(notes)
    assert all(line.startswith(f"recipe={run.recipe}: ") for line in lines)


def test_a_run_of_no_recipe_or_of_one_s_own_says_nothing(frozen, recipe):
    assert recipe_notes(frozen("optim=lars")) == []
    assert recipe_notes(recipe("# @package _global_\nbatch: 512\n")) == []
