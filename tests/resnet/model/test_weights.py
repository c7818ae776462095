"""Weights from elsewhere, against torchvision's naming and forward pass restated here in PyTorch's layout."""

import json
import pickle
import shlex
import struct
import subprocess
import sys
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import yaml
from safetensors.numpy import save_file

from resnet import UserError, rundir
from resnet.config.model import Block, Model
from resnet.model import resnet, weights
from resnet.optim import optimizers
from resnet.training import checkpoint
from resnet.training.trained import read as read_weights

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = {  # trainable parameters with 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet200": 64_673_832,
    "resnext50": 25_028_904,
    "resnext101": 44_177_704,
    "resnext152": 59_951_400,
}
NETWORKS = {
    "grouped": Model(name="grouped", block=Block.bottleneck, depths=[2, 1, 2, 1], groups=4, width=2, filters=8),
    "basic": Model(name="basic", block=Block.basic, depths=[1, 2, 1, 1], width=8, filters=8),
}


@dataclass
class State:
    """What a loop keeps beside the weights."""

    seen: int = 0


def row(name):
    """A row of conf/model as the dataclass it becomes."""
    knobs = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    del knobs["defaults"]
    return Model(**{**knobs, "block": Block[knobs["block"]]})


def table(settings, classes):
    """torchvision's state_dict(): names and shapes, in its order, num_batches_tracked among them."""
    rows = {}

    def norm(name, planes):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            rows[f"{name}.{kind}"] = (planes,)
        rows[f"{name}.num_batches_tracked"] = ()

    expansion = {Block.basic: 1, Block.bottleneck: 4}[settings.block]
    rows["conv1.weight"] = (settings.filters, 3, 7, 7)
    norm("bn1", settings.filters)
    inplanes = settings.filters
    for layer, blocks in enumerate(settings.depths, 1):
        planes = settings.filters * 2 ** (layer - 1)
        width = int(planes * (settings.width / settings.filters)) * settings.groups
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            if settings.block is Block.basic:
                rows[f"{name}.conv1.weight"] = (planes, inplanes, 3, 3)
                norm(f"{name}.bn1", planes)
                rows[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
                norm(f"{name}.bn2", planes)
            else:
                rows[f"{name}.conv1.weight"] = (width, inplanes, 1, 1)
                norm(f"{name}.bn1", width)
                rows[f"{name}.conv2.weight"] = (width, width // settings.groups, 3, 3)
                norm(f"{name}.bn2", width)
                rows[f"{name}.conv3.weight"] = (planes * 4, width, 1, 1)
                norm(f"{name}.bn3", planes * 4)
            if block == 0 and (layer > 1 or inplanes != planes * expansion):
                rows[f"{name}.downsample.0.weight"] = (planes * expansion, inplanes, 1, 1)
                norm(f"{name}.downsample.1", planes * expansion)
            inplanes = planes * expansion
    rows["fc.weight"], rows["fc.bias"] = (classes, inplanes), (classes,)
    return rows


def sizes(settings, classes):
    """table() without what only counts batches."""
    return {name: shape for name, shape in table(settings, classes).items() if "num_batches" not in name}


def drawn(settings, classes=10, seed=1):
    """Random float32 tensors of table(): variances and scales above 0."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in table(settings, classes).items():
        kind, rank = name.rsplit(".", 1)[1], len(shape)
        if kind == "num_batches_tracked":
            made[name] = np.array(7)
        elif kind == "running_var" or (kind == "weight" and rank == 1):
            made[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            deviation = np.sqrt(2 / np.prod(shape[1:])) if rank > 1 else 0.3
            made[name] = random.normal(0, deviation, shape).astype(np.float32)
    return made


def counted(tensors):
    """Without num_batches_tracked."""
    return {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], wanted[name], name)


# --------------------------------------------------------------------------------------------------- forward, channels first
def conv(x, weight, stride=1, pad=0, groups=1):
    """torch.nn.functional.conv2d, from its definition."""
    outer, inner, size, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((n - size) // stride + 1 for n in x.shape[2:])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum(
            "bihwyx,oiyx->bohw",
            windows[:, g * inner : (g + 1) * inner],
            weight[g * outer // groups :][: outer // groups],
        )
        for g in range(groups)
    ]
    made = np.concatenate(parts, 1)
    assert made.shape[1:] == (outer, height, width)
    return made


def forward(settings, tensors, images):
    """Logits [B, classes] of images [B, 3, H, W] in float64: torchvision's ResNet in evaluation mode."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def norm(x, name):
        scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
        return x * scale[:, None, None] + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale)[:, None, None]

    def relu(x):
        return np.maximum(x, 0)

    x = relu(norm(conv(images, w["conv1.weight"], 2, 3), "bn1"))
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
    for layer, blocks in enumerate(settings.depths, 1):
        for block in range(blocks):
            name, stride, shortcut = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1, x
            if f"{name}.downsample.0.weight" in w:
                shortcut = norm(conv(x, w[f"{name}.downsample.0.weight"], stride), f"{name}.downsample.1")
            if settings.block is Block.bottleneck:
                x = relu(norm(conv(x, w[f"{name}.conv1.weight"]), f"{name}.bn1"))
                x = relu(norm(conv(x, w[f"{name}.conv2.weight"], stride, 1, settings.groups), f"{name}.bn2"))
                x = norm(conv(x, w[f"{name}.conv3.weight"]), f"{name}.bn3")
            else:
                x = relu(norm(conv(x, w[f"{name}.conv1.weight"], stride, 1), f"{name}.bn1"))
                x = norm(conv(x, w[f"{name}.conv2.weight"], 1, 1), f"{name}.bn2")
            x = relu(x + shortcut)
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_a_file_in_timms_naming_gives_the_logits_of_torchvisions_forward_pass(tmp_path, name, size):
    settings, tensors = NETWORKS[name], drawn(NETWORKS[name])
    save_file(tensors, tmp_path / "public.safetensors")
    path = str(tmp_path / "public.safetensors")
    network = resnet.build(settings, 10, "float32")
    notes = weights.load_into(network, read_weights(path), path)
    assert notes == [f"{path}: {len(sizes(settings, 10))} tensors of {name}"]
    images = np.random.default_rng(2).normal(0, 1, (2, 3, *size)).astype(np.float32)
    wanted = forward(settings, tensors, images.astype(np.float64))
    logits = network(images.transpose(0, 2, 3, 1), training=False).numpy()
    assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.ptp(wanted) > 0.1 * np.abs(wanted).max()  # the images and classes differ at all


# ------------------------------------------------------------------------------------------------------------ names, formats
def in_hugging_face(tensors):
    """The same tensors as transformers' ResNetForImageClassification has them."""
    made = {}
    for name, tensor in tensors.items():
        *place, leaf = name.split(".")
        match place:
            case ["conv1" | "bn1" as layer]:
                where = f"resnet.embedder.embedder.{'convolution' if layer == 'conv1' else 'normalization'}"
            case ["fc"]:
                where = "classifier.1"
            case [stage, block, "downsample", part]:
                kind = ("convolution", "normalization")[int(part)]
                where = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.shortcut.{kind}"
            case [stage, block, layer]:
                kind = "convolution" if layer.startswith("conv") else "normalization"
                where = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.layer.{int(layer[-1]) - 1}.{kind}"
        made[f"{where}.{leaf}"] = tensor
    return made


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
def test_what_is_taken_and_written_comes_back_bit_for_bit(tmp_path, name):
    network, other = (resnet.build(NETWORKS[name], 10, "float32") for _ in range(2))
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


def test_a_written_file_is_what_pytorch_expects(tmp_path):
    network = resnet.build(NETWORKS["grouped"], 10, "float32")
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


def test_taken_tensors_do_not_follow_the_network():
    network = resnet.build(NETWORKS["basic"], 10, "float32")
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


@pytest.fixture(scope="module")
def basic():
    """A network whose values do not matter."""
    return resnet.build(NETWORKS["basic"], 10, "float32")


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


def test_a_head_of_another_number_of_classes_starts_anew():
    tensors, network = counted(drawn(NETWORKS["grouped"], classes=13)), resnet.build(NETWORKS["grouped"], 10, "float32")
    head = [variable.numpy() for variable in network.get_layer("fc").weights]
    assert weights.load_into(network, tensors, "w.npz") == [
        f"w.npz: {len(tensors) - 2} tensors of grouped",
        "w.npz: the head is for 13 classes and this run has 10: it starts anew",
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


# --------------------------------------------------------------------------------------------------------- unreadable files
def told(path):
    """The one line about a path that is refused."""
    with pytest.raises(UserError) as error:
        read_weights(str(path))
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{path}: ") and len(line) < 700, line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".PTH"])
def test_a_pickle_is_refused_and_the_command_it_names_converts_it(tmp_path, monkeypatch, ending):
    path = tmp_path / f"it's mine{ending}"
    path.write_bytes(b"anything")
    line = told(path)
    assert line.startswith("a pickle, which runs code when it is loaded")
    command = shlex.split(line.partition("python -c ")[2])
    calls = []
    content = {"state_dict": {"a": types.SimpleNamespace(contiguous=lambda: "laid")}}
    torch = types.ModuleType("torch")
    torch.load = lambda *words, **options: calls.append((words, options)) or content
    writer = types.ModuleType("safetensors.torch")
    writer.save_file = lambda *words: calls.append(words)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "safetensors.torch", writer)
    assert len(command) == 1
    exec(command[0], {})
    assert calls == [
        ((str(path), "cpu"), {"weights_only": True}),
        ({"a": "laid"}, str(tmp_path / "it's mine.safetensors")),
    ]


@pytest.mark.parametrize("ending", [".pt", ".npz", ".safetensors"])
def test_no_pickle_is_ever_run(tmp_path, ending):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / f"w{ending}"
    path.write_bytes(pickle.dumps(Trap()))
    told(path)
    assert not (tmp_path / "sprung").exists()
    np.savez(tmp_path / "objects.npz", **{"fc.bias": np.array([Trap()], dtype=object)})
    told(tmp_path / "objects.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_missing_or_of_no_known_kind_is_told(tmp_path):
    assert told(tmp_path / "none.safetensors").startswith("no such file or folder; give a .safetensors or .npz file")
    for name in ("w.h5", "w", "w.safetensors.gz"):
        (tmp_path / name).write_bytes(b"x")
        assert told(tmp_path / name).startswith("no kind of weights that is known here; give ")
    (tmp_path / "folder.safetensors").mkdir()
    assert told(tmp_path / "folder.safetensors").startswith("no weights lie in this folder, or give")


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("damage", ["empty", "short", "cut", "noise", "flipped"])
def test_a_damaged_file_is_told(tmp_path, ending, damage):
    path = tmp_path / f"w{ending}"
    tensors = counted(drawn(NETWORKS["basic"]))
    if ending == ".npz":
        np.savez_compressed(path, **tensors)
    else:
        save_file(tensors, path)
    whole = path.read_bytes()
    spot = whole.index(b'"F32"' if ending == ".safetensors" else b"conv1.weight.npy") + 1
    path.write_bytes(
        {
            "empty": b"",
            "short": whole[:5],
            "cut": whole[:-1000],
            "noise": np.random.default_rng(1).bytes(5000),
            "flipped": whole[:spot] + b"\xff\xff" + whole[spot + 2 :],
        }[damage]
    )
    assert told(path).startswith("cannot be read (")


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_numbers_that_are_no_weights_are_told(tmp_path, ending):
    path = tmp_path / f"w{ending}"
    write = save_file if ending == ".safetensors" else lambda tensors, file: np.savez(file, **tensors)
    tensors = counted(drawn(NETWORKS["basic"]))
    write({**tensors, "conv1.weight": tensors["conv1.weight"].astype(np.int8)}, path)
    assert told(path) == "conv1.weight is of int8, not floating-point; give weights that are not quantized"
    write({**tensors, "bn1.running_var": np.full(8, 1e300)}, path)
    assert told(path).startswith("bn1.running_var holds numbers that are not finite")
    write({"module.conv1.weight": np.zeros(3), "conv1.weight": np.zeros(3)}, path)
    assert told(path).startswith("conv1.weight is there twice")
    write({"blocks.0.attn.weight": np.zeros(3), "head.bias": np.zeros(3)}, path)
    assert "there is 2 tensors, such as blocks.0.attn.weight, but no fc.bias" in told(path)
    write({}, path)
    assert "there is nothing, but no fc.bias" in told(path)
    write({"fc.bias": np.zeros(())}, path)
    assert "no fc.bias of a number a class" in told(path)


def test_eight_bit_floats_and_foreign_members_are_told(tmp_path):
    text = json.dumps({"fc.bias": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(2))
    assert told(tmp_path / "w.safetensors").startswith("cannot be read (")
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:  # members that are no arrays, as in PyTorch's files
        archive.writestr("fc.bias", b"\x80\x02}q\x00.")
    told(tmp_path / "torch.npz")


# ------------------------------------------------------------------------------------------------------- folders of this suite
@pytest.fixture
def filled():
    """`filled(seed)`: a network of model=tiny with 7 classes and random values, and its tensors."""

    def make(seed, policy="float32"):
        network = resnet.build(row("tiny"), 7, policy)
        tensors = counted(drawn(row("tiny"), 7, seed))
        weights.load_into(network, tensors, "drawn")
        return network, tensors

    return make


@pytest.fixture
def filled_folder(run_of, filled):
    """`filled_folder({step: (top1, averaged)})`: a run's folder, and the tensors of each of its checkpoints."""

    def make(steps):
        run = run_of("model=tiny", "data=synthetic", "data.classes=7")
        out, wanted = Path(run.out), {}
        rundir.save(run, out)
        for step, (top1, averaged) in steps.items():
            network, tensors = filled(step, "mixed_bfloat16")
            mean, mean_tensors = filled(step + 1) if averaged else (None, None)
            optimizer = optimizers.build(run.optim, network.trainable_variables)
            for velocity in optimizer.velocity:
                velocity.assign(velocity - 5.0)
            checkpoint.save(out, checkpoint.trackable(network, optimizer, mean), step, top1, State(), 9)
            wanted[step] = mean_tensors or tensors
        return out, wanted

    return make


def test_of_a_run_the_best_checkpoint_is_read_else_the_newest(filled_folder):
    out, wanted = filled_folder({10: (None, False), 20: (None, False)})
    same(read_weights(str(out)), wanted[20])
    out, wanted = filled_folder({30: (0.9, False), 40: (0.8, False), 50: (None, False)})
    same(read_weights(str(out)), wanted[30])
    same(read_weights(str(out / "checkpoints" / "step-00000040")), wanted[40])
    same(read_weights(str(out / "checkpoints" / "step-00000050")), wanted[50])


def test_averaged_weights_come_before_the_others(filled_folder):
    out, wanted = filled_folder({10: (0.5, True), 20: (0.4, False)})
    same(read_weights(str(out)), wanted[10])
    same(read_weights(str(out / "checkpoints" / "step-00000010")), wanted[10])
    same(read_weights(str(out / "checkpoints" / "step-00000020")), wanted[20])


def test_a_checkpoint_can_be_carried_away_and_its_folder_have_any_name(filled_folder, tmp_path):
    out, wanted = filled_folder({10: (0.5, False)})
    place = tmp_path / "best [of all] *"
    (out / "checkpoints" / "step-00000010").rename(place)
    same(read_weights(str(place)), wanted[10])


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_damaged_checkpoint_is_refused_by_name(filled_folder, evaluated):
    out, _ = filled_folder({10: (0.9 if evaluated else None, False), 20: (0.8 if evaluated else None, False)})
    chosen = out / "checkpoints" / f"step-000000{10 if evaluated else 20}"
    data = chosen / "weights.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    with pytest.raises(UserError) as error:
        read_weights(str(out))
    assert str(error.value).startswith(f"{chosen}: this checkpoint is damaged (weights.data-00000-of-00001 is not what")
    assert told(chosen) == str(error.value).removeprefix(f"{chosen}: ")
    (chosen / "commit.json").write_text("{")
    assert told(chosen).startswith("this checkpoint is damaged (JSONDecodeError")
    assert chosen.is_dir()  # nothing is renamed by who only reads


def test_a_folder_without_weights_is_told(run_of, tmp_path):
    run = run_of("model=tiny", "data=synthetic")
    rundir.save(run, Path(run.out))
    assert told(run.out).startswith("a run without a checkpoint yet; start it again, or give a .safetensors")
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty").startswith("no weights lie in this folder, or give a .safetensors")


@pytest.fixture
def saved_model(filled):
    """`saved_model(path)`: a SavedModel with what resnet.export gives it; its tensors."""

    def make(path, attribute="weights"):
        network, tensors = filled(3, "mixed_bfloat16")
        module = tf.Module()
        setattr(module, attribute, list(network.weights))
        module.names = tf.constant(["a", "b"])
        module.other = tf.Variable(1.0, name="fc/kernel")
        module.scored = tf.function(lambda x: network(x, training=False), [tf.TensorSpec([None, 32, 32, 3])])
        tf.saved_model.save(module, str(path), {"serving_default": module.scored})
        return tensors

    return make


def test_a_saved_model_is_read_by_its_variables(saved_model, tmp_path):
    wanted = saved_model(tmp_path / "model [1]")
    same(read_weights(str(tmp_path / "model [1]")), wanted)


def test_a_saved_model_of_others_or_damaged_is_told(saved_model, tmp_path):
    saved_model(tmp_path / "other", "parameters")
    assert "there is nothing, but no fc.bias" in told(tmp_path / "other")
    saved_model(tmp_path / "cut")
    data = tmp_path / "cut" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:3000])
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")
    data.unlink()
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")
    (tmp_path / "cut" / "variables" / "variables.index").unlink()
    assert told(tmp_path / "cut").startswith("damaged, or not of this suite (")


def test_reading_and_guessing_leave_tensorflow_to_be_set_up(saved_model, filled_folder, tmp_path):
    """Threads and visible devices can't be set once TensorFlow has begun; the model must be known before."""
    out, _ = filled_folder({10: (0.5, True)})
    saved_model(tmp_path / "model")
    save_file(drawn(row("tiny")), tmp_path / "w.safetensors")
    code = (
        "import sys\n"
        "from resnet.model import weights\n"
        "from resnet.training import trained\n"
        "for path in sys.argv[1:]: assert weights.detect_model(trained.read(path)) == 'tiny'\n"
        "import tensorflow as tf\n"
        "tf.config.threading.set_intra_op_parallelism_threads(1)\n"
        "tf.config.set_visible_devices([], 'GPU')\n"
    )
    paths = [str(out), str(tmp_path / "model"), str(tmp_path / "w.safetensors")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
