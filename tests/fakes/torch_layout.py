"""torchvision's naming of weights and its forward pass, in PyTorch's layout, in NumPy."""

from pathlib import Path

import numpy as np
import yaml

from resnet.config.model import Block, Model

ROWS = Path(__file__).resolve().parents[2] / "conf" / "model"
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


def row(name):
    """A row of conf/model as the dataclass it becomes."""
    knobs = yaml.safe_load((ROWS / f"{name}.yaml").read_text())
    del knobs["defaults"]
    return Model.of_row(knobs)


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
