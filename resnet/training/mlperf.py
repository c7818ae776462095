"""<out>/mlperf.log: a run logged by the rules of MLPerf Training for ResNet (docs/mlperf.md).

Rank 0 writes it with the package mlperf-logging. To MLPerf a run is one process from its first step to the target, and its
clock never stops: a resumed run adds nothing to the log.
"""

from __future__ import annotations

import logging
import math
import re
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

from resnet import UserError
from resnet.config.data import Records
from resnet.config.model import Antialias, Block, Stem
from resnet.config.optim import Lars, Momentum
from resnet.config.run import Run
from resnet.config.schedule import Horizon, Polynomial
from resnet.config.training import Loss
from resnet.distributed.ranks import Ranks
from resnet.optim.schedule import Plan

FILE = "mlperf.log"
TARGET = 0.759  # top-1 to reach
IMAGES = 1_281_167, 50_000  # of ImageNet, to train on and to evaluate
# The values that the closed division allows: training_rules.adoc v1.0 (mlcommons/training_policies), sections "Hyperparameters"
# and "Quality measure", and the reference code (mlcommons/training, image_classification/tensorflow2).
CLOSED: dict[str, tuple[Any, ...]] = {
    "model.block": (Block.bottleneck,),
    "model.stem": (Stem.imagenet,),
    "model.depths": ([3, 4, 6, 3],),
    "model.groups": (1,),
    "model.width": (64,),
    "model.filters": (64,),
    "model.avg_down": (False,),
    "model.se_ratio": (0,),
    "model.antialias": (Antialias.none,),
    "model.stochastic_depth": (0,),
    "model.dropout": (0,),
    "data.name": ("imagenet", "folder"),
    "data.classes": (1000, 1001),
    "data.image_size": (224,),
    "data.train_size": (None, 224),
    "data.mean": ([123.68, 116.78, 103.94],),
    "data.std": ([1, 1, 1],),
    "optim.clip_norm": (None,),
    "optim.decay_norm": (False,),
    "schedule.name": ("polynomial",),
    "schedule.warmup_start": (0,),
    "label_smoothing": (0, 0.1),
    "mixup": (0,),
    "cutmix": (0,),
    "loss": (Loss.softmax,),
    "augment.erasing": (0,),
    "ema.on": (False,),
    "progressive.start_size": (None,),
    "finetune.freeze": ("none",),
    "finetune.lr_multipliers": (None, {}),
    "finetune.layer_decay": (None,),
    "init": (None,),
    "eval": (True,),
    "eval_every_epochs": (4,),
    "eval_offset_epochs": (0, 1, 2, 3),
    "stop_at_top1": (None, TARGET),
}
CROPS = {
    "data.min_area": (0.05,),
    "data.max_aspect": (4 / 3,),
    "data.flip": (True,),
    "data.eval_resize": (256,),
    "data.eval_crop": (None,),
    "data.eval_resample": ("original",),
    "data.eval_flip": (False,),
}
CURVE = {"schedule.power": (2,), "schedule.end_lr": (1e-4,), "schedule.cooldown_epochs": (0,)}
LARS = {"optim.epsilon": (0,), "optim.trust_coefficient": (0.001,), "optim.decay_bias": (False,)}
SGD = {"optim.nesterov": (False,), "optim.decoupled": (False,), "optim.decay_bias": (True,)}


def open_division_reasons(run: Run, train_images: int, eval_images: int) -> list[str]:
    """Settings that the closed division does not allow, as `knob=value (allowed values)`."""
    optim, schedule = run.optim, run.schedule
    rules: dict[str, tuple[Any, ...]] = {**CLOSED, "optim.momentum": (0.9,)}
    if isinstance(run.data, Records):
        rules |= CROPS
    if isinstance(schedule, Polynomial):
        rules |= CURVE
    if isinstance(optim, Lars):
        rules |= LARS | ({"optim.momentum": (optim.momentum,)} if run.batch >= 32768 else {})
    else:
        rules |= SGD | {"optim.lr": (round(optim.lr, 3),)}
        rules["schedule.warmup_epochs"] = (round(schedule.warmup_epochs),)
    doublings = round(math.log2(optim.weight_decay / 1e-4)) if optim.weight_decay else 0
    rules["optim.weight_decay"] = (1e-4 * 2.0**doublings,)
    reasons = []
    for knob, allowed in rules.items():
        value, *may = (getattr(one, "name", one) for one in (attrgetter(knob)(run), *allowed))
        if value not in may:
            reasons.append(f"{knob}={value} ({' or '.join(map(str, may))})")
    if (train_images, eval_images) != IMAGES:
        reasons.append(f"{train_images} training and {eval_images} evaluation images ({IMAGES[0]} and {IMAGES[1]})")
    return reasons


def hyperparameters(run: Run, plan: Plan) -> dict[str, Any]:
    """The optimizer's keys of training_3.1.0/closed_resnet_lars.yaml or closed_resnet_sgd.yaml; lengths in epochs or steps."""
    optim, schedule = run.optim, run.schedule
    assert isinstance(optim, Momentum)
    name = "lars" if isinstance(optim, Lars) else "sgd"
    keys: dict[str, Any] = {
        "opt_name": name,
        f"{name}_opt_base_learning_rate": optim.lr,
        f"{name}_opt_momentum": optim.momentum,
        f"{name}_opt_weight_decay": optim.weight_decay,
    }
    if isinstance(optim, Lars):
        keys["lars_epsilon"] = optim.epsilon
        keys["lars_opt_learning_rate_warmup_epochs"] = schedule.warmup_epochs
    else:
        keys["opt_learning_rate_warmup_epochs"] = schedule.warmup_epochs
    if isinstance(schedule, Horizon):
        falling = (schedule.horizon_epochs or run.epochs) - schedule.cooldown_epochs - schedule.warmup_epochs
        keys[f"{name}_opt_learning_rate_decay_steps"] = round(falling * plan.steps_per_epoch)
        keys[f"{name}_opt_end_learning_rate"] = schedule.end_lr
    if isinstance(schedule, Polynomial):
        keys[f"{name}_opt_learning_rate_decay_poly_power"] = schedule.power
    return keys


def now() -> int:
    """The wall clock, in ms since 1970."""
    return time.time_ns() // 1_000_000


class Log:
    """The log of one run; without `writer`, the class mllog.MLLogger, every method does nothing.

    Epochs count from 1: after 35 of them the weights are those of epoch 35.
    """

    def __init__(self, run: Run, path: Path, platform: str = "", writer: Any = None) -> None:
        self.run, self.path, self.platform, self.writer = run, path, platform, writer
        self.init_ms = self.started = now()
        self.best = 0.0
        self.block: int | None = None  # first epoch of the current one
        self.mllog: Any = None  # from begin() to end()

    def begin(self, plan: Plan, step: int, train_images: int, eval_images: int) -> list[str]:
        """Start the clock, before the first training image is read. Returns notes for the user."""
        self.plan = plan
        if self.writer is None:
            return []
        if step:
            return [
                f"mlperf=true: resumed at step {step:,}, and MLPerf logs uninterrupted runs only; {FILE} stays as it is"
            ]
        logger = logging.Logger(str(self.path), logging.INFO)  # not in logging's tree: no other handler gets its lines
        self.path.unlink(missing_ok=True)  # it could be a link
        logger.addHandler(logging.FileHandler(self.path, "w"))
        root = re.escape(str(Path(__file__).parents[2]))
        self.mllog = self.writer(logger, default_stack_offset=2, root_dir=root)
        reasons = open_division_reasons(self.run, train_images, eval_images)
        self.put("cache_clear", False, self.init_ms)  # this program clears none; docs/mlperf.md says how to
        self.put("submission_benchmark", "resnet", self.init_ms)
        self.put("submission_org", "resnet-experiments", self.init_ms)
        self.put("submission_platform", self.platform, self.init_ms)
        self.put("submission_division", "open" if reasons else "closed", self.init_ms)
        self.put("submission_status", "research", self.init_ms)
        self.put("init_start", None, self.init_ms)
        self.put("seed", self.run.seed)
        self.put("global_batch_size", self.run.batch)
        self.put("gradient_accumulation_steps", 1)
        self.put("model_bn_span", self.run.local_batch)
        self.put("train_samples", train_images)
        self.put("eval_samples", eval_images)
        for key, value in hyperparameters(self.run, plan).items():
            self.put(key, value)
        self.put("init_stop")
        self.started = now()
        self.put("run_start", None, self.started)
        return [f"mlperf=true: in the open division, not the closed one: {'; '.join(reasons)}"] if reasons else []

    def training(self, step: int) -> None:
        """After `step` updates: start MLPerf's block, which ends with an evaluation, unless one has started."""
        if self.block is None:
            until = self.plan.next_evaluation(step)
            self.block = step // self.plan.steps_per_epoch + 1
            self.put("block_start", first_epoch_num=self.block, epoch_count=self.epochs(until - step))

    def evaluating(self, step: int) -> None:
        self.put("eval_start", epoch_num=self.epochs(step))

    def evaluated(self, step: int, top1: float) -> None:
        """They were evaluated, with this top-1 in 0..1."""
        self.put("eval_stop", epoch_num=self.epochs(step))
        self.put("eval_accuracy", float(top1), epoch_num=self.epochs(step))
        self.best = max(self.best, top1)
        self.stop_block()

    def end(self, finished: bool) -> float | None:
        """Stop the clock, at the first call; `finished` if the run has completed. Returns the minutes since begin()."""
        if self.mllog is None:
            return None
        self.stop_block()
        reached = finished and self.best >= (self.run.stop_at_top1 or TARGET)
        stopped = now()
        self.put("run_stop", None, stopped, status="success" if reached else "aborted")
        for handler in self.mllog.logger.handlers:
            handler.close()
        self.mllog = None
        return (stopped - self.started) / 60_000

    def stop_block(self) -> None:
        if self.block is not None:
            self.put("block_stop", first_epoch_num=self.block)
            self.block = None

    def epochs(self, steps: int) -> float:
        """Steps in epochs; an int for whole epochs."""
        return self.plan.epoch(steps) if steps % self.plan.steps_per_epoch else steps // self.plan.steps_per_epoch

    def put(self, key: str, value: Any = None, time_ms: int | None = None, **metadata: Any) -> None:
        """Log one line, with the time now or `time_ms`."""
        if self.mllog:
            kind = "start" if key.endswith("_start") else "end" if key.endswith("_stop") else "event"
            getattr(self.mllog, kind)(key, value, metadata, time_ms=time_ms)


def open_log(run: Run, out: Path, ranks: Ranks) -> Log:
    """The log of a run, whose initialization starts now. Raises UserError if mlperf=true and mlperf-logging is missing."""
    if not run.mlperf or not ranks.primary:
        return Log(run, out / FILE)
    try:
        from mlperf_logging.mllog.mllog import MLLogger  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"mlperf=true: {error}; pip install mlperf-logging, or use mlperf=false") from None
    return Log(run, out / FILE, f"{ranks.size} x {ranks.device}" if ranks.size > 1 else ranks.device, MLLogger)
