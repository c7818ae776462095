"""What one run is made of: a plain dataclass per variant, checked when it is made.

The YAML files below conf/ say only what differs from the defaults here. Nothing in this module knows Hydra, TensorFlow
or the file system; `resnet.compose` turns a command line into a `Run`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from resnet import UserError

MISSING = "???"  # OmegaConf's mark for "must be given"


class Block(Enum):
    """Residual block: two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with a four times wider output."""

    basic = 1
    bottleneck = 4  # the value is the expansion of the output over the inner width


class Policy(Enum):
    """Keras mixed-precision policy; variables are float32 under all."""

    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"  # with a dynamic scale of the loss: resnet/guard.py


class Device(Enum):
    """What the ranks compute on."""

    cpu = "CPU"
    gpu = "GPU"
    hpu = "HPU"  # Habana Gaudi


class Starter(Enum):
    """The program that starts the ranks."""

    horovodrun = "horovodrun"  # Gloo; ssh to other hosts
    mpirun = "mpirun"  # Open MPI
    srun = "srun"  # Slurm, inside an allocation


class OnCorrupt(Enum):
    """What a record that cannot be read does to a run: end it, or leave its place to the next one."""

    stop = "stop"
    skip = "skip"


class NanPolicy(Enum):
    """What a step whose loss or gradients are not finite does to a run: end it, change nothing, or send it back."""

    stop = "stop"
    skip = "skip"
    rollback = "rollback"


class Cache(Enum):
    """What is kept in memory once it has been read: nothing, the JPEG records, or the decoded pixels."""

    off = "off"
    encoded = "encoded"
    decoded = "decoded"


def check(ok: bool, knob: str, value: object, way_out: str) -> None:
    """Raise UserError naming the knob, its value and the way out unless `ok`."""
    if not ok:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{knob}={shown}: {way_out}")


def check_range(knob: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """`value` must lie in [low, high), or in (low, high) with `open_low`."""
    above = value > low if open_low else value >= low
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
    check(math.isfinite(value) and above and value < high, knob, value, f"must be {bounds}")


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Normalization needs three finite means and three positive deviations, in units of 0..255."""
    check(
        len(mean) == 3 and all(math.isfinite(v) for v in mean), "data.mean", mean, "give three numbers, one a channel"
    )
    check(len(std) == 3 and all(0 < v < math.inf for v in std), "data.std", std, "give three numbers above 0")


# ---------------------------------------------------------------------------------------------------------------- model
@dataclass
class Model:
    """One row of the ResNet family: v1.5 of arXiv:1512.03385, groups as in arXiv:1611.05431."""

    name: str = MISSING
    block: Block = MISSING  # type: ignore[assignment]
    depths: list[int] = field(default_factory=list)  # blocks in each of the four stages
    groups: int = 1
    width: int = 64  # channels of a group in the first stage, doubled from stage to stage
    filters: int = 64  # of the stem; a stage's output is filters * 2**stage * the block's expansion
    zero_init_residual: bool = True  # last gamma of a block starts at 0 (arXiv:1706.02677 sec. 5.1)
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        four = len(self.depths) == 4 and min(self.depths, default=0) > 0
        check(four, "model.depths", self.depths, "give four numbers above 0, such as [3,4,6,3]")
        for knob in ("groups", "width", "filters"):
            check(getattr(self, knob) > 0, f"model.{knob}", getattr(self, knob), "must be above 0")
        plain = self.groups == 1 and self.width == self.filters
        check(
            self.block is not Block.basic or plain,
            "model.groups",
            self.groups,
            "basic blocks have one group as wide as the stem; use model.block=bottleneck",
        )
        check_range("model.batch_norm_momentum", self.batch_norm_momentum, 0, 1)
        check_range("model.batch_norm_epsilon", self.batch_norm_epsilon, 0, 1, open_low=True)


# ------------------------------------------------------------------------------------------------------------ optimizer
@dataclass
class Optim:
    """What every optimizer has. Decay is added to the gradient once: g + weight_decay * w."""

    name: str = MISSING
    lr: float = MISSING  # type: ignore[assignment]  # peak, after warm-up
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, math.inf)
        check_range("optim.momentum", self.momentum, 0, 1)
        check_range("optim.weight_decay", self.weight_decay, 0, math.inf)


@dataclass
class Sgd(Optim):
    """Momentum SGD; decay on all but batch-norm gamma and beta."""

    name: str = "sgd"
    nesterov: bool = False


@dataclass
class LarsRow:
    """LARS settings for global batches up to and including `up_to` (null: any)."""

    up_to: int | None = MISSING  # type: ignore[assignment]
    lr: float = MISSING  # type: ignore[assignment]
    warmup_epochs: float = MISSING  # type: ignore[assignment]
    weight_decay: float = MISSING  # type: ignore[assignment]
    epochs: float = MISSING  # type: ignore[assignment]
    horizon_epochs: float | None = None  # where the curve ends; null: with the epochs
    source: str = MISSING


@dataclass
class Lars(Optim):
    """Layer-wise scaled momentum, arXiv:1708.03888; batch-norm gamma, beta and biases are neither scaled nor decayed."""

    name: str = "lars"
    trust_coefficient: float = 0.001
    epsilon: float = 0.0
    rows: list[LarsRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optim.trust_coefficient", self.trust_coefficient, 0, math.inf, open_low=True)
        check_range("optim.epsilon", self.epsilon, 0, math.inf)


# ------------------------------------------------------------------------------------------------------------- schedule
@dataclass
class Schedule:
    """How the learning rate moves; every schedule starts with a linear warm-up from 0 to optim.lr."""

    name: str = MISSING
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        check_range("schedule.warmup_epochs", self.warmup_epochs, 0, math.inf)


@dataclass
class Constant(Schedule):
    """The peak for ever."""

    name: str = "constant"


@dataclass
class Piecewise(Schedule):
    """The peak times `factor` once more from each boundary on (arXiv:1706.02677 sec. 2.2)."""

    name: str = "piecewise"
    boundaries_epochs: list[float] = field(default_factory=lambda: [30.0, 60.0, 80.0])
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = [self.warmup_epochs, *self.boundaries_epochs]
        check(
            rising == sorted(set(rising)) and all(map(math.isfinite, rising)),
            "schedule.boundaries_epochs",
            self.boundaries_epochs,
            f"must rise, from above schedule.warmup_epochs={self.warmup_epochs:g}",
        )
        check_range("schedule.factor", self.factor, 0, math.inf, open_low=True)


@dataclass
class Horizon(Schedule):
    """A curve that reaches its end at `horizon_epochs` (null: at the run's `epochs`)."""

    horizon_epochs: float | None = None
    end_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("schedule.end_lr", self.end_lr, 0, math.inf)
        if self.horizon_epochs is not None:
            check(
                self.horizon_epochs > self.warmup_epochs,
                "schedule.horizon_epochs",
                self.horizon_epochs,
                f"must be above schedule.warmup_epochs={self.warmup_epochs:g}",
            )


@dataclass
class Polynomial(Horizon):
    """end + (peak - end) * (1 - progress) ** power."""

    name: str = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("schedule.power", self.power, 0, math.inf, open_low=True)


@dataclass
class Cosine(Horizon):
    """Half a cosine from the peak down to end_lr (arXiv:1608.03983, without restarts)."""

    name: str = "cosine"


# ---------------------------------------------------------------------------------------------- dtype, data, cluster, track
@dataclass
class Dtype:
    """Arithmetic of the network; the head and every variable stay float32."""

    name: str = MISSING
    policy: Policy = MISSING  # type: ignore[assignment]
    jit: bool = False  # compile the forward and backward pass with XLA; GPU only
    gaudi_conversion: str | None = (
        None  # Gaudi's own way to bf16, beside dtype=fp32: full, basic, or a file of operations
    )


@dataclass
class Data:
    """What every source of images says of itself. Mean and std are in units of 0..255, by channel."""

    name: str = MISSING
    classes: int = MISSING  # type: ignore[assignment]
    image_size: int = 224  # side of the square the network sees, pixels
    train_size: int | None = (
        None  # side of training crops; null: image_size. 176 for 224: published +0.16 (TorchVision)
    )
    mean: list[float] = field(default_factory=lambda: [123.68, 116.78, 103.94])
    std: list[float] = field(default_factory=lambda: [58.393, 57.12, 57.375])

    def __post_init__(self) -> None:
        check(self.classes > 1, "data.classes", self.classes, "a classifier needs at least 2")
        for knob, size in (("image_size", self.image_size), ("train_size", self.train_size)):
            check(size is None or size >= 8, f"data.{knob}", size, "must be at least 8 pixels")
        check_moments(self.mean, self.std)


@dataclass
class Records(Data):
    """JPEG images in TFRecord shards of the ImageNet layout, labels 1..classes on disk."""

    name: str = "imagenet"
    dir: str = MISSING
    eval_resize: int = 256  # short side before the centre crop, pixels. 232 for 224: published +0.22 (TorchVision)
    min_area: float = 0.08  # random resized crop: least share of the image (arXiv:1409.4842 sec. 6)
    max_aspect: float = 4 / 3  # and its aspect ratio, log-uniform in [1/max_aspect, max_aspect]
    flip: bool = True  # mirror half of the training images left to right
    on_corrupt: OnCorrupt = (
        OnCorrupt.stop
    )  # skip: pass over up to max_corrupt records that cannot be read, and count them
    max_corrupt: int = 100
    cache: Cache = Cache.off  # in the memory of each rank; refused with the figures if it would not fit

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.eval_resize >= self.image_size,
            "data.eval_resize",
            self.eval_resize,
            f"the centre crop of data.image_size={self.image_size} must fit in",
        )
        check(0 < self.min_area <= 1, "data.min_area", self.min_area, "must be above 0 and at most 1")
        check_range("data.max_aspect", self.max_aspect, 1, math.inf)
        check(self.max_corrupt >= 0, "data.max_corrupt", self.max_corrupt, "must be at least 0")


@dataclass
class Folder(Records):
    """What `python -m resnet.prepare source=folder` wrote: anybody's classes, named in its classes.txt."""

    name: str = "folder"


@dataclass
class Digits(Records):
    """scikit-learn's load_digits, written as shards when first used."""

    name: str = "digits"


@dataclass
class Synthetic(Data):
    """Random images made once and shown again and again: for measuring, not for learning."""

    name: str = "synthetic"
    train_images: int = 1_281_167
    eval_images: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("train_images", "eval_images"):
            check(getattr(self, knob) > 0, f"data.{knob}", getattr(self, knob), "must be above 0")


@dataclass
class Cluster:
    """The machine: what computes, and how many ranks of it."""

    name: str = MISSING
    device: Device = Device.cpu
    ranks: int = 1
    hosts: list[str] = field(default_factory=list)  # [a:2,b:2]: two ranks on each of a and b; none: all on this machine
    starter: Starter | None = None  # null: srun inside a Slurm allocation, mpirun for Gaudi, else horovodrun
    dry_run: bool = False  # print the command and environment that would start the ranks, and stop
    start_s: float = 120.0  # for hosts to answer and all ranks to find each other
    stall_s: float = 600.0  # without a step for so long, ranks write where they stand and end
    max_restarts: int = 0  # start ranks that died again from the newest checkpoint, so often
    sync_batch_norm: bool = False  # batch-norm statistics over all ranks, not each rank's own
    gradient_accumulation: int = 1  # an update from so many smaller steps, whose images make up `batch`
    prefetch: bool = True  # batches go to the device ahead of their step; a CPU has none to go to
    threads: int | None = None  # of one rank, for one operation; null: all cores shared out over the ranks

    def __post_init__(self) -> None:
        for knob in ("ranks", "gradient_accumulation"):
            check(getattr(self, knob) > 0, f"cluster.{knob}", getattr(self, knob), "must be above 0")
        for knob in ("start_s", "stall_s"):
            check_range(f"cluster.{knob}", getattr(self, knob), 0, math.inf, open_low=True)
        check(self.max_restarts >= 0, "cluster.max_restarts", self.max_restarts, "must be at least 0")
        slots = [host.rpartition(":")[2] for host in self.hosts]
        well = all(host.rpartition(":")[0] and slot.isdigit() for host, slot in zip(self.hosts, slots, strict=True))
        check(well and len(set(self.hosts)) == len(self.hosts), "cluster.hosts", self.hosts, "must be like [a:2,b:2]")
        check(
            not self.hosts or sum(map(int, slots)) == self.ranks,
            "cluster.ranks",
            self.ranks,
            f"cluster.hosts={self.hosts} has places for {sum(map(int, slots))}",
        )
        check(self.threads is None or self.threads > 0, "cluster.threads", self.threads, "must be above 0, or null")


@dataclass
class Track:
    """Where metrics go besides <out>/metrics.jsonl."""

    name: str = MISSING


@dataclass
class Off(Track):
    """Nowhere."""

    name: str = "off"


@dataclass
class Mlflow(Track):
    """An MLflow tracking store."""

    name: str = "mlflow"
    uri: str = MISSING
    experiment: str = "resnet"
    run_name: str = MISSING
    tags: Any = None  # of one's own, as in {owner: me}, beside recipe, seed, device, versions and commit
    log_model: bool | None = None  # keep the model too, ready to be served; null: yes, but for the jobs of a sweep
    register: str | None = None  # and enter it in the model registry by this name
    tensorboard: bool = False  # TensorBoard event files beside: <out>/tensorboard
    parent_run: str | None = None  # run id to nest this run under; a sweep sets it for its jobs
    system_metrics_s: float = 10.0  # seconds between samples of CPU and memory

    def __post_init__(self) -> None:
        check(
            "://" in self.uri,
            "track.uri",
            self.uri or "''",
            "give a store such as sqlite:////folder/mlflow.db or http://host:5000, or track=off",
        )
        check(bool(self.experiment), "track.experiment", "''", "give it a name")
        check(
            self.register is None or (bool(self.register) and self.log_model is not False),
            "track.register",
            self.register or "''",
            "give a name, and leave out track.log_model=false: there would be no model to enter",
        )
        plain = isinstance(self.tags, dict) and all(
            isinstance(value, (str, int, float)) for value in self.tags.values()
        )
        check(self.tags is None or plain, "track.tags", self.tags, "must be names and texts, such as {owner: me}")
        check_range("track.system_metrics_s", self.system_metrics_s, 0, math.inf, open_low=True)


# --------------------------------------------------------------------------------------------- beside the published recipe
@dataclass
class Ema:
    """Exponential moving average of all weights, evaluated and kept beside them; off while both of the first are null.

    Published +0.25 in short schedules (MosaicML, Methodology of ResNet-50 recipes, 2022).
    """

    decay: float | None = None  # what the average keeps of itself at a step
    half_life_steps: float | None = None  # the same, as the steps after which a weight's share has halved
    every_steps: int = 10  # an update so often, by decay ** every_steps

    @property
    def on(self) -> bool:
        """Whether there is an average at all."""
        return self.decay is not None or self.half_life_steps is not None

    @property
    def kept(self) -> float:
        """What the average keeps of itself over one step."""
        return self.decay if self.decay is not None else 0.5 ** (1 / (self.half_life_steps or math.inf))

    def __post_init__(self) -> None:
        check(
            self.decay is None or self.half_life_steps is None,
            "ema.decay",
            self.decay,
            f"ema.half_life_steps={self.half_life_steps} says it already; give one of the two",
        )
        if self.decay is not None:
            check_range("ema.decay", self.decay, 0, 1, open_low=True)
        if self.half_life_steps is not None:
            check_range("ema.half_life_steps", self.half_life_steps, 0, math.inf, open_low=True)
        check(self.every_steps > 0, "ema.every_steps", self.every_steps, "must be above 0")


@dataclass
class Progressive:
    """Training crops that grow by epochs from `start_size` to the size of the others; off while that is null.

    arXiv:2104.00298 sec. 4; published: 160 to 192 px, 30 % less time at equal top-1 (FFCV, MosaicML).
    """

    start_size: int | None = None  # side of the training crops at first, pixels
    start_epochs: float = 0.0  # where the growth begins
    end_epochs: float = 0.0  # and where it is done
    multiple: int = 32  # sizes are multiples of it: a graph is compiled for each

    def __post_init__(self) -> None:
        check(self.multiple > 0, "progressive.multiple", self.multiple, "must be above 0")
        check_range("progressive.start_epochs", self.start_epochs, 0, math.inf)
        check_range("progressive.end_epochs", self.end_epochs, 0, math.inf)
        check(
            self.end_epochs >= self.start_epochs,
            "progressive.end_epochs",
            self.end_epochs,
            f"must be at least progressive.start_epochs={self.start_epochs:g}",
        )
        size, multiple = self.start_size, self.multiple
        check(
            size is None or self.end_epochs > 0,
            "progressive.end_epochs",
            self.end_epochs,
            f"the crops would never be of progressive.start_size={size}; give the epoch they are full-grown in",
        )
        check(
            size is None or (size >= 8 and size % multiple == 0),
            "progressive.start_size",
            size,
            f"must be a multiple of progressive.multiple={multiple}, of at least 8 pixels",
        )


@dataclass
class Finetune:
    """What of the network is trained, and how fast, by the names of its layers (conv1, bn1, layer1.0.conv1, ..., fc)."""

    # head: the head alone is trained; a list, as in [conv1,bn1,layer1]: these stand still, their batch norm too; or none
    freeze: Any = "none"
    # by the longest name that fits, as in {layer4: 0.5, fc: 10}; 1 for the others
    lr_multipliers: Any = None

    def __post_init__(self) -> None:
        names = isinstance(self.freeze, list) and all(isinstance(name, str) and name for name in self.freeze)
        check(
            names or self.freeze in ("none", "head"),
            "finetune.freeze",
            self.freeze,
            "must be none, head (only the head is trained) or a list of layers' names, such as [conv1,bn1,layer1]",
        )
        factors = self.lr_multipliers or {}
        check(
            isinstance(factors, dict),
            "finetune.lr_multipliers",
            factors,
            "must be factors by layers' names, such as {layer4: 0.5, fc: 10}",
        )
        for name, factor in factors.items():
            number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 <= factor < math.inf
            check(number, f"finetune.lr_multipliers.{name}", factor, "must be a number, at least 0")


@dataclass
class OnNan:
    """What becomes of a run whose loss or gradients are not finite. It may change when a run goes on."""

    # skip: leave out that step's update; rollback: go on from the newest checkpoint with a lower learning rate
    policy: NanPolicy = NanPolicy.stop
    max_skips: int = 100  # updates left out, in all; one more ends the run
    max_rollbacks: int = 3  # in all; one more ends the run
    lr_factor: float = 0.5  # of the learning rate, at every rollback, from there to the end

    def __post_init__(self) -> None:
        check(self.max_skips >= 0, "on_nan.max_skips", self.max_skips, "must be at least 0")
        check(self.max_rollbacks >= 0, "on_nan.max_rollbacks", self.max_rollbacks, "must be at least 0")
        check(0 < self.lr_factor <= 1, "on_nan.lr_factor", self.lr_factor, "must be above 0 and at most 1")


# ------------------------------------------------------------------------------------------------------------------ run
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
        self.check_device()
        full, start, multiple = self.train_size, self.progressive.start_size, self.progressive.multiple
        check(
            start is None or (start <= full and full % multiple == 0),
            "progressive.start_size",
            start,
            f"grows to {full} px (data.train_size, or data.image_size), which must not be smaller, and a multiple of "
            f"progressive.multiple={multiple}",
        )
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
