"""Where the images come from: how many there are, and the places of their records. Told without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from resnet import UserError, prepare, shards
from resnet.config import Data, Digits, Records, Synthetic


@dataclass
class Source:
    """Opened data. `train` and `val` are None for synthetic images."""

    settings: Data
    train_images: int
    eval_images: int
    train: shards.Index | None = None
    val: shards.Index | None = None
    fault: UserError | None = None  # what a reading thread ran into; TensorFlow reports only its text


def opened(settings: Data) -> Source:
    """Find and index the images of `settings`; the embedded digits are written first. Raises UserError where there are none."""
    match settings:
        case Synthetic():
            return Source(settings, settings.train_images, settings.eval_images)
        case Records():
            if isinstance(settings, Digits):
                prepare.digits(settings.dir)
            command = f"python -m resnet.prepare source={settings.name} out={settings.dir}"
            train, val = (shards.index(files) for files in shards.find(settings.dir, command))
            return Source(settings, len(train), len(val), train, val)
    raise AssertionError(settings)
