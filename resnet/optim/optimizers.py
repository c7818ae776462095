"""SGD, LARS, AdamW and LAMB: the published update rules for a list of variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from resnet.config.optim import Adam, AdamW, Lamb, Lars, Optim, Sgd
from resnet.config.optim import Momentum as MomentumSettings

NORM = ("gamma", "beta")  # of batch norm


def kind(variable: tf.Variable) -> str:
    """`kernel`, `bias`, `gamma` or `beta`, by the end of the variable's name."""
    return str(variable.name).rsplit("/", 1)[-1].split(":")[0]


def is_decayed(variable: tf.Variable, settings: Optim) -> bool:
    """Whether the weight decay applies to the variable: to kernels, and to what `settings` say."""
    name = kind(variable)
    return settings.decay_norm if name in NORM else settings.decay_bias if name == "bias" else True


def norm(tensor: tf.Tensor) -> tf.Tensor:
    """The Euclidean norm in one pass over the tensor; tf.norm stores all squares first."""
    return tf.sqrt(2 * tf.nn.l2_loss(tensor))


def clip_by_global_norm(gradients: Sequence[tf.Tensor], limit: float) -> list[tf.Tensor]:
    """The gradients times min(1, limit / (|g| + 1e-6)), |g| of all as one vector (torch.nn.utils.clip_grad_norm_)."""
    total = tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
    factor = tf.minimum(limit / (total + 1e-6), 1.0)
    return [gradient * factor for gradient in gradients]


def slots(variables: Sequence[tf.Variable], name: str) -> list[tf.Variable]:
    """A variable of zeros beside each of `variables`."""
    return [tf.Variable(tf.zeros(w.shape, w.dtype), trainable=False, name=name) for w in variables]


class Optimizer(tf.Module):
    """Base of the update rules. `factors` multiply the learning rate of each variable."""

    def __init__(self, variables: Sequence[tf.Variable], settings: Optim, factors: Sequence[float], name: str) -> None:
        super().__init__(name)
        self.factors = tuple(factors)
        self.variables_to_train = list(variables)
        self.decayed = tuple(settings.weight_decay > 0 and is_decayed(w, settings) for w in variables)
        self.weight_decay, self.clip_norm = settings.weight_decay, settings.clip_norm

    @property
    def state(self) -> list[tf.Variable]:
        """What the optimizer remembers between steps."""
        raise NotImplementedError

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to differentiate; LossScaleOptimizer scales it."""
        return loss

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """One step; gradients in the order of the variables, lr a float32 scalar."""
        if self.clip_norm is not None:
            gradients = clip_by_global_norm(gradients, self.clip_norm)
        self.update(gradients, lr)

    def update(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """The same with gradients that are clipped."""
        raise NotImplementedError

    def rate(self, number: int, lr: tf.Tensor) -> tf.Tensor:
        return lr if self.factors[number] == 1 else lr * self.factors[number]

    def decay(self, number: int, rate: tf.Tensor) -> None:
        """w *= 1 - rate * weight_decay, if w is decayed: the decoupled decay of arXiv:1711.05101 alg. 1 and 2."""
        if self.decayed[number]:
            w = self.variables_to_train[number]
            w.assign(w * (1 - rate * self.weight_decay))


class Momentum(Optimizer):
    """v = momentum * v + lr_in * g;  w -= lr_out * v (Nesterov: w -= lr_out * (g + momentum * v)).

    One fused op per variable. The state is a velocity per variable, of its shape.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        settings: MomentumSettings,
        factors: Sequence[float],
        nesterov: bool = False,
    ) -> None:
        super().__init__(variables, settings, factors, "momentum")
        self.momentum, self.nesterov = settings.momentum, nesterov
        self.velocity = slots(variables, "velocity")

    @property
    def state(self) -> list[tf.Variable]:
        return self.velocity

    def move(self, number: int, gradient: tf.Tensor, lr: tf.Tensor) -> None:
        w, v = self.variables_to_train[number], self.velocity[number]
        tf.raw_ops.ResourceApplyMomentum(
            var=w.handle, accum=v.handle, lr=lr, grad=gradient, momentum=self.momentum, use_nesterov=self.nesterov
        )


class SgdUpdate(Momentum):
    """g' = g + wd*w ; v = m*v + g' ; w -= lr*v. The lr is outside the velocity (arXiv:1706.02677 sec. 3, eq. 9).

    Decoupled: w *= 1 - lr*wd ; v = m*v + g ; w -= lr*v, as timm's SGDW.
    """

    def __init__(self, variables: Sequence[tf.Variable], settings: Sgd, factors: Sequence[float]) -> None:
        super().__init__(variables, settings, factors, settings.nesterov)
        self.decoupled = settings.decoupled

    def update(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            if self.decoupled:
                self.decay(number, self.rate(number, lr))
            elif self.decayed[number]:
                g = g + self.weight_decay * w
            self.move(number, g, self.rate(number, lr))


class LarsUpdate(Momentum):
    """v = m*v + lr*trust*(g + wd*w) ; w -= v, trust = eta*|w| / (|g| + wd*|w| + eps) (arXiv:1708.03888 sec. 4, alg. 1).

    trust is 1 where either norm is 0; variables that weight decay does not apply to have trust 1.
    """

    def __init__(self, variables: Sequence[tf.Variable], settings: Lars, factors: Sequence[float]) -> None:
        super().__init__(variables, settings, factors)
        self.settings = settings

    def update(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        decay = self.settings.weight_decay
        one = tf.ones([], tf.float32)
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            if not is_decayed(w, self.settings):
                self.move(number, self.rate(number, lr) * g, one)
                continue
            g_norm, w_norm = norm(g), norm(w)
            trust = self.settings.trust_coefficient * tf.math.divide_no_nan(
                w_norm, g_norm + decay * w_norm + self.settings.epsilon
            )
            trust = tf.where((g_norm > 0) & (w_norm > 0), trust, one)
            self.move(number, self.rate(number, lr) * trust * (g + decay * w), one)


class AdamUpdate(Optimizer):
    """m = b1*m + (1-b1)*g ; s = b2*s + (1-b2)*g*g ; r = m/c1 / (sqrt(s/c2) + eps), c = 1 - b**t (arXiv:1412.6980 alg. 1).

    One fused op per variable. The state is m and s of each variable, of its shape, and the number t of steps, an int64 scalar.
    """

    def __init__(self, variables: Sequence[tf.Variable], settings: Adam, factors: Sequence[float], name: str) -> None:
        super().__init__(variables, settings, factors, name)
        self.settings = settings
        self.mean, self.square = slots(variables, "mean"), slots(variables, "square")
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    @property
    def state(self) -> list[tf.Variable]:
        return [*self.mean, *self.square, self.steps]

    def count(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Count one step; (scale, epsilon) float32 scalars, r = scale * m / (sqrt(s) + epsilon).

        1 - b**t by expm1, from b as the fused op rounds it: in float32 1 - 0.999 has no more than four digits.
        """
        t = tf.cast(self.steps.assign_add(1), tf.float32)
        betas = self.settings.beta1, self.settings.beta2
        first, second = (-tf.math.expm1(t * math.log(np.float32(beta))) for beta in betas)
        root = tf.sqrt(second)
        return root / first, self.settings.epsilon * root

    def move(self, number: int, target: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor, epsilon: tf.Tensor) -> None:
        """Update m and s of variable `number`; target -= rate * m / (sqrt(s) + epsilon)."""
        tf.raw_ops.ResourceApplyAdam(
            var=target.handle,
            m=self.mean[number].handle,
            v=self.square[number].handle,
            beta1_power=0.0,  # the corrections are in rate and epsilon
            beta2_power=0.0,
            lr=rate,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            epsilon=epsilon,
            grad=gradient,
        )


class AdamWUpdate(AdamUpdate):
    """w *= 1 - lr*wd ; w -= lr*r (arXiv:1711.05101 alg. 2, with lr in place of its schedule multiplier, as PyTorch's AdamW)."""

    def update(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        scale, epsilon = self.count()
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            rate = self.rate(number, lr)
            self.decay(number, rate)
            self.move(number, w, g, rate * scale, epsilon)


class LambUpdate(AdamUpdate):
    """w -= lr*trust*(r + wd*w), trust = |w| / |r + wd*w| (arXiv:1904.00962 alg. 2; phi is the identity, as in timm's Lamb).

    trust is 1 where either norm is 0; variables that weight decay does not apply to have trust 1.
    """

    def update(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        scale, epsilon = self.count()
        beta1, beta2 = (np.float32(beta) for beta in (self.settings.beta1, self.settings.beta2))
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            rate = self.rate(number, lr)
            if not is_decayed(w, self.settings):
                self.move(number, w, g, rate * scale, epsilon)
                continue
            m, v = self.mean[number], self.square[number]
            mean = m.assign_add((1 - beta1) * (g - m))
            square = v.assign_add((1 - beta2) * (g * g - v))
            step = scale * mean / (tf.sqrt(square) + epsilon) + self.weight_decay * w
            w_norm, step_norm = norm(w), norm(step)
            trust = tf.where((w_norm > 0) & (step_norm > 0), w_norm / step_norm, 1.0)
            tf.raw_ops.ResourceApplyGradientDescent(var=w.handle, alpha=rate * trust, delta=step)


def build(settings: Optim, variables: Sequence[tf.Variable], factors: Sequence[float] | None = None) -> Optimizer:
    """The optimizer for float32 `variables`, each with a factor on the learning rate."""
    factors = [1.0] * len(variables) if factors is None else factors
    match settings:
        case Sgd():
            return SgdUpdate(variables, settings, factors)
        case Lars():
            return LarsUpdate(variables, settings, factors)
        case AdamW():
            return AdamWUpdate(variables, settings, factors, "adamw")
        case Lamb():
            return LambUpdate(variables, settings, factors, "lamb")
    raise AssertionError(settings)
