"""The compiled step: its loss against NumPy, under XLA, in float16, and as a Gaudi wants it."""

import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_step import train_step_of
from run_files import logged

from resnet.config.training import Loss
from resnet.data import pipeline, source
from resnet.data.augment import draws
from resnet.model import resnet
from resnet.training.loop import train


# --------------------------------------------------------------------------------------------------- the loss, in NumPy
def restated(run, kernel, steps):
    """The loss of each step of a network that is one matrix [pixels, classes], with erased and mixed images, smooth targets."""
    batches = iter(pipeline.train(source.open_source(run.data), run.batch, run.seed, 0))
    losses, (mixes, erases, *_) = [], draws.of_steps(run, range(steps), 32)
    for mix, erase in zip(mixes[:, 0].astype(np.float64), erases[:, 0], strict=True):
        pixels, labels, flips = (part.numpy() for part in next(batches))
        pixels = np.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
        inputs = (pixels - np.array(run.data.mean)) / run.data.std
        for image, (top, bottom, left, right, _) in zip(inputs, erase.astype(int), strict=False):
            image[top:bottom, left:right] = 0
        smooth, classes = run.label_smoothing, run.data.classes
        targets = np.full([run.batch, classes], smooth / classes)
        targets[np.arange(run.batch), labels] += 1 - smooth
        mixed, soft = inputs.copy(), targets.copy()
        for i in range(run.batch if run.mixes else 0):
            j, (own, inner, *box) = (i + run.batch // 2) % run.batch, mix[i % len(mix)]
            rows, columns = slice(*map(int, box[:2])), slice(*map(int, box[2:]))
            mixed[i, rows, columns] = inner * inputs[i, rows, columns] + (1 - inner) * inputs[j, rows, columns]
            soft[i] = own * targets[i] + (1 - own) * targets[j]
        logits = mixed.reshape(run.batch, -1) @ kernel
        if run.loss is Loss.bce:
            chances = 1 / (1 + np.exp(-logits))
            losses.append(-(soft * np.log(chances) + (1 - soft) * np.log(1 - chances)).mean())
            continue
        logged = logits - logits.max(1, keepdims=True)
        logged -= np.log(np.exp(logged).sum(1, keepdims=True))
        losses.append(-(soft * logged).sum(1).mean())
    return losses, mixes


@pytest.mark.parametrize(
    ("smooth", "loop", "more"),
    [
        (0.1, 1, ["mixup=0.2"]),
        (0.0, 1, []),
        (0.2, 4, ["mixup=1", "cutmix=1", "mix_by=image", "loss=bce", "augment.erasing=0.5"]),
        pytest.param(0.0, 1, ["cutmix=1"], marks=pytest.mark.slow),
        pytest.param(0.3, 1, [], marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_of_mixed_images_and_targets_that_are_smooth_and_mixed_alike(
    run_of, monkeypatch, smooth, loop, more
):
    kernel = np.random.default_rng(1).normal(0, 0.05, (32 * 32 * 3, 10)).astype(np.float32)

    def matrix(*_settings, **_more):
        head = tf.keras.layers.Dense(10, use_bias=False, kernel_initializer=tf.constant_initializer(kernel), name="fc")
        return tf.keras.Sequential([tf.keras.layers.Input([32, 32, 3]), tf.keras.layers.Flatten(), head])

    monkeypatch.setattr(resnet, "build", matrix)
    words = ("batch=48", "track=off", "eval=false", "log_every_steps=1", "optim.lr=0", "steps=4", "data.flip=true")
    run = run_of("model=tiny", *words, *more, f"label_smoothing={smooth}", f"steps_per_loop={loop}")
    train(run, Path(run.out))
    wanted, mixes = restated(run, kernel.astype(np.float64), 4)
    assert np.ptp(mixes[..., 0]) > 0.1 if run.mixes else not mixes.size
    losses = [loss for _, loss in logged(run.out, "train/loss")]
    np.testing.assert_allclose(losses, wanted if loop == 1 else [np.mean(wanted)], rtol=1e-5)
    assert np.ptp(wanted) > 1e-3


# --------------------------------------------------------------------------------------------------------------- graphs
@pytest.fixture
def stepping(run_of):
    """`stepping("dtype=fp16", ...)`: the TrainStep of a new tiny ResNet, its graph not traced yet."""
    return lambda *words: train_step_of(
        run_of("model=tiny", "data=digits", "batch=16", "track=off", "optim.lr=0.05", *words)
    )


def trained(step, steps=3):
    """(the losses of so many steps at rate 0.02, the weights after the first)."""
    losses, first = [], {}
    for number in range(steps):
        losses.append(float(step.train(*step.inputs(number, number + 1, [0.02]), tf.constant(0.0))[0][0, 0]))
        first = first or {weight.name: weight.numpy() for weight in step.variables}
    return np.array(losses), first


@pytest.fixture(scope="module")
def plain(run_at, tmp_path_factory):
    """The same of four steps in float32."""
    words = ("model=tiny", "data=digits", "batch=16", "track=off", "optim.lr=0.05")
    return trained(train_step_of(run_at(tmp_path_factory.mktemp("plain"), *words)), 4)


def test_xla_computes_what_the_graph_does(stepping, plain):
    # The check of cluster= and dtype.jit is the configuration's; what is compiled here runs on the CPU.
    losses, first = trained(stepping("cluster=gpu1", "dtype.jit=true"))
    np.testing.assert_allclose(plain[0][:3], losses, rtol=1e-3)
    for name, value in plain[1].items():
        # Of equal pixels the pool passes the gradient to one, and XLA to another one.
        if not name.startswith(("conv1", "bn1")):
            np.testing.assert_allclose(value, first[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_float16_learns_as_float32_does_to_its_precision(stepping, plain):
    half, _ = trained(stepping("dtype=fp16"), 4)
    np.testing.assert_allclose(half, plain[0], rtol=0.02)
    assert np.ptp(plain[0]) > 0.01  # they differ from step to step, so that agreement means something


@pytest.mark.usefixtures("small_network")
def test_gradients_that_overflow_move_nothing_and_lower_the_scale(stepping):
    step = stepping("dtype=fp16")
    optimizer = step.state.optimizer
    optimizer.scale.assign(2.0**60)
    before = [weight.numpy() for weight in step.variables]
    figures, _ = step.train(*step.inputs(0, 1), tf.constant(0.0))
    assert np.isfinite(figures.numpy()).all()
    assert optimizer.scale.numpy() == 2.0**59 and optimizer.skipped.numpy() == 1
    for old, weight in zip(before, step.variables, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_nothing_but_bookkeeping_of_shapes_is_int64_in_a_step(stepping):
    """A Gaudi computes no int64; constants of shapes are folded."""
    graph = stepping().train.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = {node.op for node in nodes for value in node.attr.values() if value.type == tf.int64.as_datatype_enum}
    assert len(nodes) > 300
    assert kinds <= {"Const", "Shape", "Cast", "Squeeze", "ReverseV2"}, kinds


@pytest.mark.usefixtures("small_network")
def test_calls_of_several_lengths_have_one_graph(stepping):
    step = stepping("steps_per_loop=3")
    for first, last in ((0, 3), (3, 5)):
        step.train(*step.inputs(first, last), tf.constant(0.0))
    assert step.train.experimental_get_tracing_count() == 1


def test_accumulated_steps_are_one_step_of_the_whole_batch(run_of, monkeypatch):
    """On a network without batch norm, whose statistics are of the small batches."""
    layers = tf.keras.layers

    def build(*_settings, **_more):
        tf.keras.utils.set_random_seed(3)
        head = [layers.ReLU(), layers.Flatten(), layers.Dense(10, name="fc")]
        return tf.keras.Sequential([layers.Input([32, 32, 3]), layers.Conv2D(4, 3), *head])

    monkeypatch.setattr(resnet, "build", build)
    words = ("model=tiny", "data=digits", "batch=24", "track=off")
    steps = [train_step_of(run_of(*words, f"cluster.gradient_accumulation={parts}")) for parts in (1, 4)]
    (whole, _), (parts, _) = (trained(step) for step in steps)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    for left, right in zip(steps[0].variables, steps[1].variables, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------- waiting for data
@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize(
    ("loop", "parts"), [(1, 1), pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_the_wait_for_data_is_the_time_without_a_batch_to_work_on(run_of, monkeypatch, loop, parts):
    """A batch takes `delay` s to make, two of them are made ahead, and its gradients take `busy` s."""
    delay, busy = 0.0, 0.0
    shapes = [([8 // parts, 8, 8, 3], tf.uint8), ([8 // parts], tf.int32), ([8 // parts], tf.bool)]

    def late():
        while True:
            time.sleep(delay)
            yield tuple(np.zeros(shape, kind.as_numpy_dtype) for shape, kind in shapes)

    def slowly(batch, drawn):
        loss, gradients = plain(batch, drawn)
        slow = tf.numpy_function(lambda one: time.sleep(busy) or one, [gradients[-1]], tf.float32)
        return loss, [*gradients[:-1], tf.ensure_shape(slow, gradients[-1].shape)]

    kinds = tuple(tf.TensorSpec(*shape) for shape in shapes)
    made = tf.data.Dataset.from_generator(late, output_signature=kinds).prefetch(2)
    monkeypatch.setattr(pipeline, "train", lambda *_words: made)
    sizes = (f"steps_per_loop={loop}", f"cluster.gradient_accumulation={parts}")
    small = ("data.image_size=8", "data.eval_resize=8", "batch=8")
    step = train_step_of(run_of("model=tiny", "data=digits", "track=off", *small, *sizes))
    plain, step.gradients = step.gradients, slowly
    call = 0
    for times, calls in (((0, 0), 2), ((0.05, 0.2), 3), ((0.15, 0.03), 8)):
        (delay, busy), begin = times, time.monotonic()
        for _ in range(calls):
            step.train(*step.inputs(call * loop, (call + 1) * loop), tf.constant(0.0))
            call += 1
        elapsed, waited, batches = time.monotonic() - begin, step.data_wait.take(), calls * loop * parts
        assert 0 <= waited <= elapsed - busy * batches
        if busy > delay:
            assert waited < elapsed / 2  # a thousandth, but for what else the machine does
    assert waited > 0.2 * (delay - busy) * batches  # some were made before
    step.close()
