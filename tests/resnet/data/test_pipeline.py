"""Reading: nothing lost, nothing twice, the same from any step on; and pixels against NumPy."""

import io
import math

import foreign
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from resnet import UserError
from resnet.config.data import Digits, Records, Synthetic
from resnet.data import pipeline, shards, source

TRAIN, VAL, BATCH, SIDE = 51, 23, 8, 16  # images, images, images, pixels
STEPS = TRAIN // BATCH  # of an epoch; three images are left out of each


def jpeg(pixels, mode="RGB", **options):
    """Without chroma subsampling, so that decoding a part is exactly that part of decoding the whole."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(encoded, "JPEG", quality=95, subsampling=0, **options)
    return encoded.getvalue()


def smooth(height, width, seed=0):
    """An image that resizing does not change much: slopes, with a few steps."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [120 + 100 * np.sin(a * y / height + b * x / width + c) for a, b, c in random.uniform(1, 5, (3, 3))]
    return np.stack(planes, -1).astype(np.uint8)


def record(encoded, label):
    """The least that a record must have."""
    features = tf.train.Features(
        feature={
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
    )
    return tf.train.Example(features=features).SerializeToString()


def make(folder, train, val, count=3):
    """Shards of these (JPEG, label)s below `folder`, in order."""
    for half, records in (("train", train), ("validation", val)):
        (folder / half).mkdir(parents=True)
        for number, part in enumerate(np.array_split(np.arange(len(records)), count)):
            with tf.io.TFRecordWriter(str(folder / half / f"{half}-{number:05d}-of-{count:05d}")) as writer:
                for i in part:
                    writer.write(record(*records[i]))
    foreign.adopt(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of many sizes whose labels, 1..n, are their numbers."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    pictures = [jpeg(smooth(*random.integers(16, 60, 2), seed)) for seed in range(TRAIN)]
    numbered = [(picture, number + 1) for number, picture in enumerate(pictures)]
    make(folder, numbered, numbered[:VAL])
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(folder, **knobs):
    knobs = {"classes": TRAIN, "image_size": SIDE, "eval_resize": 20, **knobs}
    return source.open_source(Records(dir=str(folder), **knobs))


def taken(dataset, count):
    """The first batches, as NumPy."""
    return [tuple(part.numpy() for part in batch) for batch in dataset.take(count)]


@pytest.fixture(scope="module")
def stream(folder):
    """Two epochs and a bit, never interrupted, of one rank with seed 5."""
    return taken(pipeline.train(opened(folder), BATCH, 5, 0), 2 * STEPS + 3)


def labels(batches):
    return np.concatenate([batch[1] for batch in batches])


def same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            assert part.dtype == other_part.dtype
            np.testing.assert_array_equal(part, other_part)


# -------------------------------------------------------------------------------------------------------------- training
def test_a_batch_has_the_promised_shapes_and_types(folder, stream):
    for images, numbers, flip in stream:
        assert (images.shape, images.dtype) == ((BATCH, SIDE, SIDE, 3), np.uint8)
        assert (numbers.shape, numbers.dtype) == ((BATCH,), np.int32)
        assert (flip.shape, flip.dtype) == ((BATCH,), bool)
    images, numbers, flip = pipeline.train(opened(folder), BATCH, 5, 0).element_spec
    assert (images.shape, numbers.shape, flip.shape) == ([BATCH, SIDE, SIDE, 3], [BATCH], [BATCH])


def test_an_epoch_has_every_image_at_most_once_and_all_but_the_remainder(stream):
    for epoch in range(2):
        seen = labels(stream[epoch * STEPS : (epoch + 1) * STEPS])
        assert len(set(seen)) == len(seen) == STEPS * BATCH
        assert set(seen) <= set(range(TRAIN))


def test_an_epoch_of_whole_batches_has_every_image_exactly_once(folder):
    seen = labels(taken(pipeline.train(opened(folder), 17, 5, 0), 6))
    for epoch in (seen[:TRAIN], seen[TRAIN:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(TRAIN))  # 1..n on disk
    assert (seen[:TRAIN] != seen[TRAIN:]).mean() > 0.8


def test_the_order_is_that_of_seed_and_epoch(folder, stream):
    for epoch in range(2):
        seen = labels(stream[epoch * STEPS : (epoch + 1) * STEPS])
        np.testing.assert_array_equal(seen, shards.permutation(5, epoch, TRAIN)[: len(seen)])
    other = labels(taken(pipeline.train(opened(folder), BATCH, 6, 0), STEPS))
    assert (other != labels(stream[:STEPS])).mean() > 0.8


@pytest.mark.parametrize("step", [0, 1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS])
def test_starting_at_a_step_goes_on_bit_for_bit(folder, stream, step):
    same(taken(pipeline.train(opened(folder), BATCH, 5, step), 3), stream[step : step + 3])


def test_a_late_epoch_needs_no_early_ones(folder):
    late = taken(pipeline.train(opened(folder), BATCH, 5, 10**9 * STEPS + 2), STEPS - 2)
    np.testing.assert_array_equal(labels(late), shards.permutation(5, 10**9, TRAIN)[2 * BATCH : STEPS * BATCH])


def test_what_is_skipped_is_neither_read_nor_decoded(tmp_path):
    picture = jpeg(smooth(20, 20))
    make(tmp_path, [(picture, number + 1) for number in range(48)], [(picture, 1)], count=1)
    records = opened(tmp_path)
    whole = taken(pipeline.train(records, BATCH, 5, 0), 6)
    early = set(labels(whole[:2]))
    path = tmp_path / "train" / "train-00000-of-00001"
    content = bytearray(path.read_bytes())
    for number in early:
        content[records.train.offset[number] + 40] ^= 1
    path.write_bytes(content)
    same(taken(pipeline.train(opened(tmp_path), BATCH, 5, 2), 4), whole[2:])
    with pytest.raises(tf.errors.OpError):
        taken(pipeline.train(opened(tmp_path), BATCH, 5, 1), 1)


@pytest.mark.parametrize(("ranks", "step"), [(2, 0), (4, 4), (8, STEPS - 1)])
def test_the_batches_of_all_ranks_together_are_the_batch_of_one(folder, stream, ranks, step):
    parts = [taken(pipeline.train(opened(folder), BATCH, 5, step, rank, ranks), 4) for rank in range(ranks)]
    assert {len(batch[1]) for batches in parts for batch in batches} == {BATCH // ranks}
    together = [tuple(np.concatenate(part) for part in zip(*at, strict=True)) for at in zip(*parts, strict=True)]
    same(together, stream[step : step + 4])


def test_an_image_is_cropped_and_mirrored_anew_every_epoch(stream):
    epochs = [
        {number: (image, flip) for batch in part for image, number, flip in zip(*batch, strict=True)}
        for part in (stream[:STEPS], stream[STEPS : 2 * STEPS])
    ]
    both = [(epochs[0][number], epochs[1][number]) for number in epochs[0].keys() & epochs[1].keys()]
    assert len(both) > 40
    assert np.mean([np.array_equal(one[0], two[0]) for one, two in both]) < 0.05
    assert 0.2 < np.mean([one[1] == two[1] for one, two in both]) < 0.8


def test_the_seed_moves_the_augmentation_too(folder, stream):
    first = {number: image for batch in stream[:STEPS] for image, number in zip(batch[0], batch[1], strict=True)}
    other = taken(pipeline.train(opened(folder), BATCH, 6, 0), STEPS)
    pairs = [
        np.array_equal(image, first[number])
        for batch in other
        for image, number in zip(batch[0], batch[1], strict=True)
        if number in first
    ]
    assert len(pairs) > 40
    assert np.mean(pairs) < 0.05


def test_half_of_the_images_are_mirrored_and_none_if_told_so(folder):
    flips = np.concatenate([batch[2] for batch in taken(pipeline.train(opened(folder), 51, 1, 0), 12)])
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(flips))
    flips = [batch[2] for batch in taken(pipeline.train(opened(folder, flip=False), 51, 1, 0), 2)]
    assert not np.any(flips)


def test_grey_four_colour_and_progressive_jpegs_are_read_as_three_channels(tmp_path):
    picture = smooth(30, 40)
    kinds = [jpeg(picture), jpeg(picture, "L"), jpeg(picture, "CMYK"), jpeg(picture, progressive=True)]
    numbered = [(encoded, number + 1) for number, encoded in enumerate(kinds)]
    make(tmp_path, numbered, numbered, count=1)
    records = opened(tmp_path, min_area=1.0, max_aspect=4 / 3)
    for batch in (*taken(pipeline.train(records, 4, 1, 0), 1), *taken(pipeline.evaluation(records, 4), 1)):
        assert sorted(batch[1]) == [0, 1, 2, 3]
        by_kind = {number: image.astype(int) for image, number in zip(batch[0], batch[1], strict=True)}
        assert np.ptp(by_kind[1], axis=2).max() == 0  # grey
    plain, _grey, four, progressive = (by_kind[number] for number in range(4))  # of the evaluation: the same crop
    assert np.abs(plain - progressive).mean() < 1
    assert np.abs(plain - four).mean() < 8


# ---------------------------------------------------------------------------------------------------------------- faults
def fault_of(records, read):
    """The error that a reading thread left, after TensorFlow passed on its text."""
    assert records.error is None
    with pytest.raises(tf.errors.OpError):
        taken(read(records), 10)
    assert isinstance(records.error, UserError)
    return str(records.error)


def train_once(records):
    return pipeline.train(records, BATCH, 1, 0)


def evaluate_once(records):
    return pipeline.evaluation(records, BATCH)


HALVES = {"train": train_once, "validation": evaluate_once}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("label", [0, -1, 25])
def test_a_label_out_of_range_names_file_byte_and_way_out(tmp_path, half, label):
    picture = jpeg(smooth(20, 20))
    good = [(picture, 1 + number) for number in range(24)]
    bad = [*good[:20], (picture, label), *good[21:]]
    make(tmp_path, bad if half == "train" else good, bad if half == "validation" else good)
    records = opened(tmp_path, classes=24)
    path = tmp_path / half / f"{half}-00002-of-00003"
    offsets, _ = shards.scan(str(path))
    message = fault_of(records, HALVES[half])
    assert message.startswith(f"{path}, byte {offsets[4] - 12}: label {label} is not in 1..24;")
    assert "data.classes" in message


@pytest.mark.parametrize("half", HALVES)
def test_a_corrupt_record_names_file_and_byte(tmp_path, half):
    picture = jpeg(smooth(20, 20))
    make(tmp_path, [(picture, 1 + number) for number in range(24)], [(picture, 1)] * 24)
    records = opened(tmp_path)
    path = tmp_path / half / f"{half}-00001-of-00003"
    offsets, lengths = shards.scan(str(path))
    content = bytearray(path.read_bytes())
    content[offsets[6] + lengths[6] // 2] ^= 4
    path.write_bytes(content)
    message = fault_of(opened(tmp_path), HALVES[half])
    assert message.startswith(f"{path}: corrupt record at byte {offsets[6] - 12};")
    path.unlink()
    assert fault_of(records, HALVES[half]).startswith(f"{path}: cannot be read at byte ")


def test_the_images_before_a_fault_are_whole(tmp_path):
    """An error must not make the batches before it shorter, or be swallowed."""
    picture = jpeg(smooth(20, 20))
    make(tmp_path, [(picture, 1)] * 3, [(picture, 1 + number if number < 20 else 99) for number in range(24)])
    batches = iter(pipeline.evaluation(opened(tmp_path), 4))
    for first in (0, 4, 8, 12):
        np.testing.assert_array_equal(next(batches)[1], np.arange(first, first + 4))
    with pytest.raises(tf.errors.OpError):
        list(batches)


# ---------------------------------------------------------------------------------------------------------------- pixels
def np_resize(image, height, width):
    """Bilinear with the centres of pixels at halves, edges repeated, nothing smoothed: what a v1 ResNet was trained on."""

    def axis(old, new):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, old - 1), at - low

    image = image.astype(np.float64)
    (y0, y1, fy), (x0, x1, fx) = axis(image.shape[0], height), axis(image.shape[1], width)
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    bottom = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 33), (20, 20), (16, 47), (200, 31)])
def test_the_evaluated_image_is_the_centre_after_resizing_the_short_side(folder, height, width):
    encoded = jpeg(smooth(height, width))
    decoded = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE").numpy()
    found = pipeline.centre_crop(tf.constant(encoded), opened(folder).settings).numpy()
    scale = 20 / min(height, width)  # eval_resize
    resized = np_resize(decoded, round(height * scale), round(width * scale))
    assert min(resized.shape[:2]) == 20
    top, left = ((side - SIDE) // 2 for side in resized.shape[:2])
    wanted = resized[top : top + SIDE, left : left + SIDE]
    assert (found.shape, found.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert np.abs(found - wanted).max() <= 0.51  # rounded to the nearest


def test_the_evaluated_image_is_close_to_what_pillow_makes(folder):
    picture = smooth(32, 48)
    found = pipeline.centre_crop(tf.constant(jpeg(picture)), opened(folder).settings).numpy()
    theirs = Image.fromarray(picture).resize((30, 20), Image.Resampling.BILINEAR).crop((7, 2, 23, 18))
    assert np.abs(found.astype(float) - np.asarray(theirs)).mean() < 2


def test_the_training_image_is_its_box_resized(folder):
    height, width = 47, 61
    encoded = jpeg(smooth(height, width))
    decoded = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE").numpy()
    random = np.random.default_rng(6)
    for _ in range(8):
        draws = random.random((4, 10), np.float32)
        top, left, h, w = pipeline.crop_box(height, width, tf.constant(draws), 0.08, 4 / 3).numpy()
        found = pipeline.random_crop(
            tf.constant(encoded), tf.constant(draws.ravel()), opened(folder).settings, SIDE
        ).numpy()
        wanted = np_resize(decoded[top : top + h, left : left + w], SIDE, SIDE)
        assert (found.shape, found.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert np.abs(found - wanted).max() <= 0.51


def test_pixels_are_rounded_to_the_nearest():
    images = tf.fill([2, 2, 3], 7.0) + tf.constant([0.4, 0.6, 248.0])
    np.testing.assert_array_equal(pipeline.to_uint8(images, 2)[0, 0], [7, 8, 255])


# ------------------------------------------------------------------------------------------------------------ evaluation
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_image_is_evaluated_once_on_any_number_of_ranks(folder, ranks):
    seen = []
    for rank in range(ranks):
        batches = taken(pipeline.evaluation(opened(folder), 5, None, rank, ranks), 99)
        for number, (images, numbers, mask) in enumerate(batches):
            assert (images.shape, numbers.shape, mask.shape) == ((5, SIDE, SIDE, 3), (5,), (5,))
            assert (images.dtype, numbers.dtype, mask.dtype) == (np.uint8, np.int32, np.float32)
            real = int(mask.sum())
            np.testing.assert_array_equal(mask, np.arange(5) < real)
            assert real == 5 or number == len(batches) - 1
            assert real > 0
            seen += list(numbers[:real])
    assert sorted(seen) == list(range(VAL))


def test_a_rank_without_images_has_nothing_to_evaluate(folder):
    assert taken(pipeline.evaluation(opened(folder), 5, None, VAL, VAL + 1), 9) == []
    assert taken(pipeline.evaluation(made_up(eval_images=VAL), 5, None, VAL, VAL + 1), 9) == []
    assert labels(taken(pipeline.evaluation(opened(folder), 5, None, VAL - 1, VAL + 1), 9))[0] == VAL - 1


def test_what_is_evaluated_is_the_same_every_time_and_for_every_rank(folder):
    dataset = pipeline.evaluation(opened(folder), 5)
    whole = taken(dataset, 99)
    same(taken(dataset, 99), whole)
    images = {number: image for batch in whole for image, number, real in zip(*batch, strict=True) if real}
    for batch in taken(pipeline.evaluation(opened(folder), 4, None, 2, 3), 9):
        for image, number, real in zip(*batch, strict=True):
            assert not real or np.array_equal(image, images[number])


@pytest.mark.parametrize(("steps", "images"), [(1, 5), (2, 10), (4, 20), (5, 23), (99, 23)])
def test_evaluation_can_be_limited_to_some_batches(folder, steps, images):
    batches = taken(pipeline.evaluation(opened(folder), 5, steps), 99)
    assert len(batches) == min(steps, 5)
    assert sum(batch[2].sum() for batch in batches) == images
    assert all(batch[2].all() for batch in batches[: images // 5])


def test_shapes_are_static_for_the_accelerator(folder):
    images, numbers, mask = pipeline.evaluation(opened(folder), 5).element_spec
    assert (images.shape, numbers.shape, mask.shape) == ([5, SIDE, SIDE, 3], [5], [5])


# ------------------------------------------------------------------------------------------------------------- synthetic
def made_up(**knobs):
    return source.open_source(Synthetic(classes=7, image_size=SIDE, **knobs))


def test_synthetic_batches_have_the_shapes_of_real_ones(stream):
    records = made_up(train_images=100)
    assert (records.train_images, records.eval_images) == (100, 50_000)
    for rank, ranks in ((0, 1), (1, 2)):
        batches = taken(pipeline.train(records, BATCH, 1, 3, rank, ranks), 3)
        for batch in batches:
            assert [(part.shape[1:], part.dtype) for part in batch] == [
                (part.shape[1:], part.dtype) for part in stream[0]
            ]
            assert len(batch[1]) == BATCH // ranks
        assert 0 <= labels(batches).min() <= labels(batches).max() < 7
        assert np.ptp(batches[0][0]) > 200


def test_synthetic_images_depend_on_seed_and_rank():
    def images(*args):
        return taken(pipeline.train(made_up(), 2, *args), 1)[0][0]

    np.testing.assert_array_equal(images(1, 0, 0, 1), images(1, 9, 0, 1))
    assert not np.array_equal(images(1, 0, 0, 1), images(2, 0, 0, 1))
    assert not np.array_equal(images(1, 0, 0, 2), images(1, 0, 1, 2))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_a_synthetic_evaluation_counts_every_image_once(ranks):
    parts = [taken(pipeline.evaluation(made_up(eval_images=VAL), 5, None, rank, ranks), 99) for rank in range(ranks)]
    batches = [batch for part in parts for batch in part]
    assert sum(batch[2].sum() for batch in batches) == VAL
    assert {batch[2].shape for batch in batches} == {(5,)}
    assert all(batch[2].sum() > 0 for batch in batches)


def test_a_synthetic_evaluation_can_be_limited_to_some_batches():
    for steps, images in ((1, 5), (4, 20), (9, 23)):
        batches = taken(pipeline.evaluation(made_up(eval_images=VAL), 5, steps), 99)
        assert sum(batch[2].sum() for batch in batches) == images


# ---------------------------------------------------------------------------------------------------------------- opening
def test_the_digits_are_written_when_they_are_first_opened(tmp_path):
    settings = Digits(dir=str(tmp_path / "digits"), classes=10, image_size=32, eval_resize=32)
    records = source.open_source(settings)
    assert (records.train_images, records.eval_images) == (1437, 360)
    assert (len(records.train), len(records.val)) == (1437, 360)
    (batch,) = taken(pipeline.evaluation(records, 360), 1)
    assert set(batch[1]) == set(range(10))


def test_a_folder_without_shards_names_the_command_that_prepares_them(tmp_path):
    with pytest.raises(
        UserError, match=rf"data.dir={tmp_path}: no shards here.*python -m resnet.prepare source=imagenet"
    ):
        source.open_source(Records(dir=str(tmp_path), classes=1000))
