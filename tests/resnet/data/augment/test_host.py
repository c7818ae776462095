"""Augmentation and repeats in the pipeline: by seed, epoch and image alone, whatever the ranks, the step and the fetcher."""

import dataclasses

import numpy as np
import pytest

from resnet import UserError
from resnet.config.help import recipe_notes
from resnet.config.training import Augment, RandAugment, TrivialAugment
from resnet.data import blocks, pipeline, source
from resnet.data.augment import policies
from resnet.prepare import __main__ as prepare

BATCH = 16


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits, read as photographs are."""
    from resnet.config import compose

    return compose.one_group("data", "data=digits", dir=str(tmp_path_factory.mktemp("digits")))


def batches(settings, augment, count, step=0, rank=0, ranks=1):
    """(images, labels, flips), each of so many batches one behind the other."""
    dataset = pipeline.train(source.open_source(settings), BATCH, 1, step, rank, ranks, augment=augment)
    parts = zip(*dataset.take(count).as_numpy_iterator(), strict=True)
    return [np.concatenate(part) for part in parts]


def test_the_operations_are_those_of_the_policy_on_the_crop(digits):
    flipped = dataclasses.replace(digits, flip=True)
    augment = TrivialAugment(color_jitter=[0.4, 0.4, 0.0, 0.0])
    plain, labels, flips = batches(flipped, Augment(), 1)
    images, same, unflipped = batches(flipped, augment, 1)
    assert (labels == same).all() and flips.any() and not unflipped.any()
    opened = source.open_source(flipped)
    keys = blocks.order(opened.train, flipped, 1, 0)[:BATCH]
    transform = policies.transform_of(augment, flipped.mean, 1)
    expected = [transform(crop, bool(flip), int(key)) for crop, flip, key in zip(plain, flips, keys, strict=True)]
    np.testing.assert_array_equal(images, expected)
    assert (images != plain).any()


@pytest.mark.parametrize("order", ["images", "blocks"])
def test_ranks_and_resuming_change_nothing(digits, order):
    from resnet.config.data import Order

    settings = dataclasses.replace(digits, order=Order[order], streams=8) if order == "blocks" else digits
    augment = RandAugment(timm="rand-m9-mstd0.5-inc1", repeats=4)
    steps = 1437 // BATCH  # of an epoch
    whole = batches(settings, augment, 4, steps - 2)  # from one epoch into the next
    for rank in (0, 1):
        part = batches(settings, augment, 4, steps - 2, rank, 2)
        mine = blocks.positions(settings, 4 * BATCH, BATCH, rank, 2)
        for one, all_images in zip(part, whole, strict=True):
            np.testing.assert_array_equal(one, all_images[mine])
    for one, all_images in zip(batches(settings, augment, 1, steps), whole, strict=True):
        np.testing.assert_array_equal(one, all_images[2 * BATCH : 3 * BATCH])


def test_repeats_take_the_first_images_of_the_order_and_augment_each_anew(digits):
    order = blocks.order(source.open_source(digits).train, digits, 1, 0)
    single, labels, _ = batches(digits, Augment(), 2)
    images, repeated, _ = batches(digits, Augment(repeats=4), 4)
    np.testing.assert_array_equal(repeated, np.repeat(labels[:16], 4))
    np.testing.assert_array_equal(
        images[::4], single[:16]
    )  # the first of each is the image of an epoch without repeats
    assert all((images[place] != images[place - 1]).any() for place in range(1, 64))
    assert len(order) // BATCH == 89  # an epoch has as many steps as before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("augment.repeats=64", "batch=32"), "augment.repeats=64: must be at most batch=32"),
        (("augment=randaugment", "data=synthetic"), "augment=randaugment: data=synthetic has no photographs"),
        (("augment=randaugment", "augment.magnitude=40"), "augment.magnitude=40: must be a bin, 0 to 30"),
    ],
)
def test_what_does_not_go_together_is_refused(run_of, words, message):
    with pytest.raises(UserError, match=message):
        run_of("model=tiny", *words)


def test_copies_in_two_batches_are_announced(run_of):
    [line] = recipe_notes(run_of("model=tiny", "augment.repeats=3", "batch=32"))
    assert line.startswith("augment.repeats=3: does not divide batch=32")
    assert not recipe_notes(run_of("model=tiny", "augment.repeats=4", "batch=32"))


def test_the_sheet_shows_the_augmented_images(digits, tmp_path, capsys):
    source.open_source(digits)
    words = [f"show={digits.dir}", "images=8", "augment=randaugment", "augment.timm=rand-m10-p1", "augment.erasing=0.5"]
    prepare.do(prepare.parse([*words, f"out={tmp_path / 'sheet.png'}"]))
    assert (tmp_path / "sheet.png").stat().st_size > 5000 and "8 training" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"augment\.timm=x: give timm's parts"):
        prepare.do(prepare.parse([words[0], "augment=randaugment", "augment.timm=x"]))
    with pytest.raises(UserError, match="augment=rand"):
        prepare.do(prepare.parse([words[0], "augment=rand"]))
