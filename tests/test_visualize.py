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


def looks_left(picture: np.ndarray) -> float:
    """How much brighter a map's left fifth is than the rest of it."""
    light = picture.astype(int).sum(axis=-1)
    width = light.shape[1]
    return light[:, : width // 5].mean() - light[:, width // 3 :].mean()


def maps_of_token_1(num_slices: int) -> np.ndarray:
    """Token 1 looks at the left edge, the others at nothing."""
    maps = np.zeros([num_slices, 3, 5, S], np.float32)
    maps[:, :, 0, 1] = 0.2
    return maps


@pytest.mark.parametrize("num_slices", [T, 4])
def test_a_sheet_is_bright_where_the_token_looks(num_slices):
    clip = np.full([T, H, W, 3], 40, np.uint8)
    sheet = visualize.token_map_sheet(clip, maps_of_token_1(num_slices), title="t")
    tile, gap = 112, 5
    width = round(tile * W / H)
    rows = [
        sheet[12 + 18 + 18 + row * (tile + gap) :][:tile, 12 + 64 :][:, :width]
        for row in range(1 + S)
    ]
    assert (rows[0] == 40).all()  # the frame
    assert [looks_left(row) > 100 for row in rows] == [False, False, True, False]


def test_more_slices_than_fit_are_shown_evenly():
    wide, narrow = (
        visualize.token_map_sheet(frames(), maps_of_token_1(n), title="").shape[1]
        for n in (T, 3)
    )
    tile = round(112 * W / H) + 5
    assert wide - narrow == (visualize.MAX_FRAMES - 3) * tile


def test_the_maps_of_an_image_lie_beside_it():
    image = np.full([1, H, W, 3], 40, np.uint8)
    sheet = visualize.token_map_sheet(image, maps_of_token_1(1), title="t")
    clip = visualize.draw_clip(image, maps_of_token_1(1), caption="t")
    np.testing.assert_array_equal(sheet, clip[0])


def tiles_of(clip: np.ndarray, num_tokens: int) -> list[np.ndarray]:
    """The maps of a clip's frames [T, height, width, 3], by the layout of two rows."""
    tile, width, line = 128, round(128 * W / H), 12 + 6
    head = 12 + 18
    large = round((2 * (line + tile + 9) - 9 - line) * W / H)
    found = []
    for token in range(num_tokens):
        row, column = divmod(token, -(-num_tokens // 2))
        y = head + line + row * (line + tile + 9)
        x = 12 + large + 10 + column * (width + 5)
        found.append(clip[:, y : y + tile, x : x + width])
    return found


def test_a_clip_plays_each_map_beside_its_frame():
    clip = np.full([T, H, W, 3], 40, np.uint8)
    maps = maps_of_token_1(4)
    maps[2:] = maps[2:, :, ::-1]  # in its second half, the token looks at the right
    drawn = visualize.draw_clip(clip, maps, caption="left 0.93")
    assert drawn.dtype == np.uint8 and len(drawn) == T
    assert drawn.shape[1] % 2 == drawn.shape[2] % 2 == 0
    found = [
        [round(looks_left(tile) / 100) for tile in tile_by_time]
        for tile_by_time in tiles_of(drawn, S)
    ]
    assert found[0] == found[2] == [0] * T
    # Slice t of 4 lasts from frame 11 t / 4 on.
    assert [value > 0 for value in found[1]] == [True] * 6 + [False] * 5


def test_a_token_has_one_scale_over_the_clip():
    clip = np.zeros([2, H, W, 3], np.uint8)
    maps = np.zeros([2, 1, 1, S], np.float32)
    maps[0, ..., 0], maps[1, ..., 0] = 0.1, 0.3  # 0.0 of no other token is its lowest
    first, second = tiles_of(visualize.draw_clip(clip, maps, caption="x"), S)[0]
    inferno = [(0, 0, 4), (252, 255, 164)]  # both ends, as its authors list them
    for tile, end, share in ((first, inferno[0], 0.35), (second, inferno[1], 0.7)):
        np.testing.assert_allclose(tile[5, 5], share * np.array(end), atol=2)


def test_bars_are_as_long_as_a_token_is_important():
    clip, importance = np.zeros([4, H, W, 3], np.uint8), np.array([1, 0.5, -0.25])
    arguments = {"maps": np.zeros([4, 3, 5, S]), "importance": importance}
    drawn = visualize.draw_clip(clip, caption="x", **arguments)[0]
    sheet = visualize.token_map_sheet(clip, title="x", **arguments)

    def lengths(picture, ink):
        found = (picture == ink).all(axis=-1).sum(axis=1)  # of each row of pixels
        return set(found[found > 20].tolist())

    width = round(128 * W / H)  # of the first two tokens, which lie beside each other
    assert lengths(drawn, visualize.FOR) == {width + round(width / 2)}
    assert lengths(drawn, visualize.AGAINST) == {round(width / 4)}
    assert lengths(sheet, visualize.FOR) == {88, 44}
    assert lengths(sheet, visualize.AGAINST) == {22}


def test_of_many_tokens_the_most_important_ones_are_shown():
    importance = np.zeros([20])
    importance[[2, 19]] = -1, 3
    shown = visualize._shown_tokens(np.zeros([1, 3, 5, 20]), importance)
    assert len(shown) == visualize.MAX_TOKENS and {2, 19} < set(shown)


def test_a_long_caption_is_cut_to_the_width():
    clip = np.zeros([1, H, W, 3], np.uint8)
    maps = np.zeros([1, 3, 5, S])
    short, long = (
        visualize.draw_clip(clip, maps, caption=text)[0] for text in ("x", "x" * 999)
    )
    assert short.shape == long.shape
    assert (long[:30, -12:] == 255).all()  # the margin is kept
    assert (long[:30, -40:] < 128).any()


def reds(picture: np.ndarray) -> np.ndarray:
    """Where the colours say: more than an even share."""
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    return (red > blue + 100) & (red > green + 100)


def test_attention_is_red_where_a_frame_looks():
    attention = np.full([3, 2, 3, 2], 0.01)  # [M, S, M, S]
    attention[0, :, 2] = 0.48  # the first frame looks at the last
    picture = visualize.attention_picture({"block 2": attention}, title="t")
    where = np.argwhere(reds(picture[:, : int(picture.shape[1] * 0.8)]))
    assert len(where) > 1000
    # One matrix above, two below: right of the middle of each, above it.
    top = where[where[:, 0] < picture.shape[0] / 2]
    assert np.ptp(top[:, 1]) < 60 and np.ptp(top[:, 0]) < 60


def test_attention_of_an_image_is_drawn_between_tokens():
    attention = np.full([1, 3, 1, 3], 0.05)
    attention[0, 2, 0, 0] = 0.9  # the last token looks at the first
    picture = visualize.attention_picture({"block 2": attention}, title="t")
    where = np.argwhere(reds(picture[:, : int(picture.shape[1] * 0.7)]))
    assert len(where) > 1000 and np.ptp(where, axis=0).max() < 60
    assert where[:, 0].mean() > picture.shape[0] / 2


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
