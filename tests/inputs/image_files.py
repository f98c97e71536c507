"""Folders and TFDS data sets of small images, and Pillow's reading of them."""

import struct
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

ORIENTATION_TAG = 0x0112


def smooth(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3] that JPEG keeps within a few levels."""
    small = np.random.default_rng(seed).integers(30, 226, (3, 4, 3), np.uint8)
    image = PIL.Image.fromarray(small)
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC))


def write(path: Path, pixels: np.ndarray | PIL.Image.Image, *, orientation: int = 1):
    """Writes a file as its suffix says, with an EXIF orientation unless it is 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels
    if not isinstance(pixels, PIL.Image.Image):
        image = PIL.Image.fromarray(pixels)
    is_jpeg = path.suffix.lower() != ".png"
    options = {"quality": 95, "subsampling": 0} if is_jpeg else {}
    if orientation != 1:
        exif = PIL.Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        options["exif"] = exif
    image.save(path, "JPEG" if is_jpeg else "PNG", **options)


def upright(path: Path) -> np.ndarray:
    """What Pillow makes of a file: uint8 [height, width, 3]."""
    with PIL.Image.open(path) as image:
        image = PIL.ImageOps.exif_transpose(image)
        if image.mode == "I;16":  # Pillow would cut 16 bits off at 255
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))


def claim(path: Path, height: int, width: int) -> None:
    """Makes the header of a JPEG file claim another size (ITU T.81, B.2.2)."""
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    size = struct.pack(">HH", height, width)
    path.write_bytes(content[:at] + size + content[at + 4 :])
