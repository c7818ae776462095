"""Boxes that torchvision draws for CutMix and random erasing: golden numbers for tests/resnet/data/augment/test_draws.py.

Run with PyTorch and torchvision: python tests/golden/oracle_mixing.py, which writes oracle_mixing.npz beside it.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import CutMix

SIZE, DRAWS = 48, 3000


def main():
    torch.manual_seed(0)
    image = torch.zeros(1, 3, SIZE, SIZE)
    arrays = {"versions": [torch.__version__, torchvision.__version__]}
    for alpha in (1.0, 0.3):
        transform = CutMix(alpha=alpha, num_classes=10)
        drawn = [transform.make_params([image])["box"] for _ in range(DRAWS)]
        arrays[f"cutmix_{alpha}"] = np.array(
            [(top, bottom, left, right) for left, top, right, bottom in drawn], np.uint8
        )
    drawn = [RandomErasing.get_params(image[0], (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(DRAWS)]
    arrays["erasing"] = np.array(
        [(top, top + height, left, left + width) for top, left, height, width in drawn], np.uint8
    )
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
