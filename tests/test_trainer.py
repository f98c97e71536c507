import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import toy_model
from tests.contract import randomize
from tl_tf import losses, optim, runtime, trainer
from tl_tf.inputs import augment
from tl_tf.models import vit, x2p1d


def one_device():
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def make(strategy=None, *, batch_size=6, rate=0.0, data=None, momentum=0.0, **kwargs):
    strategy = strategy or one_device()
    with strategy.scope():
        model = toy_model.ToyModel(rate)
        optimizer = optim.build_optimizer(0.5, momentum=momentum)
        optimizer.build(model.trainable_variables)
    data = toy_model.batches(batch_size) if data is None else data
    return trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid"),
        strategy=strategy,
        iterator=iter(data),
        seed=11,
        **kwargs,
    )


def kernel(loop) -> np.ndarray:
    return loop.model.kernel.numpy()


def gradient_by_hand(batch, weights) -> np.ndarray:
    """Of the mean over clips and classes of the sigmoid cross entropy."""
    frames = batch["pixels"].numpy().astype(np.float64) / 127.5 - 1
    pooled = frames.mean(axis=(1, 2, 3))  # [B, 3]
    probabilities = 1 / (1 + np.exp(-(pooled @ weights)))
    errors = (probabilities - batch["labels"].numpy()) / toy_model.K / len(pooled)
    return pooled.T @ errors


def test_one_step_by_hand():
    loop = make()
    start = kernel(loop)
    batch = next(iter(toy_model.batches(6)))
    output = loop.train(tf.constant(1))
    gradient = gradient_by_hand(batch, start)
    np.testing.assert_allclose(kernel(loop), start - 0.5 * gradient, rtol=1e-5)
    assert output["train/gradient_norm"] == pytest.approx(
        np.linalg.norm(gradient), rel=1e-4
    )
    assert output["train/learning_rate"] == 0.5
    assert int(loop.optimizer.iterations) == 1


def test_what_the_input_passed_over_is_told_after_a_loop():
    marked = toy_model.batches(6).map(
        lambda batch: {**batch, "passed_over": {"count": tf.constant([2, 3])}}
    )
    told = []

    def note(passed_over):
        told.append(passed_over["count"].numpy().tolist())
        return {"input/bad_records": 3}

    output = make(data=marked, on_passed_over=note).train(tf.constant(2))
    assert told == [[2, 3]] and output["input/bad_records"] == 3
    assert "input/bad_records" not in make(on_passed_over=note).train(tf.constant(1))


def test_clipping_keeps_the_direction_and_bounds_the_norm():
    loop = make(clip_norm=0.01)
    start = kernel(loop)
    loop.train(tf.constant(1))
    gradient = gradient_by_hand(next(iter(toy_model.batches(6))), start)
    expected = start - 0.5 * gradient * 0.01 / np.linalg.norm(gradient)
    np.testing.assert_allclose(kernel(loop), expected, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_accumulation_changes_nothing(jit_compile):
    whole, parts = make(), make(accumulation_steps=3, jit_compile=jit_compile)
    whole_output = whole.train(tf.constant(4))
    parts_output = parts.train(tf.constant(4))
    np.testing.assert_allclose(kernel(parts), kernel(whole), rtol=1e-5)
    assert parts_output["train/loss"] == pytest.approx(whole_output["train/loss"])


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_accumulation_and_recomputation_change_nothing_together(jit_compile):
    weights = []
    options = {"image_px": 12, "patch_px": 4, "hidden_size": 8, "depth": 1}
    options |= {"num_heads": 2, "mlp_size": 8, "insert_before_block": 0}
    pixels = np.random.default_rng(5).integers(0, 256, [4, 12, 12, 3], dtype=np.uint8)
    data = tf.data.Dataset.from_tensors({"pixels": pixels, "labels": tf.eye(4)})
    for recompute, parts, is_compiled in ((False, 1, False), (True, 2, jit_compile)):
        model = vit.build_vit(4, recompute=recompute, **options)
        randomize(model)
        optimizer = optim.build_optimizer(0.1)
        optimizer.build(model.trainable_variables)
        loop = trainer.Trainer(
            model,
            optimizer,
            loss=losses.build_loss("softmax"),
            strategy=tf.distribute.get_strategy(),
            iterator=iter(data.repeat()),
            seed=0,
            accumulation_steps=parts,
            jit_compile=is_compiled,
        )
        before = model.get_weights()
        loop.train(tf.constant(3))
        after = model.get_weights()
        weights.append([w - b for w, b in zip(after, before, strict=True)])
    for got, want in zip(*reversed(weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_each_micro_batch_has_a_seed_of_its_own(monkeypatch, jit_compile):
    monkeypatch.setattr(tf.random, "fold_in", lambda seed, data: seed)

    def mix(pixels, labels, *, seed):  # what is above the run's own bits
        return pixels, labels * tf.cast(1 + seed[0] // 2**24, tf.float32)

    loop = make(mix=mix, accumulation_steps=3, jit_compile=jit_compile)
    start = kernel(loop)
    batch = next(iter(toy_model.batches(6)))
    loop.train(tf.constant(1))
    scales = np.array([1, 1, 2, 2, 3, 3], np.float32)[:, np.newaxis]
    gradient = gradient_by_hand({**batch, "labels": batch["labels"] * scales}, start)
    np.testing.assert_allclose(kernel(loop), start - 0.5 * gradient, rtol=1e-5)


def test_two_replicas_equal_one():
    one, two = make(), make(toy_model.two_replicas())
    one_output = one.train(tf.constant(4))
    two_output = two.train(tf.constant(4))
    np.testing.assert_allclose(kernel(two), kernel(one), rtol=1e-5)
    for tag in ("train/loss", "train/gradient_norm"):
        assert two_output[tag] == pytest.approx(one_output[tag], rel=1e-5)


def test_compiled_equals_interpreted():
    plain, compiled = make(), make(jit_compile=True)
    plain.train(tf.constant(3))
    compiled.train(tf.constant(3))
    np.testing.assert_allclose(kernel(compiled), kernel(plain), rtol=1e-5)


def test_the_loss_is_the_mean_over_the_loop():
    single = make()
    losses_of_steps = [single.train(tf.constant(1))["train/loss"] for _ in range(3)]
    assert make().train(tf.constant(3))["train/loss"] == pytest.approx(
        np.mean(losses_of_steps)
    )


def test_the_same_seed_draws_the_same_dropout_and_steps_differ():
    first, second = make(rate=0.5), make(rate=0.5)
    a = [first.train(tf.constant(1))["train/loss"] for _ in range(3)]
    assert a == [second.train(tf.constant(1))["train/loss"] for _ in range(3)]
    same_batch = toy_model.batches(6, count=1)
    still = make(rate=0.5, data=same_batch)
    still.optimizer.learning_rate.assign(0.0)
    assert len({still.train(tf.constant(1))["train/loss"] for _ in range(3)}) > 1


def test_seeds_differ_by_step_and_replica():
    seeds = {
        tuple(runtime.step_seed(seed, step, replica).numpy())
        for seed in (0, 1)
        for step in range(3)
        for replica in range(4)
    }
    assert len(seeds) == 2 * 3 * 4


def test_a_loss_that_is_not_finite_stops_and_names_the_step():
    data = toy_model.batches(6, count=3)

    def poison(index, batch):
        bad = tf.where(index == 4, np.nan, 1.0)
        return {**batch, "labels": batch["labels"] * tf.cast(bad, tf.float32)}

    loop = make(data=data.enumerate().map(poison))
    loop.train(tf.constant(3))
    with pytest.raises(
        trainer.NonFiniteLossError, match="became nan at step 5 .*finite"
    ):
        loop.train(tf.constant(3))


def poisoned(*steps: int, value: float, count: int = 20) -> tf.data.Dataset:
    """Batches of which some have one label that is not finite, or too large."""

    def poison(index, batch):
        is_bad = tf.reduce_any(index == tf.constant(steps, tf.int64))
        first = tf.reshape(tf.one_hot(0, 6 * toy_model.K), [6, toy_model.K])
        bad = tf.where(is_bad & (first > 0), value, 1.0)
        return {**batch, "labels": batch["labels"] * 0 + bad}

    return toy_model.batches(6, count=count).enumerate().map(poison)


def everything(loop) -> dict[str, np.ndarray]:
    """Weights, statistics, optimizer and averages, but for the step counter."""
    values = {f"model/{i}": v.numpy() for i, v in enumerate(loop.model.variables)}
    for i, variable in enumerate(loop.optimizer.variables):
        if variable.dtype != tf.int64 and "learning_rate" not in variable.name:
            values[f"optimizer/{i}"] = variable.numpy()
    return values


def test_a_gradient_that_is_not_finite_stops_too():
    loop = make(data=poisoned(1, value=1e30))  # its square is beyond float32
    text = "the gradients' norm became inf at step 2 .the last finite loss: 0"
    with pytest.raises(trainer.NonFiniteLossError, match=text):
        loop.train(tf.constant(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_skipped_step_leaves_no_trace(value, replicas, jit_compile):
    """On two replicas, only the first one's examples are bad."""
    strategy = toy_model.two_replicas() if replicas == 2 else None
    options = {"momentum": 0.9, "jit_compile": jit_compile, "clip_norm": 1.0}
    data = poisoned(2, 3, value=value)
    loop = make(strategy, data=data, on_nonfinite="skip", **options)
    loop.train(tf.constant(2))
    before = everything(loop)
    output = loop.train(tf.constant(2))
    assert output["train/skipped_steps"] == 2
    assert loop.optimizer.iterations.numpy() == 4
    for name, values in everything(loop).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    output = loop.train(tf.constant(1))
    assert output["train/skipped_steps"] == 0
    assert np.isfinite(output["train/loss"])
    assert not np.array_equal(kernel(loop), before["model/0"])


def test_skipping_changes_nothing_where_all_is_finite():
    plain, careful = make(momentum=0.9), make(momentum=0.9, on_nonfinite="skip")
    assert (
        plain.train(tf.constant(3))["train/loss"]
        == (careful.train(tf.constant(3))["train/loss"])
    )
    for name, values in everything(plain).items():
        np.testing.assert_array_equal(everything(careful)[name], values, err_msg=name)


def test_a_loop_of_skips_and_others_has_the_mean_of_the_others():
    good = make(data=poisoned(value=1.0))
    single = [good.train(tf.constant(1))["train/loss"] for _ in range(2)]
    loop = make(data=poisoned(2, value=np.nan), on_nonfinite="skip")
    output = loop.train(tf.constant(3))
    assert output["train/loss"] == pytest.approx(np.mean(single))
    assert output["train/skipped_steps"] == 1


def test_skipping_for_ever_stops():
    loop = make(data=poisoned(*range(3, 40), value=np.nan), on_nonfinite="skip")
    loop.train(tf.constant(10))
    text = "became nan at step 23, after 19 skipped steps"
    with pytest.raises(trainer.NonFiniteLossError, match=text):
        loop.train(tf.constant(20))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_skipped_step_leaves_batch_statistics_and_averages(replicas):
    strategy = toy_model.two_replicas() if replicas == 2 else one_device()
    with strategy.scope():
        model = x2p1d.build_x2p1d(
            toy_model.K, num_frames=4, width=0.2, stage_depths=(1, 1, 1, 1)
        )
        optimizer = optim.build_optimizer(0.1, ema_decay=0.9, weight_decay=0.1)
        optimizer.build(model.trainable_variables)
    pixels = np.random.default_rng(3).integers(0, 256, [2, 4, 32, 40, 3], np.uint8)
    good = {"pixels": pixels, "labels": tf.ones([2, toy_model.K])}
    bad = {"pixels": 255 - pixels, "labels": tf.constant([[np.nan] * 4, [1.0] * 4])}
    data = tf.data.Dataset.from_tensors(good).concatenate(
        tf.data.Dataset.from_tensors(bad)
    )
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid"),
        strategy=strategy,
        iterator=iter(data),
        seed=1,
        on_nonfinite="skip",
    )
    start = everything(loop)
    loop.train(tf.constant(1))
    before = everything(loop)
    statistics = [v.name for v in model.non_trainable_variables]
    assert any("moving_mean" in name for name in statistics)
    assert any(not np.array_equal(before[name], start[name]) for name in start)
    assert loop.train(tf.constant(1))["train/skipped_steps"] == 1
    for name, values in everything(loop).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_another_way_with_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"on_nonfinite must be one of .* got 'warn'"):
        make(on_nonfinite="warn")


def test_a_loop_ends_early_when_asked_to_stop():
    asked = []
    loop = make(should_stop=lambda: asked.append(1) or len(asked) == 2)
    loop.train(tf.constant(50))
    assert int(loop.optimizer.iterations) == 2


def test_broken_input_is_explained():
    def broken():
        raise tf.errors.DataLossError(None, None, "corrupted record at 12")

    loop = make(explain_data_error=lambda error: f"shard 3: {error.message}")
    spec = loop.iterator.element_spec

    class Broken:
        element_spec = spec

        def __next__(self):
            broken()

    loop.iterator = Broken()
    with pytest.raises(ValueError, match="^shard 3: corrupted record at 12$"):
        loop.train(tf.constant(1))


def test_a_batch_that_does_not_divide_is_refused():
    text = "batch of 6 does not divide into 2 replicas x 2 accumulation steps"
    with pytest.raises(ValueError, match=text):
        make(toy_model.two_replicas(), accumulation_steps=2)


def test_the_first_batch_is_shown_once():
    shown = []
    loop = make(on_first_batch=shown.append)
    loop.train(tf.constant(2))
    loop.train(tf.constant(2))
    assert len(shown) == 1
    assert shown[0]["pixels"].shape == (6, toy_model.T, toy_model.H, toy_model.W, 3)


def video_step():
    model = x2p1d.build_x2p1d(
        toy_model.K,
        num_frames=4,
        width=0.2,
        stage_depths=(1, 1, 1, 1),
        module="token_learner",
        module_blocks=(0,),
        num_tokens=3,
    )
    optimizer = optim.build_optimizer(optim.build_schedule(0.1, 10), ema_decay=0.9)
    return model, optimizer, tf.zeros([2, 4, 32, 40, 3], tf.uint8), None


def image_step():
    model = vit.build_vit(
        toy_model.K,
        image_px=(16, 24),
        patch_px=4,
        hidden_size=12,
        num_heads=2,
        mlp_size=20,
        depth=3,
        insert_before_block=1,
        num_tokens=3,
        tokenizer="v1.0",
        restore="fuser",
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
        drop_path_rate=0.1,
    )
    schedule = optim.build_schedule(0.1, 10, decay="linear", warmup_steps=2)
    optimizer = optim.build_optimizer(schedule, kind="adamw", weight_decay=0.1)
    mix = functools.partial(augment.mixup_cutmix, mixup_alpha=0.2, cutmix_alpha=1.0)
    return model, optimizer, tf.zeros([2, 16, 24, 3], tf.uint8), mix


@pytest.mark.parametrize(
    "build, precision",
    [
        (video_step, "float32"),
        (image_step, "mixed_bfloat16"),
        pytest.param(video_step, "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param(image_step, "float32", marks=pytest.mark.slow),
    ],
)
def test_the_whole_train_step_compiles_with_static_shapes(build, precision):
    runtime.configure_runtime(None, precision=precision)
    model, optimizer, pixels, mix = build()
    optimizer.build(model.trainable_variables)
    labels = tf.ones([2, toy_model.K])
    data = tf.data.Dataset.from_tensors({"pixels": pixels, "labels": labels})
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid"),
        strategy=tf.distribute.get_strategy(),
        iterator=iter(data.repeat()),
        seed=1,
        clip_norm=1.0,
        mix=mix,
    )
    step = tf.function(loop.replica_step, jit_compile=True)
    loss, norm = step(pixels, labels)
    assert np.isfinite([loss, norm]).all()
    assert all(v.dtype == tf.float32 for v in model.trainable_variables)
    hlo = step.experimental_get_compiler_ir(pixels, labels)(
        stage="hlo", platform_name="CPU"
    )
    assert "<=" not in hlo  # a bounded, hence dynamic, dimension
    assert int(optimizer.iterations) == 1


def test_examples_are_mixed_before_the_model_sees_them():
    seeds = []

    def mix(pixels, labels, *, seed):
        seeds.append(seed)
        return pixels[::-1], labels[::-1] * 0.5

    loop = make(mix=mix)
    start = kernel(loop)
    batch = next(iter(toy_model.batches(6)))
    loop.train(tf.constant(1))
    mixed = {"pixels": batch["pixels"][::-1], "labels": batch["labels"][::-1] * 0.5}
    expected = start - 0.5 * gradient_by_hand(mixed, start)
    np.testing.assert_allclose(kernel(loop), expected, rtol=1e-5)
    assert seeds[0].shape == (2,)
