import collections
import inspect
import pathlib

import gin
import numpy as np
import pytest
import tensorflow as tf

from tests import shards
from tl_tf import records
from tl_tf.inputs import split, video

# Frame i of video n is grey 19 * n + 4 * i: a decoded frame tells video and index.
VIDEO_STEP, FRAME_STEP = 19, 4
LENGTHS = [[5, 3, 5, 4], [5, 5], [4, 5, 5, 2, 5], [], [5, 3]]  # by shard
NUM_VIDEOS = 13
ARGUMENTS = {
    "dataset": "toy",
    "split": "train",
    "batch_size": 3,
    "num_frames": 2,
    "crop_px": 20,
    "short_side_px": 24,
    "seed": 7,
}
TRAIN = {**ARGUMENTS, "is_training": True}
EVAL = {**ARGUMENTS, "is_training": False}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    number, written = 0, []
    for lengths in LENGTHS:
        videos = {}
        for length in lengths:
            levels = [VIDEO_STEP * number + FRAME_STEP * i for i in range(length)]
            videos[f"video{number:02d}"] = shards.Video(
                shards.grey_jpegs(levels), labels=[] if number == 4 else [number % 3]
            )
            number += 1
        written.append(videos)
    shards.write_dataset(folder, written)
    return folder


def numpy_batches(clips: split.Split, num_batches: int) -> list[dict]:
    return list(clips.batches.take(num_batches).as_numpy_iterator())


def digests(iterator, num_batches: int) -> list:
    batches = (next(iterator) for _ in range(num_batches))
    return [
        (b["pixels"].numpy().tobytes(), b["labels"].numpy().tolist()) for b in batches
    ]


def video_numbers(frames: np.ndarray) -> list[int]:
    """Which video each clip [..., T, H, W, 3] is from, by its first frame's grey."""
    return (frames[..., 0, 0, 0, 0].astype(int) // VIDEO_STEP).tolist()


def test_training_batches_are_static_and_free_of_strings(data_dir):
    clips = video.clip_dataset(data_dir, **TRAIN)
    assert clips.batches.element_spec == {
        "pixels": tf.TensorSpec([3, 2, 20, 20, 3], tf.uint8),
        "labels": tf.TensorSpec([3, 3], tf.float32),
    }
    assert (clips.num_examples, clips.num_batches, clips.num_views) == (13, None, 1)


@pytest.mark.parametrize("shuffle_buffer_mb", [0, 100])
def test_each_epoch_has_every_video_once(data_dir, shuffle_buffer_mb, monkeypatch):
    monkeypatch.setattr(video, "MIN_SHUFFLE_CLIPS", 4)
    arguments = {**TRAIN, "batch_size": 1, "shuffle_buffer_mb": shuffle_buffer_mb}
    clips = video.clip_dataset(data_dir, **arguments)
    batches = numpy_batches(clips, 3 * NUM_VIDEOS)
    numbers = [video_numbers(batch["pixels"])[0] for batch in batches]
    epochs = [numbers[i : i + NUM_VIDEOS] for i in range(0, len(numbers), NUM_VIDEOS)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_VIDEOS))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_clips_of_a_video_differ_between_epochs(data_dir):
    clips = video.clip_dataset(data_dir, **{**TRAIN, "batch_size": NUM_VIDEOS})
    seen = collections.defaultdict(set)
    for batch in numpy_batches(clips, 12):
        for number, clip in zip(
            video_numbers(batch["pixels"]), batch["pixels"], strict=True
        ):
            first, second = clip[:, 0, 0, 0].astype(int) - VIDEO_STEP * number
            assert abs(second - first - FRAME_STEP) <= 1  # JPEG
            seen[number].add(round(first / FRAME_STEP))
    lengths = [length for shard in LENGTHS for length in shard]
    for number, starts in seen.items():
        assert starts == set(range(lengths[number] - 1))


def test_labels_are_several_hot(data_dir):
    (batch,) = numpy_batches(
        video.clip_dataset(data_dir, **{**TRAIN, "batch_size": NUM_VIDEOS}), 1
    )
    for number, labels in zip(
        video_numbers(batch["pixels"]), batch["labels"], strict=True
    ):
        want = [float(number != 4 and k == number % 3) for k in range(3)]
        assert labels.tolist() == want


def test_the_seed_decides_the_stream_and_the_global_seed_does_not(data_dir):
    arguments = {**TRAIN, "scale_range": (0.9, 1.3), "flip": True}

    def stream(**changes):
        clips = video.clip_dataset(data_dir, **{**arguments, **changes})
        return digests(iter(clips.batches), 7)

    tf.random.set_seed(1)
    first = stream()
    tf.random.set_seed(2)
    assert stream() == first
    assert stream(seed=8) != first


@pytest.mark.parametrize("batches_before", [1, 4, 6])
def test_a_restored_iterator_continues_the_stream(
    data_dir, tmp_path, monkeypatch, batches_before
):
    """In the middle of an epoch, at its end, and in the next one."""
    monkeypatch.setattr(video, "MIN_SHUFFLE_CLIPS", 5)
    arguments = {**TRAIN, "shuffle_buffer_mb": 0, "flip": True}

    def iterator():
        return iter(video.clip_dataset(data_dir, **arguments).batches)

    unbroken = digests(iterator(), 15)
    stopped = iterator()
    digests(stopped, batches_before)
    path = tf.train.Checkpoint(iterator=stopped).write(str(tmp_path / "ckpt"))
    del stopped
    resumed = iterator()
    tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
    assert digests(resumed, 15 - batches_before) == unbroken[batches_before:]


def test_a_saved_iterator_holds_nothing_decoded(data_dir, tmp_path):
    """Six clips of 2 x 20 x 20 pixels wait decoded, 13 of two JPEG frames do not."""
    arguments = {**TRAIN, "crop_px": 480, "short_side_px": 480}
    iterator = iter(video.clip_dataset(data_dir, **arguments).batches)
    clip_bytes = next(iterator)["pixels"].numpy().nbytes // 3
    tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "ckpt"))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < clip_bytes / 10


def test_hosts_share_the_videos_out(data_dir):
    numbers = []
    for host in range(2):
        arguments = {**TRAIN, "batch_size": 1, "num_hosts": 2, "host": host}
        clips = video.clip_dataset(data_dir, **arguments)
        assert clips.num_examples == NUM_VIDEOS
        batches = numpy_batches(clips, [11, 2][host])
        numbers += [video_numbers(batch["pixels"])[0] for batch in batches]
    assert sorted(numbers) == list(range(NUM_VIDEOS))


def test_flip_is_left_to_the_recipe(tmp_path):
    pixels = np.zeros((shards.HEIGHT, shards.WIDTH, 3), np.uint8)
    pixels[:, shards.WIDTH // 2 :] = 200
    videos = {f"v{i}": shards.Video([shards.jpeg(pixels)]) for i in range(9)}
    shards.write_dataset(tmp_path, [videos])
    arguments = {**TRAIN, "batch_size": 9, "crop_px": 30, "short_side_px": 30}
    for flip, want in (False, {False}), (True, {False, True}):
        clips = video.clip_dataset(tmp_path, **arguments, flip=flip)
        frames = numpy_batches(clips, 1)[0]["pixels"].astype(int)
        left_minus_right = (frames[:, :, :, :10] - frames[:, :, :, -10:]).mean(
            (1, 2, 3, 4)
        )
        assert set(left_minus_right > 0) == want


def test_labels_from_the_clip(tmp_path):
    """Class 1 is done in the first second (4 frames), class 2 in the last."""
    segments = [records.Segment(1, 0.0, 1.0), records.Segment(2, 2.0, 3.0)]
    long = shards.Video(shards.grey_jpegs(range(0, 120, 10)), [1, 2], segments)
    short = shards.Video(shards.grey_jpegs([130]), [0], [records.Segment(0, 0.0, 0.2)])
    shards.write_dataset(tmp_path, [{"long": long, "short": short}])
    arguments = {**TRAIN, "batch_size": 2, "labels_from": "clip"}
    seen = {}
    for batch in numpy_batches(video.clip_dataset(tmp_path, **arguments), 40):
        for clip, labels in zip(batch["pixels"], batch["labels"], strict=True):
            seen[round(clip[0, 0, 0, 0] / 10)] = labels.tolist()
    none, only_1, only_2 = [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    want = {i: only_1 for i in range(4)} | {i: none for i in range(4, 7)}
    want |= {i: only_2 for i in range(7, 11)}  # a clip is two frames
    assert seen == want | {13: [1.0, 0.0, 0.0]}


def test_evaluation_has_every_video_once_and_says_which(data_dir):
    clips = video.clip_dataset(data_dir, **EVAL, num_clips=2, num_crops=3)
    assert clips.batches.element_spec == {
        "pixels": tf.TensorSpec([3, 6, 2, 20, 20, 3], tf.uint8),
        "labels": tf.TensorSpec([3, 3], tf.float32),
        "mask": tf.TensorSpec([3], tf.float32),
        "index": tf.TensorSpec([3], tf.int32),
        "starts": tf.TensorSpec([3, 6], tf.int32),
    }
    batches = list(clips.batches.as_numpy_iterator())
    assert clips.num_batches == len(batches) == 5 and clips.num_views == 6
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    assert joined["mask"].tolist() == [1.0] * 13 + [0.0] * 2
    assert (joined["index"][13:] == split.PADDING).all()
    ids = [clips.examples[i] for i in joined["index"][:13]]
    numbers = [int(one.removeprefix("video")) for one in ids]
    assert sorted(numbers) == list(range(NUM_VIDEOS))
    assert video_numbers(joined["pixels"][:13, 0]) == numbers
    lengths = np.array([length for shard in LENGTHS for length in shard])[numbers]
    last = np.maximum(lengths - 2, 0)
    zero = np.zeros_like(last)
    np.testing.assert_array_equal(
        joined["starts"][:13], np.stack([zero] * 3 + [last] * 3, axis=1)
    )


def test_evaluation_is_the_same_every_time_and_for_every_seed(data_dir):
    first = video.clip_dataset(data_dir, **EVAL)
    again = video.clip_dataset(data_dir, **{**EVAL, "seed": 8})
    assert digests(iter(first.batches), 5) == digests(iter(again.batches), 5)


def test_views_of_a_video_differ(tmp_path):
    rng = np.random.default_rng(3)
    frames = [
        shards.jpeg(rng.integers(0, 256, (shards.HEIGHT, shards.WIDTH, 3), np.uint8))
        for _ in range(9)
    ]
    shards.write_dataset(tmp_path, [{"noise": shards.Video(frames)}])
    arguments = {**EVAL, "batch_size": 1, "num_clips": 4, "num_crops": 3}
    (batch,) = numpy_batches(video.clip_dataset(tmp_path, **arguments), 1)
    assert len({view.tobytes() for view in batch["pixels"][0]}) == 12
    assert batch["starts"][0].tolist() == [0] * 3 + [2] * 3 + [5] * 3 + [7] * 3


def test_hosts_evaluate_equally_many_batches(data_dir):
    found, sizes = [], []
    for host in range(3):
        clips = video.clip_dataset(data_dir, **EVAL, num_hosts=3, host=host)
        batches = list(clips.batches.as_numpy_iterator())
        assert len(batches) == clips.num_batches
        sizes.append(sum(batch["mask"].sum() for batch in batches))
        for batch in batches:
            found += batch["index"][batch["mask"] == 1].tolist()
    assert sizes == [4, 4, 5] and clips.num_batches == 2
    assert sorted(found) == list(range(NUM_VIDEOS))


def test_a_clip_longer_than_its_video_loops(data_dir):
    arguments = {**EVAL, "num_frames": 7, "batch_size": 1}
    clips = video.clip_dataset(data_dir, **arguments)
    assert clips.facts == "4 fps; 13 shorter than a clip, looped"
    lengths = [length for shard in LENGTHS for length in shard]
    for batch in clips.batches.as_numpy_iterator():
        length = lengths[batch["index"][0]]
        greys = batch["pixels"][0, 0, :, 0, 0, 0].astype(float)
        got = np.round((greys - greys[0]) / FRAME_STEP).tolist()
        assert got == [i % length for i in range(7)]
    stride_2 = {**EVAL, "num_frames": 2, "frame_stride": 3}
    facts = video.clip_dataset(data_dir, **stride_2).facts
    assert facts == "4 fps; 3 shorter than a clip, looped"  # span 4


def test_scopes_bind_training_and_evaluation_apart(data_dir):
    gin.parse_config(
        """
        clip_dataset.dataset = 'toy'
        clip_dataset.num_frames = 2
        clip_dataset.short_side_px = 24
        train/clip_dataset.crop_px = 20
        train/clip_dataset.split = 'train'
        train/clip_dataset.flip = True
        eval/clip_dataset.crop_px = 24
        eval/clip_dataset.split = 'train'
        eval/clip_dataset.num_crops = 3
        """
    )
    sides = []
    for scope in ("train", "eval"):
        with gin.config_scope(scope):
            clips = video.clip_dataset(
                data_dir, is_training=scope == "train", batch_size=2, seed=0
            )
        sides.append(clips.batches.element_spec["pixels"].shape[-2])
    assert sides == [20, 24]


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"num_frames": 0}, "num_frames must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"num_crops": 2}, "num_crops must be 1 or 3, got 2"),
        ({"labels_from": "frame"}, "labels_from must be 'video' or 'clip'"),
        ({"num_clips": 2}, "train/clip_dataset: num_clips must be 1, got 2. It is for"),
        (
            {"is_training": False, "flip": True},
            "eval/clip_dataset: flip must be False, got True. It is for train/",
        ),
        ({"scale_range": (0.8, 1.2)}, "crop of 20 px does not fit into .* 24 px"),
        ({"scale_range": (1.2, 1.0)}, "lowest <= highest"),
        ({"fps": 12}, "wanted 12 frames per second, got 4.0. Build"),
        ({"split": "test"}, r"no split 'test'; it has \['train'\]"),
        ({"dataset": "other"}, "dataset_info.json: no such file. Build it"),
        ({"num_hosts": 2, "host": 2}, r"host must be in 0..1, got 2"),
        ({"num_hosts": 6}, "6 hosts want a shard each, split 'train' has 5"),
        ({"num_hosts": 5}, "no video for host 3 of 5"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(data_dir, changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        video.clip_dataset(data_dir, **{**TRAIN, **changes})


def test_a_missing_shard_is_refused_at_once(tmp_path):
    one = {"a": shards.Video(shards.grey_jpegs([1]))}
    folder = shards.write_dataset(tmp_path, [one, one])
    (folder / records.shard_name("toy", "train", 1, 2)).unlink()
    with pytest.raises(
        ValueError, match="00001-of-00002.tfrecord: the shard is missing"
    ):
        video.clip_dataset(tmp_path, **TRAIN)


@pytest.mark.parametrize("name", ["charades", "synthetic"])
def test_a_dataset_file_binds_all_that_the_caller_does_not_pass(name):
    path = pathlib.Path(__file__).parents[2] / "gin" / "datasets" / f"{name}.gin"
    gin.parse_config(path.read_text(), skip_unknown=True)
    passed = {"data_dir", "is_training", "batch_size", "seed"}
    for scope in ("train", "eval"):
        with gin.config_scope(scope):
            bound = gin.get_bindings("clip_dataset").keys()
        needed = {
            p.name
            for p in inspect.signature(video.clip_dataset).parameters.values()
            if p.default is p.empty
        }
        assert needed - passed <= bound
