"""Named arrays in .npz files: written whole or not at all, read without pickles."""

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tl_tf import files

MAX_RATIO = 20  # of what a file unpacks to, to its size; weights hardly shrink
SPARE_BYTES = 1 << 30


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every array of a file by name; bfloat16 becomes float32.

    Sizes are checked before memory is asked for: a file may unpack to MAX_RATIO times
    its own size and SPARE_BYTES more, which the scores of an evaluation need.

    Raises:
      ValueError: the file cannot be read, holds Python objects, or unpacks to more.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            limit = MAX_RATIO * os.path.getsize(path) + SPARE_BYTES
            unpacked = sum(member.file_size for member in members)
            if unpacked > limit:
                raise ValueError(f"unpacks to {unpacked:,} bytes, more than {limit:,}")
            return {
                member.filename.removesuffix(".npy"): _from_bfloat16(
                    _read_array(archive, member)
                )
                for member in members
            }
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        RuntimeError,  # encrypted, or an unknown compression
        OverflowError,
        SyntaxError,
        MemoryError,
        struct.error,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise ValueError(
            f"{path}: wanted an .npz file of arrays, which cannot be read"
            f" ({str(error) or type(error).__name__:.300}). Check the path, and that"
            " the download is complete."
        ) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header may claim no more than the archive holds of it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{member.filename!r:.80} is of version {version}")
        shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename!r:.80} holds Python objects")
    if (
        min(shape, default=0) < 0
        or math.prod(shape) * dtype.itemsize > member.file_size
    ):
        raise ValueError(f"{member.filename!r:.80} claims more than it holds: {shape}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of finite numbers; an older file is replaced at the end.

    Raises:
      ValueError: the path has another ending, or values are not finite.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: wanted a name that ends in .npz.")
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"{path}: {name} holds values that are not finite; nothing is written."
                " The run diverged: take an earlier checkpoint."
            )
    with files.whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _from_bfloat16(value: np.ndarray) -> np.ndarray:
    """numpy has no bfloat16 and writes it as two raw bytes: a float32's upper ones."""
    if value.dtype != np.dtype("V2"):
        return value
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
