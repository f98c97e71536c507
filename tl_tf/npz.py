"""Named arrays in .npz files: written whole or not at all, read without pickles."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every array of a file by name; bfloat16 becomes float32.

    Raises:
      ValueError: the file cannot be read, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _from_bfloat16(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: wanted an .npz file of arrays, which cannot be read ({error})."
            " Check the path, and that the download is complete."
        ) from None


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
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _from_bfloat16(value: np.ndarray) -> np.ndarray:
    """numpy has no bfloat16 and writes it as two raw bytes: a float32's upper ones."""
    if value.dtype != np.dtype("V2"):
        return value
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
