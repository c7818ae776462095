"""What one run is made of: a plain dataclass per variant, checked when it is made.

The YAML files below conf/ say only what differs from the defaults here and in `resnet.settings`. Nothing in this module knows
Hydra, TensorFlow or the file system; `resnet.compose` turns a command line into a `Run`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from resnet.config.checks import MISSING, check, check_range
from resnet.config.cluster import Cluster, Device
from resnet.config.data import Data, Digits, Folder, Records, Synthetic
from resnet.config.dtype import Dtype, Policy
from resnet.config.model import Model
from resnet.config.optim import Lars, Optim, Sgd
from resnet.config.schedule import Constant, Cosine, Horizon, Piecewise, Polynomial, Schedule
from resnet.config.track import Mlflow, Off, Track
from resnet.config.training import Ema, Finetune, OnNan, Progressive


@dataclass
class Run:
    """One training, whole."""

    model: Model = MISSING  # type: ignore[assignment]
    optim: Optim = MISSING  # type: ignore[assignment]
    schedule: Schedule = MISSING  # type: ignore[assignment]
    dtype: Dtype = MISSING  # type: ignore[assignment]
    data: Data = MISSING  # type: ignore[assignment]
    cluster: Cluster = MISSING  # type: ignore[assignment]
    track: Track = MISSING  # type: ignore[assignment]
    recipe: str | None = None  # name of the recipe this came from
    out: str = MISSING  # the run's folder, or the sweep's; starting again in it goes on
    resume: str | None = None  # a run's folder to go on in, with that run's own configuration
    init: str | None = (
        None  # weights to start from: .safetensors, .npz, a SavedModel, a run's folder or a checkpoint of one
    )
    batch: int = 256  # images a step over all ranks
    epochs: float = 90.0
    label_smoothing: float = 0.1  # in the training loss only
    mixup: float = 0.0  # alpha of MixUp (arXiv:1710.09412), published with 0.2 for 250 epochs; 0: off
    ema: Ema = field(default_factory=Ema)
    progressive: Progressive = field(default_factory=Progressive)
    finetune: Finetune = field(default_factory=Finetune)
    on_nan: OnNan = field(default_factory=OnNan)
    seed: int = 1  # of weights, order and augmentation
    steps: int | None = None  # stop after so many in all, whatever epochs says
    eval: bool = True
    eval_steps: int | None = None  # evaluate on so many batches only
    eval_every_epochs: float = 1.0
    stop_at_top1: float | None = None  # stop when an evaluation reaches this, in 0..1
    log_every_steps: int = 50
    save_every_steps: int | None = None  # null: after every epoch
    keep_checkpoints: int = 3  # the newest so many, and the best
    steps_per_loop: int = 1  # optimizer steps inside one graph call
    profile_steps: list[int] | None = None  # [first, last], from 1: a TensorBoard profile of them in <out>/profile
    mlperf: bool = False  # write <out>/mlperf.log, as MLPerf Training's rules want it
    lr_find: bool = False  # a learning-rate range test instead of a training: a curve, and the peak lr it suggests
    lr_find_start: float = 1e-4  # its first learning rate
    lr_find_end: float = 10.0  # and its last, if the loss allows
    lr_find_steps: int = 100  # from the one to the other, whatever epochs says

    @property
    def local_batch(self) -> int:
        """Images a step on one rank."""
        return self.batch // self.cluster.ranks

    @property
    def train_size(self) -> int:
        """Side of the training crops, pixels; the last of them if they grow."""
        return self.data.train_size or self.data.image_size

    def __post_init__(self) -> None:
        for knob in ("batch", "log_every_steps", "keep_checkpoints", "steps_per_loop"):
            check(getattr(self, knob) > 0, knob, getattr(self, knob), "must be above 0")
        self.check_lr_find()
        for knob in ("steps", "eval_steps", "save_every_steps"):
            value = getattr(self, knob)
            check(value is None or value > 0, knob, value, "must be above 0, or null")
        asked = self.profile_steps
        pair = asked is None or (len(asked) == 2 and 1 <= asked[0] <= asked[1])
        check(pair, "profile_steps", asked, "give the first step and the last, counted from 1, such as [10,20]")
        check_range("epochs", self.epochs, 0, math.inf, open_low=True)
        check_range("eval_every_epochs", self.eval_every_epochs, 0, math.inf, open_low=True)
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        check_range("mixup", self.mixup, 0, math.inf)
        check(0 <= self.seed < 2**31, "seed", self.seed, "must be at least 0 and below 2^31")
        check(
            self.stop_at_top1 is None or 0 < self.stop_at_top1 <= 1,
            "stop_at_top1",
            self.stop_at_top1,
            "is a share of the images, such as 0.759",
        )
        check(
            self.stop_at_top1 is None or self.eval,
            "stop_at_top1",
            self.stop_at_top1,
            "only an evaluation can tell, and eval=false; use eval=true",
        )
        check(bool(self.out.strip()), "out", repr(self.out), "give a folder")
        self.check_batch()
        self.check_device()
        self.check_crops()
        self.check_epochs()

    def check_lr_find(self) -> None:
        """Raise UserError for a range test that cannot be."""
        check_range("lr_find_start", self.lr_find_start, 0, math.inf, open_low=True)
        check_range("lr_find_end", self.lr_find_end, self.lr_find_start, math.inf, open_low=True)
        check(
            self.lr_find_steps >= 20, "lr_find_steps", self.lr_find_steps, "must be at least 20, or there is no curve"
        )
        check(
            not (self.lr_find and self.mlperf),
            "mlperf",
            self.mlperf,
            "MLPerf's log is of a training, and lr_find=true is none; use mlperf=false",
        )

    def check_batch(self) -> None:
        """Raise UserError for a batch that ranks and accumulated steps cannot share out."""
        ranks, parts = self.cluster.ranks, self.cluster.gradient_accumulation
        shares = ranks * parts
        check(
            self.batch % shares == 0,
            "batch",
            self.batch,
            f"does not divide over {ranks} ranks{f' x {parts} accumulated steps' if parts > 1 else ''} "
            f"(cluster={self.cluster.name}); use {max(shares, self.batch - self.batch % shares)} or "
            f"{self.batch + shares - self.batch % shares}",
        )

    def check_device(self) -> None:
        """Raise UserError for arithmetic that the device does not have."""
        device, dtype = self.cluster.device, self.dtype
        check(
            not dtype.jit or device is Device.gpu,
            "dtype.jit",
            dtype.jit,
            f"XLA is for GPUs (on a CPU it was 5 times slower), and cluster={self.cluster.name}; leave it false",
        )
        check(
            dtype.gaudi_conversion is None or (device is Device.hpu and dtype.policy is Policy.float32),
            "dtype.gaudi_conversion",
            dtype.gaudi_conversion,
            f"is for Gaudi with dtype=fp32, instead of dtype=bf16; here are cluster={self.cluster.name} and "
            f"dtype={dtype.name}",
        )
        check(
            dtype.policy is not Policy.mixed_float16 or device is not Device.hpu,
            "dtype",
            dtype.name,
            f"cluster={self.cluster.name} has no float16; use dtype=bf16",
        )

    def check_crops(self) -> None:
        """Raise UserError for crops that cannot grow from the one size to the other."""
        full, start, multiple = self.train_size, self.progressive.start_size, self.progressive.multiple
        check(
            start is None or (start <= full and full % multiple == 0),
            "progressive.start_size",
            start,
            f"grows to {full} px (data.train_size, or data.image_size), which must not be smaller, and a multiple of "
            f"progressive.multiple={multiple}",
        )

    def check_epochs(self) -> None:
        """Raise UserError for a curve that ends within its warm-up, or before the run."""
        if isinstance(self.schedule, Horizon):
            horizon = self.schedule.horizon_epochs or self.epochs
            check(
                horizon > self.schedule.warmup_epochs,
                "epochs",
                self.epochs,
                f"the curve would end within its warm-up; use more than schedule.warmup_epochs="
                f"{self.schedule.warmup_epochs:g}, or a shorter warm-up",
            )
            check(
                self.epochs <= horizon,
                "epochs",
                self.epochs,
                f"the curve ends at schedule.horizon_epochs={horizon:g}; raise that with it",
            )


# The variants of each group by the name that config.yaml keeps; a group of one variant has free names.
VARIANTS: dict[str, dict[str, type]] = {
    "model": {"": Model},
    "optim": {"sgd": Sgd, "lars": Lars},
    "schedule": {"constant": Constant, "piecewise": Piecewise, "polynomial": Polynomial, "cosine": Cosine},
    "dtype": {"": Dtype},
    "data": {"digits": Digits, "imagenet": Records, "folder": Folder, "synthetic": Synthetic},
    "cluster": {"": Cluster},
    "track": {"off": Off, "mlflow": Mlflow, "server": Mlflow},
}
