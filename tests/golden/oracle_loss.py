"""Losses of PyTorch and timm on soft targets: golden numbers for tests/resnet/training/test_loss.py.

Run with PyTorch and timm: python tests/golden/oracle_loss.py, which writes oracle_loss.json beside it.
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

IMAGES, CLASSES = 6, 7


def main():
    random = np.random.default_rng(0)
    logits = np.round(random.normal(0, 4, [IMAGES, CLASSES]), 3).astype(np.float32)
    labels = random.integers(0, CLASSES, IMAGES)
    cases = []
    for share in (None, 0.15, 0.7):  # of an image's own target; None: not mixed
        for smoothing in (0.0, 0.1):
            for threshold in (None, 0.2):
                soft = mixed(labels, smoothing, 1.0 if share is None else share)
                bce = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
                target = torch.tensor(labels) if share is None else soft
                losses = {
                    "bce": bce(torch.tensor(logits), target),
                    "softmax": SoftTargetCrossEntropy()(torch.tensor(logits), soft),
                }
                cases.append(
                    {
                        "share": share,
                        "smoothing": smoothing,
                        "threshold": threshold,
                        **{k: v.item() for k, v in losses.items()},
                    }
                )
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    content = {"versions": versions, "logits": logits.tolist(), "labels": labels.tolist(), "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def mixed(labels, smoothing, share):
    """timm's targets for images of which each is mixed with its opposite in the batch."""
    mixup = Mixup(label_smoothing=smoothing, num_classes=CLASSES)
    mixup._params_per_batch = lambda: (share, False)
    return mixup(torch.zeros(IMAGES, 3, 4, 4), torch.tensor(labels))[1]


if __name__ == "__main__":
    main()
