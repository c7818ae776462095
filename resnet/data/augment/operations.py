"""The operations of RandAugment and TrivialAugment on one image, by Pillow, which is what torchvision and timm use as well."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Colour = tuple[int, int, int]
SOLARIZE_ADD_BELOW = 128  # pixels below it are made brighter by SolarizeAdd


class Step(NamedTuple):
    """An operation and its strength, in the unit of the operation: see apply()."""

    operation: str
    value: float = 0.0
    resample: Image.Resampling = Image.Resampling.NEAREST


def apply(image: Image.Image, step: Step, fill: Colour) -> Image.Image:
    """The RGB image after one operation. Pixels from outside the image have the colour `fill`.

    The value is a slope (ShearX, ShearY), pixels (TranslateX, TranslateY), degrees counter-clockwise (Rotate), a factor, 1 for
    no change (Brightness, Color, Contrast, Sharpness), a share of the circle (Hue), the bits that stay (Posterize), the grey
    level from which pixels are inverted (Solarize), or what is added to those below 128 (SolarizeAdd). The others have none.
    """
    value = step.value
    match step.operation:
        case "ShearX":
            return affine(image, (1, value, 0, 0, 1, 0), step.resample, fill)
        case "ShearY":
            return affine(image, (1, 0, 0, value, 1, 0), step.resample, fill)
        case "TranslateX":
            return affine(image, (1, 0, value, 0, 1, 0), step.resample, fill)
        case "TranslateY":
            return affine(image, (1, 0, 0, 0, 1, value), step.resample, fill)
        case "Rotate":
            return image.rotate(value, step.resample, fillcolor=fill)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(value)
        case "Color":
            return ImageEnhance.Color(image).enhance(value)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(value)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(value)
        case "Hue":
            return hue(image, value)
        case "Posterize":
            dropped = (1 << (8 - int(value))) - 1  # ImageOps.posterize() refuses 0 bits, which timm has
            return image.point([level & ~dropped for level in range(256)] * 3)
        case "Solarize":
            return ImageOps.solarize(image, value)  # type: ignore[arg-type]  # compared with integers
        case "SolarizeAdd":
            table = [min(255, level + int(value)) if level < SOLARIZE_ADD_BELOW else level for level in range(256)]
            return image.point(table * 3)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Identity":
            return image
    raise AssertionError(step)


def affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Each pixel from where `matrix` maps it: (a, b, c, d, e, f) takes it from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def hue(image: Image.Image, turn: float) -> Image.Image:
    """The hue turned by a share of the circle, in -0.5..0.5, in Pillow's HSV of eight bits."""
    hues, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hues) + np.array(int(turn * 255) % 256, np.uint8)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
