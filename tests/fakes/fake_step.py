"""In place of TrainStep: no images and no graph, but losses as the test wants them, so that tests of the loop are fast."""

import math

import tensorflow as tf

from resnet.data import source
from resnet.data.augment import draws
from resnet.distributed.ranks import Ranks
from resnet.optim import schedule
from resnet.training.state import TrainState
from resnet.training.step import TrainStep


class FakeStep(TrainStep):
    """The loss of step n, counted from 0, is `loss(n)`. Every update changes all weights, to NaN if its loss is not finite."""

    def __init__(self, run, plan, source, state, ranks):
        super().__init__(run, plan, source, state, ranks)
        self.train = self.train_steps
        self.prepared, self.calls = [], []  # (step, crop size) of every pipeline, (first, last) of every call

    def loss(self, step):
        return 1 / (1 + step)

    def prepare(self, step):
        if step == self.position and not self.plan.resizes(step):
            return False
        self.prepared.append((step, self.plan.size(step)))
        return True

    def train_steps(self, _batches, lrs, _drawn, flag):
        first = self.position - len(lrs)
        self.calls.append((first, self.position))
        losses = [self.update(first + number, float(lr)) for number, lr in enumerate(lrs)]
        return tf.constant([[loss, 1 - loss, 1.0] for loss in losses], tf.float32), flag

    def update(self, step, lr):
        loss = self.loss(step)
        if not (self.skip and math.isnan(loss)):
            for variable in (*self.state.network.weights, *self.state.optimizer.state):
                if variable.dtype.is_floating:
                    variable.assign(0.9 * variable + lr * math.cos(step) + 0 * loss)
        return loss


def with_losses(loss):
    """A FakeStep whose loss of step n is `loss(n)`; `loss` may also be a list."""
    return type("Step", (FakeStep,), {"loss": lambda _self, step: loss(step) if callable(loss) else loss[step]})


def train_step_of(run):
    """A real TrainStep of `run`, prepared for step 0, with new weights."""
    images = source.open_source(run.data)
    tf.keras.utils.set_random_seed(run.seed)
    state = TrainState(run, Ranks())
    step = TrainStep(run, schedule.plan(run, images.train_images), images, state, Ranks())
    step.prepare(0)
    return step


def nan_draws(steps, times=10**6):
    """In place of draws.of_steps: NaN at these steps, so many times. With mixup= it makes every pixel of the batch NaN."""
    plain, left = draws.of_steps, dict.fromkeys(steps, times)

    def of_steps(run, wanted, *more):
        values = plain(run, wanted, *more)
        for place, step in enumerate(wanted):
            if left.get(step, 0) > 0:
                left[step] -= 1
                values.mix[place] = math.nan
        return values

    return of_steps
