"""Builds shards on this machine: threads that write, and processes that decode."""

import functools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures

from data import isolated, shards


def run(work: Sequence[shards.Shard], num_workers: int) -> None:
    """Builds all shards, showing how far it is; `num_workers` videos decode at once.

    As many shards are open, so that a video which hangs holds up one of them.
    """
    progress = Progress(sum(len(shard.clips) for shard in work), "videos")
    num_open = min(num_workers, len(work))
    with (
        isolated.Workers(num_workers, work[0].timeout_seconds) as workers,
        futures.ThreadPoolExecutor(num_open) as builders,
    ):
        build = functools.partial(
            shards.build_shard,
            workers=workers,
            num_ahead=math.ceil(2 * num_workers / num_open),
            on_video=progress.step,
        )
        try:
            for built in futures.as_completed(
                [builders.submit(build, s) for s in work]
            ):
                built.result()
        except BaseException:
            progress.is_stopped = True
            builders.shutdown(wait=False, cancel_futures=True)
            workers.close()
            raise


def run_calls(
    function: Callable,
    tasks: Iterable[dict],
    *,
    num_workers: int,
    timeout_seconds: float,
) -> None:
    """Calls `function(**task)` for each task, in processes that may crash."""
    with isolated.Workers(num_workers, timeout_seconds) as workers:
        calls = [workers.submit(function, **task) for task in tasks]
        progress = Progress(len(calls), "videos made")
        for call in futures.as_completed(calls):
            call.result()
            progress.step()


class Progress:
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
