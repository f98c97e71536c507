"""Environment and fixtures that every test shares."""

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tl_tf import startup

startup.quiet_tensorflow()  # before anything imports TensorFlow

import gin  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from tests import tiny  # noqa: E402

# Two logical CPUs for every test: devices cannot be added once TensorFlow has started.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
gc.collect()
gc.freeze()  # what the libraries hold need not be looked at after each test
_collected = time.monotonic()


@pytest.fixture(autouse=True)
def _collect_garbage():
    """Many models in one process stalled now and then without it."""
    yield
    gc.collect()
    gc.freeze()  # what this test leaves alive is looked at again after some modules


@pytest.fixture(autouse=True, scope="module")
def _collect_what_modules_kept():
    """Now and then: the libraries are looked at as well, which takes seconds."""
    global _collected
    yield
    if time.monotonic() > _collected + 60:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _collected = time.monotonic()


@pytest.fixture(autouse=True)
def _forget_gin():
    """No test sees the bindings or the precision of another."""
    gin.clear_config()
    yield
    gin.clear_config()
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Iterator[Path]:
    """A data folder with made-up videos and images; for reading only."""
    data_dir = tmp_path_factory.mktemp("tiny_data")
    tiny.build_data(data_dir)
    tiny.build_videos(data_dir)
    tiny.build_images(data_dir)
    built = sorted(data_dir.rglob("*"))
    yield data_dir
    assert sorted(data_dir.rglob("*")) == built
