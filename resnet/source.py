"""Where the images come from: how many there are, and the places of their records. Told without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from resnet import UserError, prepare, shards
from resnet.config import Cache, Data, Digits, Records, Synthetic
from resnet.preparation import manifest
from resnet.reader import Reader


@dataclass
class Source:
    """Opened data. `train` and `val` are None for synthetic images."""

    settings: Data
    train_images: int
    eval_images: int
    train: shards.Index | None = None
    val: shards.Index | None = None
    train_reader: Reader | None = None
    val_reader: Reader | None = None
    told: int = 0  # of the corrupt records
    fault: UserError | None = None  # what a reading thread ran into; TensorFlow reports only its text

    def lost(self, first: int) -> int:
        """How many of the `first` evaluation images were passed over."""
        return sum(number < first for number in self.val_reader.corrupt) if self.val_reader else 0

    def corrupt(self) -> list[str]:
        """What was wrong with each record that data.on_corrupt=skip passed over."""
        readers = (self.train_reader, self.val_reader)
        return [told for reader in readers if reader for told in list(reader.corrupt.values())]


def opened(settings: Data) -> Source:
    """Find and index the images of `settings`; the embedded digits are written first. Raises UserError where there are none."""
    match settings:
        case Synthetic():
            return Source(settings, settings.train_images, settings.eval_images)
        case Records():
            if isinstance(settings, Digits):
                prepare.digits(settings.dir)
            command = f"python -m resnet.prepare source={settings.name} dir=<your images> out={settings.dir}"
            train, val = (shards.index(files) for files in shards.find(settings.dir, command))
            if settings.cache is Cache.encoded:
                check_memory(settings, int(train.length.sum() + val.length.sum()))
            readers = Reader(train, settings), Reader(val, settings)
            return Source(settings, len(train), len(val), train, val, *readers)
    raise AssertionError(settings)


def class_names(settings: Data) -> list[str] | None:
    """What the network's outputs are called: the lines of classes.txt beside the shards; None where there is none."""
    if not isinstance(settings, Records):
        return None
    path = f"{settings.dir}/{manifest.CLASSES}"
    try:
        return manifest.read_classes(shards.text(path))
    except shards.trouble(path):
        return None


def check_memory(settings: Records, needed: int) -> None:
    """Refuse a cache of `needed` bytes that would not fit into nine tenths of the memory that is free."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        smaller = "data.cache=encoded or data.cache=off" if settings.cache is Cache.decoded else "data.cache=off"
        raise UserError(
            f"data.cache={settings.cache.name}: needs {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free; "
            f"use {smaller}, or prepare smaller images (resize=)"
        )
