"""`knob=value` words: typed, complete, known; and told in one line where they are not."""

from dataclasses import dataclass
from typing import Literal

import pytest

from resnet import UserError, cli
from resnet.cli import REQUIRED, knob
from resnet.prepare import __main__ as prepare


@dataclass(kw_only=True)
class Some:
    where: str = knob(REQUIRED, "the place")
    count: int = knob(3, "how many")
    share: float | None = knob(None, "how much")
    deep: bool = knob(False, "look closely")
    shape: Literal["round", "square"] = knob("round", "of it")


def made(*words):
    return cli.parse(Some, cli.split(words), "some")


def test_words_become_values():
    assert made("where=a=b c", "count=5", "share=0.25", "deep=True", "shape=square") == Some(
        where="a=b c", count=5, share=0.25, deep=True, shape="square"
    )
    assert made("where=") == Some(where="")
    assert made("where=x", "share=null").share is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "where: some needs it (the place)"),
        (["where"], "where: write knob=value; --help lists the knobs"),
        (["=3"], "=3: write knob=value; --help lists the knobs"),
        (["where=x", "where=y"], "where: given twice, as 'x' and 'y'"),
        (
            ["where=x", "cuont=3"],
            "cuont: some has no such knob; did you mean count? There are: where, count, share, deep, shape",
        ),
        (["where=x", "xyz=3"], "xyz: some has no such knob; there are: where, count, share, deep, shape"),
        (["where=x", "count=3.5"], "count=3.5: must be a whole number"),
        (["where=x", "count="], "count=: must be a whole number"),
        (["where=x", "count=null"], "count=null: must be a whole number"),
        (["where=x", "share=half"], "share=half: must be a number"),
        (["where=x", "deep=yes"], "deep=yes: must be true or false"),
        (["where=x", "shape=squared"], "shape=squared: did you mean square? There are: round, square"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, said):
    with pytest.raises(UserError) as caught:
        made(*words)
    assert str(caught.value) == said


def test_help_has_a_line_for_every_knob_of_every_command():
    told = prepare.help_text()
    for kind in prepare.COMMANDS.values():
        for name in cli.hints(kind):
            assert f"\n  {name}=" in told, name
    assert max(map(len, told.splitlines())) <= 120
    assert "quality=95" in told
    assert "deep=false" in told


# ------------------------------------------------------------------------------------------------- the commands of prepare
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to do; give one of source=imagenet|folder|idx|digits, check=DIR, show=DIR"),
        (["out=x"], "nothing to do; give one of"),
        (["sorce=folder", "out=x"], "sorce: no such knob; did you mean source?"),
        (["source=foldr", "out=x"], "source=foldr: did you mean source=folder?"),
        (["source=folder", "check=x"], "source and check at once; give one of"),
        (["source=folder", "dir=x"], "out: source=folder needs it"),
        (["source=folder", "out=x", "texts=y"], "texts: source=folder has no such knob"),
        (["source=digits", "out=x", "resize=64"], "resize: source=digits has no such knob"),
        (["source=imagenet", "out=x", "val_fraction=0.1"], "val_fraction: source=imagenet has no such knob"),
        (["check=x", "out=y"], "out: check= has no such knob"),
        (["source=folder", "out=x", "resize=2"], "resize=2: must be at least 8 pixels, or null"),
        (["source=folder", "out=x", "quality=0"], "quality=0: must be 1 to 100"),
        (["source=folder", "out=x", "quality=101"], "quality=101: must be 1 to 100"),
        (["source=folder", "out=x", "seed=-1"], "seed=-1: must be at least 0"),
        (["source=folder", "out=x", "max_rejected=2"], "max_rejected=2.0: is a share of the images"),
        (["source=folder", "out=x", "max_rejected=nan"], "max_rejected=nan: is a share of the images"),
        (["source=folder", "out=x", "train_shards=0"], "train_shards=0: must be 1 to 99,999"),
        (["source=folder", "out=x", "val_shards=100000"], "val_shards=100000: must be 1 to 99,999"),
        (["source=folder", "out=x", "processes=0"], "processes=0: must be 1 to 1024"),
        (["check=x", "processes=0"], "processes=0: must be 1 to 1024"),
        (["source=folder", "out=x", "val_fraction=0"], "val_fraction=0.0: must be above 0 and below 1"),
        (["source=folder", "out=x", "val_fraction=1"], "val_fraction=1.0: must be above 0 and below 1"),
        (["source=folder", "out=http://host/x"], "out=http://host/x: http:// is read here, not written"),
        (["source=imagenet", "out=x", "labels=gs://b/x"], "labels=gs://b/x: give a path of this machine"),
        (["source=folder", "out="], "out='': give a path"),
        (["show=x", "images=0"], "images=0: must be 1 to 200"),
        (["show=x", "seed=-1"], "seed=-1: must be at least 0"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(words, said):
    with pytest.raises(UserError) as caught:
        prepare.parse(words)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_an_earlier_command_of_this_process_has_left_does_not_end_it(monkeypatch):
    monkeypatch.setattr(cli, "unfinished", [(lambda: True, "a read")])
    with cli.reported():
        pass  # or os._exit() would end the tests
    assert not cli.unfinished


def test_paths_are_taken_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/my/place")
    chosen = prepare.parse(["source=imagenet", "out=x", "dir=~/data", "labels=../l.txt", "val=/v"])
    assert (chosen.out, chosen.dir, chosen.val) == (f"{tmp_path}/x", "/my/place/data", "/v")
    assert chosen.labels == f"{tmp_path.parent}/l.txt" or chosen.labels == f"{tmp_path}/../l.txt"
