"""Writes tests/golden/evaluation.npz: what torchvision's and timm's evaluation transforms make of images of many shapes.

    PYTHON_WITH_TORCH tests/golden/oracle_evaluation.py

Ran with torchvision 0.29.1, timm 1.0.31, Pillow of that environment. Images are NumPy's noise, smooth and rough:
`image(height, width)` here and in tests/resnet/data/test_resample.py. Keys: SOURCE/INTERPOLATION/HEIGHTxWIDTH/SHORT/SIDE.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

SHAPES = ((37, 50), (50, 33), (20, 120), (121, 21), (7, 9), (1, 1), (1, 40), (24, 31), (26, 24), (150, 200), (333, 335))
SIZES = ((24, 16), (20, 16), (17, 16), (16, 16))  # short side, crop
CROPS = (0.95, 0.875, 1.0)  # timm's crop_pct, of 16 px


def image(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]."""
    random = np.random.default_rng(height * 1000 + width)
    rough = random.integers(0, 256, [height, width, 3])
    smooth = 60 * np.sin(np.arange(height)[:, None] / 9) + 60 * np.cos(np.arange(width)[None] / 7) + 128
    return ((rough + 2 * smooth[..., None]) // 3).astype(np.uint8)


def main() -> None:
    made = {}
    for height, width in SHAPES:
        picture = Image.fromarray(image(height, width))
        for name in ("bilinear", "bicubic"):
            for short, side in SIZES:
                transform = Compose([Resize(short, InterpolationMode(name)), CenterCrop(side)])
                made[f"torchvision/{name}/{height}x{width}/{short}/{side}"] = np.asarray(transform(picture))
            for share in CROPS:
                transform = create_transform(16, is_training=False, interpolation=name, crop_pct=share, normalize=False)
                pixels = np.asarray(transform(picture)).transpose(1, 2, 0)
                made[f"timm/{name}/{height}x{width}/{share}/16"] = pixels
    np.savez_compressed(Path(__file__).with_name("evaluation.npz"), **made)


if __name__ == "__main__":
    main()
