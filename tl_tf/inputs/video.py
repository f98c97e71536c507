"""Record shards -> batches of uint8 clips: read, pick frames, shuffle, decode, batch.

Frames are picked before anything else is done to them, so what waits in the shuffle
buffer is the JPEG bytes of the T frames that will be used, and only those are decoded.
Every draw is made from (seed, epoch, shard, record): the stream does not depend on the
number of threads, and its iterator can be saved and restored.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf

from tl_tf import integrity, records
from tl_tf.inputs import faults, passing, views
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
    max_bad_records: float = 0.0,
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
      max_bad_records: training only; share of an epoch's records that may be broken,
        and are then passed over, named and counted.  A damaged checksum takes with it
        the records behind it in its shard.  A saved iterator then holds the batches
        that are read ahead as well.
      fps: frames per second that the data set must have; None for any.
      num_hosts: each of them reads every num_hosts-th shard.
      host: which of them this is, from 0.

    Raises:
      ValueError: for an argument out of range, or a data set that is missing,
        incomplete, or not what the arguments say.  Of its records only the headers
        are read, and the first one.
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
    _check_max_bad(max_bad_records, is_training=is_training)
    reports = info.reports(split)
    ids = [[video["id"] for video in report["built"]] for report in reports]
    integrity.check_shards(info, split, shards, may_be_damaged=max_bad_records > 0)
    if not max_bad_records:
        faults.check_first_record(info, split, ids)

    source = _Source(
        info=info,
        paths=paths,
        shards=shards,
        sizes=videos,
        ids=tf.constant(sum(ids, [])),
        num_videos=videos_by_host[host],
        max_bad=max_bad_records,
    )
    num_batches = None
    if is_training:
        buffer = shuffle_buffer_mb * 1e6 / _mean_clip_bytes(info, split, num_frames)
        stream = _train_stream(source, sampler, seed=seed, shuffle_clips=round(buffer))
        stream = stream.batch(batch_size, drop_remainder=True)
    else:
        num_batches = -(-max(videos_by_host) // batch_size)
        stream = _eval_stream(
            source, sampler, num_batches=num_batches, batch_size=batch_size
        )
    built = [video for report in reports for video in report["built"]]
    short = sum(video["frames"] < sampler.span for video in built)
    reported = [] if is_training else reports
    return splits.Split(
        batches=stream.prefetch(PREFETCH_BATCHES if is_training else 1).with_options(
            splits.options(drops_errors=max_bad_records > 0)
        ),
        dataset=info.dataset,
        split=split,
        classes=info.classes,
        num_examples=sum(videos),
        coverage=info.coverage(split),
        explain=lambda error: faults.explain(error, info, split, shards),
        num_batches=num_batches,
        num_views=num_clips * num_crops,
        num_crops=num_crops,
        describe_bad=lambda shard, record: faults.describe(
            info, paths[shard], record, video_id=ids[shard][record]
        ),
        examples=[] if is_training else sum(ids, []),
        rows=[video["row"] for report in reported for video in report["built"]],
        skipped=[video for report in reported for video in report["skipped"]],
        frames={"fps": info.fps, "short_side": info.short_side},
        facts=f"{info.fps:g} fps; {short} shorter than a clip, looped",
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The shards of a split, and which of them are this host's."""

    info: records.DatasetInfo
    paths: list[Path]
    shards: list[int]
    sizes: list[int]  # videos by shard, of every host
    ids: tf.Tensor  # string [videos of every host], by shard and record; eager, as
    # it would otherwise become part of the graph
    num_videos: int  # in this host's shards
    max_bad: float  # share of them that may be passed over

    @property
    def first_indices(self) -> np.ndarray:
        """Of each shard's first video, among all of the split."""
        return np.cumsum([0, *self.sizes[:-1]]).astype(np.int32)

    def read(
        self, order: tf.Tensor, pick: Callable[..., views.Tensors]
    ) -> tf.data.Dataset:
        """Applies pick(video, shard=, record=) to every video, shards in turn.

        Where some may be bad, an element has a `place`, and is blank if it is bad.
        """
        names = tf.constant([str(path) for path in self.paths])
        first_indices = tf.constant(self.first_indices)

        def pick_checked(shard, record, serialized):
            where = faults.Where(names[shard], record)
            number = tf.cast(record, tf.int32)
            video = faults.check_video(
                records.parse(serialized),
                where,
                self.info,
                video_id=self.ids[first_indices[shard] + number],
            )
            picked = pick(video, shard=shard, record=number)
            frames = faults.check_jpegs(picked["frames"], video["size"], where)
            return {**picked, "frames": frames}

        def read_shard(shard):
            # Prefetching reads the shards in parallel.  So would a parallel interleave,
            # but restoring its symbolic checkpoint hangs or crashes now and then.
            numbered = tf.data.TFRecordDataset(names[shard]).enumerate()
            return numbered.map(lambda *record: (shard, *record)).prefetch(1)

        sizes = tf.constant(self.sizes, tf.int64)

        def read_what_is_sound(shard):
            picked = read_shard(shard).map(
                lambda shard, record, serialized: {
                    **pick_checked(shard, record, serialized),
                    "number": record,
                }
            )
            blank = passing.blank_of(picked.element_spec)
            blank.pop("number")
            filled = passing.fill_gaps(picked, blank, length=sizes[shard])

            def name(element):
                place = tf.stack([tf.cast(shard, tf.int64), element.pop("number")])
                return {**element, "place": place}

            return filled.map(name).prefetch(1)

        num_at_once = min(READ_SHARDS, len(self.shards))
        shards = tf.data.Dataset.from_tensor_slices(order)
        if self.max_bad:
            videos = shards.interleave(read_what_is_sound, cycle_length=num_at_once)
        else:
            videos = shards.interleave(read_shard, cycle_length=num_at_once).map(
                pick_checked, num_parallel_calls=tf.data.AUTOTUNE
            )
        return videos.apply(tf.data.experimental.assert_cardinality(self.num_videos))

    def name_of(self, place: tf.Tensor) -> tf.Tensor:
        """A place for people: int64 [2] -> string []."""
        names = tf.constant([str(path) for path in self.paths])
        path = names[tf.maximum(place[0], 0)]
        return tf.strings.join([path, ": record ", tf.strings.as_string(place[1])])


def _train_stream(
    source: _Source, sampler: views.Views, *, seed: int, shuffle_clips: int
) -> tf.data.Dataset:
    """Decoded clips, epoch after epoch, each video once in every epoch."""

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        seeds = tf.random.split(tf.random.fold_in(tf.constant([seed, 0]), epoch), 3)
        order = tf.random.experimental.stateless_shuffle(source.shards, seeds[0])
        picked = source.read(
            order, functools.partial(sampler.pick_train, epoch_seed=seeds[1])
        )
        buffer = min(max(shuffle_clips, MIN_SHUFFLE_CLIPS), source.num_videos)
        clips = splits.shuffle(picked, buffer, seed=seeds[2])
        if not source.max_bad:
            return clips
        clips = clips.concatenate(passing.end_of_epoch(clips.element_spec))
        return clips.map(lambda clip: {**clip, "epoch": epoch})

    clips = splits.epochs().flat_map(one_epoch)
    if not source.max_bad:
        return clips.map(sampler.decode_train, num_parallel_calls=tf.data.AUTOTUNE)
    return passing.drop_failing(
        clips,
        sampler.decode_train,
        share=source.max_bad,
        num_records=source.num_videos,
        name_of=source.name_of,
    )


def _eval_stream(
    source: _Source, sampler: views.Views, *, num_batches: int, batch_size: int
) -> tf.data.Dataset:
    """Batches of every video of the host once, in order, the rest filled with padding.

    Clips are decoded on their own, and first lie together in their batch: 4 x 3 views
    of 64 frames of 224 px are 116 MB, and every copy of them costs.
    """
    first_indices = tf.constant(source.first_indices)
    pick = functools.partial(sampler.pick_eval, first_indices=first_indices)
    videos = source.read(tf.constant(source.shards), pick)
    clips = videos.flat_map(sampler.clips_of).map(
        sampler.decode_eval, num_parallel_calls=tf.data.AUTOTUNE
    )
    padding = {
        name: tf.zeros(spec.shape, spec.dtype)
        for name, spec in clips.element_spec.items()
    }
    for name in ("index", "starts"):
        padding[name] += splits.PADDING
    missing = num_batches * batch_size - source.num_videos
    blanks = tf.data.Dataset.from_tensors(padding).repeat(missing * sampler.num_clips)
    clips = clips.concatenate(blanks).batch(
        batch_size * sampler.num_clips, drop_remainder=True
    )
    return clips.map(sampler.join_clips)


def _mean_clip_bytes(info: records.DatasetInfo, split: str, num_frames: int) -> float:
    entry = info.split(split)
    return num_frames * entry["bytes"] / entry["frames"]


def _check_max_bad(share: float, *, is_training: bool) -> None:
    if not 0 <= share < 1:
        raise ValueError(
            f"clip_dataset: max_bad_records must be in 0..1, got {share}: it is a share"
            " of an epoch's records."
        )
    if share and not is_training:
        raise ValueError(
            f"eval/clip_dataset: max_bad_records must be 0, got {share}: a score counts"
            " every video. Bind train/clip_dataset.max_bad_records, and mend what"
            " python -m data.verify names."
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
