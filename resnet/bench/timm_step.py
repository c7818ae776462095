"""A child that trains a network of timm with PyTorch: resnet.benchmarks.timm_step MODEL DTYPE BATCH SIZE eager|compiled.

Run by an interpreter that has both; ours need not. As PyTorch's and timm's own scripts do it on a CPU: channels last, autocast
for bfloat16, SGD with momentum, one batch of normalised images. timm wants torchvision's names when it is imported, and its
ResNets use nothing of them: where torchvision is missing, or does not fit its PyTorch, empty names stand in.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from resnet.bench import turns

DTYPES = "bf16", "fp32"


class Named(type):
    """A name that has any name below it."""

    def __getattr__(cls, name: str) -> Any:
        return blank(name)


def blank(name: str) -> Any:
    """An empty class."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Named(name, (), {})


class Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, and everything in it, as modules of blanks."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """Any module of that package."""
        mine = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec: Any) -> types.ModuleType:
        """A module of blanks."""
        module = types.ModuleType(spec.name)
        vars(module).update(__path__=[], __getattr__=blank)
        return module

    def exec_module(self, _module: types.ModuleType) -> None:
        """Nothing is in it."""


def timm_imported() -> Any:
    """The module timm."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # not there, or made for another PyTorch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.meta_path.insert(0, Torchvision())
    return importlib.import_module("timm")


def training(torch: Any, network: Any, dtype: str, batch: int, size: int, compiled: bool) -> Callable[[int], float]:
    """steps -> their seconds."""
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    forward = torch.compile(network) if compiled else network
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = criterion(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def work(steps: int) -> float:
        step()  # finds its feet
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - began

    return work


def main(model: str, dtype: str, batch: str, size: str, mode: str) -> None:
    """Be the child."""
    turns.quiet()
    try:
        torch, timm = importlib.import_module("torch"), timm_imported()
    except ImportError as error:
        turns.absent(f"{sys.executable} has no {error.name}")
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False, num_classes=1000)
    work = training(torch, network, dtype, int(batch), int(size), mode == "compiled")
    work(1)
    turns.take_turns(
        {"versions": f"timm {timm.__version__}, PyTorch {torch.__version__}", "threads": torch.get_num_threads()}, work
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
