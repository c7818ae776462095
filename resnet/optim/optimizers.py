"""SGD and LARS: the published update rules for a list of variables.

Weight decay adds weight_decay * w to the gradients of decayed variables, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from resnet.config.optim import Lars, Optim, Sgd

NORM = ("gamma", "beta")  # of batch norm: never decayed
NORM_AND_BIAS = (*NORM, "bias")  # plain momentum under LARS


class Momentum(tf.Module):
    """v = momentum * v + lr_in * g;  w -= lr_out * v (Nesterov: w -= lr_out * (g + momentum * v)).

    One fused op per variable. The state is a velocity per variable, of its shape.
    """

    def __init__(
        self, variables: Sequence[tf.Variable], momentum: float, factors: Sequence[float], nesterov: bool = False
    ) -> None:
        super().__init__("momentum")
        self.factors = tuple(factors)
        self.variables_to_train = list(variables)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = [tf.Variable(tf.zeros(w.shape, w.dtype), trainable=False, name="velocity") for w in variables]

    @property
    def state(self) -> list[tf.Variable]:
        return self.velocity

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to differentiate; LossScaleOptimizer scales it."""
        return loss

    def rate(self, number: int, lr: tf.Tensor) -> tf.Tensor:
        return lr if self.factors[number] == 1 else lr * self.factors[number]

    def update(self, number: int, gradient: tf.Tensor, lr: tf.Tensor) -> None:
        w, v = self.variables_to_train[number], self.velocity[number]
        tf.raw_ops.ResourceApplyMomentum(
            var=w.handle, accum=v.handle, lr=lr, grad=gradient, momentum=self.momentum, use_nesterov=self.nesterov
        )


def kind(variable: tf.Variable) -> str:
    """`kernel`, `bias`, `gamma` or `beta`, by the end of the variable's name."""
    return str(variable.name).rsplit("/", 1)[-1].split(":")[0]


class SgdUpdate(Momentum):
    """g' = g + wd*w ; v = m*v + g' ; w -= lr*v. The lr is outside the velocity (arXiv:1706.02677 sec. 3, eq. 9)."""

    def __init__(self, variables: Sequence[tf.Variable], settings: Sgd, factors: Sequence[float]) -> None:
        super().__init__(variables, settings.momentum, factors, settings.nesterov)
        self.weight_decay = settings.weight_decay

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """One step; gradients in the order of the variables, lr a float32 scalar."""
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            if self.weight_decay and kind(w) not in NORM:
                g = g + self.weight_decay * w
            self.update(number, g, self.rate(number, lr))


def norm(tensor: tf.Tensor) -> tf.Tensor:
    """The Euclidean norm in one pass over the tensor; tf.norm stores all squares first."""
    return tf.sqrt(2 * tf.nn.l2_loss(tensor))


class LarsUpdate(Momentum):
    """v = m*v + lr*trust*(g + wd*w) ; w -= v, trust = eta*|w| / (|g| + wd*|w| + eps) (arXiv:1708.03888 sec. 4, alg. 1).

    trust is 1 where either norm is 0; batch-norm gamma, beta and biases have trust 1 and no decay.
    """

    def __init__(self, variables: Sequence[tf.Variable], settings: Lars, factors: Sequence[float]) -> None:
        super().__init__(variables, settings.momentum, factors)
        self.settings = settings

    def apply(self, gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """One step; gradients in the order of the variables, lr a float32 scalar."""
        decay = self.settings.weight_decay
        one = tf.ones([], tf.float32)
        for number, (g, w) in enumerate(zip(gradients, self.variables_to_train, strict=True)):
            if kind(w) in NORM_AND_BIAS:
                self.update(number, self.rate(number, lr) * g, one)
                continue
            g_norm, w_norm = norm(g), norm(w)
            trust = self.settings.trust_coefficient * tf.math.divide_no_nan(
                w_norm, g_norm + decay * w_norm + self.settings.epsilon
            )
            trust = tf.where((g_norm > 0) & (w_norm > 0), trust, one)
            self.update(number, self.rate(number, lr) * trust * (g + decay * w), one)


def build(settings: Optim, variables: Sequence[tf.Variable], factors: Sequence[float] | None = None) -> Momentum:
    """The optimizer for float32 `variables`, each with a factor on the learning rate."""
    factors = [1.0] * len(variables) if factors is None else factors
    match settings:
        case Sgd():
            return SgdUpdate(variables, settings, factors)
        case Lars():
            return LarsUpdate(variables, settings, factors)
    raise AssertionError(settings)
