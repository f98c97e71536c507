"""What a program does before it imports TensorFlow, and how it imports it quickly."""

import contextlib
import gc
import os
import re
import socket
import sys
import urllib.parse
from collections.abc import Iterator

from absl import logging

PROBE_SECONDS = 1.5
_GRPC = re.compile(r"grpc://(?P<host>\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

_TRAINING = ("train", "train_and_eval", "profile")  # modes of run.py

# What TensorFlow and Keras import where they find it, for features unused here.
_UNUSED = ("jax", "pandas")
_FOR_TPU_NAMES = "googleapiclient"


def quiet_tensorflow() -> None:
    """Sets the environment in which TensorFlow starts without its usual noise.

    Must run before the first import of tensorflow; what the user has set stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "2")
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # what Model Garden builds on
    if "TF_CONFIG" in os.environ:
        # With four hosts oneDNN's gradient of a convolution's filter ended processes by
        # a segmentation fault in their first step (TensorFlow 2.20, CPU).
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextlib.contextmanager
def quick_imports(*, finds_tpu: bool = False) -> Iterator[None]:
    """Imports TensorFlow and Keras, then what is imported inside, in half the time.

    Python looks for cycles again and again among all the objects that an import makes,
    and none is garbage: it is kept from that, and from ever looking at them again.

    Args:
      finds_tpu: whether a TPU's name shall be looked up, which takes one more library.
    """
    quiet_tensorflow()
    hidden = _UNUSED if finds_tpu else (*_UNUSED, _FOR_TPU_NAMES)
    hidden = [name for name in hidden if name not in sys.modules]
    gc.disable()
    try:
        sys.modules.update(dict.fromkeys(hidden))  # None: "there is no such module"
        try:
            import tensorflow  # noqa: F401
            import tf_keras  # noqa: F401
        finally:
            for name in hidden:
                del sys.modules[name]
        yield
    finally:
        gc.freeze()
        gc.enable()


def probe_tpu(address: str) -> None:
    """Checks a TPU address, with a time limit where it names a socket.

    TensorFlow itself was seen to wait half an hour for a dead address.  A name is
    looked up later, by TensorFlow, which answers at once without a metadata server.

    Args:
      address: a name, `local`, or `grpc://host:port`.

    Raises:
      ValueError: for another form, or when nothing listens there.
    """
    if _NAME.fullmatch(address):
        return
    _probe("tpu", address, wanted="a TPU's name, local, or grpc://host:port")


def check_data_service(address: str, mode: str) -> None:
    """Checks a mode of run.py that shall have its input from a tf.data service.

    Raises:
      ValueError: for a mode that does not train, or as `probe_data_service`.
    """
    if mode not in _TRAINING:
        raise ValueError(
            f"--data_service is for the modes {', '.join(_TRAINING)}, not {mode}: an"
            " evaluation wants each example exactly once. Leave it out."
        )
    probe_data_service(address)


def probe_data_service(address: str) -> None:
    """Checks that something listens at the address of a tf.data service.

    Args:
      address: grpc://host:port of its dispatcher.

    Raises:
      ValueError: for another form, or when nothing listens there.
    """
    _probe("data_service", address, wanted="grpc://host:port of its dispatcher")


def _probe(flag: str, address: str, *, wanted: str) -> None:
    match = _GRPC.fullmatch(address)
    if not match or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"--{flag}={address}: wanted {wanted}.")
    host = urllib.parse.urlsplit(address).hostname
    try:
        socket.create_connection((host, int(match["port"])), PROBE_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"--{flag}={address}: nothing answered within {PROBE_SECONDS} s ({error})."
            " Check the address, and that what it names is running."
        ) from None
