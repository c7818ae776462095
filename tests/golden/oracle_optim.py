"""What PyTorch, torchvision and timm compute, for tests/resnet/optim/: writes optim.json beside this file.

    PYTHON tests/golden/oracle_optim.py      # a Python with torch and timm; written with torch 2.13.0, timm 1.0.31

The weights and gradients of the optimizers are `draw` of this file, which the tests call too.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 50
SHAPES = {"conv/kernel": (3, 4), "fc/bias": (3,), "bn/gamma": (4,), "bn/beta": (4,)}
LRS = [0.02 * min(1.0, (step + 1) / 5) * (1 - step / STEPS) for step in range(STEPS)]
CLIP = 1.0


def draw(step: int | None = None) -> dict[str, np.ndarray]:
    """float32 gradients of a step by variable, or the first weights; their norms lie on both sides of CLIP."""
    random = np.random.default_rng([7, 0 if step is None else step + 1])
    scale = 0.5 if step is None else 0.1 * (1 + step % 5)
    return {name: random.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


# name -> class, settings, the kinds of variables that are decayed, clipped
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "sgd": ("SGD", {"momentum": 0.9, "weight_decay": 0.05}, "kernel bias", False),
    "sgd_nesterov_clipped": ("SGD", {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True}, "kernel bias", True),
    "sgd_decoupled": ("SGDW", {"momentum": 0.9, "weight_decay": 0.5}, "kernel bias", False),
    "sgd_decoupled_nesterov": ("SGDW", {"momentum": 0.8, "weight_decay": 0.5, "nesterov": True}, "kernel", True),
    "adamw": ("AdamW", {"weight_decay": 0.5}, "kernel", False),
    "adamw_all": ("AdamW", {"weight_decay": 0.5, "betas": (0.8, 0.99), "eps": 1e-3}, "kernel bias gamma beta", True),
    "adamw_plain": ("AdamW", {"weight_decay": 0.0}, "", False),
    "lamb": ("Lamb", {"weight_decay": 0.2, "max_grad_norm": None}, "kernel", False),
    "lamb_clipped": ("Lamb", {"weight_decay": 0.2, "max_grad_norm": None}, "kernel", True),
    "lamb_clips": ("Lamb", {"weight_decay": 0.2, "max_grad_norm": CLIP}, "kernel", False),  # by its own formula
    "lamb_all": (
        "Lamb",
        {"weight_decay": 0.2, "max_grad_norm": None, "betas": (0.8, 0.99)},
        "kernel bias gamma beta",
        False,
    ),
}


def optimize(kind: str, settings: dict[str, Any], decayed: str, clipped: bool) -> dict[str, list[float]]:
    """The weights after 10 steps and after all, flat."""
    import timm.optim
    import torch

    weights = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in draw().items()}
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for name, weight in weights.items():
        groups[name.rpartition("/")[2] not in decayed.split()]["params"].append(weight)
    make = getattr(timm.optim, kind) if kind in ("SGDW", "Lamb") else getattr(torch.optim, kind)
    optimizer = make([group for group in groups if group["params"]], lr=LRS[0], **settings)
    after = {}
    for step, lr in enumerate(LRS):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, gradient in draw(step).items():
            weights[name].grad = torch.from_numpy(gradient)
        if clipped:
            torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimizer.step()
        if step + 1 in (10, STEPS):
            after[str(step + 1)] = np.concatenate([w.detach().numpy().ravel() for w in weights.values()]).tolist()
    return after


def torch_rates(make: Any, calls: int) -> list[float]:
    """The learning rates of a scheduler of PyTorch with peak 0.5, at `calls` calls."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    scheduler, rates = make(optimizer, torch.optim.lr_scheduler), []
    for _ in range(calls):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def timm_rates(name: str, count: int, **settings: Any) -> list[float]:
    """The same of timm's scheduler `name`, updated with every step of 10 to the epoch."""
    import torch
    from timm.scheduler.scheduler_factory import create_scheduler_v2

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    scheduler, _ = create_scheduler_v2(optimizer, name, step_on_epochs=False, updates_per_epoch=10, **settings)
    rates = []
    for step in range(count):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def schedules() -> dict[str, list[float]]:
    """Learning rates with peak 0.5: of torchvision's train.py by epochs, of timm's by steps."""

    def warmed(rates: Any, after: Any) -> Any:
        def make(optimizer: Any, module: Any) -> Any:
            first = module.LinearLR(optimizer, start_factor=0.01, total_iters=5)
            return module.SequentialLR(optimizer, [first, after(optimizer, module)], milestones=[5])

        return torch_rates(make, rates)

    late = {"num_epochs": 20, "warmup_epochs": 4, "warmup_prefix": True}  # the curve starts after the warm-up
    return {
        "torchvision cosine": warmed(30, lambda o, m: m.CosineAnnealingLR(o, T_max=25)),
        "torchvision exponential": warmed(30, lambda o, m: m.ExponentialLR(o, gamma=0.9)),
        "torchvision step": warmed(30, lambda o, m: m.StepLR(o, step_size=7, gamma=0.3)),
        "timm cosine": timm_rates("cosine", 260, min_lr=0.01, warmup_lr=0.05, cooldown_epochs=2, **late),
        "timm poly": timm_rates("poly", 260, min_lr=0.01, warmup_lr=0.05, decay_rate=1.0, cooldown_epochs=2, **late),
        "timm step": timm_rates("step", 260, warmup_lr=0.05, decay_epochs=2.5, decay_rate=0.7, **late),
    }


def averages() -> dict[str, list[float]]:
    """The average that torchvision's train.py has after each of 5 epochs of 96 steps; the weight is the number of steps so far.

    Decay 0.9999 an update, each 32 steps, batch 64; its updates follow steps 1, 33, 65 of an epoch, which are counted here as
    32, 64 and 96.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel

    after = {}
    for warmup in (0, 2):
        weight = torch.nn.Linear(1, 1, bias=False).double()
        alpha = min(1.0, (1 - 0.9999) * 64 * 32 / 5)
        average = AveragedModel(
            weight, avg_fn=lambda mean, now, _count, decay=1 - alpha: decay * mean + (1 - decay) * now
        )
        means = []
        for epoch in range(5):
            for update in range(3):
                torch.nn.init.constant_(weight.weight, epoch * 96 + (update + 1) * 32)
                average.update_parameters(weight)
                if epoch < warmup:
                    average.n_averaged.fill_(0)
            means.append(average.module.weight.item())
        after[str(warmup)] = means
    return after


def layer_decays() -> dict[str, dict[str, float]]:
    """timm's factors on the learning rate, by the name of the parameter."""
    import timm
    from timm.optim import param_groups_layer_decay

    factors = {}
    for name in ("resnet18", "resnet50"):
        model = timm.create_model(name)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, layer_decay=0.75)
        factors[name] = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    return factors


def main() -> None:
    warnings.simplefilter("ignore")
    content = {
        "optimizers": {name: optimize(*settings) for name, settings in OPTIMIZERS.items()},
        "schedules": schedules(),
        "averages": averages(),
        "layer_decays": layer_decays(),
    }
    path = Path(__file__).with_name("optim.json")
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
