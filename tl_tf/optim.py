"""Learning rate, optimizer, and averaged weights: Keras' own, bound to recipes."""

import contextlib
from collections.abc import Iterator

import gin
import tf_keras


def rate_of_batch(rate: float, *, rate_clips: int, batch_size: int) -> float:
    """A learning rate stated for `rate_clips` clips, in proportion to the batch.

    Source: TokenLearner, App. B.3: 0.8 per core of 4 clips, so 51.2 on 64 cores.
    """
    return rate * batch_size / rate_clips


@gin.configurable
def warmup_cosine(
    learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    end_learning_rate: float = 0.0,
) -> tf_keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 0, then a cosine to the end value, where it stays.

    Source: TokenLearner, App. B.3 (cosine decay; the paper names no warm-up).
    Args:
      learning_rate: at the end of the warm-up.
      total_steps: at which `end_learning_rate` is reached, warm-up included.
      warmup_steps: 0 for none; below total_steps.
      end_learning_rate: from `total_steps` on.

    Raises:
      ValueError: for a warm-up that is not shorter than the training, or a rate that is
        not positive.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_cosine.warmup_steps must be in 0..{total_steps - 1}"
            f" (total_steps={total_steps}), got {warmup_steps}."
        )
    if learning_rate <= 0:
        raise ValueError(f"learning rate must be above 0, got {learning_rate}.")
    return tf_keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=total_steps - warmup_steps,
        alpha=end_learning_rate / learning_rate,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


@gin.configurable
def build_optimizer(
    learning_rate,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float | None = None,
    ema_decay: float | None = None,
) -> tf_keras.optimizers.Optimizer:
    """Momentum SGD, with an exponential moving average (EMA) of the weights if wanted.

    Args:
      learning_rate: a float or a schedule.
      momentum: in [0, 1).
      nesterov: whether the momentum looks ahead.
      weight_decay: decoupled, times the learning rate each step; None for none.
      ema_decay: in (0, 1), as 0.9999; None for no average.  Evaluation uses the
        averaged weights; batch statistics are averages already.

    Raises:
      ValueError: for a decay out of range.
    """
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(
            f"build_optimizer.ema_decay must be in (0, 1) or None, got {ema_decay}."
        )
    return tf_keras.optimizers.SGD(
        learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        use_ema=ema_decay is not None,
        ema_momentum=ema_decay or 0.0,
        jit_compile=False,  # the train step decides
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
