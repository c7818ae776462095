"""experiments/cifar10.py: every image in the folder of its class, of a package with the same files and few images."""

import json

import numpy as np
from PIL import Image

from experiments import cifar10


def test_every_image_is_in_the_folder_of_its_class(tmp_path):
    draw, images = np.random.default_rng(1), {}
    for split, (names, labels_file) in cifar10.SPLITS.items():
        rows = [draw.integers(0, 256, (20, 32, 32, 3), np.uint8) for _ in names]
        for name, part in zip(names, rows, strict=True):
            Image.fromarray(part.reshape(20, 1024, 3)).save(tmp_path / name)
        labels = draw.permutation(np.arange(20 * len(names)) % 10)
        (tmp_path / labels_file).write_text(json.dumps(labels.tolist()))
        images[split] = np.concatenate(rows), labels
    cifar10.write(tmp_path, tmp_path / "out", most=7)
    for split, most in (("train", 7), ("val", 2)):
        pixels, labels = images[split]
        for label, name in enumerate(cifar10.CLASSES):
            files = sorted((tmp_path / "out" / split / name).iterdir())
            numbers = np.flatnonzero(labels == label)[:most]
            assert [int(file.stem) for file in files] == list(numbers) and len(files) == most
            for file, number in zip(files, numbers, strict=True):
                np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels[number])
