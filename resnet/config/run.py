"""What one run is made of: a plain dataclass per variant, checked when it is made.

The YAML files below conf/ say only what differs from the defaults here and beside. Nothing in these modules knows Hydra,
TensorFlow or the file system; compose.py turns a command line into a `Run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from resnet import addresses
from resnet.config.checks import MISSING, Settings, check
from resnet.config.cluster import Cluster, Device
from resnet.config.data import Data, Digits, Fashion, Folder, Order, Records, Synthetic
from resnet.config.model import Antialias, Dtype, Model, Policy, Stem
from resnet.config.optim import AdamW, Lamb, Lars, Momentum, Optim, Sgd
from resnet.config.schedule import Constant, Cosine, Exponential, Horizon, Linear, Piecewise, Polynomial, Schedule
from resnet.config.track import Mlflow, Off, Track
from resnet.config.training import Augment, Ema, Finetune, Loss, MixBy, OnNan, Progressive, RandAugment, TrivialAugment


@dataclass
class Run(Settings):
    model: Model = MISSING
    optim: Optim = MISSING
    schedule: Schedule = MISSING
    dtype: Dtype = MISSING
    data: Data = MISSING
    cluster: Cluster = MISSING
    track: Track = MISSING
    augment: Augment = field(default_factory=Augment)
    recipe: str | None = None  # name of the recipe this came from
    out: str = MISSING  # the run's folder, or the sweep's; starting again in it resumes
    resume: str | None = None  # a run's folder to resume, with that run's own configuration
    # Weights to start from: .safetensors, .npz, a SavedModel, a run's folder or a checkpoint of one; an address of weights
    init: str | None = None
    batch: int = 256  # images a step over all ranks
    epochs: float = 90.0
    label_smoothing: float = 0.1  # in the training loss only
    mixup: float = 0.0  # alpha of MixUp (arXiv:1710.09412), published with 0.2 for 250 epochs; 0: off
    cutmix: float = 0.0  # alpha of CutMix (arXiv:1905.04899), published with 1; 0: off
    mix_switch: float = 0.5  # with both of them: the share of CutMix
    mix_by: MixBy = MixBy.batch  # image: every image is mixed in a way of its own
    loss: Loss = Loss.softmax  # bce: binary cross-entropy of each class (arXiv:2110.00476)
    bce_threshold: float | None = None  # of the targets: above it 1, else 0; null: as they are
    ema: Ema = field(default_factory=Ema)
    progressive: Progressive = field(default_factory=Progressive)
    finetune: Finetune = field(default_factory=Finetune)
    on_nan: OnNan = field(default_factory=OnNan)
    seed: int = 1  # of weights, order and augmentation
    steps: int | None = None  # stop after so many in all, whatever epochs says
    eval: bool = True
    eval_steps: int | None = None  # evaluate on so many batches only
    eval_every_epochs: float = 1.0
    eval_offset_epochs: float = 0.0  # the first evaluation is after this epoch; 0: after eval_every_epochs
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
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def by_position(self) -> bool:
        """Whether ranks read every so many-th image of the batch: what depends on the place is then the same for any number."""
        return self.mixes or self.augment.erasing > 0 or self.augment.repeats > 1

    @property
    def train_size(self) -> int:
        """Side of the training crops, pixels; the last of them if they grow."""
        return self.data.train_size or self.data.image_size

    def __post_init__(self) -> None:
        self.check_above(
            0, "batch", "log_every_steps", "keep_checkpoints", "steps_per_loop", "epochs", "eval_every_epochs"
        )
        self.check_at_most(10_000_000, "batch", "steps_per_loop", "lr_find_steps")
        for knob in ("steps", "eval_steps", "save_every_steps"):
            value = getattr(self, knob)
            self.check(knob, value is None or value > 0, "must be above 0, or null")
        steps, goal = self.profile_steps, self.stop_at_top1
        pair = steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1])
        self.check("profile_steps", pair, "give the first step and the last, counted from 1, such as [10,20]")
        self.check_at_least(0, "label_smoothing", below=1)
        self.check_at_least(0, "mixup", "cutmix", "eval_offset_epochs")
        self.check_mixing()
        self.check("seed", 0 <= self.seed < 2**31, "must be at least 0 and below 2^31")
        self.check("stop_at_top1", goal is None or 0 < goal <= 1, "is a share of the images, such as 0.759")
        way_out = "only an evaluation can tell, and eval=false; use eval=true"
        self.check("stop_at_top1", goal is None or self.eval, way_out)
        check(bool(self.out.strip()), "out", repr(self.out), "give a folder")
        if self.init and addresses.is_remote(self.init):
            addresses.check(self.init, "init=")
        self.check_above(0, "lr_find_start")
        self.check_above(self.lr_find_start, "lr_find_end")
        self.check("lr_find_steps", self.lr_find_steps >= 20, "must be at least 20, or there is no curve")
        way_out = "MLPerf's log is of a training, and lr_find=true is none; use mlperf=false"
        self.check("mlperf", not (self.lr_find and self.mlperf), way_out)
        way_out = f"MLPerf's log has no keys for optim={self.optim.name}; use optim=lars or sgd, or mlperf=false"
        self.check("mlperf", not self.mlperf or isinstance(self.optim, Momentum), way_out)
        self.check_groups()

    def check_augment(self) -> None:
        """Raise UserError for augmentation that these batches or images do not allow."""
        repeats = self.augment.repeats
        self.augment.check("repeats", repeats <= self.batch, f"must be at most batch={self.batch}")
        way_out = f"data={self.data.name} has no photographs to augment; leave it out"
        images = isinstance(self.data, Records)
        check(images or not self.augment.changes_pixels, "augment", self.augment.name, way_out)
        self.augment.check("repeats", images or repeats == 1, way_out)

    def check_mixing(self) -> None:
        """Raise UserError for settings of mixing and of the loss that exclude each other, or would change nothing."""
        both = self.mixup > 0 and self.cutmix > 0
        self.check_above(0, "mix_switch", below=1)
        way_out = "changes nothing without both of them; give mixup= and cutmix=, such as 0.2 and 1, or leave it out"
        self.check("mix_switch", both or self.mix_switch == 0.5, way_out)
        way_out = "changes nothing without mixup= or cutmix=; give one of them, or leave it out"
        self.check("mix_by", self.mixes or self.mix_by is MixBy.batch, way_out)
        threshold = self.bce_threshold
        self.check_at_least(0, "bce_threshold", below=1)
        way_out = "is of binary cross-entropy; add loss=bce, or leave it out"
        self.check("bce_threshold", threshold is None or self.loss is Loss.bce, way_out)
        way_out = f"smooths targets that bce_threshold={threshold} sets to 0 and 1 again; use label_smoothing=0"
        self.check("label_smoothing", threshold is None or not self.label_smoothing, way_out)

    def check_groups(self) -> None:
        """Raise UserError for settings of several groups that do not go together."""
        ranks, parts = self.cluster.ranks, self.cluster.gradient_accumulation
        shares, rest = ranks * parts, self.batch % (ranks * parts)
        accumulated = f" x {parts} accumulated steps" if parts > 1 else ""
        self.check(
            "batch",
            not rest,
            f"does not divide over {ranks} ranks{accumulated} (cluster={self.cluster.name}); use "
            f"{max(shares, self.batch - rest)} or {self.batch + shares - rest}",
        )
        images = self.batch // shares
        pairs = images % 2 == 0 or not self.mixes
        even = 2 * shares * (1 + images // 2)
        way_out = (
            f"gives a rank {images}{accumulated}, and mixing images (mixup, cutmix) takes an even number; use {even}"
        )
        self.check("batch", pairs, way_out)
        if isinstance(self.data, Records) and self.data.order is Order.blocks:
            nearest = ranks * max(1, self.data.streams // ranks)
            self.data.check(
                "streams", self.data.streams % ranks == 0, f"does not divide over {ranks} ranks; use {nearest}"
            )
        self.check_augment()
        device, dtype, cluster = self.cluster.device, self.dtype, f"cluster={self.cluster.name}"
        way_out = f"XLA is for GPUs (on a CPU it was 5 times slower), and {cluster}; leave it false"
        check(not dtype.jit or device is Device.gpu, "dtype.jit", dtype.jit, way_out)
        converts = device is Device.hpu and dtype.policy is Policy.float32
        way_out = f"is for Gaudi with dtype=fp32, instead of dtype=bf16; here are {cluster} and dtype={dtype.name}"
        check(dtype.gaudi_conversion is None or converts, "dtype.gaudi_conversion", dtype.gaudi_conversion, way_out)
        float16 = dtype.policy is Policy.mixed_float16 and device is Device.hpu
        check(not float16, "dtype", dtype.name, f"{cluster} has no float16; use dtype=bf16")
        full, start, multiple = self.train_size, self.progressive.start_size, self.progressive.multiple
        self.progressive.check(
            "start_size",
            start is None or (start <= full and full % multiple == 0),
            f"grows to {full} px (data.train_size, or data.image_size), which must not be smaller, and a multiple of "
            f"progressive.multiple={multiple}",
        )
        least = min(self.data.image_size, self.train_size, start or full)
        mirrors = self.model.antialias is Antialias.blurpool and self.model.stem is not Stem.small
        way_out = f"mirrors the edge, and the last stage of an image of {least} px has one pixel; use 17 px or more"
        check(not mirrors or least > 16, "model.antialias", self.model.antialias.name, way_out)
        if isinstance(self.schedule, Horizon):
            horizon, warmup = self.schedule.horizon_epochs or self.epochs, self.schedule.warmup_epochs
            way_out = f"add schedule.warmup_epochs={self.epochs / 5:g}, or use more than {warmup:g} epochs"
            self.check("epochs", horizon > warmup, f"the curve would end within its warm-up; {way_out}")
            way_out = f"the curve would end within its warm-up; must be below {horizon - warmup:g} epochs"
            self.schedule.check("cooldown_epochs", horizon - self.schedule.cooldown_epochs > warmup, way_out)
            way_out = (
                f"the curve ends at schedule.horizon_epochs={horizon:g}; add schedule.horizon_epochs={self.epochs:g}"
            )
            self.check("epochs", self.epochs <= horizon, way_out)


# The variants of each group by the name that config.yaml keeps; a group of one variant has free names.
VARIANTS: dict[str, dict[str, type]] = {
    "model": {"": Model},
    "optim": {"sgd": Sgd, "lars": Lars, "adamw": AdamW, "lamb": Lamb},
    "schedule": {
        "constant": Constant,
        "piecewise": Piecewise,
        "polynomial": Polynomial,
        "linear": Linear,
        "cosine": Cosine,
        "exponential": Exponential,
    },
    "dtype": {"": Dtype},
    "data": {"digits": Digits, "fashion": Fashion, "imagenet": Records, "folder": Folder, "synthetic": Synthetic},
    "cluster": {"": Cluster},
    "augment": {"none": Augment, "randaugment": RandAugment, "trivialaugment": TrivialAugment},
    "track": {"off": Off, "mlflow": Mlflow, "server": Mlflow},
}
