import numpy as np
import pytest

from tl_tf import visualize

T, H, W, S = 11, 30, 50, 3


def frames(seed=0):
    return np.random.default_rng(seed).integers(0, 256, [T, H, W, 3], dtype=np.uint8)


def test_a_strip_shows_the_frames():
    clip = np.zeros([T, H, W, 3], np.uint8)
    clip[..., 0] = 255  # red
    strip = visualize.frame_strip(clip, title="left, up")
    assert strip.dtype == np.uint8 and strip.shape[2] == 3
    assert strip.shape[1] > 5 * strip.shape[0]  # eight frames side by side
    red = (strip == [255, 0, 0]).all(axis=-1)
    assert red.mean() > 0.3


def test_a_short_clip_is_shown_whole():
    strip = visualize.frame_strip(frames()[:2], title="two")
    assert strip.shape[1] < 3 * strip.shape[0]


def test_a_sheet_is_bright_where_the_token_looks():
    clip = np.full([T, H, W, 3], 40, np.uint8)
    maps = np.zeros([T, 3, 5, S], np.float32)
    maps[:, :, 0, 1] = 1.0  # token 1 looks at the left edge
    sheet = visualize.token_map_sheet(clip, maps, title="t").astype(int)
    rows = np.array_split(sheet.sum(axis=-1)[30:], 1 + S)  # title, then the rows
    width = sheet.shape[1] // 8
    bright = [row[:, 30 : width // 2].mean() - row[:, width // 2 : width].mean()
              for row in rows]  # fmt: skip
    assert bright[2] == max(bright)


def test_maps_may_be_fewer_than_frames_and_square_cells_are_not_needed():
    maps = np.random.default_rng(1).random([4, 2, 3, S]).astype(np.float32)
    sheet = visualize.token_map_sheet(frames(), maps, title="", names=["a", "b", "c"])
    assert sheet.shape[2] == 3


def test_the_maps_of_an_image_lie_beside_it():
    image = np.full([1, H, W, 3], 40, np.uint8)
    maps = np.zeros([1, 3, 5, S], np.float32)
    maps[:, :, 0, 1] = 1.0  # token 1 looks at the left edge
    sheet = visualize.token_map_sheet(image, maps, title="t").astype(int)
    assert sheet.shape[1] > 2 * sheet.shape[0]
    columns = np.array_split(sheet.sum(axis=-1)[40:-25], 1 + S, axis=1)
    bright = [c[:, 20:50].mean() - c[:, 80:110].mean() for c in columns]
    assert bright[2] == max(bright) > 100


def cells(picture: np.ndarray, num_classes: int) -> np.ndarray:
    """The middle colour of each cell of a matrix: the axes' frame is black."""
    dark = (picture == 0).all(axis=-1)
    ys = np.flatnonzero(dark.mean(axis=1) > 0.5)[[0, -1]]
    xs = np.flatnonzero(dark[ys[0]])[[0, -1]]
    at = (np.arange(num_classes) + 0.3) / num_classes
    y, x = (ends[0] + at * np.ptp(ends) for ends in (ys, xs))
    return picture[y.astype(int)][:, x.astype(int)].astype(int)


def test_a_confusion_matrix_is_dark_where_a_class_is_taken_for_another():
    matrix = np.array([[9, 1, 0], [0, 0, 0], [5, 0, 5]])
    picture = visualize.confusion_picture(matrix, ["walk", "run", "sit"], title="t")
    light = cells(picture, 3).sum(axis=-1)
    assert light[0, 0] < light[2, 0] == light[2, 2] < light[0, 1] < light[0, 2]
    assert light[0, 2] == light[2, 1] == 3 * 255
    assert len(set(light[1])) == 1 and light[1, 0] not in light[[0, 2]]  # no example


@pytest.mark.parametrize("num_classes, least", [(2, 300), (25, 600), (400, 800)])
def test_a_confusion_matrix_of_many_classes_is_a_pixel_each_at_least(
    num_classes, least
):
    names = [f"class {k}" for k in range(num_classes)]
    picture = visualize.confusion_picture(np.eye(num_classes), names, title="t")
    assert least < picture.shape[0] < 1300 and picture.dtype == np.uint8


@pytest.mark.parametrize("count, shown", [(1, [0]), (3, [0, 1, 2]), (9, 8)])
def test_frames_are_chosen_evenly(count, shown):
    found = visualize._evenly(count, 8)
    assert len(found) == shown if isinstance(shown, int) else found.tolist() == shown
    assert found[0] == 0 and found[-1] == count - 1
