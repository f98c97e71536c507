"""Saving a run, going on with it, and reading a trained model back.

Also the weights of other models: the authors' .npz files, and runs of another recipe.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf import best, durable, files, flax_names, npz, runtime, transfer

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_CLASSES = f"classes{_VALUE}"
_IMAGE_KEYS = {  # of a ViT's variables that a ViViT may lack or keep elsewhere
    "class_token": transfer.CLASS_TOKEN,
    "embed/projection/kernel": transfer.PATCH_KERNEL,
    "embed/projection/bias": transfer.PATCH_KERNEL.replace("kernel", "bias"),
}
_PREFIXES = ("opt/target/", "target/", "params/")  # of released .npz files


def manager(
    model_dir: Path,
    *,
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    iterator: tf.data.Iterator | None,
    classes: Sequence[str],
    every_steps: int,
    keep: int,
) -> tf.train.CheckpointManager:
    """Saves model, optimizer, averaged weights, class list and place in the data.

    Checkpoints are `<model_dir>/ckpt-<step>`.  The iterator makes a restarted run read
    what the unbroken one would have read.  A checkpoint that is not whole is not seen,
    a damaged one is named and the one before it restored: see durable.py.

    Args:
      model_dir: folder of the run.
      model: built.
      optimizer: built; its `iterations` number the checkpoints.
      iterator: the host's tf.data iterator; None for one that cannot be saved, as of a
        tf.data service.
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
    if iterator is not None:
        everything.iterator = iterator
    durable.clean(model_dir)
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
    which: str = "newest",
) -> Path:
    """Reads a checkpoint's weights; the place in the data is left out.

    Args:
      model_dir: folder of the run.
      model: built.
      optimizer: built.
      classes: names, in the order of the logits.
      which: as `find`.

    Returns:
      The checkpoint's path.

    Raises:
      ValueError: when there is none, it belongs to other classes, or any variable of
        the model is not in it.
    """
    path = find(model_dir, which)
    _restore(_trainable(model, optimizer, classes), str(path), classes)
    return path


def read_classes(model_dir: Path, which: str = "newest") -> list[str]:
    """The class names of a checkpoint, in the order of the logits.

    Raises:
      ValueError: when there is none.
    """
    reader = tf.train.load_checkpoint(str(find(model_dir, which)))
    return json.loads(reader.get_tensor(_CLASSES))


def find(model_dir: Path, which: str = "newest") -> Path:
    """A run's checkpoint, without an ending.

    Args:
      model_dir: folder of the run.
      which: "newest", "best" (by train.best_metric), or its name, as "ckpt-100".

    Raises:
      ValueError: when there is none, or it is damaged.
    """
    folder = model_dir / best.FOLDER if which == "best" else model_dir
    if which in ("newest", "best"):
        path = durable.newest(folder)
        if path is not None:
            return path
        if which == "best":
            raise ValueError(
                f"{folder}: there is no best checkpoint. Train with"
                " train.best_metric, as 'map', and train.eval_every_steps; or use"
                " --checkpoint=newest."
            )
        raise ValueError(
            f"{model_dir}: there is no checkpoint to evaluate. Train first, set"
            " --model_dir to the folder of a trained run, or bind warm_start.path to"
            " weights."
        )
    known = [*durable.prefixes(model_dir / best.FOLDER), *durable.prefixes(model_dir)]
    by_name = {path.name: path for path in known}
    if which not in by_name:
        raise ValueError(
            f"--checkpoint={which}: wanted newest, best or one of {model_dir}"
            f" ({', '.join(by_name) or 'which has none'})."
        )
    if fault := durable.fault(by_name[which]):
        raise ValueError(f"{by_name[which]}: damaged: {fault}. Use another checkpoint.")
    return by_name[which]


class _CheckedManager(tf.train.CheckpointManager):
    """Saves and restores all or nothing, whoever asks for it (Orbit's controller)."""

    def save(self, checkpoint_number=None, check_interval=True, options=None):
        # Called before the manager's own, which names the new one and deletes old ones.
        options = tf.train.CheckpointOptions(
            experimental_write_callbacks=[durable.seal]
        )
        try:
            path = super().save(checkpoint_number, check_interval, options)
            if path is not None:
                files.sync(Path(self.directory, "checkpoint"))
                files.sync(Path(self.directory))
        except runtime.HOST_IS_GONE:  # saving averages over hosts: no disk is at fault
            raise
        except (tf.errors.OpError, OSError) as error:
            raise ValueError(self._explain(error)) from None
        if path is not None:
            durable.clean(self.directory)
        return path

    def restore_or_initialize(self) -> str | None:
        path = durable.newest(self.directory)
        if path is None:
            return None
        self._check_place(str(path))
        classes = json.loads(self.checkpoint.classes.numpy())
        _restore(self.checkpoint, str(path), classes)
        self._last_checkpoint_step = int(self._step_counter.numpy())
        return str(path)

    def _check_place(self, path: str) -> None:
        """Refuses to go on with --data_service where a run has a place, or without."""
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        has_place = any(name.startswith("iterator/") for name in names)
        if has_place == hasattr(self.checkpoint, "iterator"):
            return
        was = "without" if has_place else "with"
        raise ValueError(
            f"{path}: was saved {was} --data_service, which keeps no place in the data:"
            f" it can only go on {was} it. Or start from its weights (warm_start.path)"
            " in another --model_dir."
        )

    def _explain(self, error: Exception) -> str:
        """Tidies up after a failed save, and says what remains."""
        failed = Path(f"{self._prefix}-{int(self._step_counter.numpy())}")
        if not durable.is_sealed(failed) and str(failed) not in self.checkpoints:
            durable.delete(failed)
        durable.clean(self.directory)
        kept = [path for path in durable.prefixes(self.directory) if path != failed]
        reason = error.strerror if isinstance(error, OSError) else error.message
        return (
            f"{failed}: the checkpoint cannot be saved ({' '.join(reason.split())})."
            f" {f'{kept[0].name} is as it was' if kept else 'There is none before it'}:"
            " free space on the disk, and the same command goes on from there."
        )


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


@gin.configurable
def warm_start(
    model: tf_keras.Model,
    *,
    path: str | os.PathLike | None = None,
    is_required: bool = False,
    allow_unused: Sequence[str] = (),
    allow_new: Sequence[str] = (),
    from_grid: Sequence[int] | None = None,
    inflate: str = "central_frame",
) -> list[transfer.Row]:
    """Starts a model from other weights; the raw ones of a run, not their average.

    Image size, patches per image, number of classes, class token and pre-logits layer
    may differ, and a ViViT may start from a ViT or from a ViViT of other clips;
    `transfer.assign` says what becomes of them.

    Args:
      model: built.
      path: an .npz file of Flax parameters, a run's folder, or a checkpoint in one,
        without its ending; None does nothing.
      is_required: None is an error: fine-tuning without weights is none.
      allow_unused: patterns of names that may be in the file alone.
      allow_new: patterns of names that may be missing in the file or of another shape;
        ("*TokenLearner*",) puts TokenLearner into a plain ViT.
      from_grid: H and W of the file's position embeddings, if they are no square.
      inflate: how the kernel of an image's patches becomes that of tubelets, one of
        transfer.INFLATIONS.

    Returns:
      What became of every name; `transfer.format_rows` makes a table of it.

    Raises:
      ValueError: there is no such file, it cannot be read, or it does not fit.
    """
    if path is None and is_required:
        raise ValueError(
            "warm_start.path: wanted weights to start from, got none. Add"
            " --gin_bindings=\"INIT_FROM = 'weights.npz'\", or a run's folder."
        )
    if path is None:
        return []
    options = {
        "allow_unused": allow_unused,
        "allow_new": allow_new,
        "from_grid": from_grid,
        "inflate": inflate,
    }
    if Path(path).suffix == ".npz":
        return load_npz(path, model, **options)
    newest = durable.newest(path) if Path(path).is_dir() else path
    if newest is None or not Path(f"{newest}.index").is_file():
        raise ValueError(
            f"{path}: there is no checkpoint. Set warm_start.path to an .npz file, a"
            " run's folder or a checkpoint in one (ckpt-1000, without an ending)."
        )
    names = _names_of(model)
    return transfer.assign(
        _read_checkpoint(str(newest), names),
        {names[key]: variable for key, variable in _keys_of(model).items()},
        where=str(newest),
        **_places_of(model),
        **options,
    )


def load_npz(
    path: str | os.PathLike,
    model: tf_keras.Model | tf_keras.layers.Layer,
    *,
    allow_unused: Sequence[str] = (),
    allow_new: Sequence[str] = (),
    from_grid: Sequence[int] | None = None,
    inflate: str = "central_frame",
) -> list[transfer.Row]:
    """Reads Flax parameters; the style of their names is told from them.

    Optimizer state beside the parameters ("opt/...") is not looked at.

    Args: as `warm_start`; a layer that flax_names knows does for a model.
    Returns: as `warm_start`.
    Raises:
      ValueError: the file cannot be read or does not fit; its values are not finite.
    """
    arrays = _without_prefix(npz.read(path))
    return transfer.assign(
        arrays,
        flax_names.variables(model, flax_names.style_of(arrays)),
        where=str(path),
        **_places_of(model),
        allow_unused=allow_unused,
        allow_new=allow_new,
        from_grid=from_grid,
        inflate=inflate,
    )


def save_npz(
    path: str | os.PathLike,
    model: tf_keras.Model | tf_keras.layers.Layer,
    *,
    style: str = "scenic",
) -> None:
    """Writes a model's variables under their Flax names; an older file is replaced.

    Args:
      path: ends in .npz.
      model: one that flax_names knows, or such a layer.
      style: one of flax_names.STYLES.

    Raises:
      ValueError: another ending or style, or values that are not finite.
    """
    arrays = {}
    for name, variable in flax_names.variables(model, style).items():
        value = variable.numpy()
        arrays[name] = value.reshape(flax_names.shape_in_file(name, value.shape))
    npz.write(path, arrays)


def _places_of(model: tf_keras.Model | tf_keras.layers.Layer) -> dict:
    """What its position embeddings are of, if it has some."""
    return {
        "grid": getattr(model, "grid", None),
        "num_slices": getattr(model, "num_slices", 1),
    }


def _without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in _PREFIXES:
        inside = [name for name in arrays if name.startswith(prefix)]
        if inside:
            return {name.removeprefix(prefix): arrays[name] for name in inside}
    return arrays


def _read_checkpoint(path: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The model's values in a run's checkpoint, by key, or by name where it has one."""
    try:
        reader = tf.train.load_checkpoint(path)
        keys = [
            key.removeprefix("model/").removesuffix(_VALUE)
            for key in sorted(reader.get_variable_to_shape_map())
            if key.startswith("model/") and ".OPTIMIZER_SLOT" not in key
        ]
        return {
            names.get(key, key): reader.get_tensor(f"model/{key}{_VALUE}")
            for key in keys
        }
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"{path}: the checkpoint cannot be read ({str(error):.300}). Check that all"
            " its files are there, and whole."
        ) from None


def _names_of(model: tf_keras.Model) -> dict[str, str]:
    """Checkpoint keys -> Flax names; models without Flax names keep their keys."""
    keys = _keys_of(model)
    if not flax_names.has_names(model):
        return {key: key for key in keys}
    flax = flax_names.variables(model)
    by_variable = {id(variable): name for name, variable in flax.items()}
    names = {key: by_variable[id(variable)] for key, variable in keys.items()}
    return _IMAGE_KEYS | names


def _keys_of(model: tf_keras.Model) -> dict[str, tf.Variable]:
    """Where tf.train.Checkpoint puts each variable: the shortest path to it."""
    variables, seen, queue = {}, {id(model)}, [("", model)]
    for path, node in queue:
        for name, child in tf.train.TrackableView.children(node).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            key = f"{path}/{name.replace('.', '..').replace('/', '.S')}"
            queue.append((key, child))
            if isinstance(child, tf.Variable):
                variables[key.removeprefix("/")] = child
    return variables
