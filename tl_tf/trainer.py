"""The Orbit inner loop of training."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import losses, runtime
from tl_tf.inputs import augment, split
from tl_tf.layers import recompute

MIX_DRAW = 1 << 20  # of a step's seed; models fold in smaller numbers
ON_NONFINITE = ("stop", "skip")
MOST_SKIPPED = 20  # steps in a row: such a run does not come back


class NonFiniteLossError(ValueError):
    """Loss or gradient became NaN or infinite; nothing of that loop was saved."""


class Trainer(orbit.AbstractTrainer):
    """Runs training steps: host batch -> replicas -> summed gradients -> update.

    The host iterator is a plain tf.data iterator, so that a checkpoint can hold it;
    each replica's share is handed over explicitly.  `optimizer.iterations` is the only
    step counter, and every random draw is keyed by it.

    Args:
      model: a built model; `model(pixels, training=True, seed=seed)` returns logits
        and endpoints.
      optimizer: a built tf_keras optimizer.
      loss: of `losses.build_loss`.
      strategy: the model and the optimizer were made in its scope.
      iterator: yields {"pixels": uint8 [B, ..., 3], "labels": float32 [B, K]}, B
        being this host's share of the batch and "..." T, H, W or H, W.
      seed: of the run.
      clip_norm: global norm to which gradients are clipped; None for no clipping.
      mix: mixes examples and their labels, given a seed, on the device; None for none.
      accumulation_steps: micro-batches into which a replica's share is cut, their
        gradients summed before the one update; divides that share.  Batch statistics
        are a micro-batch's, and `mix` mixes within one.
      jit_compile: whether forward and backward pass are compiled by XLA.  (On a TPU
        everything is, regardless.)
      on_nonfinite: "stop" ends a loop whose loss or gradient norm was NaN or infinite;
        "skip" leaves weights, optimizer, averages and batch statistics as they were
        before such a step, and goes on.  That takes a decision on the host in each
        step.
      explain_data_error: turns an error of the iterator into one readable sentence.
      on_passed_over: called after each loop with the `passed_over` of its last batch,
        if it has one; returns more TensorBoard tags and values.
      on_first_batch: called once, with a batch of this run, to show it.
      on_step: called before each step of a loop with how many it has done, and of how
        many.
      should_stop: asked after each step; if so, a loop ends early.

    Raises:
      ValueError: when the batch does not divide as asked; another `on_nonfinite`.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        *,
        loss: losses.Loss,
        strategy: tf.distribute.Strategy,
        iterator: tf.data.Iterator,
        seed: int,
        clip_norm: float | None = None,
        mix: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None = None,
        accumulation_steps: int = 1,
        jit_compile: bool = False,
        on_nonfinite: str = "stop",
        explain_data_error: Callable[[tf.errors.OpError], str] = str,
        on_passed_over: Callable[[dict[str, tf.Tensor]], dict[str, float]]
        | None = None,
        on_first_batch: Callable[[dict[str, tf.Tensor]], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.model = model
        self.optimizer = optimizer
        self.iterator = iterator
        self._loss = loss
        self._strategy = strategy
        self._seed = seed
        self._clip_norm = clip_norm
        self._mix = mix
        self._accumulation_steps = accumulation_steps
        self._explain_data_error = explain_data_error
        self._on_passed_over = on_passed_over
        self._on_first_batch = on_first_batch
        self._on_step = on_step
        self._should_stop = should_stop
        self._num_hosts = runtime.num_hosts(strategy)
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(
                f"train.on_nonfinite must be one of {ON_NONFINITE}, got"
                f" {on_nonfinite!r}."
            )
        self._skips = on_nonfinite == "skip"
        self._skipped_in_a_row = 0
        batch = iterator.element_spec["pixels"].shape[0]
        replicas = runtime.host_replicas(strategy)
        if batch % (replicas * accumulation_steps):
            raise ValueError(
                f"trainer: a host's batch of {batch} does not divide into"
                f" {replicas} replicas x {accumulation_steps} accumulation"
                " steps. Change train.batch_size or train.accumulation_steps."
            )
        self._is_compiled = jit_compile
        self._gradients = self._compute_gradients
        if jit_compile:  # else no function of its own: synchronized norms need that
            self._gradients = tf.function(
                self._compute_gradients, jit_compile=True, autograph=False
            )
        self._step = tf.function(self._distributed_step, autograph=False)

    def train(self, num_steps: tf.Tensor) -> dict[str, Any]:
        """Runs `num_steps` steps, or fewer if asked to stop.

        Nothing is read back from the devices before the last.

        Returns:
          TensorBoard tags and values; the loss is the mean over the steps that were
          not skipped.

        Raises:
          NonFiniteLossError: naming the step, when a loss or the gradients' norm was
            NaN or infinite, or was so for MOST_SKIPPED steps in a row.
          ValueError: naming shard and record, when the input is broken.
        """
        start, waited = time.perf_counter(), 0.0
        first_step = int(self.optimizer.iterations.numpy())
        results = []
        for done in range(int(num_steps)):
            if self._on_step is not None:
                self._on_step(done, int(num_steps))
            before = time.perf_counter()
            try:
                batch = next(self.iterator)
            except split.ERRORS as error:
                raise ValueError(self._explain_data_error(error)) from error
            waited += time.perf_counter() - before
            parts = {name: batch[name] for name in ("pixels", "labels")}
            results.append(self._step(runtime.hand_out(parts, self._strategy)))
            if self._should_stop():
                break
        values = np.array([[x.numpy() for x in result] for result in results])
        elapsed = time.perf_counter() - start
        is_good = np.isfinite(values).all(axis=1)
        self._check_finite(values, is_good, first_step)
        good = values[is_good] if is_good.any() else np.full([1, 2], np.nan)
        if self._on_first_batch is not None:
            self._on_first_batch(batch)
            self._on_first_batch = None
        more = {"train/skipped_steps": int(sum(~is_good))} if self._skips else {}
        if self._on_passed_over is not None and "passed_over" in batch:
            more |= self._on_passed_over(batch["passed_over"])
        examples = len(results) * batch["pixels"].shape[0] * self._num_hosts
        return {
            "train/loss": float(good[:, 0].mean()),
            "train/gradient_norm": float(good[-1, 1]),
            "train/learning_rate": float(self.optimizer.learning_rate.numpy()),
            "input/examples_per_second": examples / elapsed,
            "input/wait_share": waited / elapsed,
            **more,
        }

    def replica_step(
        self, pixels: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One replica's part of a step.

        The loss is the mean over the replica's examples, divided by the number of
        replicas because gradients are summed.

        Args:
          pixels: uint8 [B, ..., 3].
          labels: float32 [B, K].

        Returns:
          This replica's share of the loss, and the global gradient norm before
          clipping.
        """
        loss, norm, gradients = self._replica_gradients(pixels, labels)
        self._update(gradients, norm)
        return loss, norm

    def _replica_gradients(self, pixels, labels):
        """-> this replica's share of the loss; norm and gradients over all of them."""
        context = tf.distribute.get_replica_context()
        seed = runtime.step_seed(
            self._seed, self.optimizer.iterations, context.replica_id_in_sync_group
        )
        loss, gradients = self._gradients(pixels, labels, seed)
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        return loss, tf.linalg.global_norm(gradients), gradients

    def _update(self, gradients, norm):
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(
                gradients, self._clip_norm, use_norm=norm
            )
        self.optimizer.apply_gradients(
            zip(gradients, self.model.trainable_variables, strict=True),
            skip_gradients_aggregation=True,
        )

    def _compute_gradients(self, pixels, labels, seed):
        parts = self._accumulation_steps
        if parts == 1:
            return self._part_gradients(pixels, labels, seed)
        pixels, labels = (
            tf.reshape(x, [parts, -1, *x.shape[1:]]) for x in (pixels, labels)
        )  # [parts, B / parts, ...]

        def add(index, total, sums):
            part_seed = seed + tf.stack([index * 2**24, 0])
            # Not before the last part is done, or both would be in memory.
            done = tf.add_n([tf.reshape(s, [-1])[0] for s in sums])
            loss, gradients = self._part_gradients(
                pixels[index], labels[index], part_seed, after=done
            )
            sums = [s + g for s, g in zip(sums, gradients, strict=True)]
            return index + 1, total + loss, sums

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.model.trainable_variables]
        state = (tf.constant(0), tf.constant(0.0), zeros)
        if self._is_compiled:  # once, not once a part
            state = tf.while_loop(
                lambda *state: state[0] < parts, add, state, maximum_iterations=parts
            )
        else:  # within a loop, synchronized norms could not talk
            for _ in range(parts):
                state = add(*state)
        return state[1:]

    def _part_gradients(self, pixels, labels, seed, *, after=None):
        """-> this part's share of the loss, and the gradients of that."""
        variables = self.model.trainable_variables
        inputs = augment.normalize(pixels, self.model.compute_dtype)
        if after is not None:
            inputs = recompute.after(inputs, tf.cast(after, inputs.dtype))
        if self._mix is not None:
            mix_seed = tf.random.fold_in(seed, MIX_DRAW)
            inputs, labels = self._mix(inputs, labels, seed=mix_seed)
        scale = 1.0 / (self._accumulation_steps * self._strategy.num_replicas_in_sync)
        with tf.GradientTape() as tape:
            logits, _ = self.model(inputs, training=True, seed=seed)
            loss = tf.reduce_mean(self._loss(logits, labels)) * scale
        return loss, tape.gradient(loss, variables)

    def _distributed_step(self, replica_batches):
        run = self._strategy.run
        args = (replica_batches["pixels"], replica_batches["labels"])
        if not self._skips:
            return self._over_replicas(*run(self.replica_step, args=args))
        statistics = self.model.non_trainable_variables  # a forward pass changes them
        before = run(lambda: [tf.identity(variable) for variable in statistics])
        loss, replica_norms, gradients = run(self._replica_gradients, args=args)
        loss, norm = self._over_replicas(loss, replica_norms)

        def put_back(values):
            for variable, value in zip(statistics, values, strict=True):
                variable.assign(value)

        def update():
            run(self._update, args=(gradients, replica_norms))
            return True

        def skip():
            run(put_back, args=(before,))
            self.optimizer.iterations.assign_add(1)  # the next step draws anew
            return False

        # Here, not in a replica: there, nothing may be synchronized under a condition.
        tf.cond(tf.math.is_finite(loss) & tf.math.is_finite(norm), update, skip)
        return loss, norm

    def _over_replicas(self, loss, norm):
        return (
            self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None),
            self._strategy.reduce(tf.distribute.ReduceOp.MEAN, norm, axis=None),
        )

    def _check_finite(self, values, is_good, first_step: int) -> None:
        for index, (loss, norm) in enumerate(values):
            self._skipped_in_a_row = 0 if is_good[index] else self._skipped_in_a_row + 1
            if self._skipped_in_a_row < (MOST_SKIPPED if self._skips else 1):
                continue
            what, value = "loss", loss
            if np.isfinite(loss):
                what, value = "gradients' norm", norm
            skipped = f", after {MOST_SKIPPED - 1} skipped steps" if self._skips else ""
            raise NonFiniteLossError(
                f"the {what} became {value} at step {first_step + index + 1}{skipped}"
                f" (the last finite loss: {_last_finite(values[:index, 0])})."
                " The last checkpoint before it is kept. Lower the learning rate,"
                " lengthen the warm-up, or clip gradients (train.clip_norm)."
            )


def _last_finite(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite[-1]:.4g}" if len(finite) else "in an earlier loop"
