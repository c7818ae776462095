"""The input pipeline: shards to batches of uint8 images.

Order and augmentation are functions of (seed, epoch, image), not of ranks, cores or history: epoch e is a permutation,
`blocks.order(...)`, and every image's crop, flip and operations come from generators keyed by (seed, e * n + image).
Resuming at step s is a slice of that order: nothing is read or decoded only to be dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet import UserError
from resnet.config.data import Cache, Order, Records, Resample
from resnet.config.training import Augment
from resnet.data import blocks, resample
from resnet.data.augment import on_host
from resnet.data.images import MAX_ASPECT, MAX_PIXELS
from resnet.data.reader import Reader
from resnet.data.source import Source, check_memory

# AutoGraph would translate these functions, whose source has no `if` or `for` over tensors, in a second of every start.
do_not_convert = tf.autograph.experimental.do_not_convert
CHUNK = 16  # records per call into Python: enough to make its cost small, few enough to balance the threads
TRIES = 10  # of the random crop before the centre crop (torchvision's RandomResizedCrop)
COPY = 1 << 48  # between the keys of an image that augment.repeats repeats
FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}
Parse = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]  # chunk of records, keys -> images, labels, ...


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
    augment: Augment | None = None,
    strided: bool = False,
) -> tf.data.Dataset:
    """Endless batches of this rank from global step `step` on, `parts` of them per step.

    A batch is (images uint8 [B, S, S, 3], labels int32 [B] in 0..classes-1, flip bool [B]), B = batch / ranks / parts. S is
    `size` in pixels, else the settings' train_size, else their image_size; order and augmentation do not depend on it.
    With `strided` this rank has every ranks-th image of the batch, for what depends on the place in the batch.
    """
    augment = augment or Augment()
    side = size or source.settings.train_size or source.settings.image_size
    if source.train is None:
        return synthetic(source, batch // ranks // parts, seed, rank, side)
    settings, records = source.settings, source.train
    assert isinstance(settings, Records)
    count = len(records)
    epoch, skip = divmod(step, count // batch)
    assert source.train_reader
    repeats = augment.repeats
    fetch_ahead = source.train_reader.fetch_ahead(settings.order is Order.blocks, repeats)
    changed = on_host.augmentation(source, augment, seed, side) if augment.changes_pixels else None

    def plan(number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(numbers of `records`, keys of the augmentation) of one epoch, both int64 [n]."""
        begin = skip if number == epoch else 0
        positions = blocks.positions(settings, count, batch, rank, ranks, begin, strided)
        places, copies = np.divmod(positions, repeats)
        images = blocks.order(records, settings, seed, int(number))[places]
        if fetch_ahead:
            fetch_ahead(images, places % settings.streams)
        return images, int(number) * count + images + copies * COPY

    @do_not_convert
    def epoch_of(number: tf.Tensor) -> tf.Tensor:
        pair = tf.numpy_function(plan, [number], (tf.int64, tf.int64))
        images, keys = (tf.ensure_shape(part, [None]) for part in pair)
        return tf.data.Dataset.from_tensor_slices((images, keys))

    @do_not_convert
    def decode(encoded: tf.Tensor, label: tf.Tensor, key: tf.Tensor, _intact: tf.Tensor) -> tf.Tensor:
        draws = tf.random.stateless_uniform([TRIES * 4 + 1], tf.stack([tf.constant(seed, tf.int64), key]))
        image, flip = random_crop(encoded, draws[:-1], settings, side), (draws[-1] < 0.5) & settings.flip
        if changed is None:  # the device mirrors
            return image, label, flip
        return changed(image, flip, key), label, tf.constant(False)

    dataset = tf.data.Dataset.range(epoch, np.iinfo(np.int64).max).flat_map(epoch_of)
    dataset = read(dataset, source, source.train_reader).map(decode, tf.data.AUTOTUNE)
    return finalize(dataset.batch(batch // ranks // parts, drop_remainder=True))


def read(numbers: tf.data.Dataset, source: Source, reader: Reader | None) -> tf.data.Dataset:
    """Dataset of (record number, key) -> Dataset of (image, label int32 from 0, key, intact), in the same order.

    The image is encoded, a string; with data.cache=decoded it is uint8 [H, W, 3]. `intact` is False where another record
    replaces a corrupt one.
    """
    settings = source.settings
    assert reader is not None and isinstance(settings, Records)

    def read_chunk(chunk: NDArray[np.int64]) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
        records = []
        with source.reads.call():
            try:
                for number in map(int, chunk):
                    source.reads.check()
                    records.append(reader(number))
            except UserError as error:
                source.error = error
                raise
        return np.array(records, object), np.array([int(number) not in reader.corrupt for number in chunk])

    def check_labels(labels: NDArray[np.int64], chunk: NDArray[np.int64]) -> NDArray[np.int32]:
        bad = np.flatnonzero((labels < 1) | (labels > settings.classes))
        if len(bad):
            source.error = UserError(
                f"{reader.records.place(int(chunk[bad[0]]))}: label {labels[bad[0]]} is not in 1..{settings.classes}; "
                "set data.classes, or prepare the shards again"
            )
            raise source.error
        return (labels - 1).astype(np.int32)

    @do_not_convert
    def parse(chunk: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        records = tf.numpy_function(read_chunk, [chunk], (tf.string, tf.bool))
        data, intact = (tf.ensure_shape(part, [None]) for part in records)
        example = tf.io.parse_example(data, FEATURES)
        labels = tf.numpy_function(check_labels, [example["image/class/label"], chunk], tf.int32)
        return example["image/encoded"], tf.ensure_shape(labels, [None]), keys, intact

    if settings.cache is not Cache.decoded:
        return numbers.batch(CHUNK).map(parse, tf.data.AUTOTUNE).unbatch()
    count = len(reader.records)
    sample = np.linspace(0, count - 1, min(count, 200)).astype(np.int64)
    encoded = parse(sample, sample)[0]
    pixels = np.mean([np.prod(tf.image.extract_jpeg_shape(one).numpy()[:2]) for one in encoded])
    check_memory(settings, int(3 * pixels * (source.train_images + source.eval_images)))
    return numbers.map(cached(parse), tf.data.AUTOTUNE)


def cached(parse: Parse) -> Parse:
    """(number, key) -> what read() has, with the pixels of every decoded image kept in memory."""
    cache: dict[int, tuple[tf.Tensor, tf.Tensor, tf.Tensor]] = {}

    def pixels_of(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if int(number) not in cache:
            one, label, _, intact = parse(tf.constant([number]), tf.constant([number]))
            jpeg_shape(one[0])
            image = tf.io.decode_jpeg(one[0], channels=3, dct_method="INTEGER_ACCURATE")
            cache[int(number)] = image.numpy(), label[0].numpy(), intact[0].numpy()
        return cache[int(number)]

    @do_not_convert
    def one(number: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image, label, intact = tf.numpy_function(pixels_of, [number], (tf.uint8, tf.int32, tf.bool))
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, []), key, tf.ensure_shape(intact, [])

    return one


def jpeg_shape(jpeg: tf.Tensor) -> tf.Tensor:
    """int32 [H, W, C] from the header of a JPEG. Fails for PNG, which decode_jpeg accepts, and for a size beyond the limits."""
    return within_limits(tf.image.extract_jpeg_shape(jpeg))


def within_limits(shape: tf.Tensor) -> tf.Tensor:
    """`shape`, int32 [H, W, C]. Fails for more than MAX_PIXELS, or a side more than MAX_ASPECT times the other."""
    sides = tf.cast(shape[:2], tf.float32)
    small = (tf.reduce_prod(sides) <= MAX_PIXELS) & (tf.reduce_max(sides) <= MAX_ASPECT * tf.reduce_min(sides))
    message = f"more than {MAX_PIXELS:,} pixels, or one side more than {MAX_ASPECT} times the other"
    with tf.control_dependencies([tf.debugging.Assert(small, [message, shape])]):
        return tf.identity(shape)


def random_crop(image: tf.Tensor, draws: tf.Tensor, settings: Records, size: int) -> tf.Tensor:
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


def resize(image: tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    """Bilinear, uint8 [H, W, 3] -> float32 of `size`. Casting first is faster: only the float kernel is vectorised."""
    return tf.image.resize(tf.cast(image, tf.float32), size)


def crop_box(height: tf.Tensor, width: tf.Tensor, draws: tf.Tensor, min_area: float, max_aspect: float) -> tf.Tensor:
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


def to_uint8(image: tf.Tensor, size: int) -> tf.Tensor:
    """Float pixels in 0..255 to the nearest uint8, [size, size, 3]."""
    return tf.ensure_shape(tf.cast(image + 0.5, tf.uint8), [size, size, 3])


# ------------------------------------------------------------------------------------------------------------ evaluation
def evaluation(source: Source, batch: int, steps: int | None = None, rank: int = 0, ranks: int = 1) -> tf.data.Dataset:
    """Every image once over all ranks: those of source.evaluation_share() here.

    A batch is (images uint8 [batch, S, S, 3], labels int32 [batch], mask float32 [batch]); the last is padded with images
    of mask 0. `batch` is local; `steps` limits the batches.
    """
    most = source.eval_images if steps is None else min(source.eval_images, steps * batch * ranks)
    mine = source.evaluation_share(most, rank, ranks)
    if source.val is None:
        masks = (np.arange(-(-len(mine) // batch) * batch) < len(mine)).astype(np.float32).reshape(-1, batch)
        images = synthetic(source, batch, 0, rank, source.settings.image_size)
        dataset = tf.data.Dataset.zip((images, tf.data.Dataset.from_tensor_slices(masks)))
        return dataset.map(lambda parts, mask: (parts[0], parts[1], mask))
    settings = source.settings
    assert isinstance(settings, Records)

    @do_not_convert
    def decode(image: tf.Tensor, label: tf.Tensor, _key: tf.Tensor, intact: tf.Tensor) -> tf.Tensor:
        return centre_crop(image, settings), label, tf.cast(intact, tf.float32)

    @do_not_convert
    def pad(*parts: tf.Tensor) -> tf.Tensor:
        missing = batch - tf.shape(parts[1])[0]
        padded = (tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1)) for part in parts)
        return tuple(tf.ensure_shape(part, [batch, *part.shape[1:]]) for part in padded)

    assert source.val_reader
    fetch_ahead = source.val_reader.fetch_ahead(by_blocks=True)

    def plan() -> NDArray[np.int64]:
        assert fetch_ahead
        fetch_ahead(mine, np.zeros_like(mine))
        return mine

    @do_not_convert
    def planned(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.ensure_shape(tf.numpy_function(plan, [], tf.int64), [len(mine)])
        return tf.data.Dataset.from_tensor_slices((order, order))

    slices = tf.data.Dataset.from_tensor_slices((mine, mine))
    dataset = tf.data.Dataset.range(1).flat_map(planned) if fetch_ahead else slices
    dataset = read(dataset, source, source.val_reader).map(decode, tf.data.AUTOTUNE).batch(batch)
    return finalize(dataset.map(pad, tf.data.AUTOTUNE))


def centre_crop(image: tf.Tensor, settings: Records) -> tf.Tensor:
    """Short side of a JPEG or of uint8 [H, W, 3] to eval_short keeping the aspect, then the centre: uint8 [S, S, 3]."""
    if image.dtype == tf.string:
        with tf.control_dependencies([jpeg_shape(image)]):
            image = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")
    side = settings.image_size
    if settings.eval_resample is Resample.antialias:
        return resample.centre(image, settings.eval_short, side, settings.eval_interpolation)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.cast(tf.round(size * (settings.eval_short / tf.reduce_min(size))), tf.int32)
    image = resize(image, scaled)
    top, left = tf.unstack((scaled - side) // 2)
    return to_uint8(image[top : top + side, left : left + side], side)


# ------------------------------------------------------------------------------------------------------------------ both
def finalize(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same order whatever the number of threads, with batches prefetched."""
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def synthetic(source: Source, batch: int, seed: int, rank: int, size: int) -> tf.data.Dataset:
    """The same random batch for ever."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, rank], np.uint64)))
    images = random.integers(0, 256, [batch, size, size, 3], np.uint8)
    labels = random.integers(0, source.settings.classes, [batch], np.int32)
    return tf.data.Dataset.from_tensors((images, labels, np.zeros(batch, bool))).cache().repeat()
