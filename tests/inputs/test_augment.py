import numpy as np
import pytest
import tensorflow as tf

from tests import shards
from tests.inputs.modes import run_both
from tl_tf.inputs import augment

HEIGHT, WIDTH = 32, 52  # multiples of 4, and neither of the other


def smooth_video(num_frames: int, height: int = HEIGHT, width: int = WIDTH):
    """Frames whose red tells y, green x, and blue the frame; and their JPEG files."""
    y, x = np.mgrid[:height, :width]
    pixels = [np.stack([4 * y, 4 * x, 0 * y + 60 * t], -1) for t in range(num_frames)]
    pixels = np.stack(pixels).astype(np.uint8)
    return pixels, [shards.jpeg(frame) for frame in pixels]


def windows(height, width, seed, scale_range=(0.9, 1.5)):
    return augment.random_windows(
        height,
        width,
        crop_px=20,
        short_side_px=25,
        scale_range=scale_range,
        seed=seed,
    )


def test_random_windows_stay_inside_and_reach_everywhere():
    drawn = np.stack([windows(50, 71, [draw, 3])[0].numpy() for draw in range(300)])
    y, x, height, width = drawn.T
    np.testing.assert_array_equal(height, width)
    # 20 / 25 of the short side of 50 is 40 px; over 1.5 and over 0.9.
    assert height.min() in (27, 28) and height.max() in (43, 44)
    assert y.min() == x.min() == 0
    assert (y + height).max() == 50 and (x + width).max() == 71
    assert len(set(map(tuple, drawn))) > 250


def test_random_windows_repeat_with_their_seed():
    def draw(height, width, seed):
        return windows(height, width, seed)

    first = run_both(draw, 50, 71, [2, 3])
    assert first.shape == (1, 4)
    assert (first == windows(50, 71, [2, 3])).numpy().all()
    assert not (first == windows(50, 71, [2, 4])).numpy().all()


@pytest.mark.parametrize(
    "height, width, num_crops, want",
    [
        (50, 71, 1, [[5, 15, 40, 40]]),
        (71, 50, 1, [[15, 5, 40, 40]]),
        (50, 71, 3, [[5, 0, 40, 40], [5, 15, 40, 40], [5, 31, 40, 40]]),
        (71, 50, 3, [[0, 5, 40, 40], [15, 5, 40, 40], [31, 5, 40, 40]]),
        (50, 50, 3, [[5, 0, 40, 40], [5, 5, 40, 40], [5, 10, 40, 40]]),
    ],
)
def test_fixed_windows(height, width, num_crops, want):
    def fixed(height, width):
        return augment.fixed_windows(
            height, width, crop_px=20, short_side_px=25, num_crops=num_crops
        )

    assert run_both(fixed, height, width).tolist() == want


@pytest.mark.parametrize(
    "rows", [[[4, 9, 17, 17]], [[4, 2, 17, 17], [4, 20, 17, 17], [4, 35, 17, 17]]]
)
def test_a_window_is_what_the_whole_frame_shows_there(rows):
    pixels, frames = smooth_video(3)

    def decode(frames, rows):
        return augment.decode_windows(frames, rows, crop_px=17)

    got = run_both(decode, frames, rows)
    assert got.shape == (len(rows), 3, 17, 17, 3) and got.dtype == np.uint8
    for view, (y, x, height, width) in zip(got, rows, strict=True):
        want = pixels[:, y : y + height, x : x + width]
        error = (view.astype(int) - want).mean(axis=(0, 1, 2))  # [3]
        assert (abs(error) < 2).all()  # one pixel off gives 4 in red or green


@pytest.mark.parametrize("side, crop_px", [(12, 30), (24, 18), (30, 6)])
def test_resizing_keeps_the_edges_of_the_window(side, crop_px):
    """Enlarged, reduced, and reduced so far that it needs antialiasing."""
    _, frames = smooth_video(2)

    def decode(frames, rows):
        return augment.decode_windows(frames, rows, crop_px=crop_px)

    got = run_both(decode, frames, [[1, 7, side, side]])[0]
    assert got.shape == (2, crop_px, crop_px, 3)
    centres = (np.arange(crop_px) + 0.5) * side / crop_px - 0.5
    inner = slice(crop_px // 4, -crop_px // 4)  # borders are extended, not ramps
    red, green = got[1, inner, 3, 0], got[1, 3, inner, 1]
    np.testing.assert_allclose(red, 4 * (1 + centres[inner]), atol=5)
    np.testing.assert_allclose(green, 4 * (7 + centres[inner]), atol=5)


def test_strong_reduction_does_not_alias():
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stripes[:, ::3] = 255  # every third column: a mean of 85
    rows = tf.constant([[0, 0, 30, 30]])
    got = augment.decode_windows(
        tf.constant([shards.jpeg(stripes)]), rows, crop_px=5
    ).numpy()
    np.testing.assert_allclose(got[0, 0, 1:-1, 1:-1], 85, atol=12)


def test_flip_mirrors_all_frames_of_half_the_clips():
    clip = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    flips = 0
    for draw in range(40):
        got = augment.random_flip(tf.constant(clip), seed=[draw, 5]).numpy()
        is_flipped = (got == clip[:, :, ::-1]).all()
        assert is_flipped or (got == clip).all()
        flips += is_flipped
    assert 10 <= flips <= 30
    run_both(lambda clip: augment.random_flip(clip, seed=[1, 5]), clip)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_normalize(dtype):
    frames = tf.constant([0, 51, 255], tf.uint8)
    got = augment.normalize(frames, dtype)
    assert got.dtype == dtype
    np.testing.assert_allclose(tf.cast(got, tf.float32), [-1, -0.6, 1], rtol=4e-3)
