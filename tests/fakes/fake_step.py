"""In place of `resnet.training.step.TrainStep`: no images, no graph, losses as the test wants them; tests of the loop are fast."""

import math

import numpy as np
import tensorflow as tf

from resnet.data import source
from resnet.distributed import device
from resnet.distributed.ranks import Ranks
from resnet.optim import schedule
from resnet.training.state import TrainState
from resnet.training.step import TrainStep


class FakeStep:
    """The loss of step n, counted from 0, is `loss(n)`. An update moves every weight by its learning rate and step number."""

    def __init__(self, run, plan, source, state, ranks):
        self.run, self.plan, self.source, self.state, self.ranks = run, plan, source, state, ranks
        self.position = -1
        self.prepared, self.calls = [], []  # (step, crop size) of every pipeline, (first, last) of every call

    def loss(self, step):
        return 1 / (1 + step)

    def prepare(self, step):
        if step == self.position and not self.plan.resizes(step):
            return False
        self.prepared.append((step, self.plan.size(step)))
        return True

    def inputs(self, first, last, lrs=None):
        self.position = last
        lrs = self.plan.lr(np.arange(first, last)) * self.state.progress.lr_scale if lrs is None else lrs
        return first, last, np.asarray(lrs, np.float32)

    def train(self, first, last, lrs, flag):
        self.calls.append((first, last))
        losses = [self.update(step, lr) for step, lr in zip(range(first, last), lrs, strict=True)]
        return tf.constant(losses, tf.float32), flag

    def update(self, step, lr):
        loss = self.loss(step)
        if not (self.run.on_nan.policy.value == "skip" and math.isnan(loss)):
            for variable in (*self.state.network.weights, *self.state.optimizer.state):
                if variable.dtype.is_floating:
                    variable.assign(0.9 * variable + lr * math.cos(step))
        return loss


def with_losses(loss):
    """A FakeStep whose loss of step n is `loss(n)`; `loss` may also be a list."""
    return type("Step", (FakeStep,), {"loss": lambda _self, step: loss(step) if callable(loss) else loss[step]})


def train_step_of(run, seed=1):
    """A real TrainStep of `run` at step 0, with new weights."""
    images = source.open_source(run.data)
    device.seed(seed)
    state = TrainState(run, Ranks())
    step = TrainStep(run, schedule.plan(run, images.train_images), images, state, Ranks())
    step.prepare(0)
    step.position = 0
    return step
