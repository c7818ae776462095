"""Writes tests/golden/augment.npz: each operation of RandAugment and TrivialAugment at each strength, by torchvision and timm.

Ran with torchvision 0.29.1, timm 1.0.31 and Pillow 13.0.0, in an environment that has them: python tests/golden/oracle_augment.py
The picture is 9 x 9 pixels: the same formula in the test. Of strengths with a sign both are there.
"""

import contextlib
from pathlib import Path

import numpy as np
import timm.data.auto_augment as timm_ops
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import adjust_hue

SIZE = 9


def picture() -> Image.Image:
    rows, columns, channels = np.ogrid[:SIZE, :SIZE, :3]
    waves = 90 * np.sin(0.55 * columns * (1 + channels) + 0.31 * rows) + 70 * np.cos(0.47 * rows * (3 - channels))
    return Image.fromarray((waves * 0.75 + 118).clip(0, 255).astype(np.uint8))


def of_torchvision(policy, space: dict) -> dict[str, np.ndarray]:
    images = {}
    for name, (values, signed) in space.items():
        values = values.tolist() if values.ndim else [0.0]
        for number, value in enumerate(values):
            for sign in (1, -1)[: 1 + signed]:
                image = _apply_op(picture(), name, sign * value, InterpolationMode.NEAREST, None)
                images[f"{policy}/{name}/{number}/{sign}"] = np.asarray(image)
    return images


def of_timm() -> dict[str, np.ndarray]:
    images = {}
    hparams = {"img_mean": (124, 117, 104), "interpolation": Image.Resampling.BICUBIC}
    for increasing, names in ((0, timm_ops._RAND_TRANSFORMS), (1, timm_ops._RAND_INCREASING_TRANSFORMS)):
        for name in names:
            for level in range(11):
                for sign, draw in ((1, 0.0), (-1, 1.0)):
                    timm_ops.random.random = lambda draw=draw: draw
                    operation = timm_ops.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
                    short = name.replace("Increasing", "").replace("Rel", "")
                    with contextlib.suppress(ValueError):  # Pillow 13 refuses to posterize to 0 bits
                        images[f"timm{increasing}/{short}/{level}/{sign}"] = np.asarray(operation(picture()))
    return images


def of_jitter() -> dict[str, np.ndarray]:
    turns = np.linspace(-0.5, 0.5, 11)
    return {f"hue/Hue/{number}/1": np.asarray(adjust_hue(picture(), turn)) for number, turn in enumerate(turns)}


if __name__ == "__main__":
    rand = RandAugment()._augmentation_space(31, (SIZE, SIZE))
    trivial = TrivialAugmentWide()._augmentation_space(31)
    images = of_torchvision("rand", rand) | of_torchvision("trivial", trivial) | of_timm() | of_jitter()
    names = sorted(images)
    place = Path(__file__).with_name("augment.npz")
    np.savez_compressed(place, names=np.array(names), images=np.stack([images[name] for name in names]))
    print(f"{len(names)} images, {place.stat().st_size:,} bytes")
