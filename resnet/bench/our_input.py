"""A child that reads shards as training does: resnet.benchmarks.our_input FOLDER BATCH SIZE. A step is a batch."""

from __future__ import annotations

import sys

from resnet.bench import turns


def main(folder: str, batch: str, size: str) -> None:
    """Be the child."""
    turns.quiet()
    import tensorflow as tf

    from resnet.bench.input import stream
    from resnet.config.data import Records
    from resnet.data import pipeline, source

    opened = source.open_source(Records(dir=folder, classes=1000, image_size=int(size)))
    dataset = pipeline.train(opened, int(batch), 1, 0)

    def work(steps: int) -> float:
        images = steps * int(batch)
        return images / stream(dataset, images)()

    work(1)
    turns.take_turns({"versions": f"TensorFlow {tf.__version__}"}, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
