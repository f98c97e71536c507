"""Checkpoints as files: seen once they are whole, checked before they are used.

TensorFlow renames a checkpoint's files when they are written, but a power cut can leave
the names without the content.  So each one gets a seal, `ckpt-<step>.sha256`: written
last, when the disk has the rest; `sha256sum -c` reads it too.
"""

import functools
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import tensorflow as tf

from tl_tf import files

_SEAL = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def seal(prefix: str | os.PathLike) -> None:
    """Waits until the disk has a checkpoint's files, then writes their checksums.

    Args:
      prefix: the checkpoint's path, without an ending.

    Raises:
      OSError: the disk is full, or does not answer.
    """
    prefix = Path(prefix)
    lines = []
    for path in (*_data_files(prefix), _ending(prefix, ".index")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.name}\n")
    files.sync(prefix.parent)  # the names of the files before that of their seal
    files.write(_ending(prefix, _SEAL), "".join(lines))


def is_sealed(prefix: Path) -> bool:
    """Whether a checkpoint was once whole."""
    return _ending(prefix, _SEAL).is_file()


def prefixes(model_dir: str | os.PathLike) -> list[Path]:
    """A folder's checkpoints, newest first; what a killed process left is none.

    Those of TensorFlow's file `checkpoint` come first, then any others with a seal:
    that file alone may be damaged.
    """
    model_dir, listed = Path(model_dir), []
    if (state := _state(model_dir)) is not None:
        newest_last = [*state.all_model_checkpoint_paths, state.model_checkpoint_path]
        listed = [Path(path) for path in dict.fromkeys(reversed(newest_last))]
    sealed = {path.with_suffix("") for path in model_dir.glob(f"ckpt-*{_SEAL}")}
    return listed + sorted(sealed - {*listed}, key=step_of, reverse=True)


def fault(prefix: Path) -> str:
    """What is wrong with a checkpoint's files; "" if nothing.

    One without a seal, of an older version, has TensorFlow's own checksums.
    """
    if not is_sealed(prefix):
        return _fault_by_tensorflow(prefix)
    sums = _ending(prefix, _SEAL)
    lines = sums.read_text(encoding="ascii", errors="replace").splitlines()
    pairs = [match.groups() for line in lines if (match := _LINE.fullmatch(line))]
    names = [name for _, name in pairs]
    if len(pairs) < len(lines) or names[-1:] != [f"{prefix.name}.index"]:
        return f"{sums.name} is damaged"
    for digest, name in pairs:
        path = prefix.with_name(name)
        if not path.is_file():
            return f"{name} is missing"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} does not match its checksum"
    return ""


def newest(model_dir: str | os.PathLike) -> Path | None:
    """The newest checkpoint that is whole; names on stderr those that are not.

    Returns:
      Its path without an ending; None where there are no checkpoints.

    Raises:
      ValueError: there are some, and none is whole.
    """
    faults = {}
    for prefix in prefixes(model_dir):
        if what := fault(prefix):
            faults[prefix] = what
            continue
        for damaged, what in faults.items():
            _say_once(f"{damaged}: damaged: {what}. {prefix.name} is used instead.")
        if not is_sealed(prefix):
            _say_once(
                f"{prefix}: has no {_SEAL} beside it, as of an older version;"
                " TensorFlow's own checksums were checked."
            )
        return prefix
    if not faults:
        return None
    list_ = "; ".join(f"{prefix.name}: {what}" for prefix, what in faults.items())
    raise ValueError(
        f"{model_dir}: none of the checkpoints can be read ({list_}). Put back a copy"
        " of one, or delete them all to begin anew."
    )


def clean(model_dir: str | os.PathLike) -> None:
    """Deletes what killed saves left, and seals of deleted checkpoints.

    Also the file `checkpoint` if a power cut has emptied it: TensorFlow stumbles on it.
    """
    model_dir = Path(model_dir)
    if _state(model_dir) is None:
        Path(model_dir, "checkpoint").unlink(missing_ok=True)
    for path in model_dir.glob("ckpt-*_temp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in model_dir.glob(f".ckpt-*{_SEAL}.tmp*"):
        path.unlink(missing_ok=True)
    for path in model_dir.glob(f"ckpt-*{_SEAL}"):
        prefix = path.with_suffix("")
        if not _data_files(prefix) and not _ending(prefix, ".index").is_file():
            path.unlink(missing_ok=True)


def link(prefix: Path, folder: Path) -> Path:
    """Puts a checkpoint into another folder too: there, too, whole or not seen.

    It takes no room while the first one stays; where the file system has no hard links,
    it is a copy.

    Returns:
      The checkpoint there, without an ending.

    Raises:
      OSError: the disk is full, or does not answer.
    """
    if not is_sealed(prefix):  # of an older version
        seal(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / prefix.name
    delete(there)
    for path in (*_data_files(prefix), _ending(prefix, ".index")):
        _link_file(path, folder)
    files.sync(folder)  # the names of the files before that of their seal
    _link_file(_ending(prefix, _SEAL), folder)
    files.sync(folder)
    return there


def _link_file(path: Path, folder: Path) -> None:
    try:
        os.link(path, folder / path.name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, folder / path.name)
        files.sync(folder / path.name)


def delete(prefix: Path) -> None:
    """Deletes a checkpoint's files, as many as there are."""
    for path in (_ending(prefix, _SEAL), *_data_files(prefix)):
        path.unlink(missing_ok=True)
    _ending(prefix, ".index").unlink(missing_ok=True)


def _state(model_dir: Path):
    try:
        return tf.train.get_checkpoint_state(str(model_dir))
    except ValueError:  # no text, or it names no checkpoint
        return None


def _fault_by_tensorflow(prefix: Path) -> str:
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        for name, dtype in reader.get_variable_to_dtype_map().items():
            if dtype != tf.variant:  # of the iterator: only its owner can read it
                reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        return " ".join(str(error).split())[:200]
    return ""


def _ending(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _data_files(prefix: Path) -> list[Path]:
    return sorted(prefix.parent.glob(f"{prefix.name}.data-?????-of-?????"))


def step_of(prefix: Path) -> int:
    """The step in a checkpoint's name; -1 for another name."""
    number = prefix.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
