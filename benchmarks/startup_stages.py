"""Runs run.py and tells, as JSON, what each stage of its start took, in seconds.

  python -m benchmarks.startup_stages START --gin_file=... --mode=train ...

START is the time at which the process was started; the recipe trains two loops of one
step each.  `benchmarks.startup` calls this.
"""

import collections
import json
import runpy
import sys
import time
from pathlib import Path

from tl_tf import config, startup

RUN = Path(__file__).resolve().parents[1] / "run.py"


def main(start: float) -> None:
    """Times functions as they are called."""
    took: dict[str, list[float]] = collections.defaultdict(list)

    def time_calls(owner, attribute: str) -> None:
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took[attribute].append(time.perf_counter() - began)

        setattr(owner, attribute, timed)

    check, quick_imports, load = config.check, startup.quick_imports, config.load

    def checking(*args):
        took["python"].append(time.time() - start)
        check(*args)

    def importing(**kwargs):
        took["import"].append(time.perf_counter())
        return quick_imports(**kwargs)

    def loading(*args):
        load(*args)
        took["import"][0] = time.perf_counter() - took["import"][0]
        from tl_tf import runtime, session, trainer

        time_calls(runtime, "configure_runtime")
        time_calls(session, "open_split")
        time_calls(session, "build")
        time_calls(trainer.Trainer, "train")
        time_calls(trainer.Trainer, "_distributed_step")

    config.check, startup.quick_imports, config.load = checking, importing, loading
    time_calls(config, "check")
    try:
        runpy.run_path(str(RUN), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    first, step = took["train"]
    traced = took["_distributed_step"][0]
    stages = {
        "Python, flags": took["python"][0],
        "recipe checked": took["check"][0],
        "libraries imported": took["import"][0],
        "devices": took["configure_runtime"][0],
        "data set opened": took["open_split"][0],
        "model and optimizer built": took["build"][0],
        "step traced": traced,
        "graph optimised or compiled": max(0.0, first - traced - step),
        "a step": step,
    }
    print(json.dumps(stages))


if __name__ == "__main__":
    main(start=float(sys.argv.pop(1)))
