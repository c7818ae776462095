"""Weights of a network in the names and the layout of timm and torchvision, in and out.

read(path)                           tensors by name from a .safetensors or .npz file; training/trained.py reads folders too
load_into(network, tensors, path)    assign them to a network, all or none
export_from(network)                 the weights of a network
write(path, tensors, metadata)       as safetensors
detect_model(tensors)                the option of model= with these shapes

PyTorch's own files are pickles, which run code when they are loaded: those are refused.
"""

from __future__ import annotations

import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from resnet import UserError, files, home
from resnet.config.model import Antialias, Block, Model, se_channels
from resnet.model import resnet

Tensors = dict[str, NDArray[Any]]

PICKLES = tuple(f".{ending}{more}" for ending in ("pt", "pth", "bin", "ckpt", "pkl", "pickle") for more in ("", ".tar"))
SOURCES = "a .safetensors or .npz file, a run's folder, one of its checkpoints or a SavedModel of resnet.export"
MAX_BYTES = 4 << 30  # of a file, and of an archive when unpacked; ResNet-200 in float32 has 260 MB
MAX_TENSORS, MAX_HEADER = 10_000, 16 << 20  # in a file, and bytes that list them; ResNet-200 has 1,400
SHOWN = 10  # misfits in an error message
KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # by rank: our axes in PyTorch's order; argsort inverts it
WRAPPER = re.compile(r"^((module|model|_orig_mod)\.)+")  # of DataParallel, Lightning, torch.compile
HUGGING_FACE = re.compile(  # transformers' ResNetForImageClassification
    r"(?:resnet\.)?(?:embedder\.embedder|encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:shortcut|layer\.(\d+)))"
    r"\.(convolution|normalization)\.(\w+)"
)


# -------------------------------------------------------------------------------------------------------------- reading
def read(path: str) -> Tensors:
    """Float32 tensors by timm's names (conv1.weight [O, I / groups, H, W], bn1.running_var [O], fc.weight [classes, features]).

    Raises UserError as check() does, and for what cannot be read.
    """
    return check(of_file(home.expand(path)), path)


def check(arrays: Tensors, path: str) -> Tensors:
    """The arrays as float32. Raises UserError unless they are finite floating-point numbers with a head (fc.bias [classes])."""
    if arrays.get(f"{resnet.HEAD}.bias", np.zeros(())).ndim != 1:
        holds = f"{len(arrays)} tensors, such as {min(arrays)}" if arrays else "nothing"
        raise UserError(
            f"{path}: no ResNet with its head, under the names of timm, torchvision or Hugging Face: there is {holds}, but "
            f"no {resnet.HEAD}.bias of a number a class; give the weights of a whole classifier"
        )
    tensors = {}
    for name, tensor in arrays.items():
        if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
            raise UserError(
                f"{path}: {name} is of {tensor.dtype}, not floating-point; give weights that are not quantized"
            )
        with np.errstate(over="ignore"):
            tensors[name] = tensor.astype(np.float32, copy=False)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} holds numbers that are not finite; write the weights again, as float32")
    return tensors


def of_file(path: Path) -> Tensors:
    """The arrays of a file by timm's names, as they are."""
    ending = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give {SOURCES}")
    if pickled := next(
        (ending for ending in sorted(PICKLES, key=len)[::-1] if path.name.lower().endswith(ending)), None
    ):
        target = path.with_name(path.name[: -len(pickled)] + ".safetensors")
        code = (
            f"import torch, safetensors.torch as s; w = torch.load({str(path)!r}, 'cpu', weights_only=True); "
            f"s.save_file({{k: v.contiguous() for k, v in w.get('state_dict', w).items()}}, "
            f"{str(target)!r})"
        )
        raise UserError(
            f"{path}: a pickle, which runs code when it is loaded, and is not read here; convert it where PyTorch is: "
            f"python -c {shlex.quote(code)}"
        )
    if ending not in (".safetensors", ".npz"):
        raise UserError(f"{path}: no kind of weights that is known here; give {SOURCES}")
    try:
        arrays = of_safetensors(path) if ending == ".safetensors" else of_npz(path)
    except UserError:
        raise
    except Exception as error:  # each library has its own for each kind of damage
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({detail}); fetch or write it again") from error
    names = {key: canonical_name(key) for key in arrays if not key.endswith("num_batches_tracked")}
    named = {name: arrays[key] for key, name in names.items()}
    if len(named) < len(names):
        twice = sorted(name for name in named if list(names.values()).count(name) > 1)
        raise UserError(f"{path}: {twice[0]} is there twice, so this is more than one network; give a file of one")
    return named


def of_safetensors(path: Path) -> Tensors:
    """The arrays of a safetensors file; one of another kind, or of too many tensors, raises ValueError."""
    with files.open_bytes(path, MAX_BYTES, links=True) as file:
        header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER:
            raise ValueError(f"a header of {header:,} bytes; at most {MAX_HEADER:,} are read")
        check_count(file.read(header).count(b'"data_offsets"'))
    return load_file(path)


def check_count(tensors: int) -> None:
    if tensors > MAX_TENSORS:
        raise ValueError(f"{tensors:,} tensors; at most {MAX_TENSORS:,} are read")


def of_npz(path: Path) -> Tensors:
    """The arrays of a NumPy archive; one that holds Python objects, or would fill the memory, raises ValueError."""
    with files.open_bytes(path, MAX_BYTES, links=True) as file:
        # Entries of its directory, which zipfile would read one by one before it could say how many there are.
        check_count(sum(part.count(b"PK\x01\x02") for part in iter(lambda: file.read(1 << 20), b"")))
    with zipfile.ZipFile(path) as packed:
        if (size := sum(one.file_size for one in packed.infolist())) > MAX_BYTES:
            raise ValueError(f"{size:,} bytes when unpacked; at most {MAX_BYTES:,} are read")
    with np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}


def canonical_name(name: str) -> str:
    """timm's name of the tensor that Hugging Face's ResNet calls `name`; any other name without its wrapper."""
    name = WRAPPER.sub("", name)
    match = HUGGING_FACE.fullmatch(name)
    if not match:
        return re.sub(r"^classifier\.1\.", f"{resnet.HEAD}.", name)
    stage, block, number, kind, leaf = match.groups()
    short = {"convolution": "conv", "normalization": "bn"}[kind]
    if stage is None:
        return f"{short}1.{leaf}"
    inside = f"{short}{int(number) + 1}" if number else f"downsample.{('conv', 'bn').index(short)}"
    return f"layer{int(stage) + 1}.{block}.{inside}.{leaf}"


# ------------------------------------------------------------------------------------------------- into a network and out
def timm_name(name: str) -> str:
    """timm's name of a variable: `layer1.0.bn1/gamma:0` is `layer1.0.bn1.weight`."""
    layer, _, kind = name.removesuffix(":0").rpartition("/")
    return f"{layer}.{KINDS.get(kind, kind)}"


def torch_layout(value: NDArray[Any]) -> NDArray[Any]:
    """A copy in PyTorch's layout."""
    return np.array(value.transpose(AXES[value.ndim]), order="C")


def export_from(network: tf.keras.Model) -> Tensors:
    """Every weight of the network, as read() returns them; load_into() restores them bit for bit."""
    return {timm_name(v.name): torch_layout(v.numpy()) for v in network.weights}


def misfits(wanted: Mapping[str, tuple[int, ...]], tensors: Tensors) -> list[str]:
    """A phrase for each tensor that is missing, of another shape, or unknown."""
    wrong = []
    for name, shape in wanted.items():
        if name not in tensors:
            wrong.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            wrong.append(f"{name} is {list(tensors[name].shape)} and must be {list(shape)}")
    return wrong + [f"{name} has no place" for name in tensors if name not in wanted]


def load_into(network: tf.keras.Model, tensors: Tensors, path: str, new_head: str = "") -> list[str]:
    """Assign tensors that read() returned for `path`, all or none; returns notes for the user.

    A head for another number of classes stays as initialized, with a note, and any head for the reason `new_head`. Raises
    UserError for anything else that does not fit.
    """
    weight, bias = f"{resnet.HEAD}.weight", f"{resnet.HEAD}.bias"
    wanted = {timm_name(v.name): tuple(v.shape[axis] for axis in AXES[len(v.shape)]) for v in network.weights}
    classes, features = wanted[weight]
    theirs = tensors[bias].size if bias in tensors else classes
    if wrong := misfits({**wanted, weight: (theirs, features), bias: (theirs,)}, tensors):
        misfit = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        way = "give weights of this network, or the model= that they are of"
        if known := detect_model(tensors):
            alone = ", with no other model.* knobs" if known == network.name else ""
            way = f"these are the weights of {known}: use model={known}{alone}"
        raise UserError(f"{path}: {len(wrong)} tensors do not fit {network.name} ({misfit}); {way}")
    fitting = {timm_name(v.name): v for v in network.weights}
    if theirs != classes:
        new_head = f"the head is for {theirs} classes and this run has {classes}"
    if new_head:
        del fitting[weight], fitting[bias]
    for name, variable in fitting.items():
        variable.assign(tensors[name].transpose(np.argsort(AXES[tensors[name].ndim])))
    lines = [f"{path}: {len(fitting)} tensors of {network.name}"]
    if new_head:
        lines.append(f"{path}: {new_head}: it is initialized anew")
    return lines


def write(path: str | Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, complete or not at all. Raises UserError if that fails."""
    path = Path(path)
    # safetensors ignores an array's strides.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as file:
            file.write(save(contiguous, {**metadata, "format": "pt"}))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another place") from error


# ------------------------------------------------------------------------------------------------------------- shapes
def detect_model(tensors: Tensors) -> str | None:
    """The option of model= that has these names and shapes, with any number of classes; None if there is none."""
    classes = tensors[f"{resnet.HEAD}.bias"].size if f"{resnet.HEAD}.bias" in tensors else 0
    for path in sorted((files.tree("conf") / "model").glob("*.yaml")):
        row = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        knobs = {knob: value for knob, value in row.items() if knob not in ("defaults", "name")}
        if "block" in row and "depths" in row:
            settings = Model.of_row({"name": path.stem, **knobs})
            if not misfits(shapes(settings, classes), tensors):
                return path.stem
    return None


def shapes(settings: Model, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of export_from(resnet.build(settings, classes, ...)), without building, which takes seconds."""
    tensors: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, outer: int, inner: int, size: int) -> None:
        tensors[f"{name}.weight"] = (outer, inner, size, size)
        tensors.update({f"{norm}.{kind}": (outer,) for kind in ("weight", "bias", "running_mean", "running_var")})

    convolutions, side, _, pool = settings.stem.value
    filters, blurs = settings.filters, settings.antialias is Antialias.blurpool
    if convolutions == 1:
        conv("conv1", "bn1", filters, 3, side)
    else:
        conv("conv1.0", "conv1.1", filters // 2, 3, side)
        conv("conv1.3", "conv1.4", filters // 2, filters // 2, side)
        conv("conv1.6", "bn1", filters, filters // 2, side)
    if pool == "conv":
        conv("maxpool.0", "maxpool.2" if blurs else "maxpool.1", filters, filters, 3)
    before, projection = filters, (1, 2) if settings.avg_down else (0, 1)
    for stage, depth in enumerate(settings.depths):
        width, inner = settings.width * 2**stage, settings.width * settings.groups * 2**stage
        outer = filters * settings.block.value * 2**stage
        for number in range(depth):
            name = f"layer{stage + 1}.{number}"
            if settings.block is Block.bottleneck:
                convs = [(inner, before, 1), (inner, width, 3), (outer, inner, 1)]
            else:
                convs = [(inner, before, 3), (outer, inner, 3)]
            for place, sizes in enumerate(convs, 1):
                conv(f"{name}.conv{place}", f"{name}.bn{place}", *sizes)
            if settings.se_ratio:
                hidden = se_channels(outer, settings.se_ratio)
                for dense, out, into in (("fc1", hidden, outer), ("fc2", outer, hidden)):
                    tensors.update({f"{name}.se.{dense}.weight": (out, into, 1, 1), f"{name}.se.{dense}.bias": (out,)})
            if number == 0 and (stage > 0 or settings.block is Block.bottleneck):
                kernel, norm = (f"{name}.downsample.{part}" for part in projection)
                conv(kernel, norm, outer, before, 1)
            before = outer
    return {**tensors, f"{resnet.HEAD}.weight": (classes, before), f"{resnet.HEAD}.bias": (classes,)}
