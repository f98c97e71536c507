"""Learning rate, optimizer, weight decay and averaged weights, bound to recipes."""

import contextlib
import math
from collections.abc import Iterator

import gin
import tensorflow as tf
import tf_keras

DECAYS = ("cosine", "linear", "rsqrt", "constant")
OPTIMIZERS = ("momentum", "adamw")

# Names of the variables without weight decay, as Keras searches them.  A replica's copy
# of `norm/gamma:0` is called `norm/gamma/replica_1:0`; a layer may be called beta.
NOT_DECAYED = (
    r"(^|[/_])(bias|beta|gamma|scale)(/replica_\d+)?(:\d+)?$",
    r"(^|[/_])pos(ition)?_embeddings?(/|:|$)",
    r"(^|/)(class_token|cls)(/|:|$)",
)


def rate_of_batch(rate: float, *, rate_batch: int, batch_size: int) -> float:
    """A learning rate stated for `rate_batch` clips, in proportion to the batch.

    Source: TokenLearner, App. B.3: 0.8 per core of 4 clips, so 51.2 on 64 cores.
    """
    return rate * batch_size / rate_batch


class Schedule(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A warm-up factor times a decay; `build_schedule` says what the arguments are."""

    def __init__(
        self,
        learning_rate: float,
        total_steps: int,
        *,
        decay: str,
        warmup_steps: int,
        decay_start_step: int,
        end_learning_rate: float,
        timescale_steps: int,
    ):
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.decay_start_step = decay_start_step
        self.end_learning_rate = end_learning_rate
        self.timescale_steps = timescale_steps

    def __call__(self, step) -> tf.Tensor:
        """The rate of a step, in float32; past the last step, the rate of the last."""
        step = tf.minimum(tf.cast(step, tf.float32), self.total_steps)
        done = tf.maximum(step - self.decay_start_step, 0.0)  # steps of the decay
        progress = done / (self.total_steps - self.decay_start_step)  # 0..1
        if self.decay == "cosine":
            left = 0.5 * (1.0 + tf.cos(math.pi * progress))
        elif self.decay == "linear":
            left = 1.0 - progress
        elif self.decay == "rsqrt":
            left = tf.math.rsqrt(1.0 + done / self.timescale_steps)
        else:
            left = tf.ones_like(done)
        end = self.end_learning_rate
        rate = end + (self.learning_rate - end) * left
        if self.warmup_steps:
            rate *= tf.minimum(step / self.warmup_steps, 1.0)
        return rate

    def get_config(self) -> dict:
        """The arguments, by name."""
        return dict(vars(self))


@gin.configurable
def build_schedule(
    learning_rate: float,
    total_steps: int,
    *,
    decay: str = "cosine",
    warmup_steps: int = 0,
    decay_start_step: int | None = None,
    end_learning_rate: float = 0.0,
    timescale_steps: int = 10_000,
) -> Schedule:
    """Linear warm-up from 0, and a decay that ends with the training.

    Source: TokenLearner, App. B.3 (cosine decay; the paper names no warm-up); linear,
    constant and rsqrt as in the authors' code for images.
    Differs: the authors' cosine starts again from the full rate after `total_steps`;
    here every decay stays where it has come to.
    Args:
      learning_rate: at the end of the warm-up, above 0.
      total_steps: at which the decay ends, warm-up included.
      decay: "cosine" or "linear", to `end_learning_rate`; "rsqrt", which divides by
        sqrt(1 + steps / timescale_steps); "constant".
      warmup_steps: over which the rate is multiplied by a line from 0 to 1; 0 for none;
        below total_steps.
      decay_start_step: at which the decay starts; None for the end of the warm-up.
      end_learning_rate: of "cosine" and "linear", in 0..learning_rate.
      timescale_steps: of "rsqrt", at least 1.

    Raises:
      ValueError: for another decay, or a number out of its range.
    """
    if decay not in DECAYS:
        raise ValueError(
            f"build_schedule.decay must be one of {DECAYS}, got {decay!r}."
        )
    if learning_rate <= 0:
        raise ValueError(
            "build_schedule: learning_rate must be above 0, got"
            f" {learning_rate}. Set train.learning_rate."
        )
    for name, value in (
        ("warmup_steps", warmup_steps),
        ("decay_start_step", decay_start_step or 0),
    ):
        if not 0 <= value < total_steps:
            raise ValueError(
                f"build_schedule.{name} must be in 0..{total_steps - 1}"
                f" (total_steps={total_steps}), got {value}."
            )
    if decay in ("rsqrt", "constant"):
        if end_learning_rate:
            raise ValueError(
                f"build_schedule.end_learning_rate={end_learning_rate} is not reached"
                f" by decay={decay!r}. Leave it at 0, or set build_schedule.decay to"
                " 'cosine' or 'linear'."
            )
    elif not 0 <= end_learning_rate <= learning_rate:
        raise ValueError(
            "build_schedule.end_learning_rate must be in 0..learning_rate"
            f" ({learning_rate}), got {end_learning_rate}."
        )
    if timescale_steps < 1:
        raise ValueError(
            f"build_schedule.timescale_steps must be at least 1, got {timescale_steps}."
        )
    return Schedule(
        learning_rate,
        total_steps,
        decay=decay,
        warmup_steps=warmup_steps,
        decay_start_step=(
            warmup_steps if decay_start_step is None else decay_start_step
        ),
        end_learning_rate=end_learning_rate,
        timescale_steps=timescale_steps,
    )


@gin.configurable
def build_optimizer(
    learning_rate,
    *,
    kind: str = "momentum",
    momentum: float = 0.9,
    nesterov: bool = False,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float | None = None,
    ema_decay: float | None = None,
) -> tf_keras.optimizers.Optimizer:
    """Momentum SGD or AdamW, with an exponential moving average (EMA) if wanted.

    Weight decay is decoupled: each step takes learning rate * weight_decay of a weight
    away.  It acts on kernels and TokenFuser's `mix`, not on what NOT_DECAYED matches.

    Differs: Keras' AdamW adds epsilon before it corrects the second moment's bias, so
    that epsilon weighs up to sqrt(1 / (1 - beta_2)) times more in the first steps than
    in the authors' code.
    Args:
      learning_rate: a float or a schedule.
      kind: "momentum" or "adamw".
      momentum: of "momentum", in [0, 1).
      nesterov: of "momentum": whether it looks ahead.
      beta_1: of "adamw", in [0, 1): decay of the mean gradient.
      beta_2: of "adamw", in [0, 1): decay of the mean squared gradient.
      epsilon: of "adamw", above 0: added to the root of the mean squared gradient.
      weight_decay: at least 0; None for none.
      ema_decay: in (0, 1), as 0.9999; None for no average.  Evaluation uses the
        averaged weights; batch statistics are averages already.

    Raises:
      ValueError: for another kind, or a number out of range.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(
            f"build_optimizer.kind must be one of {OPTIMIZERS}, got {kind!r}."
        )
    for name, value in (
        ("momentum", momentum),
        ("beta_1", beta_1),
        ("beta_2", beta_2),
    ):
        if not 0 <= value < 1:
            raise ValueError(f"build_optimizer.{name} must be in [0, 1), got {value}.")
    if epsilon <= 0:
        raise ValueError(f"build_optimizer.epsilon must be above 0, got {epsilon}.")
    if weight_decay is not None and weight_decay < 0:
        raise ValueError(
            "build_optimizer.weight_decay must be at least 0 or None, got"
            f" {weight_decay}."
        )
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(
            f"build_optimizer.ema_decay must be in (0, 1) or None, got {ema_decay}."
        )
    shared = {
        "use_ema": ema_decay is not None,
        "ema_momentum": ema_decay or 0.0,
        "jit_compile": False,  # the train step decides
    }
    if kind == "momentum":
        optimizer = _Momentum(
            learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **shared,
        )
    else:
        optimizer = _AdamW(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay or 0.0,  # Keras' own default is 0.004
            **shared,
        )
    optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
    return optimizer


class _Momentum(tf_keras.optimizers.SGD):
    """Keras', with one operation a variable for eight: a short graph starts sooner.

    It is also one pass over memory.
    """

    def update_step(self, gradient, variable):
        momentum = self.momentums[self._index_dict[self._var_key(variable)]]
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=momentum.handle,
            lr=tf.cast(self.learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


class _AdamW(tf_keras.optimizers.AdamW):
    """Keras', with one operation a variable, as `_Momentum`.

    1 - beta_2 is of the beta_2 in single precision, whose power corrects the bias.
    Keras takes it in double: its first steps are shorter by 7e-6 of them.
    """

    def update_step(self, gradient, variable):
        index = self._index_dict[self._var_key(variable)]
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = tf.cast(self.beta_1, dtype), tf.cast(self.beta_2, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(self.learning_rate, dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon, dtype),
            grad=gradient,
        )


@contextlib.contextmanager
def averaged_weights(
    optimizer: tf_keras.optimizers.Optimizer, model: tf_keras.Model
) -> Iterator[None]:
    """Puts the averaged weights into the model for the time of a `with` block."""
    if not optimizer.use_ema:
        yield
        return
    raw = [variable.numpy() for variable in model.trainable_variables]
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, raw, strict=True):
            variable.assign(value)
