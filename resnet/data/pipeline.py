"""Reading: shards to batches of uint8 images.

Order and augmentation are functions of (seed, epoch, image), never of ranks, cores or history: epoch e is
`shards.permutation(seed, e, n)`, and every image's crop and flip come from a stateless generator keyed by (seed, e * n + image).
Going on at step s is a slice of that order: nothing is read or decoded to be thrown away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from resnet import UserError
from resnet.config.data import Cache, Records
from resnet.data import shards
from resnet.data.reader import Reader
from resnet.data.source import Source, check_memory
from resnet.data.tfexample import MAX_ASPECT, MAX_PIXELS

CHUNK = 16  # records to one call into Python: enough to make its cost small, few enough to share out
TRIES = 10  # of the random crop, then the centre (torchvision's RandomResizedCrop)
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}


# -------------------------------------------------------------------------------------------------------------- training
def train(
    source: Source,
    batch: int,
    seed: int,
    step: int,
    rank: int = 0,
    ranks: int = 1,
    size: int | None = None,
    parts: int = 1,
) -> Any:
    """Endless batches of this rank from global step `step` on, in `parts` to the step.

    A batch is (images uint8 [B, S, S, 3], labels int32 [B] in 0..classes-1, flip bool [B]), B = batch / ranks / parts. S is
    `size` in pixels, else the settings' train_size, else their image_size; order and augmentation do not depend on it.
    """
    side = size or source.settings.train_size or source.settings.image_size
    if source.train is None:
        return synthetic(source, batch // ranks // parts, seed, rank, side)
    settings, records = source.settings, source.train
    assert isinstance(settings, Records)
    count = len(records)
    epoch, skip = divmod(step, count // batch)

    def plan(number: Any) -> Any:
        """(places in `records`, keys of the augmentation) of one epoch, both int64 [n]."""
        places = shards.positions_of_rank(count, batch, rank, ranks, skip if number == epoch else 0)
        images = shards.permutation(seed, int(number), count)[places]
        return images, int(number) * count + images

    def epoch_of(number: Any) -> Any:
        pair = tf.numpy_function(plan, [number], (tf.int64, tf.int64))
        images, keys = (tf.ensure_shape(part, [None]) for part in pair)
        return tf.data.Dataset.from_tensor_slices((images, keys))

    def decode(encoded: Any, label: Any, key: Any, _whole: Any) -> Any:
        draws = tf.random.stateless_uniform([TRIES * 4 + 1], tf.stack([tf.constant(seed, tf.int64), key]))
        image = random_crop(encoded, draws[:-1], settings, side)
        return image, label, (draws[-1] < 0.5) & settings.flip

    dataset = tf.data.Dataset.range(epoch, np.iinfo(np.int64).max).flat_map(epoch_of)
    dataset = read(dataset, source, source.train_reader).map(decode, tf.data.AUTOTUNE)
    return finalize(dataset.batch(batch // ranks // parts, drop_remainder=True))


def read(numbers: Any, source: Source, reader: Reader | None) -> Any:
    """Dataset of (record number, key) -> Dataset of (image, label int32 from 0, key, whole), in the same order.

    The image is encoded, a string; with data.cache=decoded it is uint8 [H, W, 3]. `whole` is False where another record
    took a corrupt one's place.
    """
    settings = source.settings
    assert reader is not None and isinstance(settings, Records)

    def blocks(chunk: Any) -> Any:
        try:
            data = np.array([reader(int(number)) for number in chunk], object)
            return data, np.array([reader.whole(int(number)) for number in chunk])
        except UserError as fault:
            source.fault = fault
            raise

    def label_checked(labels: Any, chunk: Any) -> Any:
        bad = np.flatnonzero((labels < 1) | (labels > settings.classes))
        if len(bad):
            source.fault = UserError(
                f"{reader.records.place(int(chunk[bad[0]]))}: label {labels[bad[0]]} is not in 1..{settings.classes}; "
                "set data.classes, or prepare the shards again"
            )
            raise source.fault
        return (labels - 1).astype(np.int32)

    def parse(chunk: Any, keys: Any) -> Any:
        block, whole = (tf.ensure_shape(x, [None]) for x in tf.numpy_function(blocks, [chunk], (tf.string, tf.bool)))
        example = tf.io.parse_example(block, FEATURES)
        labels = tf.numpy_function(label_checked, [example["image/class/label"], chunk], tf.int32)
        return example["image/encoded"], tf.ensure_shape(labels, [None]), keys, whole

    if settings.cache is Cache.decoded:
        return kept_decoded(numbers, source, reader, parse)
    return numbers.batch(CHUNK).map(parse, tf.data.AUTOTUNE).unbatch()


def kept_decoded(numbers: Any, source: Source, reader: Reader, parse: Any) -> Any:
    """As read(), with every image's pixels kept in memory once they have been decoded."""
    settings = source.settings
    assert isinstance(settings, Records)
    count = len(reader.records)
    sample = np.linspace(0, count - 1, min(count, 200)).astype(np.int64)
    encoded = parse(sample, sample)[0]
    pixels = np.mean([np.prod(tf.image.extract_jpeg_shape(one).numpy()[:2]) for one in encoded])
    check_memory(settings, int(3 * pixels * (source.train_images + source.eval_images)))
    kept: dict[int, tuple[Any, Any, Any]] = {}

    def pixels_of(number: Any) -> Any:
        if int(number) not in kept:
            one, label, _, whole = parse(tf.constant([number]), tf.constant([number]))
            jpeg_shape(one[0])
            image = tf.io.decode_jpeg(one[0], channels=3, dct_method="INTEGER_ACCURATE")
            kept[int(number)] = image.numpy(), label[0].numpy(), whole[0].numpy()
        return kept[int(number)]

    def one(number: Any, key: Any) -> Any:
        image, label, whole = tf.numpy_function(pixels_of, [number], (tf.uint8, tf.int32, tf.bool))
        return (
            tf.ensure_shape(image, [None, None, 3]),
            tf.ensure_shape(label, []),
            key,
            tf.ensure_shape(whole, []),
        )

    return numbers.map(one, tf.data.AUTOTUNE)


def undecodable(source: Source, seed: int, step: int, batch: int, steps: int = 64) -> UserError | None:
    """Look for the image that stopped the decoder: in what training reads from `step` on, then in what evaluation reads."""
    for reader in (source.train_reader, source.val_reader):
        if reader is None:
            return None
        numbers: Any = range(len(reader.records))
        if reader is source.train_reader:
            epoch, first = divmod(step, max(1, len(reader.records) // batch))
            numbers = shards.permutation(seed, epoch, len(reader.records))[first * batch : (first + steps) * batch]
        for number in map(int, numbers):
            try:
                example = tf.io.parse_single_example(reader(number), FEATURES)
                jpeg_shape(example["image/encoded"])
                tf.io.decode_jpeg(example["image/encoded"], channels=3)
            except (UserError, tf.errors.OpError) as error:
                told = str(error).splitlines()[0]
                return UserError(f"{reader.records.place(number)}: no JPEG that can be decoded ({told}); prepare again")
    return None


def jpeg_shape(jpeg: Any) -> Any:
    """int32 [H, W, C] of a JPEG, from its header. Fails for PNG, which decode_jpeg takes, and for what would need gigabytes."""
    shape = tf.image.extract_jpeg_shape(jpeg)
    sides = tf.cast(shape[:2], tf.float32)
    small = (tf.reduce_prod(sides) <= MAX_PIXELS) & (tf.reduce_max(sides) <= MAX_ASPECT * tf.reduce_min(sides))
    told = f"more than {MAX_PIXELS:,} pixels, or one side more than {MAX_ASPECT} times the other"
    with tf.control_dependencies([tf.debugging.Assert(small, [told, shape])]):
        return tf.identity(shape)


def random_crop(image: Any, draws: Any, settings: Records, size: int) -> Any:
    """Random resized crop of a JPEG (of which only the crop is decoded) or of uint8 [H, W, 3] -> uint8 [size, size, 3].

    `draws` are 4 * TRIES uniforms in [0, 1).
    """
    shape = jpeg_shape(image) if image.dtype == tf.string else tf.shape(image)
    box = crop_box(shape[0], shape[1], tf.reshape(draws, [4, TRIES]), settings.min_area, settings.max_aspect)
    if image.dtype == tf.string:
        image = tf.image.decode_and_crop_jpeg(image, box, channels=3, dct_method="INTEGER_ACCURATE")
    else:
        image = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    return to_uint8(resize(image, [size] * 2), size)


def resize(image: Any, size: Any) -> Any:
    """Bilinear, uint8 [H, W, 3] -> float32 of `size`. The kernel is vectorised for float input only: casting first is faster."""
    return tf.image.resize(tf.cast(image, tf.float32), size)


def crop_box(height: Any, width: Any, draws: Any, min_area: float, max_aspect: float) -> Any:
    """[top, left, height, width] int32 of torchvision's RandomResizedCrop for an image of int32 `height` and `width`.

    Area uniform in [min_area, 1], aspect log-uniform in [1/max_aspect, max_aspect]; the first of the tries that fits, else
    the largest centre crop within the aspect. `draws` is float32 [4, TRIES] in [0, 1): area, aspect, top, left. All tries
    are computed at once: a dozen small ops in place of a loop of them.
    """
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = h * w * (min_area + (1 - min_area) * draws[0])
    aspect = tf.exp((2 * draws[1] - 1) * np.log(max_aspect).astype(np.float32))
    crop_h, crop_w = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
    fits = (crop_h > 0) & (crop_w > 0) & (crop_h <= h) & (crop_w <= w)
    top, left = tf.floor(draws[2] * (h - crop_h + 1)), tf.floor(draws[3] * (w - crop_w + 1))
    tries = tf.stack([top, left, crop_h, crop_w], axis=1)
    centre_h, centre_w = tf.minimum(h, tf.round(w * max_aspect)), tf.minimum(w, tf.round(h * max_aspect))
    centre = tf.stack([tf.floor((h - centre_h) / 2), tf.floor((w - centre_w) / 2), centre_h, centre_w])
    return tf.cast(tf.where(tf.reduce_any(fits), tries[tf.argmax(fits)], centre), tf.int32)


def to_uint8(image: Any, size: int) -> Any:
    """Float pixels in 0..255 to the nearest uint8, [size, size, 3]."""
    return tf.ensure_shape(tf.cast(image + 0.5, tf.uint8), [size, size, 3])


# ------------------------------------------------------------------------------------------------------------ evaluation
def evaluation(source: Source, batch: int, steps: int | None = None, rank: int = 0, ranks: int = 1) -> Any:
    """Every image once over all ranks: image i belongs to rank i % ranks.

    A batch is (images uint8 [batch, S, S, 3], labels int32 [batch], mask float32 [batch]); the last is filled up with images
    of mask 0. `batch` is local; `steps` limits the batches.
    """
    if source.val is None:
        dataset = synthetic(source, batch, 0, rank, source.settings.image_size)
        batches = -(-len(range(rank, source.eval_images, ranks)) // batch)
        last = len(range(rank, source.eval_images, ranks)) - (batches - 1) * batch

        def masked(number: Any, images: Any, labels: Any, _flip: Any) -> Any:
            return images, labels, tf.cast(tf.range(batch) < tf.where(number == batches - 1, last, batch), tf.float32)

        dataset = dataset.enumerate().map(lambda number, parts: masked(number, *parts)).take(batches)
        return dataset if steps is None else dataset.take(steps)
    settings = source.settings
    assert isinstance(settings, Records)

    def decode(image: Any, label: Any, _key: Any, whole: Any) -> Any:
        return centre_crop(image, settings), label, tf.cast(whole, tf.float32)

    def fill(images: Any, labels: Any, mask: Any) -> Any:
        missing = batch - tf.shape(labels)[0]
        mask = tf.pad(mask, [[0, missing]])
        images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        size = settings.image_size
        return (
            tf.ensure_shape(images, [batch, size, size, 3]),
            tf.ensure_shape(tf.pad(labels, [[0, missing]]), [batch]),
            tf.ensure_shape(mask, [batch]),
        )

    mine = np.arange(rank, len(source.val), ranks, dtype=np.int64)
    dataset = tf.data.Dataset.from_tensor_slices((mine if steps is None else mine[: steps * batch],) * 2)
    dataset = read(dataset, source, source.val_reader).map(decode, tf.data.AUTOTUNE).batch(batch)
    return finalize(dataset.map(fill, tf.data.AUTOTUNE))


def centre_crop(image: Any, settings: Records) -> Any:
    """Short side of a JPEG or of uint8 [H, W, 3] to eval_resize keeping the aspect, then the centre: uint8 [S, S, 3]."""
    if image.dtype == tf.string:
        with tf.control_dependencies([jpeg_shape(image)]):
            image = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.cast(tf.round(size * (settings.eval_resize / tf.reduce_min(size))), tf.int32)
    image = resize(image, scaled)
    top, left = tf.unstack((scaled - settings.image_size) // 2)
    side = settings.image_size
    return to_uint8(image[top : top + side, left : left + side], side)


# ------------------------------------------------------------------------------------------------------------------ both
def finalize(dataset: Any) -> Any:
    """Order kept whatever the number of threads, and batches made ahead."""
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def synthetic(source: Source, batch: int, seed: int, rank: int, size: int) -> Any:
    """One random batch for ever."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, rank], np.uint64)))
    images = random.integers(0, 256, [batch, size, size, 3], np.uint8)
    labels = random.integers(0, source.settings.classes, [batch], np.int32)
    return tf.data.Dataset.from_tensors((images, labels, np.zeros(batch, bool))).cache().repeat()
