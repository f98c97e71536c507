"""A wish to stop, by SIGTERM or SIGINT, that training hears between two steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 25.0  # of the 30 that Kubernetes and preempted machines grant


class Stopped(Exception):
    """Training has come to a place where it may be left."""


class Stop:
    """Whether somebody has asked this process to stop, and what comes of it.

    A host that stops because another was asked does so as if by SIGTERM.
    """

    def __init__(self):
        self._number: int | None = None

    def is_wanted(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self._number or signal.SIGTERM).name

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: SIGTERM 143, SIGINT 130."""
        return 128 + (self._number or signal.SIGTERM)

    @contextlib.contextmanager
    def listening(self, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
        """For the time of a `with` block, a first signal is only noted.

        A second one ends the process at once; so does the end of the grace period.
        Outside the main thread, where Python hears no signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        timers = []

        def note(number, frame):
            del frame
            self._number = number
            for other in SIGNALS:
                signal.signal(other, signal.SIG_DFL)
            timers.append(threading.Timer(grace_seconds, self._give_up))
            timers[-1].daemon = True
            timers[-1].start()

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _give_up(self):
        print(
            f"run.py: {self.name}: not saved within the grace period; the last"
            " checkpoint is as it was.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(self.exit_code)
