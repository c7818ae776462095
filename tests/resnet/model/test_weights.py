"""Weights from elsewhere, against torchvision's naming and forward pass restated in tests/fakes/torch_layout.py."""

import functools
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from torch_layout import NETWORKS, PUBLISHED, counted, drawn, forward, in_hugging_face, row, same, sizes, table

from resnet import UserError
from resnet.model import resnet, weights
from resnet.training.trained import read as read_weights


@pytest.fixture(scope="module")
def built():
    """`built(name)`: a network of NETWORKS, built once; its values are whatever the test before left."""
    return functools.cache(lambda name: resnet.build(NETWORKS[name], 10, "float32"))


# --------------------------------------------------------------------------------------------------- forward, channels first
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_a_file_in_timms_naming_gives_the_logits_of_torchvisions_forward_pass(built, tmp_path, name, size):
    settings, tensors, network = NETWORKS[name], drawn(NETWORKS[name]), built(name)
    save_file(tensors, tmp_path / "public.safetensors")
    path = str(tmp_path / "public.safetensors")
    notes = weights.load_into(network, read_weights(path), path)
    assert notes == [f"{path}: {len(sizes(settings, 10))} tensors of {name}"]
    images = np.random.default_rng(2).normal(0, 1, (2, 3, *size)).astype(np.float32)
    wanted = forward(settings, tensors, images.astype(np.float64))
    logits = network(images.transpose(0, 2, 3, 1), training=False).numpy()
    assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.ptp(wanted) > 0.1 * np.abs(wanted).max()  # the images and classes differ at all


# ------------------------------------------------------------------------------------------------------------ names, formats
@pytest.mark.parametrize("name", NETWORKS)
def test_hugging_faces_naming_gives_the_same_tensors(tmp_path, name):
    tensors = drawn(NETWORKS[name])
    renamed = in_hugging_face(tensors)
    assert "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var" in renamed
    assert len(renamed) == len(tensors)
    save_file(renamed, tmp_path / "model.safetensors")
    same(read_weights(str(tmp_path / "model.safetensors")), counted(tensors))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model._orig_mod.module."])
def test_what_wrapped_the_network_is_taken_off_its_names(tmp_path, prefix):
    tensors = drawn(NETWORKS["basic"])
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    same(read_weights(str(tmp_path / "w.safetensors")), counted(tensors))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_numpy_archive_is_read_alike(tmp_path, write):
    tensors = drawn(NETWORKS["grouped"])
    write(tmp_path / "w.npz", **tensors)
    same(read_weights(str(tmp_path / "w.npz")), counted(tensors))
    big = {name: tensor.astype(f">f{4 + 4 * (tensor.ndim > 1)}") for name, tensor in tensors.items()}
    np.savez(tmp_path / "big.npz", **big)
    same(read_weights(str(tmp_path / "big.npz")), counted(tensors))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_widths_become_float32(tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in counted(drawn(NETWORKS["basic"])).items()}
    save_file(tensors, tmp_path / "w.safetensors")
    same(read_weights(str(tmp_path / "w.safetensors")), {n: t.astype(np.float32) for n, t in tensors.items()})


def test_bfloat16_is_read_by_its_bits(tmp_path):
    """The file is made by hand: 16 bits are the upper half of a float32."""
    tensors = counted(drawn(NETWORKS["basic"]))
    header, data = {}, b""
    for name, tensor in tensors.items():
        bits = (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype("<u2")
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [len(data), len(data) + bits.nbytes]}
        data += bits.tobytes()
        tensors[name] = (bits.astype(np.uint32) << 16).view(np.float32)
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    same(read_weights(str(tmp_path / "w.safetensors")), tensors)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_torchvisions_and_tell_the_model(name):
    wanted = sizes(row(name), 1000)
    assert weights.shapes(row(name), 1000) == wanted
    trained = [shape for entry, shape in wanted.items() if "running" not in entry]
    assert sum(int(np.prod(shape)) for shape in trained) == PUBLISHED[name]
    for classes in (1000, 10):
        tensors = {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in sizes(row(name), classes).items()}
        assert weights.detect_model(tensors) == name


def test_resnet50_has_as_many_tensors_as_in_torchvision():
    assert len(table(row("resnet50"), 1000)) == 320
    assert len(sizes(row("resnet50"), 1000)) == 267
    wanted = sizes(row("resnext50"), 1000)
    assert wanted["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert wanted["layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert len(sizes(row("resnet18"), 1000)) == 102


@pytest.mark.parametrize("name", [*NETWORKS, "tiny"])
def test_taken_tensors_have_torchvisions_names_and_shapes(name):
    settings = NETWORKS.get(name) or row(name)
    taken = weights.export_from(resnet.build(settings, 10, "mixed_bfloat16"))
    assert {entry: tensor.shape for entry, tensor in taken.items()} == sizes(settings, 10)
    assert {tensor.dtype for tensor in taken.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("change", ["surplus", "missing", "shape", "headless", "empty"])
def test_no_model_is_guessed_for_what_is_not_quite_it(change):
    tensors = drawn(row("tiny"))
    tensors = counted(tensors)
    assert weights.detect_model(tensors) == "tiny"
    match change:
        case "surplus":
            tensors["layer1.0.se.fc1.weight"] = np.zeros((1, 16, 1, 1), np.float32)
        case "missing":
            del tensors["layer3.0.bn2.bias"]
        case "shape":
            tensors["conv1.weight"] = np.zeros((4, 1, 7, 7), np.float32)
        case "headless":
            del tensors["fc.weight"], tensors["fc.bias"]
        case "empty":
            tensors = {}
    assert weights.detect_model(tensors) is None


# ------------------------------------------------------------------------------------------------------------- out and back
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_taken_and_written_comes_back_bit_for_bit(built, tmp_path, name):
    network, other = built(name), resnet.build(NETWORKS[name], 10, "float32")
    for number, variable in enumerate(network.weights):
        variable.assign(tf.random.stateless_normal(variable.shape, [number, 1]))
    path = tmp_path / "new" / "ours.safetensors"
    weights.write(path, weights.export_from(network), {"model": name})
    weights.load_into(other, read_weights(str(path)), str(path))
    for mine, back in zip(network.weights, other.weights, strict=True):
        assert mine.name == back.name
        np.testing.assert_array_equal(mine.numpy(), back.numpy())
    assert [entry.name for entry in path.parent.iterdir()] == ["ours.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # as readable as any other file


def test_a_written_file_is_what_pytorch_expects(built, tmp_path):
    network = built("grouped")
    weights.write(str(tmp_path / "w.safetensors"), weights.export_from(network), {"model": "grouped", "format": "tf"})
    raw = (tmp_path / "w.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt", "model": "grouped"}
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == sizes(NETWORKS["grouped"], 10)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}

    def held(name):
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(raw[8 + length :][begin:end], "<f4").reshape(header[name]["shape"])

    kernel = network.get_layer("layer2.0.conv2").kernel.numpy()
    for o, i, y, x in np.ndindex(*held("layer2.0.conv2.weight").shape):
        assert held("layer2.0.conv2.weight")[o, i, y, x] == kernel[y, x, i, o]
    np.testing.assert_array_equal(held("fc.weight"), network.get_layer("fc").kernel.numpy().T)


def test_taken_tensors_do_not_follow_the_network(built):
    network = built("basic")
    taken = weights.export_from(network)
    before = {name: tensor.copy() for name, tensor in taken.items()}
    for variable in network.weights:
        variable.assign_add(tf.ones_like(variable))
    same(taken, before)


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/w\.safetensors: cannot be written \(.+\); give another place"):
        weights.write(tmp_path / "file" / "w.safetensors", {}, {})
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        weights.write(tmp_path / "taken.safetensors", {"a": np.zeros(3, np.float32)}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "taken.safetensors"]


# --------------------------------------------------------------------------------------------------------- what does not fit
def refused(network, tensors):
    """The message, once it is sure that nothing was assigned."""
    before = network.get_weights()
    with pytest.raises(UserError) as told:
        weights.load_into(network, tensors, "w.safetensors")
    for mine, kept in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, kept)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture
def basic(built):
    """A network whose values do not matter."""
    return built("basic")


def test_all_that_does_not_fit_is_told_at_once_and_nothing_is_assigned(basic):
    tensors = counted(drawn(NETWORKS["basic"]))
    del tensors["bn1.bias"], tensors["layer2.0.conv1.weight"]
    tensors["layer3.0.conv1.weight"] = tensors["layer3.0.conv1.weight"][:, :-1]
    tensors["layer1.0.se.weight"] = np.zeros(3, np.float32)
    assert refused(basic, tensors) == (
        "w.safetensors: 4 tensors do not fit basic (bn1.bias is missing; layer2.0.conv1.weight is missing; "
        "layer3.0.conv1.weight is [32, 15, 3, 3] and must be [32, 16, 3, 3]; layer1.0.se.weight has no place); "
        "give weights of this network, or the model= that they are of"
    )


def test_a_long_list_is_cut_and_its_length_told(basic):
    told = refused(basic, {})
    assert told.count(" is missing") == 10
    total = len(sizes(NETWORKS["basic"], 10))
    assert f"{total} tensors do not fit basic" in told and f"; and {total - 10} more)" in told


def test_weights_of_another_network_of_the_family_are_named(basic):
    tensors = {name: np.broadcast_to(np.float32(0), s) for name, s in sizes(row("resnet34"), 1000).items()}
    assert refused(basic, tensors).endswith("; these are the weights of resnet34: use model=resnet34")
    settings = row("tiny")
    settings.width = 8
    told = refused(resnet.build(settings, 10, "float32"), counted(drawn(row("tiny"))))
    assert told.endswith("use model=tiny, with no other model.* knobs")


def test_a_head_of_another_number_of_classes_starts_anew(built):
    tensors, network = counted(drawn(NETWORKS["grouped"], classes=13)), built("grouped")
    head = [variable.numpy() for variable in network.get_layer("fc").weights]
    assert weights.load_into(network, tensors, "w.npz") == [
        f"w.npz: {len(tensors) - 2} tensors of grouped",
        "w.npz: the head is for 13 classes and this run has 10: it is initialized anew",
    ]
    for variable, before in zip(network.get_layer("fc").weights, head, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    taken = weights.export_from(network)
    same({n: t for n, t in taken.items() if "fc" not in n}, {n: t for n, t in tensors.items() if "fc" not in n})


@pytest.mark.parametrize("shape", [(13, 5), (12, 64), (13, 64, 1)])
def test_a_head_that_is_no_head_of_this_network_is_refused(basic, shape):
    tensors = counted(drawn(NETWORKS["basic"], classes=13))
    assert tensors["fc.weight"].shape == (13, 64)
    tensors["fc.weight"] = np.zeros(shape, np.float32)
    assert f"1 tensors do not fit basic (fc.weight is {list(shape)} and must be [13, 64])" in refused(basic, tensors)
