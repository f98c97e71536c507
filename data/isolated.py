"""Calls functions in a process of its own, which may crash or hang without harm.

Decoders are large C programs that read files from strangers.  A crash, a hang or an
appetite for memory in one of them ends the child process, and costs one video.
"""

import importlib
import multiprocessing.connection
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

MAX_MEMORY_BYTES = 4 << 30
_ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A call ended without an answer."""


class Crashed(Failed):
    """The child process died during the call."""


class TimedOut(Failed):
    """The call took longer than allowed; its process was killed."""


class Worker:
    """A child process that runs one call at a time, replaced when it dies.

    Args:
      timeout_seconds: wall-clock limit of one call.
    """

    def __init__(self, timeout_seconds: float):
        self._timeout_seconds = timeout_seconds
        self._is_killed = False
        self._process: subprocess.Popen | None = None
        self._pipe: multiprocessing.connection.Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Returns `function(*args, **kwargs)`, or raises what it raises.

        `function` must be importable by name; all must survive pickling.

        Raises:
          Crashed: when the process dies, with the signal or status in the message.
          TimedOut: after timeout_seconds.
        """
        if self._process is None:
            self._start()
        message = (self._timeout_seconds, function.__module__, function.__name__)
        try:
            self._pipe.send((*message, args, kwargs))
            if not self._pipe.poll(self._timeout_seconds):
                self.close()
                raise TimedOut(f"no answer after {self._timeout_seconds:g} s")
            is_error, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            status = self._process.wait()
            self.close()
            raise Crashed(_describe(status)) from error
        if is_error:
            raise result
        return result

    def kill(self) -> None:
        """Ends the call that another thread waits for, which raises Crashed.

        That thread may just be starting the process: what it starts now ends as well.
        """
        self._is_killed, process = True, self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process; safe to call twice."""
        if self._process is None:
            return
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = self._pipe = None

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.connection.Pipe()
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data.isolated", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # FFmpeg and x264 write to these from C, about every damaged packet.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Each thread of a BLAS library would count against the memory limit.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "OPENBLAS_NUM_THREADS": "1",
                # glibc and Pillow would give a picture's memory back after each one,
                # and ask the kernel for empty pages again.
                "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
                "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
                "PILLOW_BLOCKS_MAX": "4",
            },
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        theirs.close()
        if self._is_killed:
            self._process.kill()


class Workers:
    """Workers that share out calls; each process serves one call after another.

    Args:
      count: of the calls that run at once.
      timeout_seconds: wall-clock limit of one call, from when it begins to run.
    """

    def __init__(self, count: int, timeout_seconds: float):
        self._all = [Worker(timeout_seconds) for _ in range(count)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = futures.ThreadPoolExecutor(count)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes and cancels what waits for one; safe to call twice."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.kill()
        self._threads.shutdown()
        for worker in self._all:
            worker.close()

    def submit(self, function: Callable, *args: Any, **kwargs: Any) -> futures.Future:
        """Has a worker call `function`; see Worker.call for what the future gives."""
        return self._threads.submit(self._call, function, *args, **kwargs)

    def _call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(function, *args, **kwargs)
        finally:
            self._idle.put(worker)


def _describe(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    return f"the process was ended by {signal.Signals(-status).name}"


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    while True:
        try:
            timeout_seconds, module, name, args, kwargs = pipe.recv()
        except EOFError:  # the parent is gone
            return
        # The parent kills a slow call first; this is for a parent killed before that.
        signal.alarm(int(timeout_seconds) + 5)
        try:
            function = getattr(importlib.import_module(module), name)
            answer = (False, function(*args, **kwargs))
        except Exception as error:
            answer = (True, _picklable(error))
        signal.alarm(0)
        pipe.send(answer)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is refused or ignored
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    _limit()
    _serve(multiprocessing.connection.Connection(int(sys.argv[1])))
