import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests import scenic_schedules, toy_model
from tl_tf import optim
from tl_tf.models import vit, x2p1d

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def test_the_rate_grows_with_the_batch():
    assert optim.rate_of_batch(0.8, rate_batch=4, batch_size=256) == pytest.approx(51.2)
    assert optim.rate_of_batch(0.8, rate_batch=4, batch_size=1) == pytest.approx(0.2)


def test_warmup_then_cosine_then_constant():
    schedule = optim.build_schedule(2.0, 30, warmup_steps=10, end_learning_rate=0.2)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 31, 1000)]
    middle = 0.2 + 1.8 * 0.5  # half-way through the cosine
    expected = [0.0, 1.0, 2.0, middle, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_warmup_the_first_step_has_the_full_rate():
    schedule = optim.build_schedule(2.0, 8)
    np.testing.assert_allclose([schedule(0), schedule(4)], [2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "decay, options, expected",
    [
        # Warm-up 1/2 of the rate at step 2, all of it at 4; half-way at 9; end at 14.
        ("linear", {"end_learning_rate": 0.4}, [0.0, 1.0, 2.0, 1.2, 0.4, 0.4]),
        ("constant", {}, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        # 2 / sqrt(1 + 5 / 5), 2 / sqrt(1 + 10 / 5)
        ("rsqrt", {"timescale_steps": 5}, [0, 1, 2, 2**0.5, 2 / 3**0.5, 2 / 3**0.5]),
        # The decay runs below the warm-up: 3/4 of it is left at 2 + 3, and so on.
        ("linear", {"decay_start_step": 2}, [0, 1, 20 / 12, 10 / 12, 0, 0]),
        ("linear", {"decay_start_step": 0}, [0, 12 / 14, 20 / 14, 10 / 14, 0, 0]),
        ("linear", {"decay_start_step": 9}, [0, 1, 2, 2, 0, 0]),
    ],
)
def test_decays_by_hand(decay, options, expected):
    schedule = optim.build_schedule(2.0, 14, decay=decay, warmup_steps=4, **options)
    found = [float(schedule(step)) for step in (0, 2, 4, 9, 14, 15_000)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", optim.DECAYS)
def test_schedules_run_compiled_on_step_counters(decay):
    schedule = optim.build_schedule(0.7, 19, decay=decay, warmup_steps=3)
    compiled = tf.function(schedule, jit_compile=True)
    for step in (0, 2, 11, 40):
        found = compiled(tf.constant(step, tf.int64))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, schedule(step), rtol=1e-5, atol=1e-7)


def test_schedules_come_back_from_their_config():
    schedule = optim.build_schedule(0.7, 19, decay="rsqrt", timescale_steps=6)
    again = optim.Schedule.from_config(schedule.get_config())
    assert float(again(13)) == float(schedule(13))
    assert again.get_config() == schedule.get_config()


REFERENCE_SCHEDULES = (
    "token_learner_im1k",
    "vit_im1k_cosine",
    "vivit_k400_base",
    "synthetic_cosine",
    "synthetic_linear",
)


@pytest.mark.parametrize("name", REFERENCE_SCHEDULES)
def test_agrees_with_the_authors_until_the_last_step(name):
    if not REFERENCE.is_dir():
        pytest.skip("the reference outputs are not on this machine")
    with np.load(REFERENCE / "lr_schedules.npz") as file:
        steps, expected = file[f"{name}/steps"], file[f"{name}/lr"]
        lr_configs = json.loads(str(file["__config__"]))[name]["lr_configs"]
    schedule = scenic_schedules.schedule_of(lr_configs)
    before_end = steps < schedule.total_steps
    found = np.array([schedule(tf.constant(step, tf.int64)) for step in steps])
    np.testing.assert_allclose(found[before_end], expected[before_end], rtol=1e-6)
    # The authors' cosine starts again here; ours stays.
    end = lr_configs["end_learning_rate"] if schedule.decay == "linear" else 0.0
    np.testing.assert_allclose(found[~before_end], end, rtol=1e-5)


SCENIC = {
    "learning_rate_schedule": "compound",
    "base_learning_rate": 0.6,
    "warmup_steps": 4,
    "total_steps": 14,
    "steps_per_cycle": 14,
    "end_learning_rate": 0.1,
    "timescale": 5,
}


@pytest.mark.parametrize(
    "factors, expected",
    [
        ("constant*linear_warmup", [0.3, 0.6, 0.6]),
        ("cosine_decay * constant", [0.6, 0.6, 0.3]),  # waits, though not for a warm-up
        ("linear_warmup *linear_decay* constant", [0.3, 0.6, 0.6 * (0.1 + 0.9 / 2)]),
        ("constant * linear_decay * linear_warmup", [0.3, 0.6, 0.35]),
        ("rsqrt_decay*linear_warmup * constant", [0.3, 0.6, 0.6 / 2**0.5]),
    ],
)
def test_factors_of_the_authors_by_hand(factors, expected):
    schedule = scenic_schedules.schedule_of({**SCENIC, "factors": factors})
    found = [float(schedule(step)) for step in (2, 4, 9)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"factors": "constant * polynomial"}, "unknown factor 'polynomial'. Known: c"),
        ({"factors": "constant * constant"}, "'constant' comes more than once"),
        ({"factors": "cosine_decay * rsqrt_decay"}, "one decay at most, got .'cosine"),
        (
            {"factors": "cosine_decay", "steps_per_cycle": 5},
            "steps_per_cycle=5 start again before total_steps=14",
        ),
        ({"factors": "constant", "m_mul": 0.5}, "m_mul=0.5 is not supported"),
        ({"learning_rate_schedule": "step"}, "wanted a 'compound' .* got 'step'"),
    ],
)
def test_factors_that_we_do_not_have_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        scenic_schedules.schedule_of({**SCENIC, **changes})


def test_a_rate_without_factors_is_constant():
    schedule = scenic_schedules.schedule_of({"base_learning_rate": 0.25})
    assert [float(schedule(step)) for step in (0, 100_000)] == [0.25, 0.25]


@pytest.mark.parametrize(
    "rate, options, text",
    [
        (1.0, {"warmup_steps": 8}, r"warmup_steps .* 0..7 \(total_steps=8\), got 8"),
        (1.0, {"warmup_steps": -1}, "warmup_steps must be in 0..7"),
        (1.0, {"decay_start_step": 9}, "decay_start_step must be in 0..7 .* got 9"),
        (0.0, {}, "learning_rate must be above 0, got 0.0. Set train.learning_rate"),
        (1.0, {"decay": "step"}, r"decay must be one of \('cosine', .* got 'step'"),
        (1.0, {"end_learning_rate": 1.5}, r"in 0..learning_rate \(1.0\), got 1.5"),
        (
            1.0,
            {"decay": "rsqrt", "end_learning_rate": 0.5},
            "end_learning_rate=0.5 is not reached by decay='rsqrt'. Leave it at 0",
        ),
        (1.0, {"timescale_steps": 0}, "timescale_steps must be at least 1, got 0"),
    ],
)
def test_bad_schedules_are_refused(rate, options, text):
    with pytest.raises(ValueError, match=text):
        optim.build_schedule(rate, 8, **options)


def test_momentum_by_hand():
    variable = tf.Variable([1.0])
    optimizer = optim.build_optimizer(0.5, momentum=0.8)
    for gradient in (1.0, 2.0):
        optimizer.apply_gradients([(tf.constant([gradient]), variable)])
    # Velocities -0.5 and 0.8 * -0.5 - 1.0.
    np.testing.assert_allclose(variable.numpy(), [1 - 0.5 - 1.4], rtol=1e-6)


def adamw_by_hand(weight, gradients, *, rate, decay):
    """Textbook AdamW, at an epsilon so small that its place does not matter."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = (mean / (1 - 0.8**step)) / np.sqrt(square / (1 - 0.95**step))
        weight = weight - rate * (update + decay * weight)
    return weight


@pytest.mark.parametrize("decay", [None, 0.3])
def test_adamw_by_hand(decay):
    variable = tf.Variable([1.5, -0.7, 0.2])
    optimizer = optim.build_optimizer(
        0.01, kind="adamw", beta_1=0.8, beta_2=0.95, weight_decay=decay
    )
    gradients = np.random.default_rng(4).normal(size=(7, 3))
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    expected = adamw_by_hand(
        np.array([1.5, -0.7, 0.2]), gradients, rate=0.01, decay=decay or 0.0
    )
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


def test_the_first_step_of_adamw_is_as_long_as_the_rate():
    variable = tf.Variable([0.0, 0.0, 0.0])
    optimizer = optim.build_optimizer(0.01, kind="adamw", epsilon=1e-12)
    optimizer.apply_gradients([(tf.constant([2.0, -0.3, 5e-3]), variable)])
    # Keras' own is 7e-6 of it shorter: below.
    np.testing.assert_allclose(variable.numpy(), [-0.01, 0.01, -0.01], rtol=5e-7)


# Keras' AdamW takes 1 - beta in double precision, but the power of beta, which corrects
# the bias, in single: they are of different betas unless a beta is of single precision.
SINGLE = {"beta_1": float(np.float32(0.9)), "beta_2": float(np.float32(0.999))}


@pytest.mark.parametrize(
    "keras, options",
    [
        (tf_keras.optimizers.SGD, {"kind": "momentum", "momentum": 0.7}),
        (
            tf_keras.optimizers.SGD,
            {"kind": "momentum", "momentum": 0.8, "nesterov": True},
        ),
        (
            tf_keras.optimizers.AdamW,
            {"kind": "adamw", "weight_decay": 0.2, "epsilon": 1e-6, **SINGLE},
        ),
    ],
)
def test_updates_and_checkpoints_are_those_of_keras(keras, options, tmp_path):
    random = np.random.default_rng(6)
    start = random.normal(size=(3, 5)).astype(np.float32)
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.3, 9)
    ours = optim.build_optimizer(schedule, **options)
    options = {name: value for name, value in options.items() if name != "kind"}
    theirs = keras(schedule, **options)
    pairs = [(optimizer, tf.Variable(start)) for optimizer in (ours, theirs)]
    for _ in range(4):
        gradient = tf.constant(random.normal(size=(3, 5)), tf.float32)
        for optimizer, variable in pairs:
            optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(pairs[0][1], pairs[1][1], rtol=0, atol=5e-7)
    keys = [
        sorted(
            tf.train.load_checkpoint(
                tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / name)
            ).get_variable_to_shape_map()
        )
        for name, (optimizer, _) in zip("ab", pairs, strict=True)
    ]
    assert keys[0] == keys[1]


class Decayed(tf_keras.layers.Layer):
    """One of each kind of weight, in layers and as the layer's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = tf_keras.layers.Dense(5, name="beta", bias_initializer="ones")
        self.layer_norm = tf_keras.layers.LayerNormalization(beta_initializer="ones")
        self.batch_norm = tf_keras.layers.BatchNormalization(beta_initializer="ones")
        self.attention = tf_keras.layers.MultiHeadAttention(
            3, key_dim=2, bias_initializer="ones", name="attention"
        )
        self.conv = tf_keras.layers.Conv1D(4, 3, bias_initializer="ones", name="conv")

    def build(self, input_shape):
        for name, shape in (
            ("position_embedding", (1, 7, 5)),
            ("pos_embedding", (1, 11, 5)),
            ("class_token", (1, 1, 5)),
            ("cls", (1, 2, 5)),
            ("mix", (4, 4)),
            ("mix_bias", (4,)),
        ):
            self.add_weight(name=name, shape=shape, initializer="ones")

    def call(self, x):
        x = self.batch_norm(self.layer_norm(self.dense(x)))
        return self.conv(self.attention(x, x))


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_weight_decay_acts_on_kernels_only(kind, replicas):
    strategy = tf.distribute.get_strategy()
    if replicas == 2:
        strategy = toy_model.two_replicas()
    with strategy.scope():
        layer = Decayed()
        layer(tf.zeros([2, 7, 6]))
        variables = layer.trainable_variables
        optimizer = optim.build_optimizer(0.1, kind=kind, weight_decay=0.3)
        optimizer.build(variables)
    before = {v.name: v.numpy() for v in variables}

    def step():
        optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])

    tf.function(lambda: strategy.run(step))()
    changed = set()
    for variable in variables:
        for copy in strategy.experimental_local_results(variable):
            share = np.mean(copy.numpy() / before[variable.name])
            assert share == pytest.approx(0.97) or share == 1.0, copy.name
            if share != 1.0:
                changed.add(variable.name.split("/", 1)[1].removesuffix(":0"))
    attention = ("query", "key", "value", "attention_output")
    kernels = {"beta/kernel", "conv/kernel", "mix"}
    assert changed == kernels | {f"attention/{name}/kernel" for name in attention}


def test_x2p1d_decays_what_has_rank_two_and_more():
    model = x2p1d.build_x2p1d(
        5,
        num_frames=4,
        width=0.2,
        stage_depths=(1, 1, 1, 1),
        module="token_learner",
        module_blocks=(0,),
        num_tokens=3,
    )
    for variable in model.trainable_variables:
        is_kept = any(re.search(p, variable.name) for p in optim.NOT_DECAYED)
        assert is_kept == (len(variable.shape) < 2), variable.name


def test_vit_decays_what_is_no_bias_norm_position_or_class_token():
    model = vit.build_vit(
        7,
        image_px=(16, 24),
        patch_px=8,
        hidden_size=12,
        depth=2,
        num_heads=3,
        mlp_size=20,
        insert_before_block=1,
        num_tokens=4,
        restore="fuser",
        head="token",
    )
    model(tf.zeros([1, 16, 24, 3]))
    kinds = {True: set(), False: set()}
    for variable in model.trainable_variables:
        is_kept = any(re.search(p, variable.name) for p in optim.NOT_DECAYED)
        kinds[is_kept].add(variable.name.split("/")[-1].removesuffix(":0"))
    norms = {"gamma", "beta"}
    assert kinds[True] == norms | {
        "bias",
        "mix_bias",
        "position_embedding",
        "class_token",
    }
    assert kinds[False] == {"kernel", "mix"}


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_averaged_weights_come_and_go(kind):
    variable = tf.Variable([1.0, 2.0])
    model = types.SimpleNamespace(trainable_variables=[variable])
    optimizer = optim.build_optimizer(1.0, kind=kind, momentum=0.0, ema_decay=0.9)
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones(2), variable)])
    average = 0.9 * (0.9 * 1 + 0.1 * 0) + 0.1 * -1  # of 1, 0, -1
    with optim.averaged_weights(optimizer, model):
        np.testing.assert_allclose(variable[0].numpy(), average, atol=1e-4)
    np.testing.assert_allclose(variable.numpy(), [-1.0, 0.0], atol=1e-4)


def test_without_average_the_weights_stay():
    variable = tf.Variable([1.0])
    model = types.SimpleNamespace(trainable_variables=[variable])
    with optim.averaged_weights(optim.build_optimizer(1.0), model):
        assert variable.numpy() == [1.0]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"ema_decay": 1}, r"ema_decay must be in \(0, 1\) or None, got 1"),
        ({"kind": "adam"}, r"kind must be one of .'momentum', 'adamw'., got 'adam'"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 or None, got -0.1"),
        ({"beta_2": 1.0}, r"beta_2 must be in \[0, 1\), got 1.0"),
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0.0"),
    ],
)
def test_bad_optimizers_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        optim.build_optimizer(1.0, **options)
