"""Replicas train and evaluate like one device; each kind of norm does what it says."""

import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny, toy_model
from tl_tf import experiment
from tl_tf.layers import conv2plus1d

LIMIT_SECONDS = 600.0  # where a machine has much else to do
BATCH_SIZE = 8  # divides into every number of replicas
BINDINGS = (
    "TOTAL_STEPS = 5",  # more than three epochs of 12 videos
    f"BATCH_SIZE = {BATCH_SIZE}",
    f"eval/clip_dataset.batch_size = {BATCH_SIZE}",
    "LEARNING_RATE = 0.1",
    "build_x2p1d.batch_norm = 'sync'",
    "train.steps_per_loop = 1",
)


@pytest.fixture(scope="module")
def one_device(tiny_data, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("one_device")
    tiny.load(tiny.QUICKSTART, *BINDINGS)
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=tiny_data, tpu=None)
    return model_dir


def check_like_one(model_dir, one_device):
    want, got = tiny.losses(one_device), tiny.losses(model_dir)
    assert list(got) == [1, 2, 3, 4, 5]
    assert len(set(want.values())) == 5
    np.testing.assert_allclose([*got.values()], [*want.values()], rtol=1e-4)
    results = [
        json.loads((path / "results" / "test-5.json").read_text())
        for path in (model_dir, one_device)
    ]
    assert results[0]["num_videos"] == tiny.TEST_VIDEOS
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-4)
    scores = [
        np.load(path / "results" / "test-5.scores.npz")
        for path in (model_dir, one_device)
    ]
    for name in scores[1].files:
        if scores[1][name].dtype.kind == "f":
            np.testing.assert_allclose(scores[0][name], scores[1][name], atol=1e-4)
        else:
            np.testing.assert_array_equal(scores[0][name], scores[1][name])


def test_two_devices_have_the_loss_curve_and_the_scores_of_one(
    one_device, tiny_data, tmp_path, monkeypatch
):
    strategy = toy_model.two_replicas()  # the only one that this process may have
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: strategy)
    tiny.load(tiny.QUICKSTART, *BINDINGS, "configure_runtime.num_cpu_replicas = 2")
    experiment.run("train_and_eval", model_dir=tmp_path, data_dir=tiny_data, tpu=None)
    check_like_one(tmp_path, one_device)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [4, 8])
def test_more_devices_have_the_loss_curve_and_the_scores_of_one(
    num_devices, one_device, tiny_data, tmp_path
):
    command = tiny.command(
        tiny.QUICKSTART,
        *BINDINGS,
        f"configure_runtime.num_cpu_replicas = {num_devices}",
        data_dir=tiny_data,
        model_dir=tmp_path,
    )
    done = subprocess.run(
        command,
        cwd=tiny.ROOT,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},  # as docs/SCALE.md says
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert f"device {num_devices} replicas under MirroredStrategy" in done.stdout
    check_like_one(tmp_path, one_device)


@pytest.mark.parametrize("kind", conv2plus1d.BATCH_NORMS)
def test_each_kind_of_norm_has_its_statistics_under_replicas(kind):
    rng = np.random.default_rng(4)
    x = tf.constant(rng.normal(3.0, 2.0, [6, 5, 7, 4]), tf.float32)
    strategy = toy_model.two_replicas()
    with strategy.scope():
        norm = conv2plus1d.batch_norm(kind, name="norm")
        norm.build(x.shape)
    halves = tf.split(x, 2)

    @tf.function
    def step():
        def replica_step():
            context = tf.distribute.get_replica_context()
            half = tf.stack(halves)[context.replica_id_in_sync_group]
            return norm(half, training=True)

        return strategy.gather(strategy.run(replica_step), axis=0)

    got = step().numpy()
    whole, parts = x.numpy(), [half.numpy() for half in halves]
    axes = (0, 1, 2)
    if kind == "frozen":
        want, mean, variance = normed(whole, 0.0, 1.0), 0.0, 1.0
    elif kind == "sync":
        mean, variance = whole.mean(axes), whole.var(axes)
        want = normed(whole, mean, variance)
    else:
        means, variances = ([f(p) for p in parts] for f in (mean_of, variance_of))
        want = np.concatenate(
            [normed(*values) for values in zip(parts, means, variances, strict=True)]
        )
        mean = np.mean(means, axis=0)
        count = (
            parts[0].size / parts[0].shape[-1]
        )  # the fused operation has it unbiased
        variance = np.mean(variances, axis=0) * count / (count - 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    share = 0.0 if kind == "frozen" else 1 - conv2plus1d.BATCH_NORM_MOMENTUM
    np.testing.assert_allclose(norm.moving_mean, share * mean * np.ones(4), rtol=1e-4)
    np.testing.assert_allclose(
        norm.moving_variance, (1 - share + share * variance) * np.ones(4), rtol=1e-4
    )


def mean_of(values):
    return values.mean(axis=(0, 1, 2))


def variance_of(values):
    return values.var(axis=(0, 1, 2))


def normed(values, mean, variance):
    return (values - mean) / np.sqrt(variance + conv2plus1d.BATCH_NORM_EPSILON)
