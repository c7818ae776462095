"""A child that evaluates, or only goes forward: resnet.benchmarks.our_evaluation WORDS evaluation|forward. A step is a batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from resnet.bench import turns


def evaluating(run: Any, trained: Any, facts: dict[str, Any]) -> Callable[[int], float]:
    """steps -> the seconds of a whole evaluation, its data opened anew as in training; the last batch is not full."""
    from resnet.data import pipeline, source
    from resnet.training import evaluation

    images = source.open_source(run.data)

    def work(steps: int) -> float:
        images.eval_images = steps * run.batch - run.batch // 2
        began = time.perf_counter()
        evaluation.evaluate(pipeline.evaluation(images, run.batch), trained.evaluate, lambda: images.eval_images)
        facts["graphs"] = trained.evaluate.experimental_get_tracing_count()
        return time.perf_counter() - began

    return work


def forward_only(run: Any, trained: Any) -> Callable[[int], float]:
    """steps -> the seconds of as many forward passes over one batch, and nothing else."""
    import tensorflow as tf

    forward = tf.function(lambda images: trained.network(images, training=False))
    images = tf.random.normal([run.batch, run.data.image_size, run.data.image_size, 3])

    def work(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            logits = forward(images)
        logits.numpy()
        return time.perf_counter() - began

    return work


def main(words: str, what: str) -> None:
    """Be the child."""
    turns.quiet()
    import tensorflow as tf

    from resnet.config import compose
    from resnet.distributed import device
    from resnet.training import state

    run = compose.for_inference(words.split())
    trained = state.build(run, device.init(run.cluster, run.dtype))
    facts: dict[str, Any] = {"versions": f"TensorFlow {tf.__version__}"}
    work = evaluating(run, trained, facts) if what == "evaluation" else forward_only(run, trained)
    work(2)
    turns.take_turns(facts, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
