"""Record shards -> batches of uint8 clips: read, pick frames, shuffle, decode, batch.

Frames are picked before anything else is done to them, so what waits in the shuffle
buffer is the JPEG bytes of the T frames that will be used, and only those are decoded.
Every draw is made from (seed, epoch, shard, record): the stream does not depend on the
number of threads, and its iterator can be saved and restored.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from tl_tf import records
from tl_tf.inputs import faults, views
from tl_tf.inputs import split as splits

READ_SHARDS = 16  # read at once, one record of each in turn
MIN_SHUFFLE_CLIPS = 16
PREFETCH_BATCHES = 2  # decoded, hence large; 1 in evaluation, of V views a video


@gin.configurable
def clip_dataset(
    data_dir: str | Path,
    *,
    dataset: str,
    split: str,
    is_training: bool,
    batch_size: int,
    num_frames: int,
    crop_px: int,
    short_side_px: int,
    seed: int,
    frame_stride: int = 1,
    scale_range: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
    num_clips: int = 1,
    num_crops: int = 1,
    labels_from: str = "video",
    shuffle_buffer_mb: float = 64,
    fps: float | None = None,
    num_hosts: int = 1,
    host: int = 0,
) -> splits.Split:
    """Opens a split of a data set that data.build made.

    Source: TokenLearner, Section 5.2 and Appendix B.3.
    Args:
      data_dir: folder that holds the data set's folder.
      dataset: its name.
      split: "train", "test" or what else it has.
      is_training: one random clip of each video an epoch, for ever; otherwise every
        video once, in order, with nothing drawn.
      batch_size: B, videos in a batch on this host.
      num_frames: T.
      crop_px: H and W.
      short_side_px: to which the short side of a frame is scaled before the crop.
      seed: of the run; evaluation makes no use of it.
      frame_stride: source frames from one kept frame to the next.
      scale_range: training only; lowest and highest factor on `short_side_px`.
      flip: training only; mirrors half of the clips, which swaps left and right.
      num_clips: evaluation only; clips spread evenly over a video, 1 for the centre.
      num_crops: evaluation only; 1 for the centre, 3 along the long side.
      labels_from: "video" for the labels of the whole video; "clip", in training only,
        for those whose segments overlap the clip.
      shuffle_buffer_mb: JPEG bytes in the shuffle buffer, in 10^6; a saved iterator
        holds them too.
      fps: frames per second that the data set must have; None for any.
      num_hosts: each of them reads every num_hosts-th shard.
      host: which of them this is, from 0.

    Raises:
      ValueError: for an argument out of range, or a data set that is missing,
        incomplete, or not what the arguments say.  Only its first record is read.
    """
    info = records.DatasetInfo.load(data_dir, dataset)
    sampler = views.Views(
        is_training=is_training,
        num_frames=num_frames,
        frame_stride=frame_stride,
        crop_px=crop_px,
        short_side_px=short_side_px,
        scale_range=scale_range,
        flip=flip,
        num_clips=num_clips,
        num_crops=num_crops,
        labels_from=labels_from,
        fps=info.fps,
        num_classes=len(info.classes),
    )
    views.check_at_least_1(batch_size=batch_size, num_hosts=num_hosts)
    if fps not in (None, info.fps):
        raise ValueError(
            f"{info.folder}: wanted {fps} frames per second, got {info.fps}. Build the"
            " data set at that rate, or change clip_dataset.fps and frame_stride."
        )
    paths = info.shard_paths(split)
    shards = list(range(len(paths)))[host::num_hosts]
    videos = [shard["records"] for shard in info.split(split)["shards"]]
    videos_by_host = [sum(videos[h::num_hosts]) for h in range(num_hosts)]
    _check_hosts(info.folder, split, videos_by_host, len(paths), host=host)
    faults.check_first_record(info, split)

    source = _Source(
        paths=paths, shards=shards, sizes=videos, num_videos=videos_by_host[host]
    )
    num_batches = None
    reports: list[dict[str, Any]] = []
    if is_training:
        buffer = shuffle_buffer_mb * 1e6 / _mean_clip_bytes(info, split, num_frames)
        stream = _train_stream(source, sampler, seed=seed, shuffle_clips=round(buffer))
    else:
        num_batches = -(-max(videos_by_host) // batch_size)
        reports = info.reports(split)
        stream = _eval_stream(source, sampler, num_elements=num_batches * batch_size)
    built = [video for report in reports for video in report["built"]]
    short = _count_short_videos(paths, sampler.span)
    return splits.Split(
        batches=stream.batch(batch_size, drop_remainder=True)
        .prefetch(PREFETCH_BATCHES if is_training else 1)
        .with_options(splits.options()),
        dataset=info.dataset,
        split=split,
        classes=info.classes,
        num_examples=sum(videos),
        coverage=info.coverage(split),
        explain=lambda error: faults.explain(error, info, split, shards),
        num_batches=num_batches,
        num_views=num_clips * num_crops,
        num_crops=num_crops,
        examples=[video["id"] for video in built],
        rows=[video["row"] for video in built],
        skipped=[video for report in reports for video in report["skipped"]],
        facts=f"{info.fps:g} fps; {short} shorter than a clip, looped",
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The shards of a split, and which of them are this host's."""

    paths: list[Path]
    shards: list[int]
    sizes: list[int]  # videos by shard, of every host
    num_videos: int  # in this host's shards

    def read(
        self, order: tf.Tensor, pick: Callable[..., views.Tensors]
    ) -> tf.data.Dataset:
        """Applies pick(video, shard=, record=) to every video, shards in turn."""
        names = tf.constant([str(path) for path in self.paths])

        def pick_checked(shard, record, serialized):
            where = faults.Where(names[shard], record)
            video = faults.check_video(records.parse(serialized), where)
            picked = pick(video, shard=shard, record=tf.cast(record, tf.int32))
            return {**picked, "frames": faults.check_jpegs(picked["frames"], where)}

        def read_shard(shard):
            # Prefetching reads the shards in parallel.  So would a parallel interleave,
            # but restoring its symbolic checkpoint hangs or crashes now and then.
            numbered = tf.data.TFRecordDataset(names[shard]).enumerate()
            return numbered.map(lambda *record: (shard, *record)).prefetch(1)

        return (
            tf.data.Dataset.from_tensor_slices(order)
            .interleave(read_shard, cycle_length=min(READ_SHARDS, len(self.shards)))
            .map(pick_checked, num_parallel_calls=tf.data.AUTOTUNE)
            .apply(tf.data.experimental.assert_cardinality(self.num_videos))
        )


def _train_stream(
    source: _Source, sampler: views.Views, *, seed: int, shuffle_clips: int
) -> tf.data.Dataset:
    """Decoded clips, epoch after epoch, each video once in every epoch."""

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        seeds = tf.random.split(tf.random.fold_in(tf.constant([seed, 0]), epoch), 3)
        order = tf.random.experimental.stateless_shuffle(source.shards, seeds[0])
        picked = source.read(order, partial(sampler.pick_train, epoch_seed=seeds[1]))
        buffer = min(max(shuffle_clips, MIN_SHUFFLE_CLIPS), source.num_videos)
        return splits.shuffle(picked, buffer, seed=seeds[2])

    epochs = tf.data.Dataset.counter()
    return epochs.flat_map(one_epoch).map(
        sampler.decode_train, num_parallel_calls=tf.data.AUTOTUNE
    )


def _eval_stream(
    source: _Source, sampler: views.Views, *, num_elements: int
) -> tf.data.Dataset:
    """Every video of the host once, in order, then padding up to `num_elements`."""
    first_indices = np.cumsum([0, *source.sizes[:-1]]).astype(np.int32)
    pick = partial(sampler.pick_eval, first_indices=tf.constant(first_indices))
    videos = source.read(tf.constant(source.shards), pick).map(
        sampler.decode_eval, num_parallel_calls=tf.data.AUTOTUNE
    )
    padding = {
        name: tf.zeros(spec.shape, spec.dtype)
        for name, spec in videos.element_spec.items()
    }
    for name in ("index", "starts"):
        padding[name] += splits.PADDING
    return videos.concatenate(
        tf.data.Dataset.from_tensors(padding).repeat(num_elements - source.num_videos)
    )


def _mean_clip_bytes(info: records.DatasetInfo, split: str, num_frames: int) -> float:
    entry = info.split(split)
    return num_frames * entry["bytes"] / entry["frames"]


def _count_short_videos(paths: list[Path], span: int) -> int:
    return sum(
        video["frames"] < span
        for path in paths
        for video in records.read_shard_report(path)["built"]
    )


def _check_hosts(
    folder: Path, split: str, videos_by_host: list[int], num_shards: int, *, host: int
) -> None:
    num_hosts = len(videos_by_host)
    if not 0 <= host < num_hosts:
        raise ValueError(
            f"clip_dataset: host must be in 0..{num_hosts - 1}, got {host}."
        )
    if num_hosts > num_shards:
        raise ValueError(
            f"{folder}: {num_hosts} hosts want a shard each, split {split!r} has"
            f" {num_shards}. Build it with at least {num_hosts} shards."
        )
    if not all(videos_by_host):
        raise ValueError(
            f"{folder}: split {split!r} has no video for host"
            f" {videos_by_host.index(0)} of {num_hosts}. Build it with fewer shards, or"
            " run fewer hosts."
        )
