"""ReaL: the labels of ImageNet's validation images seen anew, several an image or none.

The file is real.json of github.com/google-research/reassessed-imagenet: a list of label
lists, that of ILSVRC2012_val_00000001.JPEG first.
"""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from tl_tf import records

NUMBER = r".*_(\d+)\.[^./]*"  # in the name of a validation image, from 1


def read_table(path: str | Path, *, num_classes: int) -> np.ndarray:
    """Labels by number - 1, int32 [images, most labels of one], -1 where there is none.

    Raises:
      ValueError: for another file than real.json, or labels beyond `num_classes`.
    """
    try:
        lists = records.read_json(Path(path))
        longest = max(map(len, lists))
        if longest > num_classes:  # before a table of that width is made
            raise ValueError(f"{longest} labels of one image")
        table = np.full([len(lists), max(longest, 1)], -1, np.int32)
        for row, labels in enumerate(lists):
            table[row, : len(labels)] = labels
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: wanted a list of label lists, one an image, got {error}. Set"
            " image_dataset.real_json to the real.json of reassessed-imagenet."
        ) from error
    if table.min() < -1 or table.max() >= num_classes:
        raise ValueError(
            f"{path}: wanted labels of {num_classes} classes, got {table.max()}."
            " ReaL labels are for ImageNet's validation images with all 1,000 classes."
        )
    return table


def row_of(name: str, *, num_rows: int) -> int:
    """The table's row of a file "ILSVRC2012_val_00000001.JPEG".

    Raises:
      ValueError: for another name.
    """
    match = re.fullmatch(NUMBER, name)
    if not match or not 1 <= int(match[1]) <= num_rows:
        raise ValueError(
            f"{name}: wanted a name as ILSVRC2012_val_00000001.JPEG, numbered"
            f" 1..{num_rows}, to find its ReaL labels. Set image_dataset.labels_from ="
            " 'label' for other images."
        )
    return int(match[1]) - 1


def labels_of(name: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """The same inside Dataset.map: string [] -> int32 [L]; another name is an error."""
    number = tf.strings.regex_replace(name, f"^{NUMBER}$", r"\1")
    return table[tf.strings.to_number(number, tf.int32) - 1]
