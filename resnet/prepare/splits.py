"""Folders that are splits of a data set, not classes: train, Testing, val_images, seg_test, Train-2."""

from __future__ import annotations

import re
import shlex

from resnet import UserError
from resnet.files import normal
from resnet.photos import is_junk
from resnet.prepare import archive
from resnet.prepare.listing import few

SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev", "development", "holdout"),
    "test": ("test", "testing"),
}
KINDS = {word: split for split, words in SPLITS.items() for word in words}
FILLER = re.compile("(data)?sets?|split|data|images?|imgs?|jpe?g|png|photos?|pictures?|part|[a-z]")
TRAIN, VAL = ("train",), ("val", "valid", "validation")  # preferred where there are several of a kind


def split_of(name: str) -> tuple[str, bool] | None:
    """(split that a folder's name stands for, whether the name says nothing else); None for any other name."""
    name = re.sub("(?i)hold[-_. ]out", "holdout", name)
    words = [word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    words = [word.removesuffix("set") if word.removesuffix("set") in KINDS else word for word in words]
    kinds = {KINDS[word] for word in words if word in KINDS}
    plain = all(word in KINDS or FILLER.fullmatch(word) for word in words) and name.isascii()
    return (kinds.pop(), plain) if len(kinds) == 1 else None


def folders(path: str) -> dict[str, str]:
    """{name: path} of the folders in a folder, but those that systems leave everywhere."""
    return {
        item.name: item.path for item in archive.scan(path) if archive.leads_to_folder(item) and not is_junk(item.name)
    }


def tree(path: str) -> str:
    """The folder that holds the classes: the folder in it, if a folder holds that one only, and folders lie in it."""
    while len(inside := archive.scan(path)) == 1 and archive.leads_to_folder(inside[0]) and folders(inside[0].path):
        path = inside[0].path
    return path


def find(dir: str, knob: str) -> tuple[str | None, str | None, list[str]]:
    """(training tree, validation tree, notes) among the folders of `dir`, None for those that are not there.

    A name that says more than the split counts only if its folder has subfolders of the same names as another one's: a class
    may be called test_tube, or train. Raises UserError, with the name of `dir`'s knob, for splits that are no such pair.
    """
    inside = folders(dir)
    named = {name: known for name in inside if (known := split_of(name))}
    trees = {name: tree(inside[name]) for name in named}
    classes = {name: {normal(one) for one in folders(path)} for name, path in trees.items()}
    beside = {normal(name) for name in inside}

    def shares(name: str) -> bool:
        return any(classes[name] & classes[other] for other in named if other != name) or bool(classes[name] & beside)

    sure = {name: kind for name, (kind, plain) in named.items() if classes[name] and (plain or shares(name))}
    if not sure and len(inside) > 1 and all(name in named and named[name][1] for name in inside):
        raise UserError(
            f"{knob}={dir}: {few(list(inside))} are splits by their names, not classes, and no folders of classes lie in them; "
            "put each image into a folder of its class there"
        )
    chosen, notes = dict[str, str](), list[str]()
    for split in SPLITS:
        names = [name for name, other in sure.items() if other == split]
        names = [name for name in names if name.lower() in (*TRAIN, *VAL)] or names
        if len(names) > 1 and split != "test":
            raise UserError(f"{knob}={dir}: which of {', '.join(names)} is meant? Say it with train= and val=")
        if names:
            chosen[split] = names[0]
    train, val, test = (chosen.get(split) for split in SPLITS)
    if train and val:
        if rest := [name for name in inside if name not in (train, val)]:
            notes.append(f"left out beside {train} and {val}: {few(rest)}")
    elif train and test:
        same = few(sorted(classes[test] & classes[train]))
        pair, alone = shlex.join([f"train={trees[train]}", f"val={trees[test]}"]), shlex.quote(f"dir={trees[train]}")
        raise UserError(
            f"{knob}={dir}: {train} and {test} are splits, not classes{f' (both have {same})' * bool(same)}; give {pair} to "
            f"validate with the images of {test}, or {alone} to hold out val_fraction of the others"
        )
    elif test and (twice := sorted(classes[test] & beside)):
        raise UserError(
            f"{knob}={dir}: {test} is a split, not a class: it has the same folders as lie beside it ({few(twice)}); move it away"
        )
    return train and trees[train], val and trees[val], notes
