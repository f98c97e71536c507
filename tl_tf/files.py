"""Files that are seen under their names once they are whole."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes the file's own when the block has ended.

    The disk has the content before the name, so what a power cut leaves is whole too:
    the new file, or the one that was there.  After an error, nothing new is left.

    Args:
      path: of the file, in a folder that exists.

    Raises:
      OSError: the disk is full, or does not answer.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file's whole content; text as UTF-8."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file for people too: indented, names as they are."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Waits until the disk has a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
