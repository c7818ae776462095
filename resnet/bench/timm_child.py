"""timm's networks on PyTorch, a process of its own: python -m resnet.bench.timm_child eager|compiled MODEL DTYPE BATCH SIZE;
and its transforms: python -m resnet.bench.timm_child transform POLICY FOLDER BATCH.

Run by a Python that has both; ours need not. As PyTorch's and timm's own scripts do it on a CPU: channels last, autocast for
bfloat16, SGD with momentum, one batch of normalized images. timm wants torchvision's names when it is imported, and its ResNets
use nothing of them: where torchvision is missing, or does not fit its PyTorch, empty names stand in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import io
import itertools
import sys
from pathlib import Path
from typing import Any

from resnet.bench import workers


class Placeholder(type):
    """An empty class, or module, that has any name below it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(name, (), {})


class Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, and everything in it, as placeholders."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        mine = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec: Any) -> Any:
        return Placeholder(spec.name, (), {})

    def exec_module(self, _module: Any) -> None:
        """Nothing is in it."""


def import_timm() -> Any:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # missing, or built for another PyTorch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.meta_path.insert(0, Torchvision())
    return importlib.import_module("timm")


def step(compiled: bool, model: str, dtype: str, batch: str, size: str) -> workers.Sides:
    """The train step, eager or by torch.compile."""
    try:
        torch, timm = importlib.import_module("torch"), import_timm()
    except ImportError as error:
        print(f"{sys.executable} has no {error.name}", file=sys.stderr)
        sys.exit(workers.MISSING)
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False, num_classes=1000)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    forward = torch.compile(network) if compiled else network
    images = torch.randn(int(batch), 3, int(size), int(size)).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (int(batch),))

    bias = list(network.parameters())[-1]
    changed = workers.moving(lambda: float(bias.detach().abs().double().sum()))

    def train_step() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = criterion(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def check(loss: Any) -> None:
        workers.require(bool(torch.isfinite(loss)), f"the loss is {float(loss)}")
        changed()

    versions = f"timm {timm.__version__}, PyTorch {torch.__version__}"
    return {"versions": versions, "threads": torch.get_num_threads()}, {"": workers.timed(train_step, check=check)}


def transform(policy: str, folder: str, batch: str) -> workers.Sides:
    """timm's training transform of the JPEGs in `folder`, with Pillow, to uint8, as its loader uses it. A step is a batch.

    `policy` is a string of timm's, or `trivialaugment`: torchvision's, in the place of timm's own.
    """
    try:
        create_transform = importlib.import_module("timm.data").create_transform
        torchvision = importlib.import_module("torchvision.transforms")
        pillow = importlib.import_module("PIL.Image")
    except (ImportError, RuntimeError) as error:
        print(f"{sys.executable} has no timm with torchvision ({error})", file=sys.stderr)
        sys.exit(workers.MISSING)
    trivial = policy == "trivialaugment"
    change = create_transform(
        224,
        interpolation="bilinear",
        is_training=True,
        use_prefetcher=True,
        auto_augment=None if trivial else policy,
        color_jitter=None,
    )
    if trivial:
        change.transforms.insert(2, torchvision.TrivialAugmentWide())
    encoded = itertools.cycle([path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))])

    def one() -> Any:
        images = (pillow.open(io.BytesIO(jpeg)) for jpeg in itertools.islice(encoded, int(batch)))
        return [change(image.convert("RGB")) for image in images]

    def check(images: Any) -> None:
        workers.require({image.shape for image in images} == {(3, 224, 224)}, "images of another shape")

    timm = importlib.import_module("timm")
    return {"versions": f"timm {timm.__version__}"}, {"": workers.timed(one, check=check)}


if __name__ == "__main__":
    eager, compiled = (functools.partial(step, mode) for mode in (False, True))
    workers.serve({"eager": eager, "compiled": compiled, "transform": transform})
