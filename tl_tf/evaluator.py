"""The Orbit inner loop of evaluation: views scored and merged, examples ranked."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import losses, metrics, optim, runtime
from tl_tf.inputs import augment, split

MERGES = {"max": np.max, "mean": np.mean}
METRICS = ("map", "top_k", "real")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
      values: the metrics by name, as map and wap, or top1 and top5; and the loss.
      ranking: average precision by class, or None for another metric.
      ids: of the N examples, in the order of the annotations.
      labels: [N, K], 0 or 1.
      view_scores: float32 [N, V, K], before merging.
      view_starts: of videos, int32 [N, V], the source frame at which each view begins.
    """

    values: dict[str, float]
    ranking: metrics.AveragePrecision | None
    ids: list[str]
    labels: np.ndarray
    view_scores: np.ndarray
    view_starts: np.ndarray | None = None


class ForwardPass:
    """Runs a model over a split: every view of every example, on all replicas.

    Args:
      model: built.
      strategy: the model was made in its scope.
      output: of (logits, endpoints), what is wanted: a tensor [B, D].
      jit_compile: whether the forward pass is compiled by XLA.
      on_progress: called with the number of batches done and of all.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        strategy: tf.distribute.Strategy,
        *,
        output: Callable[..., tf.Tensor] = lambda logits, endpoints: logits,
        jit_compile: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.model = model
        self._strategy = strategy
        self._output = output
        self._on_progress = on_progress
        self._compiled = tf.function(self._compute, jit_compile=jit_compile)
        self._step = tf.function(self._distributed_step)

    def replica_step(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of one view of each example: uint8 [B, ..., 3] -> float32 [B, D]."""
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
            except tf.errors.OpError as error:
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
        for view in range(pixels.shape[1]):  # one at a time: memory of a training step
            parts = runtime.hand_out({"pixels": pixels[:, view]}, self._strategy)
            replica_outputs = self._step(parts["pixels"])
            outputs.append(self._strategy.gather(replica_outputs, axis=0).numpy())
        rows = {
            name: self._strategy.gather(part, axis=0).numpy()
            for name, part in runtime.hand_out(batch, self._strategy).items()
        }
        return rows | {"outputs": np.stack(outputs, axis=1)}  # [B, V, D]


class Evaluator(orbit.AbstractEvaluator):
    """Scores every example of a split exactly once.

    Args:
      model: a built model.
      optimizer: whose averaged weights are evaluated, if it averages them.
      loss: of `losses.build_loss`; it turns logits into scores.
      strategy: the model was made in its scope.
      data: the split, for one pass.
      metric: "map" for several labels an example (Charades' rule), "top_k" for exactly
        one, "real" for ImageNet ReaL: any of an image's labels counts as right.
      merge: "max" or "mean" of an example's scores over its views.
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
        jit_compile: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_result: Callable[[Evaluation], None] = lambda evaluation: None,
    ):
        for name, value, choices in (
            ("merge", merge, tuple(MERGES)),
            ("metric", metric, METRICS),
        ):
            if value not in choices:
                raise ValueError(
                    f"build_evaluator.{name} must be one of {choices}, got {value!r}."
                )
        self.model = model
        self.has_run = False
        self._optimizer = optimizer
        self._loss = loss
        self._strategy = strategy
        self._data = data
        self._metric = metric
        self._merge = merge
        self._on_result = on_result
        self._forward = ForwardPass(
            model, strategy, jit_compile=jit_compile, on_progress=on_progress
        )
        self._token_maps = tf.function(self._distributed_token_maps)

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
        evaluation = self._rank(rows)
        self.has_run = True
        self._on_result(evaluation)
        return {f"eval/{name}": value for name, value in evaluation.values.items()}

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
            if name.endswith("token_maps")
        }

    def _rank(self, rows: dict[str, np.ndarray]) -> Evaluation:
        index = rows["index"]
        self._check_coverage(index)
        order = np.argsort([self._data.rows[i] for i in index])  # of the annotations
        rows = {name: values[order] for name, values in rows.items()}
        logits, labels = rows["outputs"], rows["labels"]  # [N, V, K], [N, K]
        view_scores = self._loss.scores(logits).numpy()
        view_labels = np.repeat(labels[:, np.newaxis], logits.shape[1], axis=1)
        scores = MERGES[self._merge](view_scores, axis=1)  # [N, K]
        values, ranking = self._metrics(scores, labels, rows["index"])
        return Evaluation(
            values=values | {"loss": float(np.mean(self._loss(logits, view_labels)))},
            ranking=ranking,
            ids=[self._data.examples[i] for i in rows["index"]],
            labels=labels,
            view_scores=view_scores,
            view_starts=rows.get("starts"),
        )

    def _metrics(
        self, scores: np.ndarray, labels: np.ndarray, index: np.ndarray
    ) -> tuple[dict[str, float], metrics.AveragePrecision | None]:
        if self._metric == "top_k":
            ks = [k for k in (1, 5) if k <= scores.shape[1]]
            return {
                f"top{k}": metrics.top_k_accuracy(scores, labels, k) for k in ks
            }, None
        if self._metric == "real":
            return {"real": metrics.real_accuracy(scores, labels)[0]}, None
        # The official rule scores a video without prediction as -inf, in its place: a
        # broken file must not raise the score.
        skipped = self._data.skipped
        missing = np.zeros([len(skipped), labels.shape[1]])
        for row, video in zip(missing, skipped, strict=True):
            row[video["labels"]] = 1
        places = [self._data.rows[i] for i in index] + [v["row"] for v in skipped]
        order = np.argsort(places)
        found = metrics.charades_map(
            np.concatenate([scores, np.full_like(missing, -np.inf)])[order],
            np.concatenate([labels, missing])[order],
        )
        return {"map": found.mean, "wap": found.weighted}, found

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


def result_scores(evaluation: Evaluation) -> dict[str, Any]:
    """The arrays that are stored beside a result, so that merging can be redone."""
    return {
        "ids": np.array(evaluation.ids),
        "labels": evaluation.labels,
        "view_scores": evaluation.view_scores,
    } | (
        {}
        if evaluation.view_starts is None
        else {"view_starts": evaluation.view_starts}
    )
