"""Runs as MLPerf's closed division wants them, their mlperf.log without a training, and the judgement of MLPerf's own checker."""

import io
import json
import logging
from pathlib import Path

from mlperf_logging.compliance_checker import mlp_compliance

from resnet.distributed.ranks import Ranks
from resnet.optim import schedule
from resnet.training import mlperf

IMAGENET = 1_281_167, 50_000
# What the closed division fixes; the LARS row of batch 8192 is the recipe's own.
REFERENCE = (
    "model=resnet50",
    "data=imagenet",
    "data.dir=/nowhere",
    "data.std=[1,1,1]",
    "data.min_area=0.05",
    "data.eval_resample=original",
    "track=off",
    "eval_every_epochs=4",
    "stop_at_top1=0.759",
    "steps_per_loop=500",
    "mlperf=true",
)
CLOSED = "training_4.0.0/closed_common.yaml"  # the checker's rules for the closed division
LARS = ("optim=lars", "batch=8192")
SGD = ("optim=sgd", "schedule=polynomial", "schedule.warmup_epochs=5", "optim.lr=0.4", "optim.weight_decay=5e-5")
SGD += ("batch=1024", "epochs=40")


def open_log(run, ranks=None):
    """The log of a run in its folder, which is made."""
    Path(run.out).mkdir(exist_ok=True)
    return mlperf.open_log(run, Path(run.out), ranks or Ranks(device="test chip"))


def rising(epoch):
    """A top-1 that passes 0.759 at epoch 36."""
    return 0.4 + epoch / 100


def play(run, top1=rising, images=IMAGENET, finished=True, ranks=None):
    """Call a run's log as the loop does; `top1` is the result of an epoch. Returns (minutes, lines for the user)."""
    log, plan = open_log(run, ranks), schedule.plan(run, images[0])
    notes, step = log.begin(plan, 0, *images), 0
    while step < plan.total_steps:
        log.training(step)
        _, step = plan.next_call(step)
        if plan.evaluates(step):
            log.evaluating(step)
            log.evaluated(step, top1(plan.epoch(step)))
            if run.stop_at_top1 and top1(plan.epoch(step)) >= run.stop_at_top1:
                break
    return log.end(finished), notes


def path_of(run):
    """The log's file."""
    return Path(run.out) / mlperf.FILE


def entries(run):
    """mlperf.log, a dictionary a line."""
    return [entry(line) for line in path_of(run).read_text().splitlines()]


def entry(line):
    """One line of a log as a dictionary."""
    return json.loads(line.removeprefix(":::MLLOG "))


def value(run, key):
    """Of the only line with this key."""
    (only,) = [line["value"] for line in entries(run) if line["key"] == key]
    return only


def check(path, config="training_4.0.0/common.yaml", werror=True):
    """(whether the compliance checker for ruleset 4.0.0 accepts a log, what it reports)."""
    text, logger = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(text), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        checker = mlp_compliance.make_checker("training", "4.0.0", quiet=False, werror=werror)
        valid, *_ = mlp_compliance.main(str(path), config, checker)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return valid, text.getvalue()


def errors(path):
    """What the same checker has against a log; nothing if it passes."""
    checker = mlp_compliance.make_checker("training", "4.0.0", quiet=False, werror=True)
    mlp_compliance.main(str(path), "training_4.0.0/common.yaml", checker)
    return [*checker.overwritable.values(), *checker.not_overwritable]
