"""`python -m resnet.rank <out>`: train the run that <out>/config.yaml describes, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from resnet import compose, train


def main() -> int:
    """Exit status of the training."""
    if len(sys.argv) != 2:
        print("usage: python -m resnet.rank <folder with config.yaml>", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    return train.reported(lambda: train.go(compose.load(out), out))


if __name__ == "__main__":
    sys.exit(main())
