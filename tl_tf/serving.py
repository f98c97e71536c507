"""A trained model as people use it: evaluation's views before it, its scores behind it.

Predictions, pictures, the exported model and the demo all go through `Classifier`, so
that a file gets the score which evaluation gave it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from tl_tf import evaluator, files, losses, scores
from tl_tf.inputs import augment, crops, image, split, video, views

FILE = "data.json"  # beside the checkpoints: what the model was trained on
FEATURES = ("pre_logits", "pooled")  # endpoints that the classifying layer reads
MERGES = {"max": tf.reduce_max, "mean": tf.reduce_mean}  # of scores.MERGES


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a model was trained on: `data.json` beside its checkpoints.

    Attributes:
      dataset: its name.
      noun: what an example is: "videos" or "images".
      classes: names, in the order of the logits.
      frames: how frames were taken from video files: fps, short_side in pixels; empty
        for images.
      coverage: by split, how much of the official data was there.
    """

    dataset: str
    noun: str
    classes: list[str]
    frames: dict[str, float]
    coverage: dict[str, dict[str, Any]]

    @classmethod
    def of_split(cls, data: split.Split) -> "Trained":
        """What an open split knows."""
        return cls(
            dataset=data.dataset,
            noun=data.noun,
            classes=list(data.classes),
            frames=data.frames,
            coverage={data.split: data.coverage},
        )

    def write(self, model_dir: Path) -> None:
        """Writes `data.json`."""
        model_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(model_dir / FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, model_dir: Path) -> "Trained":
        """Reads `data.json`.

        Raises:
          ValueError: it is missing, or is not what `write` wrote.
        """
        path = model_dir / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: wanted the description of the data that the model was"
                f" trained on, got {type(error).__name__}. A training writes it; of an"
                " older run, start --mode=eval once with the data set in --data_dir."
            ) from None


class Classifier(tf.Module):
    """A model, the views that evaluation takes, and how it merges their scores.

    Args:
      model: built, with the weights that evaluation uses.
      sampler: takes the views: of a video, or of an image.
      loss: turns logits into scores.
      merge: of scores.MERGES.
      trained: on what.

    Raises:
      ValueError: for another merge.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        *,
        sampler: views.Views | crops.Crops,
        loss: losses.Loss,
        merge: str,
        trained: Trained,
    ):
        super().__init__(name="classifier")
        scores.check(metric=scores.METRICS[0], merge=merge)
        self.model, self.sampler, self.loss = model, sampler, loss
        self.merge, self.trained = merge, trained
        self.classify = tf.function(self._classify, autograph=False)
        self.look = tf.function(self._look, autograph=False)

    @property
    def is_video(self) -> bool:
        """Whether an example is a video; else it is an image."""
        return isinstance(self.sampler, views.Views)

    def views_of(self, example: tf.Tensor, **arguments) -> tf.Tensor:
        """The views of one file's content: see `views_of` of Views and of Crops.

        -> uint8 [V, T, H, W, 3] or [1, H, W, 3]
        """
        return self.sampler.views_of(example, **arguments)

    def view_scores(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of views uint8 [B, V, ..., 3], one of each example at a time: [B, V, K]."""
        return self._by_view(lambda batch: (self.scores(batch),), pixels)[0]

    def view_outputs(self, pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and features of views uint8 [B, V, ..., 3].

        Returns:
          Scores float32 [B, V, K], and what the classifying layer reads, float32
          [B, V, D].

        Raises:
          ValueError: the model does not tell it.
        """

        def outputs(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits, endpoints = self._model(batch)
            found = [endpoints[name] for name in FEATURES if name in endpoints]
            if not found:
                raise ValueError(
                    f"{self.model.name}: wanted an endpoint {' or '.join(FEATURES)},"
                    " [B, D], of what its classifying layer reads, got"
                    f" {', '.join(endpoints)}. Add it to what its call returns."
                )
            return self.loss.scores(logits), tf.cast(found[0], tf.float32)

        return self._by_view(outputs, pixels, count=2)

    def scores(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of one view each, uint8 [B, ..., 3]: float32 [B, K]."""
        return self.loss.scores(self._model(pixels)[0])

    def merged(self, view_scores: tf.Tensor) -> tf.Tensor:
        """Scores of examples, float32 [B, V, K] -> [B, K]."""
        return MERGES[self.merge](view_scores, axis=1)

    def _classify(self, pixels: tf.Tensor) -> tf.Tensor:
        """Of views uint8 [B, V, ..., 3]: what evaluation stores, float32 [B, K]."""
        return self.merged(self.view_scores(pixels))

    def _look(self, pixels: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Of one view each, uint8 [B, ..., 3].

        Returns:
          Scores float32 [B, K], and by the endpoint's name the token maps float32
          [B, T', h, w, S], in the order of the model.
        """
        logits, endpoints = self._model(pixels)
        maps = {
            name: tf.cast(tensor, tf.float32)
            for name, tensor in endpoints.items()
            if name.endswith(evaluator.TOKEN_MAPS)
        }
        return self.loss.scores(logits), maps

    def _by_view(
        self,
        function: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
        pixels: tf.Tensor,
        *,
        count: int = 1,
    ) -> tuple[tf.Tensor, ...]:
        """Of views uint8 [B, V, ..., 3], function's `count` float32 [B, D]: [B, V, D].

        One after the other, in a graph as well: memory is that of one view.
        """
        by_view = tf.map_fn(
            function,
            tf.transpose(pixels, [1, 0, *range(2, pixels.shape.rank)]),
            fn_output_signature=(tf.TensorSpec([None, None]),) * count,
            parallel_iterations=1,
        )  # [V, B, D]
        return tuple(tf.transpose(found, [1, 0, 2]) for found in by_view)

    def _model(self, pixels: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        pixels = augment.normalize(pixels, self.model.compute_dtype)
        return self.model(pixels, training=False)


def build_sampler(trained: Trained) -> views.Views | crops.Crops:
    """The views that the recipe's evaluation takes, as its gin bindings say."""
    kind, configurable = (
        (views.Views, video.clip_dataset)
        if trained.noun == "videos"
        else (crops.Crops, image.image_dataset)
    )
    with gin.config_scope("eval"):
        bound = gin.get_bindings(configurable)
    fields = {field.name for field in dataclasses.fields(kind)}
    chosen = {name: value for name, value in bound.items() if name in fields}
    if kind is views.Views:
        fps = trained.frames["fps"]
        chosen |= {"fps": fps, "num_classes": len(trained.classes)}
    return kind(is_training=False, **chosen)
