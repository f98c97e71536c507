"""The Orbit inner loop of evaluation: views scored and merged, examples ranked."""

import dataclasses
from collections.abc import Callable

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import losses, optim, runtime, scores
from tl_tf.inputs import augment, split

TOKEN_MAPS = "token_maps"  # ends the names of those endpoints


class ForwardPass:
    """Runs a model over a split: every view of every example, on all replicas.

    Args:
      model: built.
      strategy: the model was made in its scope.
      output: of (logits, endpoints), what is wanted: a tensor [B, D].
      views_at_once: views of each example in one call of the model; memory grows with
        it.
      jit_compile: whether the forward pass is compiled by XLA.
      on_progress: called with the number of batches done and of all.

    Raises:
      ValueError: for no view at once.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        strategy: tf.distribute.Strategy,
        *,
        output: Callable[..., tf.Tensor] = lambda logits, endpoints: logits,
        views_at_once: int = 1,
        jit_compile: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        if views_at_once < 1:
            raise ValueError(
                "build_evaluator.views_at_once must be at least 1, got"
                f" {views_at_once}."
            )
        self.model = model
        self._strategy = strategy
        self._output = output
        self._views_at_once = views_at_once
        self._on_progress = on_progress
        self._compiled = tf.function(
            self._compute, jit_compile=jit_compile, autograph=False
        )
        self._step = tf.function(self._distributed_step, autograph=False)

    def replica_step(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of some views: uint8 [B, ..., 3] -> float32 [B, D]."""
        return self._compiled(pixels)

    def run(self, data: split.Split) -> dict[str, np.ndarray]:
        """One pass.

        Returns:
          `outputs` float32 [N, V, D] and the other tensors of the batches, a row for
          each example that a host yielded, padding left out.

        Raises:
          ValueError: when the input is broken.
        """
        gathered: list[dict[str, np.ndarray]] = []
        iterator = iter(data.batches)
        for done in range(data.num_batches):
            self._on_progress(done, data.num_batches)
            try:
                batch = next(iterator)
            except split.ERRORS as error:
                raise ValueError(data.explain(error)) from error
            gathered.append(self._run_batch(dict(batch)))
        self._on_progress(data.num_batches, data.num_batches)
        rows = {k: np.concatenate([g[k] for g in gathered]) for k in gathered[0]}
        return {k: v[rows["mask"] > 0] for k, v in rows.items()}

    def _compute(self, pixels):
        pixels = augment.normalize(pixels, self.model.compute_dtype)
        return tf.cast(self._output(*self.model(pixels, training=False)), tf.float32)

    def _distributed_step(self, pixels):
        return self._strategy.run(self.replica_step, args=(pixels,))

    def _run_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
        pixels = batch.pop("pixels")  # [B, V, ..., 3]
        outputs = []
        for first in range(0, pixels.shape[1], self._views_at_once):
            views = pixels[:, first : first + self._views_at_once]
            num_views = views.shape[1]
            views = tf.reshape(views, [-1, *views.shape[2:]])  # [B * views, ..., 3]
            parts = runtime.hand_out({"pixels": views}, self._strategy)
            found = self._strategy.gather(self._step(parts["pixels"]), axis=0).numpy()
            outputs.append(found.reshape([-1, num_views, found.shape[-1]]))
        rows = {
            name: self._strategy.gather(part, axis=0).numpy()
            for name, part in runtime.hand_out(batch, self._strategy).items()
        }
        return rows | {"outputs": np.concatenate(outputs, axis=1)}  # [B, V, D]


class Evaluator(orbit.AbstractEvaluator):
    """Scores every example of a split exactly once.

    Args:
      model: a built model.
      optimizer: whose averaged weights are evaluated, if it averages them.
      loss: of `losses.build_loss`; it turns logits into scores.
      strategy: the model was made in its scope.
      data: the split, for one pass.
      metric: of scores.METRICS.
      merge: of scores.MERGES.
      views_at_once: views of each example in one call of the model.
      phase: begins the TensorBoard tags.
      jit_compile: whether the forward pass is compiled by XLA.
      on_progress: called with the number of batches done and of all.
      on_result: called with each Evaluation, before `evaluate` returns.

    Raises:
      ValueError: for another merge or metric.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        *,
        loss: losses.Loss,
        strategy: tf.distribute.Strategy,
        data: split.Split,
        metric: str,
        merge: str = "max",
        views_at_once: int = 1,
        phase: str = "eval",
        jit_compile: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_result: Callable[[scores.Evaluation], None] = lambda evaluation: None,
    ):
        scores.check(metric=metric, merge=merge)
        self.model = model
        self.has_run = False
        self._optimizer = optimizer
        self._loss = loss
        self._strategy = strategy
        self._data = data
        self._metric = metric
        self._merge = merge
        self._phase = phase
        self._on_result = on_result
        self._forward = ForwardPass(
            model,
            strategy,
            views_at_once=views_at_once,
            jit_compile=jit_compile,
            on_progress=on_progress,
        )
        self._token_maps = tf.function(self._distributed_token_maps, autograph=False)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that an evaluation finds."""
        return scores.measures(self._metric, num_classes=len(self._data.classes))

    def score_batches(self, num_batches: int) -> None:
        """Scores the first batches and keeps nothing: how long does it take?

        Raises:
          ValueError: when the input is broken.
        """
        batches = self._data.batches.take(num_batches)
        self._forward.run(
            dataclasses.replace(self._data, batches=batches, num_batches=num_batches)
        )

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """One pass over the split; `num_steps` is Orbit's, and always all of it.

        Returns:
          TensorBoard tags and values.

        Raises:
          ValueError: when the input is broken, or an example was not seen exactly once.
        """
        del num_steps
        with optim.averaged_weights(self._optimizer, self.model):
            rows = self._forward.run(self._data)
        evaluation = scores.evaluate(
            self._score(rows), metric=self._metric, merge=self._merge
        )
        self.has_run = True
        self._on_result(evaluation)
        return {
            f"{self._phase}/{name}": value for name, value in evaluation.values.items()
        }

    def look(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Token maps over the first view of the first batch.

        Returns:
          pixels uint8 [B, ..., 3], labels [B, K], and by the endpoint's name the token
          maps [B, T', h, w, S], in the order of the model; of one replica.
        """
        batch = next(iter(self._data.batches))
        pixels, labels = batch["pixels"][:, 0], batch["labels"]
        parts = runtime.hand_out({"pixels": pixels}, self._strategy)
        with optim.averaged_weights(self._optimizer, self.model):
            found = self._token_maps(parts["pixels"])
        first = {
            name: self._strategy.experimental_local_results(tensor)[0].numpy()
            for name, tensor in found.items()
        }
        return pixels.numpy(), labels.numpy(), first

    def replica_step(self, pixels: tf.Tensor) -> tf.Tensor:
        """Logits of one view of each example: uint8 [B, ..., 3] -> [B, K] float32."""
        return self._forward.replica_step(pixels)

    def _distributed_token_maps(self, pixels):
        return self._strategy.run(self._compute_token_maps, args=(pixels,))

    def _compute_token_maps(self, pixels):
        pixels = augment.normalize(pixels, self.model.compute_dtype)
        _, endpoints = self.model(pixels, training=False)
        return {
            name: tf.cast(tensor, tf.float32)
            for name, tensor in endpoints.items()
            if name.endswith(TOKEN_MAPS)
        }

    def _score(self, rows: dict[str, np.ndarray]) -> scores.ViewScores:
        data = self._data
        self._check_coverage(rows["index"])
        places = np.array(data.rows)
        order = np.argsort(places[rows["index"]])  # of the annotations
        rows = {name: values[order] for name, values in rows.items()}
        logits, labels = rows["outputs"], rows["labels"]  # [N, V, K], [N, K]
        view_labels = np.repeat(labels[:, np.newaxis], logits.shape[1], axis=1)
        skipped_labels = np.zeros([len(data.skipped), labels.shape[1]])
        for row, example in zip(skipped_labels, data.skipped, strict=True):
            row[example["labels"]] = 1
        crops = scores.CROPS[data.num_crops]
        num_clips = logits.shape[1] // len(crops)
        return scores.ViewScores(
            ids=np.array([data.examples[i] for i in rows["index"]]),
            rows=places[rows["index"]],
            labels=labels,
            classes=np.array(data.classes),
            view_scores=self._loss.scores(logits).numpy(),
            view_losses=self._loss(logits, view_labels).numpy(),
            view_clips=np.repeat(np.arange(num_clips), len(crops)),
            view_crops=np.tile(crops, num_clips),
            view_starts=rows.get("starts"),
            skipped_rows=np.array([e["row"] for e in data.skipped], int),
            skipped_labels=skipped_labels,
        )

    def _check_coverage(self, index: np.ndarray) -> None:
        wanted = self._data.examples
        counts = np.bincount(index, minlength=len(wanted))
        missing = np.flatnonzero(counts == 0)
        extra = int((counts - 1).clip(min=0).sum())
        if len(missing) or extra:
            example = "".join(f", as {wanted[i]}" for i in missing[:1])
            raise ValueError(
                f"evaluation: wanted each of {len(wanted)} {self._data.noun} once, got"
                f" {len(missing)} not at all{example} and {extra} too often. The data"
                " do not hold what they list: build the data set again."
            )
