"""The checks of a run and its parts, one by one."""

import ast
import dataclasses
import inspect
import math
import textwrap
from enum import Enum

import pytest

from resnet import UserError
from resnet.config.cluster import Cluster, Device
from resnet.config.data import Cache, Data, Digits, Disk, Folder, Interpolation, Order, Records, Resample, Synthetic
from resnet.config.model import Antialias, Block, Dtype, Model, Policy, Stem
from resnet.config.optim import AdamW, Lamb, Lars, Optim, Sgd
from resnet.config.run import VARIANTS, Run
from resnet.config.schedule import Constant, Cosine, Exponential, Linear, Piecewise, Polynomial, Schedule
from resnet.config.track import Mlflow, Off, Track
from resnet.config.training import (
    Augment,
    Ema,
    EmaStart,
    ErasingMode,
    Finetune,
    Loss,
    MixBy,
    OnNan,
    Progressive,
    RandAugment,
    TrivialAugment,
)

NAN, INF = math.nan, math.inf
ODD_HOSTS = ("-oProxyCommand=touch x", "--mca", "a,b", "a b", "a@-o", "a;b", "$(b)", "")


def model(**knobs):
    return Model(**{"name": "m", "block": Block.bottleneck, "depths": [3, 4, 6, 3], **knobs})


def records(**knobs):
    return Records(**{"classes": 1000, "dir": "shards", **knobs})


def folder(**knobs):
    return Folder(**{"classes": 3, "dir": "photos", **knobs})


def cluster(**knobs):
    return Cluster(name="here", **knobs)


def ema(**knobs):
    return Ema(**knobs)


def progressive(**knobs):
    return Progressive(**knobs)


def finetune(**knobs):
    return Finetune(**knobs)


def on_nan(**knobs):
    return OnNan(**knobs)


def mlflow(**knobs):
    return Mlflow(**{"uri": "sqlite:////x/mlflow.db", "run_name": "a run", **knobs})


def run(**knobs):
    parts = {
        "model": model(),
        "optim": Sgd(lr=0.1),
        "schedule": Piecewise(),
        "dtype": Dtype(name="fp32", policy=Policy.float32),
        "data": records(),
        "cluster": cluster(),
        "track": Off(),
        "out": "runs/x",
    }
    return Run(**{**parts, **knobs})


GOOD = {  # values at the edge of what is allowed
    model: [
        {"se_ratio": 1.0, "stochastic_depth": 0.99, "dropout": 0.99},
        {"depths": [1, 1, 1, 1]},
        {"groups": 32, "width": 4},
        {"batch_norm_momentum": 0.0},
    ],
    Sgd: [{"lr": 0.0}, {"lr": 1e6, "momentum": 0.0, "weight_decay": 0.0}],
    Lars: [{"lr": 1.0, "epsilon": 0.0}],
    Constant: [{"warmup_epochs": 0.0}],
    Piecewise: [{"boundaries_epochs": []}, {"warmup_epochs": 3.0, "boundaries_epochs": [3.5]}],
    Polynomial: [{"horizon_epochs": None}, {"warmup_epochs": 3.0, "horizon_epochs": 3.5}],
    records: [
        *({"classes": 2}, {"image_size": 8, "eval_resize": 8}, {"min_area": 1.0, "max_aspect": 1.0}),
        *({"eval_crop": 1.0}, {"eval_crop": 224 / 8192}, {"eval_crop": 0.95, "eval_resize": None}),
        {"eval_resample": Resample.antialias, "eval_interpolation": Interpolation.bicubic},
    ],
    cluster: [{"threads": None}, {"threads": 1}, {"device": Device.gpu}],
    on_nan: [{"max_skips": 0, "max_rollbacks": 0, "lr_factor": 1.0}],
    mlflow: [{"uri": "http://127.0.0.1:5000"}, {"parent_run": "abc"}],
    run: [
        {"steps": 1, "eval_steps": 1, "save_every_steps": 1, "batch": 1},
        {"seed": 0},
        {"seed": 2**31 - 1},
        {"label_smoothing": 0.0},
        {"mixup": 0.2, "cutmix": 1.0, "mix_switch": 0.9, "mix_by": MixBy.image, "batch": 2},
        {"loss": Loss.bce, "bce_threshold": 0.0, "label_smoothing": 0.0},
        {"stop_at_top1": 1.0},
        {"lr_find": True, "lr_find_start": 1e-7, "lr_find_end": 1e-6, "lr_find_steps": 20},
        {"epochs": 0.01},
        {"epochs": 8.5, "schedule": Cosine(warmup_epochs=8)},
        {"epochs": 40.0, "schedule": Polynomial(horizon_epochs=40.0)},
    ],
}
# Where, what is given, the knob that the message must name, and a word of the way out.
BAD = [
    (model, {"depths": []}, "model.depths", "four numbers"),
    (model, {"depths": [3, 4, 6]}, "model.depths", "four numbers"),
    (model, {"depths": [3, 4, 6, 0]}, "model.depths", "four numbers"),
    (model, {"groups": 0}, "model.groups", "above 0"),
    (model, {"width": -1}, "model.width", "above 0"),
    (model, {"filters": 0}, "model.filters", "above 0"),
    (model, {"block": Block.basic, "groups": 2}, "model.groups", "block=bottleneck"),
    (model, {"block": Block.basic, "width": 4}, "model.groups", "block=bottleneck"),
    (model, {"stem": Stem.deep, "width": 63, "filters": 63}, "model.filters", "an even number"),
    (model, {"se_ratio": -0.1}, "model.se_ratio", "at most 1"),
    (model, {"se_ratio": 1.1}, "model.se_ratio", "at most 1"),
    (model, {"stochastic_depth": 1.0}, "model.stochastic_depth", "below 1"),
    (model, {"stochastic_depth": -0.1}, "model.stochastic_depth", "at least 0"),
    (model, {"dropout": 1.0}, "model.dropout", "below 1"),
    (model, {"dropout": NAN}, "model.dropout", "below 1"),
    (model, {"batch_norm_momentum": 1.0}, "model.batch_norm_momentum", "below 1"),
    (model, {"batch_norm_momentum": -0.1}, "model.batch_norm_momentum", "at least 0"),
    (model, {"batch_norm_epsilon": 0.0}, "model.batch_norm_epsilon", "above 0"),
    (Sgd, {"lr": -0.1}, "optim.lr", "at least 0"),
    (Sgd, {"lr": NAN}, "optim.lr", "at least 0"),
    (Sgd, {"lr": INF}, "optim.lr", "at least 0"),
    (Sgd, {"lr": 1.0, "momentum": 1.0}, "optim.momentum", "below 1"),
    (Sgd, {"lr": 1.0, "weight_decay": -1e-4}, "optim.weight_decay", "at least 0"),
    (Lars, {"lr": 1.0, "trust_coefficient": 0.0}, "optim.trust_coefficient", "above 0"),
    (Lars, {"lr": 1.0, "epsilon": -1.0}, "optim.epsilon", "at least 0"),
    (Lars, {"lr": -1.0}, "optim.lr", "at least 0"),
    (Sgd, {"lr": 1.0, "clip_norm": 0.0}, "optim.clip_norm", "above 0"),
    (Sgd, {"lr": 1.0, "weight_decay": 0.0, "decoupled": True}, "optim.decoupled", "leave it false"),
    (AdamW, {"lr": 1.0, "weight_decay": 0.0, "decay_norm": True}, "optim.decay_norm", "leave it false"),
    (AdamW, {"lr": 1.0, "epsilon": 0.0}, "optim.epsilon", "above 0"),
    (Lamb, {"lr": 1.0, "beta1": 0.0}, "optim.beta1", "above 0 and below 1"),
    (Lamb, {"lr": 1.0, "beta2": 1.0}, "optim.beta2", "above 0 and below 1"),
    (Constant, {"warmup_epochs": -1.0}, "schedule.warmup_epochs", "at least 0"),
    (Piecewise, {"boundaries_epochs": [60.0, 30.0]}, "schedule.boundaries_epochs", "rise"),
    (Piecewise, {"boundaries_epochs": [30.0, 30.0]}, "schedule.boundaries_epochs", "rise"),
    (Piecewise, {"boundaries_epochs": [NAN]}, "schedule.boundaries_epochs", "rise"),
    (Piecewise, {"warmup_epochs": 30.0}, "schedule.boundaries_epochs", "schedule.warmup_epochs=30"),
    (Piecewise, {"factor": 0.0}, "schedule.factor", "above 0"),
    (Polynomial, {"end_lr": -1.0}, "schedule.end_lr", "at least 0"),
    (Polynomial, {"power": 0.0}, "schedule.power", "above 0"),
    (Polynomial, {"warmup_epochs": 5.0, "horizon_epochs": 5.0}, "schedule.horizon_epochs", "schedule.warmup_epochs=5"),
    (Cosine, {"horizon_epochs": NAN}, "schedule.horizon_epochs", "above"),
    (Linear, {"warmup_start": 0.1}, "schedule.warmup_start", "no warm-up"),
    (Linear, {"warmup_epochs": 5.0, "warmup_start": 1.0}, "schedule.warmup_start", "below 1"),
    (Cosine, {"cooldown_epochs": -1.0}, "schedule.cooldown_epochs", "at least 0"),
    (Exponential, {"decay_epochs": 0.0}, "schedule.decay_epochs", "above 0"),
    (Exponential, {"decay_rate": 1.1}, "schedule.decay_rate", "at most 1"),
    (Cosine, {"warmup_epochs": INF}, "schedule.warmup_epochs", "at least 0"),
    (records, {"classes": 1}, "data.classes", "at least 2"),
    (records, {"image_size": 7}, "data.image_size", "at least 8"),
    (records, {"mean": [1.0, 2.0]}, "data.mean", "three numbers"),
    (records, {"mean": [1.0, 2.0, NAN]}, "data.mean", "three numbers"),
    (records, {"std": [1.0, 1.0, 0.0]}, "data.std", "above 0"),
    (records, {"std": [1.0] * 4}, "data.std", "three numbers"),
    (records, {"eval_resize": 223}, "data.eval_resize", "data.image_size=224"),
    (records, {"eval_resize": None}, "data.eval_resize", "or data.eval_crop=0.875"),
    (records, {"eval_resize": 232, "eval_crop": 0.95}, "data.eval_crop", "leave out one of the two"),
    (records, {"eval_crop": 1.01}, "data.eval_crop", "must be at most 1"),
    (records, {"eval_crop": 0.027}, "data.eval_crop", "at least 0.0273"),
    (records, {"eval_crop": NAN}, "data.eval_crop", "must be at most 1"),
    (records, {"eval_interpolation": Interpolation.bicubic}, "data.eval_interpolation", "data.eval_resample=antialias"),
    (records, {"min_area": 0.0}, "data.min_area", "above 0"),
    (records, {"min_area": 1.1}, "data.min_area", "at most 1"),
    (records, {"max_aspect": 0.9}, "data.max_aspect", "at least 1"),
    (records, {"max_corrupt": -1}, "data.max_corrupt", "at least 0"),
    (records, {"label_offset": -1}, "data.label_offset", "at least 0"),
    (records, {"dir": "https://host/y?key=x"}, "data.dir", "with a user, password"),
    (records, {"fetch_mb": 100.0}, "data.fetch_mb", "for addresses"),
    (folder, {"label_column": "x"}, "data.label_column", "for data.labels="),
    (folder, {"max_rejected": 1.5}, "data.max_rejected", "at most 1"),
    (folder, {"max_rejected": -0.5}, "data.max_rejected", "at least 0"),
    (folder, {"listing": "../x-0123456789abcdef"}, "data.listing", "set by itself"),
    (records, {"order": Order.blocks, "fetch_mb": 0.0}, "data.fetch_mb", "above 0"),
    (records, {"order": Order.blocks, "cache": Cache.decoded}, "data.cache", "use data.cache=encoded"),
    (records, {"streams": 12}, "data.order", "use data.order=blocks"),
    (records, {"cache_gb": 12.0}, "data.cache", "no folder or limit; use data.cache=disk, or data.cache_dir=null"),
    (records, {"cache_dir": "x"}, "data.cache", "use data.cache=disk"),
    (records, {"cache": Cache.disk, "cache_gb": 0.0}, "data.cache_gb", "above 0"),
    (records, {"cache": Cache.disk, "cache_dir": "s3://bucket/x"}, "data.cache_dir", "a folder of this machine"),
    (records, {"disk": Disk.hdd}, "data.disk", "nothing with data.order=images"),
    (records, {"disk": Disk.hdd, "dir": "s3://bucket/x", "order": Order.blocks}, "data.disk", "use data.disk=ssd"),
    (records, {"order": Order.blocks, "streams": 0}, "data.streams", "above 0"),
    (records, {"order": Order.blocks, "block_mb": NAN}, "data.block_mb", "above 0"),
    (records, {"order": Order.blocks, "window": -1.0}, "data.window", "at least 0"),
    (records, {"order": Order.blocks, "window": 20_000.0}, "data.window", "at most 10,000"),
    (Digits, {"classes": 10, "dir": "x", "eval_resize": 8}, "data.eval_resize", "data.image_size=224"),
    (Synthetic, {"classes": 10, "train_images": 0}, "data.train_images", "above 0"),
    (Synthetic, {"classes": 10, "eval_images": -1}, "data.eval_images", "above 0"),
    (cluster, {"ranks": 0}, "cluster.ranks", "above 0"),
    (cluster, {"ranks": 3, "hosts": ["a:2", "b:2"]}, "cluster.ranks", "places for 4"),
    (cluster, {"ranks": 2, "hosts": ["a"]}, "cluster.hosts", "[a:2,b:2]"),
    (cluster, {"ranks": 2, "hosts": ["a:x"]}, "cluster.hosts", "[a:2,b:2]"),
    *((cluster, {"ranks": 2, "hosts": [f"{host}:2"]}, "cluster.hosts", "[a:2,b:2]") for host in ODD_HOSTS),
    (cluster, {"ranks": 2, "hosts": ["a:1", "a:1"]}, "cluster.hosts", "[a:2,b:2]"),
    (cluster, {"start_s": 0.0}, "cluster.start_s", "above 0"),
    (cluster, {"stall_s": NAN}, "cluster.stall_s", "above 0"),
    (cluster, {"max_restarts": -1}, "cluster.max_restarts", "at least 0"),
    (cluster, {"gradient_accumulation": 0}, "cluster.gradient_accumulation", "above 0"),
    (ema, {"decay": 1.0}, "ema.decay", "below 1"),
    (ema, {"decay": 0.9, "half_life_steps": 10.0}, "ema.decay", "one of the two"),
    (ema, {"half_life_steps": 0.0}, "ema.half_life_steps", "above 0"),
    (ema, {"torchvision_decay": 1.0}, "ema.torchvision_decay", "below 1"),
    (ema, {"torchvision_decay": 0.9, "half_life_steps": 9.0}, "ema.torchvision_decay", "no two of them"),
    (ema, {"start": EmaStart.copy}, "ema.start", "there is no average"),
    (ema, {"every_steps": 0}, "ema.every_steps", "above 0"),
    (progressive, {"multiple": 0}, "progressive.multiple", "above 0"),
    (progressive, {"start_epochs": -1.0}, "progressive.start_epochs", "at least 0"),
    (progressive, {"end_epochs": INF}, "progressive.end_epochs", "at least 0"),
    (
        progressive,
        {"start_epochs": 3.0, "end_epochs": 2.0},
        "progressive.end_epochs",
        "at least progressive.start_epochs=3",
    ),
    (progressive, {"start_size": 160}, "progressive.end_epochs", "full-grown"),
    (
        progressive,
        {"start_size": 150, "end_epochs": 2.0},
        "progressive.start_size",
        "multiple of progressive.multiple=32",
    ),
    (finetune, {"freeze": "heads"}, "finetune.freeze", "none, head"),
    (finetune, {"freeze": [1]}, "finetune.freeze", "none, head"),
    (finetune, {"layer_decay": 0.0}, "finetune.layer_decay", "above 0 and at most 1"),
    (finetune, {"layer_decay": 1.5}, "finetune.layer_decay", "above 0 and at most 1"),
    (finetune, {"layer_decay": 0.5, "freeze": "head"}, "finetune.layer_decay", "only the head"),
    (finetune, {"lr_multipliers": [1]}, "finetune.lr_multipliers", "{layer4: 0.5, fc: 10}"),
    (finetune, {"lr_multipliers": {"fc": "fast"}}, "finetune.lr_multipliers.fc", "number"),
    (finetune, {"lr_multipliers": {"fc": -1}}, "finetune.lr_multipliers.fc", "at least 0"),
    (on_nan, {"max_skips": -1}, "on_nan.max_skips", "at least 0"),
    (on_nan, {"max_rollbacks": -1}, "on_nan.max_rollbacks", "at least 0"),
    (on_nan, {"lr_factor": 0.0}, "on_nan.lr_factor", "above 0"),
    (on_nan, {"lr_factor": 1.1}, "on_nan.lr_factor", "at most 1"),
    (on_nan, {"lr_factor": NAN}, "on_nan.lr_factor", "above 0"),
    (cluster, {"threads": 0}, "cluster.threads", "above 0"),
    (mlflow, {"uri": ""}, "track.uri", "track=off"),
    (mlflow, {"uri": "mlflow.db"}, "track.uri", "sqlite:////"),
    (mlflow, {"experiment": ""}, "track.experiment", "name"),
    (mlflow, {"register": "x", "log_model": False}, "track.register", "log_model=false"),
    (mlflow, {"register": ""}, "track.register", "give a name"),
    (mlflow, {"tags": ["owner"]}, "track.tags", "{owner: me}"),
    (mlflow, {"tags": {"owner": {"of": "it"}}}, "track.tags", "{owner: me}"),
    (mlflow, {"system_metrics_s": 0.0}, "track.system_metrics_s", "above 0"),
    (run, {"model": model(antialias=Antialias.blurpool), "data": records(image_size=16)}, "model.antialias", "17 px"),
    (run, {"batch": 0}, "batch", "above 0"),
    (run, {"log_every_steps": 0}, "log_every_steps", "above 0"),
    (run, {"keep_checkpoints": 0}, "keep_checkpoints", "above 0"),
    (run, {"steps_per_loop": -1}, "steps_per_loop", "above 0"),
    (run, {"steps": 0}, "steps", "or null"),
    (run, {"eval_steps": 0}, "eval_steps", "or null"),
    (run, {"save_every_steps": 0}, "save_every_steps", "or null"),
    (run, {"profile_steps": [3]}, "profile_steps", "first step and the last"),
    (run, {"profile_steps": [0, 2]}, "profile_steps", "first step and the last"),
    (run, {"profile_steps": [5, 3]}, "profile_steps", "first step and the last"),
    (run, {"epochs": 0.0}, "epochs", "above 0"),
    (run, {"epochs": INF}, "epochs", "above 0"),
    (run, {"eval_every_epochs": 0.0}, "eval_every_epochs", "above 0"),
    (run, {"label_smoothing": 1.0}, "label_smoothing", "below 1"),
    (run, {"label_smoothing": -0.1}, "label_smoothing", "at least 0"),
    (run, {"mixup": -0.1}, "mixup", "at least 0"),
    (run, {"cutmix": -1.0}, "cutmix", "at least 0"),
    (run, {"mixup": 0.2, "batch": 33}, "batch", "an even number; use 34"),
    (run, {"cutmix": 1.0, "mix_switch": 0.3}, "mix_switch", "without both"),
    (run, {"mixup": 0.2, "cutmix": 1.0, "mix_switch": 0.0}, "mix_switch", "above 0"),
    (run, {"mixup": 0.2, "cutmix": 1.0, "mix_switch": 1.0}, "mix_switch", "below 1"),
    (run, {"mix_by": MixBy.image}, "mix_by", "without mixup= or cutmix="),
    (run, {"bce_threshold": 0.2, "label_smoothing": 0.0}, "bce_threshold", "add loss=bce"),
    (run, {"bce_threshold": 0.2, "loss": Loss.bce}, "label_smoothing", "use label_smoothing=0"),
    (run, {"bce_threshold": 1.0, "loss": Loss.bce, "label_smoothing": 0.0}, "bce_threshold", "below 1"),
    (Augment, {"repeats": 0}, "augment.repeats", "above 0"),
    (Augment, {"color_jitter": [0.4]}, "augment.color_jitter", "four numbers"),
    (RandAugment, {"num_ops": 0}, "augment.num_ops", "above 0"),
    (RandAugment, {"magnitude": 31}, "augment.magnitude", "0 to 30"),
    (RandAugment, {"num_magnitude_bins": 1}, "augment.num_magnitude_bins", "at least 2"),
    (RandAugment, {"timm": "rand-x1"}, "augment.timm", "m, n, p"),
    (TrivialAugment, {"num_magnitude_bins": 1}, "augment.num_magnitude_bins", "at least 2"),
    (Augment, {"erasing": 1.1}, "augment.erasing", "from 0 to 1"),
    (Augment, {"erasing_mode": ErasingMode.pixel}, "augment.erasing_mode", "changes nothing"),
    (run, {"eval_offset_epochs": -1.0}, "eval_offset_epochs", "at least 0"),
    (run, {"seed": -1}, "seed", "at least 0"),
    (run, {"seed": 2**31}, "seed", "below 2^31"),
    (run, {"stop_at_top1": 75.9}, "stop_at_top1", "0.759"),
    (run, {"stop_at_top1": 0.0}, "stop_at_top1", "share"),
    (run, {"stop_at_top1": NAN}, "stop_at_top1", "share"),
    (run, {"stop_at_top1": 0.5, "eval": False}, "stop_at_top1", "eval=true"),
    (run, {"lr_find_start": 0.0}, "lr_find_start", "above 0"),
    (run, {"lr_find_end": 1e-4}, "lr_find_end", "above 0.0001"),
    (run, {"lr_find_start": 1.0, "lr_find_end": INF}, "lr_find_end", "above 1"),
    (run, {"lr_find_steps": 19}, "lr_find_steps", "at least 20"),
    (run, {"lr_find": True, "mlperf": True}, "mlperf", "lr_find=true"),
    (run, {"optim": AdamW(lr=1.0), "mlperf": True}, "mlperf", "optim=lars or sgd"),
    (
        run,
        {"epochs": 9.0, "schedule": Cosine(warmup_epochs=5.0, cooldown_epochs=4.0)},
        "schedule.cooldown_epochs",
        "must be below 4 epochs",
    ),
    (run, {"out": ""}, "out", "folder"),
    (run, {"out": "  "}, "out", "folder"),
    (
        run,
        {"epochs": 8.0, "schedule": Cosine(warmup_epochs=8)},
        "epochs",
        "add schedule.warmup_epochs=1.6, or use more than 8",
    ),
    (run, {"epochs": 41.0, "schedule": Polynomial(horizon_epochs=40.0)}, "epochs", "add schedule.horizon_epochs=41"),
]


def told(value):
    """A parameter in a test's name: no addresses, which differ between pytest's workers."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("kind", "knobs"), [(kind, knobs) for kind, sets in GOOD.items() for knobs in sets], ids=told)
def test_values_at_the_edge_of_what_is_allowed_are_taken(kind, knobs):
    made = kind(**knobs)
    for knob, value in knobs.items():
        assert getattr(made, knob) == value


@pytest.mark.parametrize(("kind", "knobs", "named", "way_out"), BAD, ids=told)
def test_a_value_that_cannot_be_is_refused_by_knob_value_and_way_out(kind, knobs, named, way_out):
    with pytest.raises(UserError) as caught:
        kind(**knobs)
    message = str(caught.value)
    value = knobs.get(named.rpartition(".")[2])
    assert message.startswith(f"{named}="), message
    assert "\n" not in message
    assert way_out in message.partition(": ")[2], message
    if isinstance(value, str):
        assert value.partition("?")[0] in message
    elif isinstance(value, Enum):
        assert message.startswith(f"{named}={value.name}:")
    elif isinstance(value, bool | int | list | dict):
        assert message.startswith(f"{named}={str(value).lower() if isinstance(value, bool) else value}:")
    elif value is not None:
        shown = float(message.partition("=")[2].partition(":")[0])
        assert shown == value or (math.isnan(shown) and math.isnan(value))


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused_with_the_two_next_to_it():
    three = cluster(ranks=3)
    assert run(cluster=three, batch=2046).local_batch == 682
    with pytest.raises(
        UserError, match=r"^batch=2048: does not divide over 3 ranks \(cluster=here\); use 2046 or 2049$"
    ):
        run(cluster=three, batch=2048)
    with pytest.raises(UserError, match="use 3 or 3"):
        run(cluster=three, batch=2)
    with pytest.raises(UserError, match=r"does not divide over 3 ranks x 4 accumulated steps \(.*\); use 24 or 36"):
        run(cluster=cluster(ranks=3, gradient_accumulation=4), batch=33)


def test_arithmetic_that_the_device_does_not_have_is_refused():
    fp32, bf16, fp16 = Policy.float32, Policy.mixed_bfloat16, Policy.mixed_float16
    with pytest.raises(UserError, match=r"^dtype.jit=true: XLA is for GPUs .* cluster=here; leave it false"):
        run(dtype=Dtype("fp32", fp32, jit=True))
    with pytest.raises(UserError, match=r"^dtype.gaudi_conversion=full: is for Gaudi with dtype=fp32"):
        run(dtype=Dtype("fp32", fp32, gaudi_conversion="full"))
    with pytest.raises(UserError, match=r"^dtype.gaudi_conversion=full: .* dtype=bf16"):
        run(cluster=cluster(device=Device.hpu), dtype=Dtype("bf16", bf16, gaudi_conversion="full"))
    with pytest.raises(UserError, match=r"^dtype=fp16: cluster=here has no float16; use dtype=bf16"):
        run(cluster=cluster(device=Device.hpu), dtype=Dtype("fp16", fp16))
    run(cluster=cluster(device=Device.gpu), dtype=Dtype("fp16", fp16, jit=True))
    run(cluster=cluster(device=Device.hpu), dtype=Dtype("fp32", fp32, gaudi_conversion="basic"))
    run(dtype=Dtype("fp16", fp16))


def test_crops_that_grow_to_a_size_that_is_no_multiple_are_refused():
    growing = progressive(start_size=160, end_epochs=2)
    with pytest.raises(UserError, match=r"^progressive.start_size=160: grows to 225 px"):
        run(data=records(image_size=225), progressive=growing)
    with pytest.raises(UserError, match=r"^progressive.start_size=160: grows to 128 px"):
        run(data=records(train_size=128), progressive=growing)
    assert run(data=records(train_size=192), progressive=growing).train_size == 192


def test_every_check_of_the_dataclasses_has_a_case_here():
    """A knob that a check looks at is one that some case above breaks."""
    broken = {named for _, _, named, _ in BAD}
    groups = {Model: "model", Optim: "optim", Schedule: "schedule", Data: "data"}
    groups |= {Cluster: "cluster", Track: "track"}
    groups |= {Augment: "augment", Ema: "ema", Progressive: "progressive", Finetune: "finetune"}
    groups |= {OnNan: "on_nan"}
    for kind in {kind for variants in VARIANTS.values() for kind in variants.values()} | {Run, *list(groups)[-4:]}:
        group = next((f"{name}." for base, name in groups.items() if issubclass(kind, base)), "")
        knobs = {knob.name for knob in dataclasses.fields(kind)} - set(VARIANTS)
        for check in (value for name, value in vars(kind).items() if name.startswith(("__post_init__", "check_"))):
            tree = ast.parse(textwrap.dedent(inspect.getsource(check)))
            said = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            for knob in knobs & {word.rpartition(".")[2] for word in said}:
                assert f"{group}{knob}" in broken, f"no case breaks {group}{knob}"


def test_defaults_are_the_published_ones():
    default = run()
    assert (default.batch, default.epochs, default.label_smoothing) == (256, 90.0, 0.1)
    assert (default.optim.momentum, default.optim.weight_decay) == (0.9, 1e-4)
    assert default.schedule.boundaries_epochs == [30.0, 60.0, 80.0] and default.schedule.factor == 0.1
    assert (Lars(lr=1.0).trust_coefficient, Lars(lr=1.0).epsilon) == (0.001, 0.0)
    assert (default.model.batch_norm_momentum, default.model.batch_norm_epsilon) == (0.9, 1e-5)
    assert default.model.zero_init_residual
    assert (default.data.image_size, default.data.eval_resize, default.data.flip) == (224, 256, True)
    assert default.data.mean == [123.68, 116.78, 103.94] and default.data.std == [58.393, 57.12, 57.375]
    assert (default.data.min_area, default.data.max_aspect) == (0.08, pytest.approx(4 / 3))
    assert default.keep_checkpoints == 3


@pytest.mark.parametrize("words", [("recipe=quickstart", "epochs=2"), ("optim=lars", "batch=4096", "epochs=50")])
def test_a_run_too_short_or_too_long_for_its_curve_names_the_word_that_makes_it_run(frozen, words):
    with pytest.raises(UserError, match=r"^epochs=\S+: the curve .* add (schedule\.\S+=[\d.]+)") as refused:
        frozen(*words)
    word = str(refused.value).partition("add ")[2].partition(",")[0]
    assert frozen(*words, word).schedule.warmup_epochs == (0.4 if "recipe=quickstart" in words else 7)
