import pytest
import tensorflow as tf

from tests.inputs.modes import run_both
from tl_tf.inputs import clips


@pytest.mark.parametrize(
    "num_frames, frame_stride, want", [(1, 3, 1), (4, 1, 4), (4, 3, 10)]
)
def test_clip_span(num_frames, frame_stride, want):
    assert clips.clip_span(num_frames, frame_stride) == want


@pytest.mark.parametrize(
    "video_frames, offset, want",
    [
        (10, 0, [0, 3, 6, 9]),
        (10, 2, [2, 5, 8, 1]),
        (5, 0, [0, 3, 1, 4]),
        (1, 0, [0, 0, 0, 0]),
    ],
)
def test_clip_indices(video_frames, offset, want):
    def indices(video_frames, offset):
        return clips.clip_indices(
            video_frames, num_frames=4, frame_stride=3, offset=offset
        )

    assert run_both(indices, video_frames, offset).tolist() == want


def test_clip_indices_of_several_clips():
    def indices(offsets):
        return clips.clip_indices(7, num_frames=3, frame_stride=2, offset=offsets)

    assert run_both(indices, [[0], [2]]).tolist() == [[0, 2, 4], [2, 4, 6]]


@pytest.mark.parametrize(
    "video_frames, want", [(13, {0, 1, 2, 3}), (10, {0}), (4, {0}), (1, {0})]
)
def test_train_offset_is_each_that_needs_no_loop(video_frames, want):
    def offset(video_frames, seed):
        return clips.train_offset(video_frames, num_frames=4, frame_stride=3, seed=seed)

    drawn = [int(offset(video_frames, [7, draw])) for draw in range(60)]
    assert set(drawn) == want
    assert run_both(offset, video_frames, [7, 3]) == drawn[3]


@pytest.mark.parametrize(
    "video_frames, num_clips, want",
    [
        (10, 1, [3]),  # 6 frames to spare
        (11, 1, [3]),
        (10, 2, [0, 6]),
        (10, 3, [0, 3, 6]),
        (11, 3, [0, 4, 7]),  # 3.5 rounds up
        (10, 5, [0, 2, 3, 5, 6]),
        (4, 3, [0, 0, 0]),
        (2, 3, [0, 0, 0]),
        (2, 1, [0]),
    ],
)
def test_eval_offsets(video_frames, num_clips, want):
    def offsets(video_frames):
        return clips.eval_offsets(
            video_frames, num_frames=4, frame_stride=1, num_clips=num_clips
        )

    assert run_both(offsets, video_frames).tolist() == want


def test_six_clips_of_64_frames_leave_no_frame_of_30_seconds_out():
    starts = clips.eval_offsets(360, num_frames=64, frame_stride=1, num_clips=6)
    assert starts.numpy().tolist() == [0, 59, 118, 178, 237, 296]
    assert max(tf.experimental.numpy.diff(starts).numpy()) <= 64


@pytest.mark.parametrize(
    "start_seconds, end_seconds, want",
    [
        (0.0, 1.0, [5]),
        (1.0, 2.0, [5, 2]),  # 2 only begins when this clip is half over
        (2.0, 3.0, [2]),  # 5 ended as it began
        (3.5, 4.0, [2, 5]),
        (6.0, 7.0, []),
    ],
)
def test_labels_in_clip(start_seconds, end_seconds, want):
    def labels(segment_labels, starts, ends):
        return clips.labels_in_clip(
            segment_labels,
            starts,
            ends,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
        )

    got = run_both(labels, [5, 2, 5], [0.0, 1.5, 3.0], [2.0, 4.5, 6.0])
    assert got.tolist() == want
