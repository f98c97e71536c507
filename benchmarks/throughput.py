"""Images (or clips) per second of one recipe's model against another's.

  python -m benchmarks.throughput \
    --recipe=gin/imagenet_ft384_vit_b16_tl8_6.gin --rival=gin/imagenet_ft384_vit_b16.gin

Both run interleaved in one process, forward or a whole training step, on random pixels
in memory: no input pipeline. Prints medians, quartiles of the rounds' ratios, and the
ratio of the costs beside them.
"""

import statistics
import sys
import time

from absl import app, flags

from tl_tf import config, startup

_RECIPE = flags.DEFINE_string("recipe", None, "A recipe.", required=True)
_RIVAL = flags.DEFINE_string("rival", None, "The one to compare with.", required=True)
_STEP = flags.DEFINE_enum("step", "forward", ["forward", "train"], "What is timed.")
_BATCH = flags.DEFINE_integer("batch_size", 4, "Examples at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Of both, in turn.", lower_bound=7)
_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "For both; may be repeated.")
_JIT = flags.DEFINE_bool("jit_compile", True, "Whether XLA compiles the step.")


def _build(recipe: str):
    """A step to time of a recipe's model, and its cost in multiply-adds."""
    import gin
    import tensorflow as tf

    from tl_tf import experiment, losses, optim

    gin.clear_config()
    config.load([recipe], _BINDINGS.value)
    model, counted, _ = experiment.inspect()
    _, *shape = counted.input_shape
    classes = model.classifier.units
    x = tf.random.stateless_uniform([_BATCH.value, *shape], [1, 2], -1.0, 1.0)
    labels = tf.one_hot([i % classes for i in range(_BATCH.value)], classes)
    loss = losses.build_loss()
    optimizer = optim.build_optimizer(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=_JIT.value)
    def forward():
        return model(x, training=False)[0]

    @tf.function(jit_compile=_JIT.value)
    def gradients():
        with tf.GradientTape() as tape:
            logits, _ = model(x, training=True, seed=tf.constant([1, 2]))
            value = tf.reduce_mean(loss(logits, labels))
        return tape.gradient(value, model.trainable_variables)

    def train():
        optimizer.apply_gradients(
            zip(gradients(), model.trainable_variables, strict=True)
        )
        return model.trainable_variables[0]

    step = forward if _STEP.value == "forward" else train
    return step, counted.total.multiply_adds


def _seconds(step) -> float:
    start = time.perf_counter()
    step().numpy()
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Times both and prints what came."""
    del argv
    for recipe in (_RECIPE.value, _RIVAL.value):
        config.check([recipe], _BINDINGS.value)
    startup.quiet_tensorflow()
    steps, costs = zip(*map(_build, (_RECIPE.value, _RIVAL.value)), strict=True)
    for step in steps:  # tracing and warm-up
        for _ in range(2):
            step()
    times = [tuple(map(_seconds, steps)) for _ in range(_ROUNDS.value)]
    ratios = sorted(rival / own for own, rival in times)
    rates = [
        _BATCH.value / statistics.median(column) for column in zip(*times, strict=True)
    ]
    low, median, high = statistics.quantiles(ratios, n=4)
    for name, rate, cost in zip(
        (_RECIPE.value, _RIVAL.value), rates, costs, strict=True
    ):
        print(f"{name}: {rate:.3g} a second, {cost / 1e9:.2f} G multiply-adds")
    print(
        f"{_STEP.value}, batch {_BATCH.value}, {'XLA' if _JIT.value else 'graph'}:"
        f" {median:.3f} times as fast (quartiles {low:.3f} to {high:.3f},"
        f" {_ROUNDS.value} rounds);"
        f" cost ratio {costs[1] / costs[0]:.3f}"
    )


if __name__ == "__main__":
    sys.exit(app.run(main))
