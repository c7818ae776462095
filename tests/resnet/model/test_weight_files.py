"""Files of weights that cannot be read, or must not be."""

import json
import pickle
import shlex
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_layout import NETWORKS, counted, drawn

from resnet import UserError
from resnet.training.trained import read as read_weights


def told(path):
    """The one line about a path that is refused."""
    with pytest.raises(UserError) as error:
        read_weights(str(path))
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"{path}: ") and len(line) < 700, line
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pkl", ".PTH", ".pth.tar"])
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
    assert told(tmp_path / "folder.safetensors").startswith("no weights are in this folder; or give")


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
