"""What limits training: input alone, compute alone on one batch, and both together."""

import dataclasses
import itertools
import statistics
import time

import orbit
import tensorflow as tf

from tl_tf import runtime

ROUNDS = 3  # of all three in turn; the medians are told
PHASE_SECONDS = 4.0  # of each in a round, at least
IDLE_SHARE = 0.1  # of a processor: below it, nothing is read ahead any more


@dataclasses.dataclass(frozen=True)
class Profile:
    """Examples a second over all hosts, and what a step waits for.

    Attributes:
      input: of the pipeline, when nothing is computed.
      compute: of training steps on a batch that is held.
      together: of training as it is.
      wait_share: of the time of such training, what it waits for its batches.
    """

    input: float
    compute: float
    together: float
    wait_share: float

    @property
    def limit(self) -> str:
        """The slower one: "input" or "compute"."""
        return "input" if self.input < self.compute else "compute"


def profile(loop: orbit.AbstractTrainer, strategy: tf.distribute.Strategy) -> Profile:
    """Measures a trainer, whose steps are run.

    Processors that also compute read more slowly meanwhile: `together` may lie below
    both of the others.

    Args:
      loop: of trainer.Trainer, with a learning rate of 0: one batch would be learnt by
        heart.
      strategy: of the loop.
    """
    batches = loop.iterator
    held = next(batches)
    repeated = itertools.repeat(held)
    examples = held["pixels"].shape[0] * runtime.num_hosts(strategy)
    found = []

    def train(source, num_steps: int) -> dict[str, float]:
        loop.iterator = source
        return loop.train(tf.constant(num_steps))

    train(repeated, 2)  # traces and compiles
    rate = train(repeated, 1)["input/examples_per_second"]
    num_steps = max(1, round(PHASE_SECONDS * rate / examples))
    for _ in range(ROUNDS):
        _read(batches, PHASE_SECONDS / 2)  # what was read ahead
        reading = _read(batches, PHASE_SECONDS) * examples
        training = train(batches, num_steps)
        _wait_until_idle()
        computing = train(repeated, num_steps)
        found.append(
            Profile(
                input=reading,
                compute=computing["input/examples_per_second"],
                together=training["input/examples_per_second"],
                wait_share=training["input/wait_share"],
            )
        )
    rounds = zip(*map(dataclasses.astuple, found), strict=True)
    return Profile(*map(statistics.median, rounds))


def _read(batches, seconds: float) -> float:
    """Batches a second."""
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        next(batches)
        count += 1
    return count / elapsed


def _wait_until_idle() -> None:
    """Returns when the pipeline has read ahead as far as it does, or after a phase."""
    end = time.perf_counter() + PHASE_SECONDS
    pause = PHASE_SECONDS / 40
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(pause)
        if time.process_time() - before < IDLE_SHARE * pause:
            return
