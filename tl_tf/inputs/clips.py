"""WHICH frames of a video make a clip: index arithmetic, no pixels.

All functions work eagerly and inside Dataset.map.
"""

import tensorflow as tf


def clip_span(num_frames: int, frame_stride: int) -> int:
    """Source frames from the first to the last frame of a clip, both included."""
    return (num_frames - 1) * frame_stride + 1


def clip_indices(
    video_frames: tf.Tensor, *, num_frames: int, frame_stride: int, offset: tf.Tensor
) -> tf.Tensor:
    """Source-frame indices of a clip; one longer than its video loops to the start.

    Args:
      video_frames: int32 [], at least 1.
      num_frames: T.
      frame_stride: source frames from one kept frame to the next, at least 1.
      offset: int32 [] or int32 [V, 1] for V clips at once; the first source frame.

    Returns:
      int32 [T] or int32 [V, T].
    """
    return (offset + frame_stride * tf.range(num_frames)) % video_frames


def train_offset(
    video_frames: tf.Tensor, *, num_frames: int, frame_stride: int, seed: tf.Tensor
) -> tf.Tensor:
    """First frame of a training clip, uniform over those that need no loop.

    Args:
      video_frames: int32 [].
      num_frames: T.
      frame_stride: as in clip_indices.
      seed: int32 [2]; the same seed gives the same offset.

    Returns:
      int32 []; 0 for a video shorter than the clip's span.
    """
    last = _last_offset(video_frames, num_frames, frame_stride)
    return tf.random.stateless_uniform([], seed, 0, last + 1, dtype=tf.int32)


def eval_offsets(
    video_frames: tf.Tensor, *, num_frames: int, frame_stride: int, num_clips: int
) -> tf.Tensor:
    """First frames of clips spread evenly from the start of a video to its end.

    One clip is the centre one.  The clips of a video shorter than their span are all
    the same: each holds the whole video.

    Args:
      video_frames: int32 [].
      num_frames: T.
      frame_stride: as in clip_indices.
      num_clips: at least 1.

    Returns:
      int32 [num_clips], ascending.
    """
    last = _last_offset(video_frames, num_frames, frame_stride)
    if num_clips == 1:
        return tf.reshape(last // 2, [1])
    gaps = num_clips - 1
    return (2 * last * tf.range(num_clips) + gaps) // (2 * gaps)  # rounds i·last/gaps


def labels_in_clip(
    segment_labels: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    *,
    start_seconds: tf.Tensor,
    end_seconds: tf.Tensor,
) -> tf.Tensor:
    """The labels whose segment shares some time with the clip; they may repeat.

    Args:
      segment_labels: int64 [segments].
      starts: float32 [segments], seconds.
      ends: float32 [segments], seconds.
      start_seconds: float32 [], of the clip.
      end_seconds: float32 [], of the clip; segments that only touch it are left out.

    Returns:
      int64 [labels].
    """
    overlaps = (starts < end_seconds) & (ends > start_seconds)
    return tf.boolean_mask(segment_labels, overlaps)


def _last_offset(
    video_frames: tf.Tensor, num_frames: int, frame_stride: int
) -> tf.Tensor:
    """The last first frame of a clip that needs no loop."""
    return tf.maximum(video_frames - clip_span(num_frames, frame_stride), 0)
