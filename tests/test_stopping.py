import signal
import subprocess
import sys
import threading
import time

import pytest

from tl_tf import stopping

WAITS = """
import signal, sys, time
from tl_tf import stopping
stop = stopping.Stop()
with stop.listening(grace_seconds={grace}):
    print("listening", flush=True)
    while not ({leaves} and stop.is_wanted()):
        time.sleep(0.01)
print(stop.name, flush=True)
sys.exit(stop.exit_code)
"""


def start(*, leaves: bool, grace: float) -> subprocess.Popen:
    code = WAITS.format(leaves=leaves, grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_noted_and_has_an_exit_code(number, code):
    process = start(leaves=True, grace=30)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=10)
    assert (process.returncode, printed, errors) == (code, f"{number.name}\n", "")


def test_a_second_signal_ends_at_once():
    process = start(leaves=False, grace=30)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.communicate()


def test_the_grace_period_ends():
    process = start(leaves=False, grace=0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 143
    assert "SIGTERM: not saved within the grace period" in errors


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.Stop().listening():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_another_thread_hears_nothing():
    stop, done = stopping.Stop(), []

    def listen():
        with stop.listening():
            done.append(stop.is_wanted())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert done == [False]


def test_a_host_that_was_not_asked_itself_leaves_as_by_sigterm():
    stop = stopping.Stop()
    assert (stop.is_wanted(), stop.name, stop.exit_code) == (False, "SIGTERM", 143)
