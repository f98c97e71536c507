"""Reads what people bring: annotation files and folders, with errors that say where."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

MAX_TEXT_BYTES = 256 << 20  # ten times the longest official list
VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm"
    " .wmv".split()
)


def existing(path: Path, layout: str) -> Path:
    """The path; raises a ValueError with the layout when no file is there."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file.\n{layout}")
    return path


def text(path: Path) -> str:
    """The content of a text file; a ValueError names the byte that is not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: wanted at most {MAX_TEXT_BYTES >> 20} MiB of text, got more. Use"
            " the original file."
        )
    try:
        # utf-8-sig: editors add a byte order mark to files that had none.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: wanted UTF-8 text, got byte {content[error.start]:#04x} at"
            f" offset {error.start}. Use the original file, or save it as UTF-8."
        ) from None


def table(
    path: Path, check_header: Callable[[list[str]], None]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields each row of a csv file by column, with the number of its last line.

    Args:
      path: of the file; its first row names the columns.  Empty lines do not count.
      check_header: raises for columns that cannot be used; an empty file has none.
    """
    # strict: an unclosed quote would otherwise swallow the rest of the file.
    reader = csv.reader(text(path).splitlines(keepends=True), strict=True)
    try:
        header = next(reader, [])
        check_header(header)
        for row in reader:
            if row and len(row) != len(header):
                fail(
                    path,
                    reader.line_num,
                    f"{len(header)} columns",
                    str(len(row)),
                    "quote fields that contain a comma or a line break",
                )
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        fail(
            path,
            reader.line_num,
            "comma-separated values with closed quotes",
            str(error),
            "close the quote on this line or above it",
        )


def class_list(path: Path) -> list[str]:
    """The classes of a file with one a line, in its order."""
    names = [line.strip() for line in text(path).rstrip().splitlines()]
    seen: dict[str, int] = {}
    for line, name in enumerate(names or [""], 1):
        if not name or name in seen:
            got = f"{name}, also on line {seen[name]}" if name else "an empty line"
            fail(path, line, "one class a line, each once", got, "remove the line")
        seen[name] = line
    return names


def json_object(path: Path) -> dict[str, Any]:
    """The one object of a JSON file; a key that occurs twice is an error."""

    repeated = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.append(next(key for key, count in counts.items() if count > 1))
        return content

    try:
        content = json.loads(text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fail(path, error.lineno, "JSON", error.msg, "use the original file")
    except RecursionError:
        fail(path, 1, "JSON", "lists that are too deep", "use the original file")
    except ValueError as error:
        if str(error).startswith(str(path)):  # of its encoding, or its size
            raise
        fail(path, 1, "JSON", str(error), "use the original file")
    if repeated:
        raise ValueError(
            f"{path}: wanted each key once, got {repeated[0][:80]!r} twice. Remove one"
            " of the two."
        )
    if not isinstance(content, dict):
        fail(
            path, 1, "an object {...}", type(content).__name__, "use the official file"
        )
    return content


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields the files below a folder, in any order, and hidden folders as one.

    Symbolic links are followed; one that leads back to a folder above is an error.
    """
    above = (*above, folder.resolve())
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if not entry.is_dir() or entry.name.startswith("."):
                yield path
                continue
            if path.resolve() in above:
                raise ValueError(
                    f"{path}: leads back to {path.resolve()}, which holds it. Remove"
                    " the symbolic link."
                )
            yield from files_below(path, above)


def fail(path: Path, line: int, wanted: str, got: str, advice: str) -> NoReturn:
    """Raises a ValueError for one line of a file."""
    # A row can be long; its beginning is enough to find it.
    got = got if len(got) <= 200 else f"{got[:200]}..."
    raise ValueError(
        f"{path}, line {line}: wanted {wanted}, got {got!r}."
        f" {advice[0].upper()}{advice[1:]}."
    )
