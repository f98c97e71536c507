"""Every kind of file comes out as upright RGB, as Pillow reads it."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests.inputs import image_files
from tl_tf.inputs import folders, image_augment

H, W = 37, 53
TOLERANCE = 2  # levels between two JPEG decoders
ANY = image_augment.Stored(frozenset(["jpeg", "png"]), is_turned=True)
WINDOW = [6, 9, 21, 14]  # y, x, height, width, upright; inside of 53 x 37 as well


def rgb(seed: int = 0) -> np.ndarray:
    return image_files.smooth(H, W, seed=seed)


def alpha() -> PIL.Image.Image:
    image = PIL.Image.fromarray(rgb()).convert("RGBA")
    image.putalpha(PIL.Image.fromarray(rgb(1)).convert("L"))
    return image


def sixteen_bit() -> PIL.Image.Image:
    return PIL.Image.fromarray(rgb()[..., 0].astype(np.uint16) * 256 + 77)


KINDS = {
    "rgb.jpg": rgb,
    "grey.jpg": lambda: PIL.Image.fromarray(rgb()).convert("L"),
    "cmyk.jpg": lambda: PIL.Image.fromarray(rgb()).convert("CMYK"),
    "rgb.png": rgb,
    "grey.png": lambda: PIL.Image.fromarray(rgb()).convert("L"),
    "grey_alpha.png": lambda: alpha().convert("LA"),
    "rgba.png": alpha,
    "palette.png": lambda: PIL.Image.fromarray(rgb()).convert("P"),
    "one_bit.png": lambda: PIL.Image.fromarray(rgb()).convert("1"),
    "sixteen_bit.png": sixteen_bit,
}


def decode(path, *, window=None, stored=ANY) -> np.ndarray:
    """Inside Dataset.map, with the orientation that the folder scan finds."""
    header = folders.read_header(path)
    assert not header.fault

    def read(path):
        data, orientation = tf.io.read_file(path), tf.constant(header.orientation)
        pixels = image_augment.decode(data, orientation, stored=stored, window=window)
        return pixels, image_augment.upright_size(data, orientation, stored)

    dataset = tf.data.Dataset.from_tensors(str(path)).map(read)
    ((pixels, size),) = dataset.as_numpy_iterator()
    assert tuple(size) == header.size
    return pixels


def assert_close(got: np.ndarray, want: np.ndarray, *, tolerance: int = TOLERANCE):
    assert got.shape == want.shape and got.dtype == np.uint8
    assert np.abs(got.astype(int) - want).max() <= tolerance


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_what_pillow_reads(name, tmp_path):
    image_files.write(tmp_path / name, KINDS[name]())
    want = image_files.upright(tmp_path / name)
    tolerance = TOLERANCE if name.endswith("jpg") else 0
    assert_close(decode(tmp_path / name), want, tolerance=tolerance)
    y, x, height, width = WINDOW
    want = want[y : y + height, x : x + width]
    got = decode(tmp_path / name, window=tf.constant(WINDOW))
    assert_close(got, want, tolerance=tolerance)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_those_of_the_upright_image(orientation, suffix, tmp_path):
    path = tmp_path / f"file.{suffix}"
    image_files.write(path, rgb(), orientation=orientation)
    want = image_files.upright(path)
    assert want.shape[:2] == ((H, W) if orientation < 5 else (W, H))
    assert_close(decode(path), want)
    y, x, height, width = WINDOW
    got = decode(path, window=tf.constant(WINDOW))
    assert_close(got, want[y : y + height, x : x + width])


def test_what_is_known_of_all_files_changes_nothing(tmp_path):
    image_files.write(tmp_path / "a.jpg", rgb())
    jpeg = frozenset(["jpeg"])
    for stored in (
        image_augment.Stored(jpeg),
        image_augment.Stored(jpeg, size=(H, W)),
        image_augment.Stored(jpeg, is_turned=True),
    ):
        got = decode(tmp_path / "a.jpg", stored=stored)
        np.testing.assert_array_equal(got, decode(tmp_path / "a.jpg"))


def test_a_png_by_the_name_of_a_jpeg_is_read(tmp_path):
    image_files.write(tmp_path / "a.png", rgb())
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    np.testing.assert_array_equal(decode(tmp_path / "a.JPEG"), rgb())


def draw(function, count: int, **kwargs) -> np.ndarray:
    """function(seed=...) for many seeds."""
    seeds = tf.data.Dataset.range(count, output_type=tf.int32)
    results = seeds.map(lambda i: function(seed=tf.stack([5, i]), **kwargs))
    return np.array(list(results.as_numpy_iterator()))


def test_inception_windows_have_the_area_and_aspect_that_are_asked_for():
    y, x, height, width = draw(
        lambda seed: image_augment.inception_window(
            tf.constant([200, 300]), area_range=(0.2, 0.5), seed=seed
        ),
        200,
    ).T
    area, aspect = height * width / (200 * 300), width / height
    assert 0.19 < area.min() < 0.25 and 0.45 < area.max() < 0.51
    assert 0.74 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.35
    assert (y >= 0).all() and (y + height <= 200).all() and y.std() > 10
    assert (x >= 0).all() and (x + width <= 300).all() and x.std() > 10


def test_random_crops_reach_every_corner_and_no_further():
    pixels = tf.constant(np.arange(6 * 7, dtype=np.uint8).reshape(6, 7, 1))
    pixels = tf.repeat(pixels, 3, axis=2)
    crops = draw(lambda seed: image_augment.random_crop(pixels, (4, 3), seed=seed), 300)
    assert crops.shape == (300, 4, 3, 3)
    corners = crops[:, 0, 0, 0]
    assert set(corners) == {7 * y + x for y in range(3) for x in range(5)}
    np.testing.assert_array_equal(crops[0, :, :, 0] - corners[0], pixels[:4, :3, 0])


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_pad(mode):
    numpy_mode = {"reflect": "reflect", "zero": "constant"}[mode]
    want = np.pad(rgb(), [(4, 4), (4, 4), (0, 0)], mode=numpy_mode)
    got = image_augment.pad(tf.constant(rgb()), 4, mode=mode)
    np.testing.assert_array_equal(got, want)


def test_half_of_the_images_are_mirrored():
    pixels = tf.constant(rgb()[:5, :7])
    flipped = draw(lambda seed: image_augment.random_flip(pixels, seed=seed), 100)
    is_mirror = (flipped == pixels[:, ::-1].numpy()).all((1, 2, 3))
    assert ((flipped == pixels.numpy()).all((1, 2, 3)) ^ is_mirror).all()
    assert 30 < is_mirror.sum() < 70


def test_a_share_of_the_images_loses_a_rectangle():
    pixels = tf.zeros([24, 30, 3], tf.uint8)
    images = draw(
        lambda seed: image_augment.random_erasing(pixels, share=0.4, seed=seed), 200
    )
    is_erased = (images > 0).any(-1)
    assert 60 < is_erased.any((1, 2)).sum() < 100
    assert is_erased.mean((1, 2)).max() < 0.36
    for rows, columns in zip(is_erased.any(2), is_erased.any(1), strict=True):
        for line in rows, columns:
            assert np.abs(np.diff(np.pad(line, 1).astype(int))).sum() in (0, 2)


def test_the_short_side_is_scaled_and_the_centre_cropped():
    pixels = tf.constant(rgb())
    resized = image_augment.resize_short_side(pixels, 20, antialias=False)
    assert resized.shape == (20, round(20 / H * W), 3)
    want = tf.image.resize(pixels, [20, 29]).numpy()
    np.testing.assert_allclose(resized, want, atol=0.51)
    cropped = image_augment.central_crop(resized, (14, 16))
    np.testing.assert_array_equal(cropped, resized[3:17, 6:22])


def test_the_number_of_the_damaged_file_is_found(tmp_path):
    image_files.write(tmp_path / "a.jpg", rgb())
    whole = (tmp_path / "a.jpg").read_bytes()
    files = tf.data.Dataset.from_tensor_slices([whole, whole, whole[:-90], whole])
    number, fault = image_augment.find_fault(files, ANY)
    assert number == 2
    assert fault.startswith("wanted a whole image, got ") and "JPEG" in fault
    assert image_augment.find_fault(files.take(2), ANY) == (2, "")
