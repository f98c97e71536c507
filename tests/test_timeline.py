import numpy as np
import pytest

from tl_tf import timeline

CLASSES = ["run", "jump", "sit"]


def segments(*scores, length=2.0, stride=1.0):
    return [
        timeline.Segment(i * stride, i * stride + length, np.array(row, np.float32))
        for i, row in enumerate(scores)
    ]


def test_segments_that_overlap_meet_halfway():
    found = segments([1, 0, 0], [1, 0, 0], [0, 1, 0])
    found.append(
        timeline.Segment(2.5, 4.5, np.zeros(3))
    )  # the last ends with the video
    # Middles: 1, 2, 3, 3.5.
    np.testing.assert_allclose(timeline.edges(found), [0, 1.5, 2.5, 3.25, 4.5])


def test_neighbours_with_the_same_labels_are_one_stretch():
    found = timeline.stretches(
        segments(
            [0.9, 0.2, 0.1],
            [0.7, 0.4, 0.1],
            [0.7, 0.8, 0.1],  # two are sure
            [0.1, 0.2, 0.4],  # none is: the best
        ),
        CLASSES,
    )
    assert [(one.start, one.end) for one in found] == [(0, 2.5), (2.5, 3.5), (3.5, 5)]
    labels = [
        [(name, pytest.approx(score)) for name, score in one.labels] for one in found
    ]
    assert labels == [[("run", 0.8)], [("jump", 0.8), ("run", 0.7)], [("sit", 0.4)]]


def test_the_best_labels_come_first_and_ties_in_their_order():
    scores = np.array([0.5, 0.9, 0.5], np.float32)
    assert [name for name, _ in timeline.top(scores, CLASSES, 9)] == [
        "jump",
        "run",
        "sit",
    ]


@pytest.mark.parametrize(
    "seconds, total, text",
    [(7.46, 119, "7.5"), (125.4, 200, "2:05"), (59.7, 200, "1:00")]
    + [(3725, 9000, "1:02:05"), (3599.6, 3600, "1:00:00")],
)
def test_times_are_written_for_people(seconds, total, text):
    assert timeline.clock(seconds, total=total) == text


def columns_of(picture: np.ndarray, color: str) -> tuple[int, int]:
    """The first and the last column with pixels of a colour, as #rrggbb."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    columns = np.flatnonzero((picture == wanted).all(axis=-1).any(axis=0))
    return columns[0], columns[-1]


def test_the_picture_shows_when_a_class_leads():
    rows = [[0.9, 0.0, 0.1]] * 10 + [[0.1, 0.0, 0.8]] * 30
    found = segments(*rows, length=1.0)
    picture = timeline.picture(found, CLASSES, title="video.mp4")
    assert picture.dtype == np.uint8
    # The better class is above; "jump" is never seen, and has no row.
    upper, lower = np.split(picture, [len(picture) // 2])
    sit, run = (columns_of(half, timeline.STRONG) for half in (upper, lower))
    width = sit[1] - run[0]
    assert (run[1] - run[0]) / width == pytest.approx(0.25, abs=0.01)
    assert sit[0] == pytest.approx(run[1], abs=3)
    assert columns_of(lower, timeline.PALE)[1] == pytest.approx(sit[1], abs=3)
