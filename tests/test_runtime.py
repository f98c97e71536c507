import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests import toy_model
from tl_tf import runtime


def test_without_anything_named_the_cpu_is_used():
    strategy = runtime.configure_runtime(None)
    assert strategy.num_replicas_in_sync == 1
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    assert runtime.num_hosts(strategy) == 1
    assert runtime.host_index(strategy) == 0


def test_logical_replicas_are_mirrored():
    strategy = runtime.configure_runtime(None, num_cpu_replicas=2)
    assert strategy.num_replicas_in_sync == 2
    assert isinstance(strategy, tf.distribute.MirroredStrategy)


def test_precision_is_a_choice():
    runtime.configure_runtime(None, precision="mixed_bfloat16")
    assert tf_keras.mixed_precision.global_policy().name == "mixed_bfloat16"


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"precision": "float16"}, "precision must be one of .* got 'float16'"),
        ({"num_cpu_replicas": 0}, "num_cpu_replicas must be at least 1, got 0"),
        ({"num_cpu_replicas": 3}, "already started with 2 CPU devices"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        runtime.configure_runtime(None, **arguments)


def test_a_tpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--tpu=local: no TPU could be initialised"):
        runtime.configure_runtime("local")


def test_a_batch_is_handed_out_in_order():
    strategy = toy_model.two_replicas()
    batch = {"x": tf.constant(np.array([7, 5, 3, 1]))}
    parts = runtime.hand_out(batch, strategy)
    values = strategy.experimental_local_results(parts["x"])
    assert [v.numpy().tolist() for v in values] == [[7, 5], [3, 1]]
