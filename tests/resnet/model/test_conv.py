"""The convolution layer and its gradients against sums written out in NumPy, and its ways to them."""

import numpy as np
import pytest
import tensorflow as tf

from resnet.model import conv

# Size, stride, groups, channels of a group: every way of `convolve` is among them.
CASES = [
    (3, 1, 4, 8),
    (3, 2, 4, 8),
    (3, 1, 8, 4),
    (3, 1, 3, 4),
    (3, 2, 1, 8),
    (1, 2, 1, 8),
    (7, 2, 1, 3),
    (7, 2, 1, 8),
    (1, 1, 1, 8),
    (3, 1, 1, 512),
    (3, 2, 1, 256),
]


def by_loops(images, kernel, weights, stride, groups):
    """The gradients of sum(convolution * weights) by images and kernel, a position at a time."""
    size, side = len(kernel), (len(kernel) - 1) // 2
    in_group, out_group = kernel.shape[2], kernel.shape[3] // groups
    padded = np.pad(images, ((0, 0), (side, side), (side, side), (0, 0)))
    by_images, by_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    for y, x in np.ndindex(*weights.shape[1:3]):
        window = np.s_[:, y * stride : y * stride + size, x * stride : x * stride + size]
        for group in range(groups):
            inside, outside = (np.s_[group * n : (group + 1) * n] for n in (in_group, out_group))
            pull = weights[:, y, x, outside]
            by_kernel[..., outside] += np.einsum("bijc,bo->ijco", padded[window][..., inside], pull)
            by_images[window][..., inside] += np.einsum("ijco,bo->bijc", kernel[..., outside], pull)
    height, width = images.shape[1:3]
    return by_images[:, side : side + height, side : side + width], by_kernel


def slopes(layer, images, weights):
    """What the layer says of the same."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        found = layer(images)
        loss = tf.reduce_sum(tf.cast(found, tf.float32) * weights)
    return found, *tape.gradient(loss, [images, layer.kernel])


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("size", "stride", "groups", "channels"), CASES)
def test_a_convolution_and_its_gradients_are_those_of_its_groups_one_by_one(
    size, stride, groups, channels, dtype, amx, np_conv
):
    layer = conv.Conv(24, size, stride, groups, amx, dtype=dtype)
    for height, width in ((9, 12), (12, 9)):
        images = tf.random.stateless_normal([2, height, width, channels * groups], [3, 4])
        weights = tf.random.stateless_normal([2, -(-height // stride), -(-width // stride), 24], [5, 6])
        found = slopes(layer, images, weights)
        exact = [value.numpy().astype(np.float64) for value in (images, layer.kernel, weights)]
        wanted = np_conv(*exact[:2], stride, groups), *by_loops(*exact, stride, groups)
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        assert found[1].dtype == found[2].dtype == tf.float32
        for value, goal in zip(found, wanted, strict=True):
            np.testing.assert_allclose(tf.cast(value, tf.float32), goal, rtol=0, atol=tolerance * np.abs(goal).max())


@pytest.mark.parametrize(("size", "stride", "groups", "channels"), CASES)
def test_in_a_graph_that_knows_no_size_the_gradients_are_the_same(size, stride, groups, channels):
    layer = conv.Conv(24, size, stride, groups, amx=True)
    known = tf.TensorSpec([None, None, None, channels * groups]), tf.TensorSpec([None, None, None, 24])
    traced = tf.function(lambda images, weights: slopes(layer, images, weights), known)
    layer.build([None, None, None, channels * groups])
    for height, width in ((9, 12), (12, 9)):
        images = tf.random.stateless_normal([2, height, width, channels * groups], [3, 4])
        weights = tf.random.stateless_normal([2, -(-height // stride), -(-width // stride), 24], [5, 6])
        for value, goal in zip(traced(images, weights), slopes(layer, images, weights), strict=True):
            np.testing.assert_allclose(value, goal, rtol=0, atol=1e-5 * np.abs(goal).max())


def waits(operation):
    """Whether it, or what it is made from, is held back by another operation."""
    return bool(operation.control_inputs) or any(waits(tensor.op) for tensor in operation.inputs)


@pytest.mark.parametrize(
    ("size", "stride", "groups", "channels", "filters", "inputs"),
    [
        (1, 1, 1, 8, ["MatMul"], ["Conv2DBackpropInput"]),
        (1, 2, 1, 8, ["MatMul"], ["MatMul"]),
        (1, 1, 4, 8, ["Conv2DBackpropFilter"], ["Conv2DBackpropInput"]),
        (3, 2, 1, 128, ["Conv2DBackpropFilter"], ["Conv2DBackpropInput"]),
        (3, 1, 1, 256, ["MatMul"] * 9, ["Conv2DBackpropInput"]),
        (3, 2, 1, 256, ["MatMul"] * 9, ["Conv2DBackpropInput"]),
        (7, 2, 1, 3, ["Conv2DBackpropFilter"], ["Conv2DBackpropInput"]),
    ],
)
def test_by_product_gradients_are_matrix_products_where_those_are_faster(
    size, stride, groups, channels, filters, inputs
):
    layer = conv.Conv(24, size, stride, groups, amx=True)
    layer.build([None, None, None, channels])
    graph = (
        tf.function(lambda images: slopes(layer, images, 1.0))
        .get_concrete_function(tf.zeros([2, 6, 6, channels]))
        .graph
    )
    kinds = [operation.type for operation in graph.get_operations()]
    for kind in ("MatMul", "Conv2DBackpropFilter", "Conv2DBackpropInput"):
        assert kinds.count(kind) == [*filters, *inputs].count(kind), kind
    folded = [
        op for op in graph.get_operations() if op.type == "Conv2DBackpropFilter" and op.get_attr("strides")[1] != stride
    ]
    assert bool(folded) == (size == 7)
    copies = [
        op for op in graph.get_operations() if op.type in ("StridedSlice", "Transpose") and op.inputs[0].shape.rank == 5
    ]
    assert len(copies) == filters.count("MatMul") + (size == 7)
    assert all(map(waits, copies))  # for the slope, or they would fill the memory on the way forward


@pytest.mark.parametrize(("groups", "channels", "wide"), [(32, 4, 16), (32, 8, 16), (32, 16, 16), (6, 4, 8), (3, 4, 4)])
def test_narrow_groups_are_computed_several_at_once(groups, channels, wide, np_conv):
    kernel = tf.random.stateless_normal([3, 3, channels, 2 * groups], [1, 2])
    packed = conv.pack_groups(kernel, groups)
    assert packed.shape == [3, 3, wide, 2 * groups]
    assert np.count_nonzero(packed) == np.count_nonzero(kernel)  # and the rest are zeros
    images = np.random.default_rng(3).normal(size=(1, 4, 4, channels * groups))
    goal = np_conv(images, kernel.numpy().astype(np.float64), 1, groups)
    np.testing.assert_allclose(np_conv(images, packed.numpy().astype(np.float64), 1, groups * channels // wide), goal)


def test_a_convolution_layer_can_be_made_again_from_its_description():
    layer = conv.Conv(24, 3, 2, 4, True, name="again", dtype="mixed_bfloat16")
    again = conv.Conv.from_config(layer.get_config())
    assert (again.filters, again.size, again.stride, again.groups, again.amx) == (24, 3, 2, 4, True)
    assert (again.name, again.dtype_policy.name) == ("again", "mixed_bfloat16")


@pytest.mark.parametrize(
    ("size", "filters", "inputs", "groups"), [(3, 256, 128, 1), (3, 256, 256, 32), (1, 512, 64, 1), (7, 64, 3, 1)]
)
def test_kernels_start_he_normal_by_fan_out(size, filters, inputs, groups):
    tf.keras.utils.set_random_seed(4)
    layer = conv.Conv(filters, size, groups=groups)
    layer.build([None, None, None, inputs])
    kernel = layer.kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (size * size * filters)), rel=5 / np.sqrt(2 * kernel.size))
    assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
