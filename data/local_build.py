"""Builds shards on this machine: threads that each wait for a process of their own."""

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures

from data import isolated, shards


def run(work: Sequence[shards.Shard], num_workers: int) -> None:
    """Builds all shards, showing how far it is; `num_workers` videos decode at once."""
    progress = _Progress(sum(len(shard.clips) for shard in work), "videos")
    build = functools.partial(shards.build_shard, on_video=progress.step)
    _in_threads(build, work, num_workers, progress)


def run_calls(
    function: Callable,
    tasks: Iterable[dict],
    *,
    num_workers: int,
    timeout_seconds: float,
) -> None:
    """Calls `function(**task)` for each task, in processes that may crash."""
    tasks = list(tasks)
    progress = _Progress(len(tasks), "videos made")

    def run(part: list[dict]) -> None:
        with isolated.Worker(timeout_seconds) as worker:
            for task in part:
                worker.call(function, **task)
                progress.step()

    parts = [tasks[i::num_workers] for i in range(num_workers)]
    _in_threads(run, parts, num_workers, progress)


def _in_threads(
    function: Callable, items: Iterable, num_workers: int, progress: "_Progress"
) -> None:
    with futures.ThreadPoolExecutor(num_workers) as pool:
        running = [pool.submit(function, item) for item in items]
        try:
            for future in futures.as_completed(running):
                future.result()
        except BaseException:
            progress.is_stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Progress:
    """Tells how far a build is: one line on a terminal, a line now and then elsewhere.

    Args:
      total: of the things done.
      what: their name.
    """

    def __init__(self, total: int, what: str):
        self._total, self._what, self._done = total, what, 0
        self._start = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._is_terminal = sys.stderr.isatty()
        self.is_stopped = False

    def step(self) -> None:
        """Counts one; ends the calling thread's work after Ctrl-C."""
        if self.is_stopped:
            raise KeyboardInterrupt
        with self._lock:
            self._done += 1
            now = time.monotonic()
            is_due = now - self._shown >= (0.2 if self._is_terminal else 20)
            if not is_due and self._done < self._total:
                return
            self._shown = now
            rate = self._done / max(now - self._start, 1e-3)
            left = time.strftime(
                "%H:%M:%S", time.gmtime((self._total - self._done) / rate)
            )
            text = f"{self._what} {self._done}/{self._total}, {rate:.1f}/s, {left} left"
            is_last = self._done == self._total
            if self._is_terminal:  # over the line before, blanks over its rest
                text = f"\r{text:60}"
            end = "\n" if is_last or not self._is_terminal else ""
            print(text, end=end, file=sys.stderr, flush=True)
