"""Environment and fixtures that every test shares."""

import gc

import pytest

from tl_tf import startup

startup.quiet_tensorflow()  # before anything imports TensorFlow

import tensorflow as tf  # noqa: E402

# Two logical CPUs for every test: devices cannot be added once TensorFlow has started.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(autouse=True)
def _collect_garbage():
    """Many models in one process stalled now and then without it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _forget_gin():
    """No test sees the bindings or the precision of another."""
    import gin
    import tf_keras

    gin.clear_config()
    yield
    gin.clear_config()
    tf_keras.mixed_precision.set_global_policy("float32")
