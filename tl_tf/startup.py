"""What a program does before it imports TensorFlow: silence, and a look at the TPU."""

import os
import re
import socket
import urllib.parse

from absl import logging

PROBE_SECONDS = 1.5
_GRPC = re.compile(r"grpc://(?P<host>\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


def quiet_tensorflow() -> None:
    """Sets the environment in which TensorFlow starts without its usual noise.

    Must run before the first import of tensorflow; what the user has set stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "2")
    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # what Model Garden builds on


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
    match = _GRPC.fullmatch(address)
    if not match or not 0 < int(match["port"]) < 65536:
        raise ValueError(
            f"--tpu={address}: wanted a TPU's name, local, or grpc://host:port."
        )
    host = urllib.parse.urlsplit(address).hostname
    try:
        socket.create_connection((host, int(match["port"])), PROBE_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"--tpu={address}: nothing answered within {PROBE_SECONDS} s ({error})."
            " Check the address, and that the TPU is running."
        ) from None
