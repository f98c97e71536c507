"""The Orbit inner loop of evaluation: views scored and merged, videos ranked."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import losses, metrics, optim, runtime
from tl_tf.inputs import augment

MERGES = {"max": np.max, "mean": np.mean}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
      values: the metrics by name: map and wap, or top1 and top5; and the loss.
      ranking: average precision by class, or None for data with a single label.
      video_ids: N of them, in the order of the annotations.
      labels: [N, K], 0 or 1.
      view_scores: float32 [N, V, K], before merging.
      view_starts: int32 [N, V], the source frame at which each view begins.
    """

    values: dict[str, float]
    ranking: metrics.AveragePrecision | None
    video_ids: list[str]
    labels: np.ndarray
    view_scores: np.ndarray
    view_starts: np.ndarray


class Evaluator(orbit.AbstractEvaluator):
    """Scores every video of a split exactly once.

    Args:
      model: a built model.
      optimizer: whose averaged weights are evaluated, if it averages them.
      loss: of `losses.build_loss`; it turns logits into scores.
      strategy: the model was made in its scope.
      batches: as of `clip_dataset`, for one pass: frames uint8 [B, V, T, H, W, 3],
        labels [B, K], mask [B], shard [B], record [B], starts [B, V]; as many batches
        on every host.
      num_batches: of one pass.
      reports: of the shards, as `records.DatasetInfo.reports`: which videos must
        be seen, each once, and which could not be built.
      merge: "max" or "mean" of a video's scores over its views.
      jit_compile: whether the forward pass is compiled by XLA.
      explain_data_error: turns an error of the input into one readable sentence.
      on_progress: called with the number of batches done and of all.
      on_result: called with each Evaluation, before `evaluate` returns.

    Raises:
      ValueError: for another merge.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        *,
        loss: losses.Loss,
        strategy: tf.distribute.Strategy,
        batches: Iterable[dict[str, tf.Tensor]],
        num_batches: int,
        reports: list[dict[str, Any]],
        merge: str,
        jit_compile: bool = False,
        explain_data_error: Callable[[tf.errors.OpError], str] = str,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_result: Callable[[Evaluation], None] = lambda evaluation: None,
    ):
        if merge not in MERGES:
            raise ValueError(
                f"build_evaluator.merge must be one of {sorted(MERGES)}, got {merge!r}."
            )
        self.model = model
        self.first_batch: dict[str, tf.Tensor] | None = None
        self._optimizer = optimizer
        self._loss = loss
        self._strategy = strategy
        self._batches = batches
        self._num_batches = num_batches
        self._built = [report["built"] for report in reports]
        self._skipped = [video for report in reports for video in report["skipped"]]
        self._merge = merge
        self._explain_data_error = explain_data_error
        self._on_progress = on_progress
        self._on_result = on_result
        self._logits = tf.function(self._compute_logits, jit_compile=jit_compile)
        self._step = tf.function(self._distributed_step)
        self._token_maps = tf.function(self._distributed_token_maps)

    def evaluate(self, num_steps: tf.Tensor) -> dict[str, float]:
        """One pass over the split; `num_steps` is Orbit's, and always all of it.

        Returns:
          TensorBoard tags and values.

        Raises:
          ValueError: when the input is broken, or a video was not seen exactly once.
        """
        del num_steps
        with optim.averaged_weights(self._optimizer, self.model):
            rows = self._score()
        evaluation = self._rank(rows)
        self._on_result(evaluation)
        return {f"eval/{name}": value for name, value in evaluation.values.items()}

    def look(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Token maps over the first view of the first batch that was evaluated.

        Returns:
          frames uint8 [B, T, H, W, 3], labels [B, K], and by the endpoint's name the
          token maps [B, T', h, w, S], in the order of the model; of one replica.
        """
        frames, labels = self.first_batch["frames"][:, 0], self.first_batch["labels"]
        parts = runtime.hand_out({"frames": frames}, self._strategy)
        with optim.averaged_weights(self._optimizer, self.model):
            found = self._token_maps(parts["frames"])
        first = {
            name: self._strategy.experimental_local_results(tensor)[0].numpy()
            for name, tensor in found.items()
        }
        return frames.numpy(), labels.numpy(), first

    def replica_step(self, frames: tf.Tensor) -> tf.Tensor:
        """Logits of one view of each video: uint8 [B, T, H, W, 3] -> [B, K] float32."""
        return self._logits(frames)

    def _compute_logits(self, frames):
        frames = augment.normalize(frames, self.model.compute_dtype)
        logits, _ = self.model(frames, training=False)
        return logits

    def _distributed_step(self, frames):
        return self._strategy.run(self.replica_step, args=(frames,))

    def _distributed_token_maps(self, frames):
        return self._strategy.run(self._compute_token_maps, args=(frames,))

    def _compute_token_maps(self, frames):
        frames = augment.normalize(frames, self.model.compute_dtype)
        _, endpoints = self.model(frames, training=False)
        return {
            name: tf.cast(tensor, tf.float32)
            for name, tensor in endpoints.items()
            if name.endswith("token_maps")
        }

    def _score(self) -> dict[str, np.ndarray]:
        """Every row of every host, padding removed: logits, labels, shard, …"""
        gathered: list[dict[str, np.ndarray]] = []
        iterator = iter(self._batches)
        for done in range(self._num_batches):
            self._on_progress(done, self._num_batches)
            try:
                batch = next(iterator)
            except tf.errors.OpError as error:
                raise ValueError(self._explain_data_error(error)) from error
            if self.first_batch is None:
                self.first_batch = batch
            gathered.append(self._score_batch(dict(batch)))
        self._on_progress(self._num_batches, self._num_batches)
        rows = {k: np.concatenate([g[k] for g in gathered]) for k in gathered[0]}
        return {k: v[rows["mask"] > 0] for k, v in rows.items()}

    def _score_batch(self, batch: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
        frames = batch.pop("frames")  # [B, V, T, H, W, 3]
        logits = []
        for view in range(frames.shape[1]):  # one at a time: memory of a training step
            parts = runtime.hand_out({"frames": frames[:, view]}, self._strategy)
            replica_logits = self._step(parts["frames"])
            logits.append(self._strategy.gather(replica_logits, axis=0).numpy())
        rows = {
            name: self._strategy.gather(part, axis=0).numpy()
            for name, part in runtime.hand_out(batch, self._strategy).items()
        }
        return rows | {"logits": np.stack(logits, axis=1)}  # [B, V, K]

    def _rank(self, rows: dict[str, np.ndarray]) -> Evaluation:
        self._check_coverage(rows["shard"], rows["record"])
        videos = [
            self._built[shard][record]
            for shard, record in zip(rows["shard"], rows["record"], strict=True)
        ]
        order = np.argsort([video["row"] for video in videos])  # of the annotations
        rows = {name: values[order] for name, values in rows.items()}
        videos = [videos[i] for i in order]
        logits, labels = rows["logits"], rows["labels"]  # [N, V, K], [N, K]
        view_scores = self._loss.scores(logits).numpy()
        view_labels = np.repeat(labels[:, np.newaxis], logits.shape[1], axis=1)
        values, ranking = self._metrics(
            MERGES[self._merge](view_scores, axis=1), labels, videos
        )
        return Evaluation(
            values=values | {"loss": float(np.mean(self._loss(logits, view_labels)))},
            ranking=ranking,
            video_ids=[video["id"] for video in videos],
            labels=labels,
            view_scores=view_scores,
            view_starts=rows["starts"],
        )

    def _metrics(
        self, scores: np.ndarray, labels: np.ndarray, videos: list[dict[str, Any]]
    ) -> tuple[dict[str, float], metrics.AveragePrecision | None]:
        if self._loss.kind == "softmax":
            ks = [k for k in (1, 5) if k <= scores.shape[1]]
            return {
                f"top{k}": metrics.top_k_accuracy(scores, labels, k) for k in ks
            }, None
        # The official rule scores a video without prediction as -inf, in its place: a
        # broken file must not raise the score.
        missing = np.zeros([len(self._skipped), labels.shape[1]])
        for row, video in zip(missing, self._skipped, strict=True):
            row[video["labels"]] = 1
        order = np.argsort([video["row"] for video in (*videos, *self._skipped)])
        found = metrics.charades_map(
            np.concatenate([scores, np.full_like(missing, -np.inf)])[order],
            np.concatenate([labels, missing])[order],
        )
        return {"map": found.mean, "wap": found.weighted}, found

    def _check_coverage(self, shards: np.ndarray, records: np.ndarray) -> None:
        seen = list(zip(shards.tolist(), records.tolist(), strict=True))
        wanted = {
            (s, r) for s, built in enumerate(self._built) for r in range(len(built))
        }
        missing = sorted(wanted - set(seen))
        extra = len(seen) - len(wanted & set(seen))
        if missing or extra:
            example = "".join(f", as {self._built[s][r]['id']}" for s, r in missing[:1])
            raise ValueError(
                f"evaluation: wanted each of {len(wanted)} videos once, got"
                f" {len(missing)} not at all{example} and {extra} too often. The shards"
                " do not hold what their reports list: run the same data.build command"
                " again."
            )


def result_scores(evaluation: Evaluation) -> dict[str, Any]:
    """The arrays that are stored beside a result, so that merging can be redone."""
    return {
        "video_ids": np.array(evaluation.video_ids),
        "labels": evaluation.labels,
        "view_scores": evaluation.view_scores,
        "view_starts": evaluation.view_starts,
    }
