"""Small training runs side by side, each in its own process, none of them twice."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where runs are made, and how.

    Attributes:
      out_dir: holds a folder for each number of steps, in it one for each run.
      data_dir: holds the data sets.
      recipe: what all of them start from.
      steps: of training.
      num_parallel: runs at a time, which share the processor's cores.
    """

    out_dir: Path
    data_dir: Path
    recipe: str
    steps: int
    num_parallel: int

    def build_synthetic(self) -> None:
        """Builds the synthetic videos once, before several runs find them missing."""
        command = [sys.executable, "-m", "data.build", "synthetic"]
        data_dir = f"--data_dir={self.data_dir.absolute()}"
        subprocess.run([*command, data_dir], cwd=ROOT, check=True)

    def train(self, name: str, bindings: Sequence[str], *, seed: int) -> float:
        """Trains and evaluates, unless that has been done.  -> mAP

        Raises:
          RuntimeError: the run failed; names its log.
        """
        return self._run(name, bindings, "train_and_eval", seed=seed)

    def evaluate(
        self, name: str, bindings: Sequence[str], *, trained: str, seed: int
    ) -> float:
        """Evaluates what the run `trained` has learnt by other bindings.  -> mAP

        Raises:
          RuntimeError: the run failed; names its log.
        """
        folder = self._folder(name, seed)
        if not folder.exists():
            leave = shutil.ignore_patterns("results", "tensorboard", "*.tmp", "log.txt")
            shutil.copytree(self._folder(trained, seed), folder, ignore=leave)
        return self._run(name, bindings, "eval", seed=seed)

    def _folder(self, name: str, seed: int) -> Path:
        words = "".join(c if c.isalnum() else " " for c in name).split()
        return self.out_dir / f"steps_{self.steps}" / f"{'_'.join(words)}_{seed}"

    def _run(
        self, name: str, bindings: Sequence[str], mode: str, *, seed: int
    ) -> float:
        model_dir = self._folder(name, seed)
        result = model_dir / "results" / f"test-{self.steps}.json"
        if not result.exists():
            model_dir.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            log = model_dir / "log.txt"
            threads = max(1, os.cpu_count() // self.num_parallel)
            shared = [f"TOTAL_STEPS = {self.steps}", f"SEED = {seed}"]
            command = [
                sys.executable,
                "run.py",
                f"--mode={mode}",
                f"--gin_file={self.recipe}",
                f"--model_dir={model_dir.absolute()}",
                f"--data_dir={self.data_dir.absolute()}",
                *(f"--gin_bindings={b}" for b in [*shared, *bindings]),
            ]
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.run(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=os.environ | dict.fromkeys(THREADS, str(threads)),
                )
            if process.returncode:
                raise RuntimeError(f"{name!r} with seed {seed} failed: see {log}.")
            seconds = time.perf_counter() - started
            print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)
        return json.loads(result.read_text(encoding="utf-8"))["metrics"]["map"]
