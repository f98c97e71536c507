"""Saving a run, going on with it, and reading a trained model back."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tf_keras

_CLASSES = "classes/.ATTRIBUTES/VARIABLE_VALUE"


def manager(
    model_dir: Path,
    *,
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    iterator: tf.data.Iterator,
    classes: Sequence[str],
    every_steps: int,
    keep: int,
) -> tf.train.CheckpointManager:
    """Saves model, optimizer, averaged weights, class list and place in the data.

    Checkpoints are `<model_dir>/ckpt-<step>`.  The iterator makes a restarted run read
    what the unbroken one would have read.

    Args:
      model_dir: folder of the run.
      model: built.
      optimizer: built; its `iterations` number the checkpoints.
      iterator: the host's tf.data iterator.
      classes: names, in the order of the logits.
      every_steps: between checkpoints, at least 1.
      keep: newest checkpoints that stay, at least 1.

    Raises:
      ValueError: for numbers out of range.
    """
    for name, value in (("every_steps", every_steps), ("keep", keep)):
        if value < 1:
            raise ValueError(f"checkpoints: {name} must be at least 1, got {value}.")
    everything = _trainable(model, optimizer, classes)
    everything.iterator = iterator
    return _CheckedManager(
        everything,
        str(model_dir),
        max_to_keep=keep,
        checkpoint_interval=every_steps,
        step_counter=optimizer.iterations,
    )


def restore_for_evaluation(
    model_dir: Path,
    *,
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    classes: Sequence[str],
) -> Path:
    """Reads the newest checkpoint's weights; the place in the data is left out.

    Returns:
      The checkpoint's path.

    Raises:
      ValueError: when there is none, it belongs to other classes, or any variable of
        the model is not in it.
    """
    path = tf.train.latest_checkpoint(str(model_dir))
    if path is None:
        raise ValueError(
            f"{model_dir}: there is no checkpoint to evaluate. Train first, or set"
            " --model_dir to the folder of a trained run."
        )
    _restore(_trainable(model, optimizer, classes), path, classes)
    return Path(path)


class _CheckedManager(tf.train.CheckpointManager):
    """Restores all or nothing, whoever asks for it (Orbit's controller does)."""

    def restore_or_initialize(self) -> str | None:
        path = self.latest_checkpoint
        if path is not None:
            classes = json.loads(self.checkpoint.classes.numpy())
            _restore(self.checkpoint, path, classes)
        return path


def _trainable(model, optimizer, classes: Sequence[str]) -> tf.train.Checkpoint:
    with tf.device("CPU:0"):  # no accelerator holds strings
        names = tf.Variable(json.dumps(list(classes)), trainable=False)
    return tf.train.Checkpoint(model=model, optimizer=optimizer, classes=names)


def _restore(
    checkpoint: tf.train.Checkpoint, path: str, classes: Sequence[str]
) -> None:
    try:
        reader = tf.train.load_checkpoint(path)
        saved = json.loads(reader.get_tensor(_CLASSES))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: the checkpoint cannot be read ({reason}). Delete its files; the"
            " one before it is used then."
        ) from None
    if saved != list(classes):
        raise ValueError(
            f"{path}: was trained on {len(saved)} classes ({', '.join(saved[:3])}, …),"
            f" the data set has {len(classes)} ({', '.join(classes[:3])}, …), or they"
            " stand in another order. Use the data set it was trained on, or another"
            " --model_dir."
        )
    shapes = reader.get_variable_to_shape_map()
    model = checkpoint.model
    try:
        status = checkpoint.restore(path)
        status.assert_existing_objects_matched()
        status.expect_partial()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        in_file = sum(name.startswith("model/") for name in shapes) or "no"
        text = " ".join(str(error).split())
        missing = re.findall(r"Variable '([^']+)'", text)[:3]
        reason = f"not in the file: {', '.join(missing)}, …" if missing else text[:300]
        raise ValueError(
            f"{path}: does not fit this model ({len(model.variables)} variables;"
            f" {in_file} in the file): {reason}. Use the recipe it was trained with,"
            " config.gin beside it, or another --model_dir."
        ) from None
