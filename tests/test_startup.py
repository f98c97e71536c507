import gc
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tl_tf import startup

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    return done, time.monotonic() - start


MISTAKES = {
    "help": (["--help"], "--gin_file: A recipe"),
    "wrong flag": (["--gin_fil=x"], "Did you mean: gin_file ?"),
    "no recipe": ([], "wanted --gin_file=RECIPE"),
    "wrong mode": (["--gin_file=gin/quickstart.gin", "--mode=trian"], "--mode=trian"),
    "stray word": (["--gin_file=gin/quickstart.gin", "eval"], "argument 'eval'"),
    "missing file": (
        ["--gin_file=gin/nothing.gin"],
        "gin/nothing.gin: no such gin file",
    ),
    "wrong binding": (
        ["--gin_file=gin/quickstart.gin", "--gin_bindings=train.batchsize = 4"],
        "train has no parameter 'batchsize'. Did you mean 'batch_size'?",
    ),
    "wrong syntax": (
        ["--gin_file=gin/quickstart.gin", "--gin_bindings=TOTAL_STEPS = = 4"],
        "cannot be read as gin",
    ),
    "wrong address": (
        ["--gin_file=gin/quickstart.gin", "--tpu=grpc://host"],
        "wanted a TPU's name, local, or grpc://host:port",
    ),
    "dead address": (
        ["--gin_file=gin/quickstart.gin", "--tpu=grpc://127.0.0.1:9"],
        "nothing answered within 1.5 s",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_at_once_without_a_stack_trace(mistake):
    arguments, text = MISTAKES[mistake]
    done, seconds = run(*arguments)
    output = done.stdout + done.stderr
    assert text in output
    assert "Traceback" not in output
    assert done.returncode == 1  # absl's, for --help too
    assert seconds < 2


def test_a_silent_host_is_given_up_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))  # bound and never listening: refused or silent
        port = full.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ValueError, match="nothing answered within 1.5 s"):
            startup.probe_tpu(f"grpc://127.0.0.1:{port}")
        assert time.monotonic() - start < 2


def test_a_listening_address_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        startup.probe_tpu(f"grpc://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["local", "my-tpu", "v4.node_1"])
def test_names_pass(address):
    startup.probe_tpu(address)


@pytest.mark.parametrize("address", ["", "grpc://", "grpc://h:99999999", "http://h:1"])
def test_other_forms_are_refused(address):
    with pytest.raises(ValueError, match="wanted a TPU's name"):
        startup.probe_tpu(address)


def test_imports_are_quick_and_leave_no_trace(monkeypatch):
    monkeypatch.setattr(startup, "_UNUSED", ("wave", "no_such_module"))
    sys.modules.pop("wave", None)
    try:
        with startup.quick_imports():
            assert not gc.isenabled()
            import wave  # hidden from TensorFlow alone
        assert gc.isenabled()
        assert wave is sys.modules["wave"]
        assert "no_such_module" not in sys.modules
    finally:
        gc.unfreeze()


def test_starting_imports_no_more_than_it_needs():
    program = (
        "import sys\n"
        "from tl_tf import startup\n"
        "with startup.quick_imports():\n"
        "    from tl_tf import experiment\n"
        "    from tl_tf.inputs import image, video\n"
        "    from tl_tf.models import vit, vivit, x2p1d\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.stderr
    imported = set(done.stdout.split())
    assert {"tensorflow", "tf_keras"} < imported
    assert not imported & {
        *("jax", "pandas", "googleapiclient", "matplotlib", "keras", "official", "av"),
        *("tensorflow_datasets", "apache_beam", "torch"),
    }
