"""Which operations an image gets, and how strong: RandAugment as torchvision and as timm have it, TrivialAugment, colour jitter.

Everything is drawn from one generator for each image, keyed by (seed, key of the image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet.config.training import Augment, RandAugment, Resampling, TimmConfig, TrivialAugment
from resnet.data.augment.operations import Colour, Step, apply

KEYS = 1 << 63  # second words of the generators' keys: apart from those of the order, which are epochs
BLACK: Colour = (0, 0, 0)
RESAMPLING = {
    Resampling.nearest: (Image.Resampling.NEAREST,),
    Resampling.bilinear: (Image.Resampling.BILINEAR,),
    Resampling.bicubic: (Image.Resampling.BICUBIC,),
    Resampling.random: (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
# Of torchvision 0.29.1, RandAugment and TrivialAugmentWide; the last ones are of either sign.
UNSIGNED = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness")
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = (*UNSIGNED, *ENHANCING, *GEOMETRIC)
# Of timm 1.0.31; Posterize to Sharpness have a second form, which increases with the magnitude.
TIMM_OPERATIONS = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", *ENHANCING, *GEOMETRIC)

Values = dict[str, NDArray[np.float64]]
Transform = Callable[[NDArray[np.uint8], bool, int], NDArray[np.uint8]]


def transform_of(settings: Augment, mean: Sequence[float], seed: int) -> Transform:
    """The function (pixels uint8 [S, S, 3], whether they are mirrored first, key of the image) -> uint8 [S, S, 3]."""
    timm = isinstance(settings, RandAugment) and settings.timm is not None
    red, green, blue = (round(value) for value in mean)
    fill: Colour = (red, green, blue) if timm else BLACK

    def transform(pixels: NDArray[np.uint8], mirrored: bool, key: int) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        random = np.random.Generator(np.random.Philox(key=np.array([seed, KEYS + int(key)], np.uint64)))
        for step in steps(settings, random, len(pixels)):
            image = apply(image, step, fill)
        return np.asarray(image)

    return transform


def steps(settings: Augment, random: np.random.Generator, size: int) -> list[Step]:
    """The operations for an image of side `size`, in their order."""
    drawn: list[Step] = []
    match settings:
        case RandAugment() if config := settings.timm_config:
            drawn = timm_steps(config, random, size, RESAMPLING[settings.interpolation or Resampling.random])
        case RandAugment():
            values = rand_values(settings.num_magnitude_bins, size)
            bins = [settings.magnitude] * settings.num_ops
            drawn = torchvision_steps(values, bins, random, settings.interpolation)
        case TrivialAugment():
            values = trivial_values(settings.num_magnitude_bins)
            bins = [int(random.integers(settings.num_magnitude_bins))]
            drawn = torchvision_steps(values, bins, random, settings.interpolation)
    return drawn + jitter_steps(settings.color_jitter, random)


# ------------------------------------------------------------------------------------------------------------ torchvision
def rand_values(bins: int, size: int) -> Values:
    """The strengths of torchvision's RandAugment by operation, [bins]: changes, which are of either sign for all but UNSIGNED."""
    move = np.linspace(0, 150 / 331 * size, bins)
    enhance, shear, bits = (
        np.linspace(0, 0.9, bins),
        np.linspace(0, 0.3, bins),
        np.round(np.arange(bins) / ((bins - 1) / 4)),
    )
    return of_operations(enhance, shear, move, np.linspace(0, 30, bins), 8 - bits)


def trivial_values(bins: int) -> Values:
    """The same of TrivialAugmentWide."""
    wide, bits = np.linspace(0, 0.99, bins), np.round(np.arange(bins) / ((bins - 1) / 6))
    return of_operations(wide, wide, np.linspace(0, 32, bins), np.linspace(0, 135, bins), 8 - bits)


def of_operations(
    enhance: NDArray[np.float64],
    shear: NDArray[np.float64],
    move: NDArray[np.float64],
    turn: NDArray[np.float64],
    bits: NDArray[np.float64],
) -> Values:
    nothing = np.zeros(len(bits))
    geometric = dict(zip(GEOMETRIC, (shear, shear, np.trunc(move), np.trunc(move), turn), strict=True))
    values = {"Posterize": bits, "Solarize": np.linspace(255, 0, len(bits))}
    return dict.fromkeys(UNSIGNED, nothing) | values | dict.fromkeys(ENHANCING, enhance) | geometric


def torchvision_steps(
    values: Values, bins: Sequence[int], random: np.random.Generator, interpolation: Resampling | None
) -> list[Step]:
    """An operation for each bin, all of them equally probable."""
    drawn = []
    choices = RESAMPLING[interpolation or Resampling.nearest]
    for place in bins:
        operation = OPERATIONS[int(random.integers(len(OPERATIONS)))]
        value = float(values[operation][place])
        if operation not in UNSIGNED and random.random() < 0.5:
            value = -value
        value += operation in ENHANCING  # a factor
        drawn.append(Step(operation, value, choices[int(random.integers(len(choices)))]))
    return drawn


# ------------------------------------------------------------------------------------------------------------------- timm
def timm_steps(
    config: TimmConfig, random: np.random.Generator, size: int, choices: Sequence[Image.Resampling]
) -> list[Step]:
    """The operations of timm's RandAugment, with replacement, without those that are left out by their probability."""
    drawn = []
    for operation in random.integers(len(TIMM_OPERATIONS), size=config.num_ops):
        applied, uniform, sign = random.random(3)
        noise = random.standard_normal()
        if applied >= config.prob:
            continue
        level = config.magnitude * uniform if config.std > 100 else config.magnitude + config.std * noise
        level = min(max(level, 0.0), config.most) / 10
        name = TIMM_OPERATIONS[operation]
        value = timm_value(name, level, -1 if sign < 0.5 else 1, config.increasing, size)
        drawn.append(Step(name, value, choices[int(random.integers(len(choices)))]))
    return drawn


def timm_value(operation: str, level: float, sign: int, increasing: bool, size: int) -> float:
    """The strength of an operation at `level`, which is timm's magnitude / 10."""
    match operation:
        case "Posterize":
            return 4 - int(level * 4) if increasing else int(level * 4)
        case "Solarize":
            inverted_from = min(256, int(level * 256))
            return 256 - inverted_from if increasing else inverted_from
        case "SolarizeAdd":
            return min(128, int(level * 110))
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return max(0.1, 1 + sign * level * 0.9) if increasing else level * 1.8 + 0.1
        case "ShearX" | "ShearY":
            return sign * level * 0.3
        case "TranslateX" | "TranslateY":
            return sign * level * 0.45 * size
        case "Rotate":
            return sign * level * 30
    return 0.0


# ---------------------------------------------------------------------------------------------------------- colour jitter
def jitter_steps(strengths: Sequence[float] | None, random: np.random.Generator) -> list[Step]:
    """The operations of torchvision's ColorJitter, in random order: factors and the turn of the hue are uniform."""
    if strengths is None:
        return []
    drawn = []
    for operation, strength in zip(("Brightness", "Contrast", "Color", "Hue"), strengths, strict=True):
        centre, low = (0.0, -math.inf) if operation == "Hue" else (1.0, 0.0)
        value = random.uniform(max(low, centre - strength), centre + strength)
        drawn += [Step(operation, value)] if strength else []
    return [drawn[place] for place in random.permutation(len(drawn))]
