"""Counts against NumPy's argsort, the results they come to, and predictions."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.config.data import Synthetic
from resnet.training import evaluation


def np_counts(logits, labels, mask):
    """Right at first, right in the first five, summed cross-entropy, images; in float64."""
    logits = np.asarray(logits, np.float64)
    right1 = right5 = loss = 0.0
    for row, label, weight in zip(logits, labels, mask, strict=True):
        if weight:
            ranked = np.argsort(-row, kind="stable")  # NaN sorts last
            right1 += not np.isnan(row[label]) and label == ranked[0]
            right5 += not np.isnan(row[label]) and label in ranked[:5]
            loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
    return np.array([right1, right5, loss, np.sum(mask)])


def counts(logits, labels, mask=None):
    mask = np.ones(len(labels)) if mask is None else mask
    totals = evaluation.counts(
        tf.constant(logits, tf.float32), tf.constant(labels, tf.int32), tf.constant(mask, tf.float32)
    )
    assert totals.dtype == tf.float32
    return totals.numpy()


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 10, 1000])
def test_counts_are_those_of_argsort(classes):
    random = np.random.default_rng(classes)
    logits = random.normal(0, 3, (200, classes)).astype(np.float32)
    labels = random.integers(0, classes, 200)
    logits[np.arange(200), labels] += 4 * random.random(200)
    mask = random.random(200) < 0.8
    np.testing.assert_allclose(counts(logits, labels, mask), np_counts(logits, labels, mask), rtol=1e-5)


def test_ties_are_ordered_as_a_stable_argsort_orders_them():
    random = np.random.default_rng(1)
    logits = random.integers(0, 3, (300, 8)).astype(np.float32)
    labels = random.integers(0, 8, 300)
    np.testing.assert_allclose(counts(logits, labels), np_counts(logits, labels, np.ones(300)), rtol=1e-5)
    same = np.zeros((8, 8), np.float32)  # all alike: one in eight is right, not all of them
    np.testing.assert_array_equal(counts(same, np.arange(8))[[0, 1, 3]], [1, 5, 8])


def test_a_logit_that_is_not_a_number_is_wrong():
    logits = np.arange(24, dtype=np.float32).reshape(3, 8)
    logits[0] = np.nan
    logits[1, 7] = np.nan
    right1, right5, _loss, images = counts(logits, [7, 7, 7])
    assert (right1, right5, images) == (1, 1, 3)
    logits[2] = np.nan
    assert list(counts(logits, [0, 0, 0])[:2]) == [0, 0]


def test_with_fewer_than_five_classes_every_label_is_in_the_first_five():
    logits = np.array([[0, 1, 2], [2, 1, 0]], np.float32)
    assert list(counts(logits, [0, 0])[:2]) == [1, 2]


def test_what_the_mask_hides_counts_nowhere_whatever_it_is():
    logits = np.array([[3.0, 0], [np.nan, np.nan], [np.inf, 1], [0, 3.0]], np.float32)
    one = np.log1p(np.exp(-3.0))
    np.testing.assert_allclose(counts(logits, [0, 0, 0, 0], [1, 0, 0, 0]), [1, 1, one, 1], rtol=1e-6)
    np.testing.assert_allclose(counts(logits, [0, 0, 0, 0], [0, 0, 0, 0]), [0, 0, 0, 0])
    np.testing.assert_allclose(counts(logits, [0, 0, 0, 0], [1, 0, 0, 1]), [1, 2, 2 * one + 3, 2], rtol=1e-6)


def test_the_loss_is_cross_entropy_without_smoothing():
    np.testing.assert_allclose(counts(np.zeros((2, 10)), [3, 4])[2], 2 * np.log(10), rtol=1e-6)
    sure = np.full((1, 10), -1e3, np.float32)
    sure[0, 2] = 1e3
    assert counts(sure, [2])[2] == 0  # with smoothing 0.1 it would be 180


# -------------------------------------------------------------------------------------------------------------- results
def batches(sizes, batch, classes=10):
    """Batches of `batch` of which the first `sizes[i]` count; the rest would be right, and must not."""
    random = np.random.default_rng(3)
    for size in sizes:
        logits, labels = random.normal(0, 1, (batch, classes)), random.integers(0, classes, batch)
        logits[range(size, batch), labels[size:]] = 50
        yield np.float32(logits), np.int32(labels), np.float32(np.arange(batch) < size)


def judged(logits, labels, mask):
    """An evaluation's step on batches that hold the logits themselves."""
    predicted, probability = logits.argmax(1).astype(np.int32), softmax(logits).max(1).astype(np.float32)
    return tf.constant(counts(logits, labels, mask))[None], tf.constant(predicted), tf.constant(probability)


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def test_results_are_sums_divided_once():
    parts = list(batches([4, 4, 1], 4))
    (result, _), _ = evaluation.evaluate(parts, judged, lambda: 9)
    logits, labels = (np.concatenate([part[i] for part in parts])[:9] for i in (0, 1))
    right1, right5, loss, _ = np_counts(logits, labels, np.ones(9))
    assert result.images == 9
    assert (result.top1, result.top5, result.loss) == pytest.approx((right1 / 9, right5 / 9, loss / 9), rel=1e-5)


@pytest.mark.parametrize("expected", [8, 10, 50_000])
def test_an_image_too_few_or_too_many_is_no_evaluation(expected):
    with pytest.raises(AssertionError, match=f"evaluated 9 images of {expected}"):
        evaluation.evaluate(batches([4, 4, 1], 4), judged, lambda: expected)


def test_the_sums_of_many_batches_lose_no_image():
    """In float32, 20 million and one is 20 million."""
    part = tf.constant([[9_999_999.0, 9_999_999.0, 0.0, 9_999_999.0]])
    nothing, batch = (np.int32([]), np.float32([])), (None, np.int32([]), np.float32([]))
    (result, _), _ = evaluation.evaluate([batch] * 7, lambda *_: (part, *nothing), lambda: 69_999_993)
    assert (result.top1, result.images) == (1.0, 69_999_993)


def test_the_step_normalizes_and_runs_the_network_in_evaluation_mode():
    data = Synthetic("synthetic", classes=3, image_size=8, mean=[10, 20, 30], std=[1, 2, 4])
    modes = []

    def network(images, training):
        modes.append(training)
        return tf.reduce_mean(images, [1, 2])  # the mean of a channel is its class's logit

    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0], images[1] = [13, 24, 34], [10, 24, 38]  # logits 3 2 1 and 0 2 2
    totals, predicted, probability = evaluation.step(network, None, data)(images, np.int32([0, 2]), np.float32([1, 1]))
    assert modes == [False]
    assert (predicted.dtype, list(predicted.numpy())) == (tf.int32, [0, 1])
    np.testing.assert_allclose(probability, softmax(np.array([[3.0, 2, 1], [0, 2, 2]])).max(1), rtol=1e-6)
    loss = np_counts([[3, 2, 1], [0, 2, 2]], [0, 2], [1, 1])[2]
    np.testing.assert_allclose(totals, [[1, 2, loss, 2]], rtol=1e-5)


def test_a_second_network_is_evaluated_on_the_same_images_in_one_pass():
    data = Synthetic("synthetic", classes=3, image_size=8, mean=[0, 0, 0], std=[1, 1, 1])
    images, labels = np.zeros((2, 8, 8, 3), np.uint8), np.int32([0, 2])
    images[..., 0] = 9

    def network(inputs, training):
        assert training is False
        return tf.reduce_mean(inputs, [1, 2])

    step = evaluation.step(network, lambda *args, **kwargs: -network(*args, **kwargs), data)
    batches = [(images, labels, np.float32([1, 1]))]
    (plain, mean), predictions = evaluation.evaluate(batches, step, lambda: 2, 2)
    assert list(predictions.predicted) == [1, 1]  # by the second network
    assert (plain.top1, mean.top1, plain.images, mean.images) == (0.5, 0.0, 2, 2)
    assert plain.loss == pytest.approx(np_counts([[9, 0, 0]] * 2, [0, 2], [1, 1])[2] / 2, rel=1e-5)
    assert mean.loss == pytest.approx(np_counts([[-9, 0, 0]] * 2, [0, 2], [1, 1])[2] / 2, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- predictions
CLASSES = 5


class FakeRanks:
    """A rank whose sums over the ranks are those of `parts`, the contributions of all; it adds its own to them."""

    def __init__(self, rank, size, parts):
        self.rank, self.size, self.parts = rank, size, parts

    def allreduce_sum(self, values):
        self.parts[self.rank] = values
        return sum(self.parts.values())


@pytest.fixture(scope="module", params=[(1, 23, None), (3, 23, None), (4, 24, None), (3, 23, 2), (5, 3, None)], ids=str)
def gathered(request):
    """(predictions of all ranks as each has them, logits and labels of all images in order): batches of 3 on each rank."""
    ranks, images, steps = request.param
    random = np.random.default_rng(ranks)
    images = min(images, (steps or images) * 3 * ranks)
    logits, labels = np.float32(random.normal(0, 2, (images, CLASSES))), np.int32(random.integers(0, CLASSES, images))
    local = []
    for rank in range(ranks):
        parts = []
        for first in range(rank, images, 3 * ranks):
            mine = range(first, min(first + 3 * ranks, images), ranks)
            full = [*mine, *[0] * (3 - len(mine))]
            parts.append((logits[full], labels[full], np.float32(np.arange(3) < len(mine))))
        local.append(evaluation.concatenate([(*judged(*part), *part[1:]) for part in parts]))
    shared = {}
    for _ in range(2):  # the second time every part is there
        found = [
            own.gather(images, np.arange(rank, images, ranks), FakeRanks(rank, ranks, shared))
            for rank, own in enumerate(local)
        ]
    return found, logits, labels


def test_predictions_of_all_ranks_are_by_the_number_of_the_image(gathered):
    everywhere, logits, labels = gathered
    for predictions in everywhere:  # every rank has all of them
        np.testing.assert_array_equal(predictions.labels, labels)
        np.testing.assert_array_equal(predictions.predicted, logits.argmax(1))
        np.testing.assert_allclose(predictions.probability, softmax(logits).max(1), rtol=1e-6)
        assert predictions.valid.all()


def test_confusions_and_the_most_confident_mistakes_are_those_of_a_loop(gathered):
    [predictions, *_], logits, labels = gathered
    wanted, wrong = np.zeros((CLASSES, CLASSES), int), []
    for number, (row, label) in enumerate(zip(softmax(logits.astype(float)), labels, strict=True)):
        wanted[label, row.argmax()] += 1
        if row.argmax() != label:
            wrong.append((-row.max(), number))
    np.testing.assert_array_equal(predictions.confusion(CLASSES), wanted)
    assert list(predictions.mistakes(4)) == [number for _, number in sorted(wrong)][:4]
    assert len(predictions.mistakes(1000)) == len(wrong)


def test_an_image_that_is_not_valid_is_no_mistake_and_counts_nowhere():
    found = evaluation.Predictions(
        np.int32([0, 1, 1]), np.int32([1, 0, 1]), np.float32([0.9, 0.8, 0.7]), np.array([False, True, True])
    )
    assert list(found.mistakes(5)) == [1]
    assert found.confusion(2).tolist() == [[0, 0], [1, 1]]


def test_the_step_is_traced_once_for_batches_of_one_shape():
    traces = []

    def network(images, training):
        traces.append(training)
        return tf.reduce_mean(tf.cast(images, tf.float32), [1, 2])

    step = evaluation.step(network, None, Synthetic("synthetic", classes=3, image_size=8))
    random = np.random.default_rng(1)
    for size in (4, 4, 1):
        images = random.integers(0, 256, (4, 8, 8, 3), np.uint8)
        step(tf.constant(images), tf.constant(np.int32([0, 1, 2, 0])), tf.cast(tf.range(4) < size, tf.float32))
    assert len(traces) == 1
