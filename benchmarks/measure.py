"""Rivals timed in turn, each in a process of its own: ratios, and peak memory.

Machines are noisy, and their noise drifts: the contenders of a comparison run one after
the other in every round, and what is reported is the median of the rounds' ratios.
"""

import ctypes
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROUNDS = 9
ROUND_SECONDS = 0.3  # a contender's share of a round, at least


class Seconds(float):
    """What a call took by its own account."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is timed.

    Args:
      name: in tables.
      build: a function at the top of a module; called once, in a new process, it
        returns what is timed: a function that has done its work when it returns, or
        that returns `Seconds` because it works ahead, as input pipelines do.
      arguments: of `build`.
    """

    name: str
    build: Callable[..., Callable[[], Any]]
    arguments: tuple = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """A contender's measurements.

    Args:
      seconds: of one call, by round.
      extra_bytes: peak of the resident set over all calls but the warm-up, in which
        things are compiled, above what was resident before the first: compiled code
        counts.
      peak_bytes: of the process, libraries and inputs included.
    """

    seconds: list[float]
    extra_bytes: int
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast as a rival: median and quartiles of the rounds' ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interleave(
    contenders: Sequence[Contender], *, rounds: int = ROUNDS, warm_up: int = 2
) -> dict[str, Result]:
    """Times all contenders in turn; those whose packages are missing are left out.

    Prints a line for each contender left out.  Idle contenders keep their memory.

    Raises:
      RuntimeError: a contender failed, naming it.
    """
    running = {}
    try:
        for contender in contenders:
            worker = _Worker(contender)
            if worker.missing:
                print(f"{contender.name}: left out, {worker.missing}", flush=True)
            else:
                running[contender.name] = worker
        for worker in running.values():
            worker.warm_up(warm_up)
        times = [
            {name: worker.seconds() for name, worker in running.items()}
            for _ in range(rounds)
        ]
        return {
            name: Result([t[name] for t in times], *worker.memory())
            for name, worker in running.items()
        }
    finally:
        for worker in running.values():
            worker.stop()


def speedup(own: Result, rival: Result) -> Ratio:
    """The rival's seconds over ours."""
    ratios = [r / o for o, r in zip(own.seconds, rival.seconds, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def write_json(path: str | Path, content: Any) -> None:
    """Writes dataclasses, dicts and lists, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, default=dataclasses.asdict, indent=1) + "\n")
    os.replace(partial, path)


def draw_curves(
    path: str | Path,
    curves: dict[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    is_log: bool = True,
) -> None:
    """Draws lines of (x, y) on logarithmic axes, or on linear ones, as PNG.

    Values that hardly differ have a linear axis from 0 in any case.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=110)
    for name, points in curves.items():
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, marker="o", markersize=4, label=name)
    if is_log:
        axes.set_xscale("log", base=2)
        ys = [y for points in curves.values() for _, y in points]
        if max(ys) < 4 * min(ys):  # too little for a logarithm's ticks
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log", base=2 if max(ys) < 100 * min(ys) else 10)
            axes.yaxis.set_major_formatter("{x:g}")
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


class _Worker:
    """A contender's process, which does as it is told through a pipe."""

    def __init__(self, contender: Contender):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._name = contender.name
        self._process = context.Process(
            target=_serve, args=(theirs, contender.build, contender.arguments)
        )
        self._process.start()
        theirs.close()
        self._calls = 1
        self.missing = self._receive()
        if self.missing:
            self.stop()

    def warm_up(self, calls: int) -> None:
        """Compiles and warms up, then chooses the number of calls in a round."""
        for _ in range(calls):
            seconds = self._ask("run", 1)
        self._ask("settle", 0)
        self._calls = max(1, round(ROUND_SECONDS / seconds))

    def seconds(self) -> float:
        """Of one call, mean over a round's share."""
        return self._ask("run", self._calls)

    def memory(self) -> tuple[int, int]:
        """-> bytes above those before the first call, and in all."""
        return self._ask("memory", 0)

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _ask(self, what: str, calls: int):
        self._pipe.send((what, calls))
        return self._receive()

    def _receive(self):
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(
                f"{self._name} failed: its error stands above."
            ) from None


def _serve(pipe, build, arguments) -> None:
    try:
        call = build(*arguments)
    except ImportError as error:
        pipe.send(
            f"{error}: pip install -r requirements-benchmarks.txt (and see there)"
        )
        return
    _settle()
    before = _status_bytes("VmRSS")
    pipe.send(None)
    while True:
        try:
            what, calls = pipe.recv()
        except EOFError:
            return
        if what == "memory":
            peak = _status_bytes("VmHWM")
            pipe.send((peak - before, peak))
            continue
        if what == "settle":  # compiling is over
            _settle()
            pipe.send(None)
            continue
        seconds = 0.0
        for _ in range(calls):
            start = time.perf_counter()
            told = call()
            elapsed = time.perf_counter() - start
            seconds += told if isinstance(told, Seconds) else elapsed
            del told  # or the next call would find it in memory
        pipe.send(seconds / calls)


def _settle() -> None:
    """Gives freed memory back; the peak is counted from here on."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")
