"""Logits and parameters of timm's networks, and of ffcv-imagenet's blur, written to tests/golden/model.npz.

In an environment with torch and timm, from the root of the checkout: PYTHONPATH=tests/fakes python tests/golden/oracle_model.py
Written with torch 2.13.0, timm 1.0.31. Weights and images: tests/fakes/named_tensors.py.
"""

from pathlib import Path

import named_tensors
import numpy as np
import timm
import torch
from timm.layers import BlurPool2d, DropPath, get_attn
from timm.models import resnet as theirs

CLASSES = 10
SIZES = (64, 64), (75, 107)
ROWS = "resnet50d", "resnet101d", "seresnet50", "resnetrs50", "resnetblur50"
ROWS += "wide_resnet50_2", "wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d"
DEEP, SE = {"stem_width": 32, "stem_type": "deep", "avg_down": True}, {"block_args": {"attn_layer": "se"}}
RS_SE = {"block_args": {"attn_layer": lambda *args, **more: get_attn("se")(*args, rd_ratio=0.25, **more)}}
RS = {**DEEP, **RS_SE, "replace_stem_pool": True}
BLUR = {"aa_layer": BlurPool2d}
SMALL = {  # of narrow bottlenecks, or of the basic blocks of ResNet-18; tests/resnet/model/test_rows.py has the same ones
    "deep": DEEP,
    "se": SE,
    "rs": RS,
    "blurpool": BLUR,
    "rs_blurpool": {**RS, **BLUR},
    "ffcv": {},
    "rs_ffcv": RS,
    "basic_deep_se": {**DEEP, **SE},
    "basic_ffcv": {},
}


class BlurConv(torch.nn.Module):
    """A convolution of an image that was blurred: what ffcv-imagenet replaces strided convolutions with."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.blur = conv, BlurPool2d(stride=1, pad_mode="constant")

    def forward(self, x):
        return self.conv(self.blur(x))


def blur_like_ffcv(module):
    """The rule of its apply_blurpool: strides above 1 and at least 16 input channels."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, BlurConv(child))
        else:
            blur_like_ffcv(child)


def filled(network, ffcv=False):
    """The network with named tensors."""
    state = network.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(torch.from_numpy(named_tensors.tensor(name, tuple(value.shape))))
    if ffcv:
        blur_like_ffcv(network)
    return network.eval()


def small(name, **more):
    block = {"block": theirs.Bottleneck, "base_width": 16 if name.endswith("ffcv") else 4}
    if name.startswith("basic"):
        block = {"block": theirs.BasicBlock}
    network = theirs.ResNet(layers=[1, 2, 1, 1], num_classes=CLASSES, **block, **SMALL[name], **more)
    return filled(network, name.endswith("ffcv"))


def logits(network, size, count=2):
    with torch.no_grad():
        return network(torch.from_numpy(named_tensors.images(count, *size))).numpy()


def dropped(name):
    """Logits in training, whose masks come from uniform numbers by name."""
    network, count = small(name, drop_path_rate=0.6, drop_rate=0.3).train(), 8
    paths, features = [], network.num_features
    for module in network.modules():
        if isinstance(module, theirs.Bottleneck):
            number, path = len(paths), module.drop_path
            paths.append(path)
            if path is not None:
                kept = named_tensors.uniform(f"stream {number}", (count, 1)) >= path.drop_prob
                scales = torch.from_numpy(kept / (1 - path.drop_prob)).float()[:, :, None, None]
                path.forward = lambda x, scales=scales: x * scales
    assert [path is None for path in paths] == [True, False, False, False, False]
    assert all(isinstance(path, DropPath) for path in paths[1:])
    kept = torch.from_numpy(named_tensors.uniform("stream 2047", (count, features)) >= 0.3)
    torch.nn.functional.dropout = lambda x, p, **_: x * kept / (1 - p)  # what the head calls
    return logits(network, (64, 64), count)


def main():
    golden = {}
    for name in ROWS:
        golden[f"{name}/parameters"] = sum(part.numel() for part in timm.create_model(name).parameters())
    full = {name: filled(timm.create_model(name, num_classes=CLASSES)) for name in ROWS}
    full["resnet50_ffcv"] = filled(timm.create_model("resnet50", num_classes=CLASSES), ffcv=True)
    for name, network in {**full, **{name: small(name) for name in SMALL}}.items():
        golden |= {f"{name}/{height}x{width}": logits(network, (height, width)) for height, width in SIZES}
    golden |= {f"{name}/train": dropped(name) for name in ("deep", "se")}
    np.savez_compressed(Path(__file__).with_name("model.npz"), **golden)


if __name__ == "__main__":
    main()
