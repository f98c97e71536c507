"""What gives a file its scores: a recipe's checkpoint, or an exported model."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tl_tf import serving
from tl_tf.inputs import clips, crops, image_augment

CARD = "model_card.json"  # in an exported model's folder
DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


class CheckpointScorer:
    """Scores files by a recipe's model.

    Attributes:
      name: of the weights.
      noun: "videos" or "images".
      classes: names, in the order of the scores.
      merge: of views and of segments, "max" or "mean".
      fps: of the frames of a video.
      short_side: of the frames of a video, in pixels.
      span: source frames from a clip's first to its last.
      clip_frames: T.
      frame_stride: source frames from one frame of a clip to the next.

    Args:
      classifier: of the recipe.
      step: of its checkpoint.
    """

    def __init__(self, classifier: serving.Classifier, step: int):
        trained, sampler = classifier.trained, classifier.sampler
        self.name = f"step {step}"
        self.noun, self.classes = trained.noun, list(trained.classes)
        self.merge = classifier.merge
        self._classifier = classifier
        if not classifier.is_video:
            self._views = _compiled(
                sampler.views_of,
                tf.TensorSpec([], tf.string),
                tf.TensorSpec([], tf.int32),
            )
            return
        self.fps = trained.frames["fps"]
        self.short_side = int(trained.frames["short_side"])
        self.span, self.frame_stride = sampler.span, sampler.frame_stride
        self.clip_frames = sampler.num_frames
        files = tf.TensorSpec([None], tf.string)
        one_clip = dataclasses.replace(sampler, num_clips=1)
        centre = dataclasses.replace(one_clip, num_crops=1)
        self._views = _compiled(sampler.views_of, files)
        self._views_of_short = _compiled(one_clip.views_of, files)
        self._centre = _compiled(centre.views_of, files)

    def score_video(self, frames: list[bytes]) -> np.ndarray:
        """What evaluation gives a video: JPEG files [F] -> float32 [K]."""
        # The clips of a short one are all the same.
        is_short = len(frames) <= self.span
        views_of = self._views_of_short if is_short else self._views
        pixels = views_of(tf.constant(frames))
        return self._classifier.classify(pixels[tf.newaxis])[0].numpy()

    def score_image(self, data: bytes, orientation: int) -> np.ndarray:
        """What evaluation gives an image file: -> float32 [K]."""
        pixels = self._views(tf.constant(data), tf.constant(orientation))
        return self._classifier.classify(pixels[tf.newaxis])[0].numpy()

    def look_at_video(self, frames: list[bytes]) -> "Look":
        """The centre clip of some frames, JPEG files, and what is seen in it."""
        return self._look(self._centre(tf.constant(frames)))

    def look_at_image(self, data: bytes, orientation: int) -> "Look":
        """An image file as the model sees it, and what is seen in it."""
        return self._look(self._views(tf.constant(data), tf.constant(orientation)))

    def _look(self, views: tf.Tensor) -> "Look":
        scores, maps = self._classifier.look(views)
        pixels = views[0].numpy()
        pixels = pixels if pixels.ndim == 4 else pixels[np.newaxis]  # [T, H, W, 3]
        none = np.zeros([len(pixels), 1, 1, 0], np.float32)
        first = next((found[0].numpy() for found in maps.values()), none)
        first = first if first.ndim == 4 else first[np.newaxis]
        return Look(pixels, first, scores[0].numpy())


@dataclasses.dataclass(frozen=True)
class Look:
    """One view and what the model sees in it.

    Attributes:
      pixels: uint8 [T, H, W, 3]; T = 1 of an image.
      maps: the first TokenLearner's, float32 [T', h, w, S]; S = 0 if there is none.
      scores: float32 [K].
    """

    pixels: np.ndarray
    maps: np.ndarray
    scores: np.ndarray


class ExportedScorer:
    """Scores files by an exported model, with none of the model's code.

    Its attributes are the first of CheckpointScorer's, up to the span.

    Args:
      folder: as --mode=export writes it.

    Raises:
      ValueError: for a folder that holds no such model.
    """

    def __init__(self, folder: Path):
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            self.noun, self.classes = card["noun"], list(card["classes"])
            self.merge = card["merge"]
            self.name = card["model"]
            if self.noun == "videos":
                self.fps = card["frames"]["fps"]
                self.short_side = int(card["frames"]["short_side"])
                views = card["views"]
                self.span = clips.clip_span(views["num_frames"], views["frame_stride"])
            self._model = tf.saved_model.load(str(folder))
            signatures = self._model.signatures
            self._files, self._pixels = signatures["encoded"], signatures[DEFAULT]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise ValueError(
                f"--saved_model={folder}: wanted a SavedModel and {CARD}, as"
                f" --mode=export writes them, got {type(error).__name__}: {reason}."
            ) from None

    def score_video(self, frames: list[bytes]) -> np.ndarray:
        """What evaluation gives a video: JPEG files [F] -> float32 [K]."""
        found = self._files(frames=tf.constant([frames]))
        return found["probabilities"][0].numpy()

    def score_image(self, data: bytes, orientation: int) -> np.ndarray:
        """What evaluation gives an image file: -> float32 [K]."""
        pixels = image_augment.decode(
            tf.constant(data), tf.constant(orientation), stored=crops.ANY_FILE
        )
        found = self._pixels(images=pixels[tf.newaxis])
        return found["probabilities"][0].numpy()


Scorer = CheckpointScorer | ExportedScorer


def _compiled(function: Callable, *specs: tf.TensorSpec) -> Callable:
    return tf.function(function, input_signature=specs, autograph=False)
