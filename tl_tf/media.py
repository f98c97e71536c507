"""Files as people have them, for modes that serve: found, read as evaluation, written.

PyAV and the builders' modules are imported where they are used: every run imports this.
"""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tl_tf import files
from tl_tf.inputs import folders

if TYPE_CHECKING:
    from data import frames

STDIN = Path("-")
MAX_SECONDS = 3600.0  # of a video that is read whole, as data.build's default
CRF = "18"  # of H.264: what is written looks as what was drawn


def __getattr__(name: str):
    if name == "VideoError":  # what a file that cannot be used raises
        from data import frames

        return frames.VideoError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find(inputs: Sequence[str]) -> list[Path]:
    """The files that --input names, each once.

    Of a folder, the videos and images below it, by their suffixes and sorted by their
    paths, hidden ones left out.  What a pattern matches is sorted.

    Args:
      inputs: of each a file, a folder, a pattern as "clips/**/*.mp4", or "-" alone for
        the standard input.

    Returns:
      Paths, [STDIN] for the standard input.

    Raises:
      ValueError: for what names no file, "-" beside others, or from a terminal.
    """
    if "-" in inputs:
        if len(set(inputs)) > 1:
            raise ValueError(
                "--input=-: the standard input stands alone, got"
                f" {', '.join(inputs)}. Leave out the others."
            )
        if sys.stdin.isatty():
            raise ValueError(
                "--input=-: wanted a video from a pipe, as ffmpeg -i VIDEO -f mpegts -"
                " | python run.py …, got a terminal."
            )
        return [STDIN]
    found = [path for one in inputs for path in _find(one)]
    return list(dict.fromkeys(found))


def kind_of(path: Path) -> str:
    """ "video" or "image", by the suffix, or by the content where it says nothing."""
    from data import reading

    suffix = path.suffix.lower()
    if suffix in reading.VIDEO_SUFFIXES or path == STDIN:
        return "video"
    if suffix in folders.SUFFIXES:
        return "image"
    is_image = not folders.read_header(path).fault if path.is_file() else False
    return "image" if is_image else "video"


def read_image(path: Path) -> tuple[bytes, int]:
    """A JPEG or PNG file, and its EXIF orientation, 1..8, as evaluation takes it.

    Raises:
      VideoError: when its header says that it cannot be used.
    """
    from data import frames

    if not path.is_file():
        raise frames.VideoError("missing", "no such file")
    header = folders.read_header(path)
    if header.fault:
        reason = "unreadable" if path.stat().st_size else "empty_file"
        raise frames.VideoError(reason, header.fault)
    return path.read_bytes(), header.orientation


def read_video(
    path: Path, *, fps: float, short_side: int, max_seconds: float = MAX_SECONDS
) -> "frames.Video":
    """A whole video, as data.build takes it: see data.frames.extract.

    Raises:
      VideoError: when it cannot be used, or is longer than `max_seconds`.
    """
    from data import frames

    return frames.extract(path, fps=fps, short_side=short_side, max_seconds=max_seconds)


def stream_video(
    source: Path | BinaryIO, *, fps: float, short_side: int
) -> Iterator[tuple[float, bytes]]:
    """The frames of `read_video` one by one, of any length: see data.frames.stream.

    Args:
      source: a path, STDIN, or a file that is open for reading.
      fps: frames per second to take.
      short_side: of the result in pixels, unless the video is smaller.

    Yields:
      Seconds from the start, and a JPEG file.

    Raises:
      VideoError: when it cannot be used; of a truncated or damaged file, at its end.
    """
    from data import frames

    if source == STDIN:
        source = sys.stdin.buffer
    yield from frames.stream(source, fps=fps, short_side=short_side)


def write_mp4(path: Path, pictures: Iterable[np.ndarray], *, fps: float) -> None:
    """Writes H.264 that any browser plays; a picture at a time is held.

    An odd side gets one more pixel, like its neighbour: H.264 halves the colours.

    Args:
      path: of the file, which is there once it is whole.
      pictures: uint8 [height, width, 3], all of one size.
      fps: pictures per second.

    Raises:
      ValueError: for no picture, or one of another size.
    """
    import av

    size, options = None, {"movflags": "faststart"}
    with files.whole(path) as temporary:
        name = str(temporary.absolute())
        with av.open(name, "w", format="mp4", options=options) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": CRF, "preset": "veryfast"}
            for picture in pictures:
                if size is None:
                    size = picture.shape
                    odd = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
                    stream.height = size[0] + odd[0][1]
                    stream.width = size[1] + odd[1][1]
                if picture.shape != size:
                    raise ValueError(
                        f"{path}: wanted pictures of one size, {size}, got"
                        f" {picture.shape}."
                    )
                picture = np.pad(picture, odd, mode="edge")
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            if size is None:
                raise ValueError(f"{path}: wanted at least one picture, got none.")
            container.mux(stream.encode())


def _find(name: str) -> list[Path]:
    from data import reading

    path = Path(name)
    if os.path.isdir(name):
        suffixes = folders.SUFFIXES | reading.VIDEO_SUFFIXES
        found = sorted(
            file
            for file in reading.files_below(path)
            if file.suffix.lower() in suffixes and not file.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"--input={name}: wanted videos or images in this folder, got none."
                f" They end in {' '.join(sorted(suffixes))}."
            )
        return found
    if os.path.exists(name):
        return [path]
    if not glob.has_magic(name):
        raise ValueError(f"--input={name}: no such file or folder.")
    found = [Path(one) for one in sorted(glob.glob(name, recursive=True))]
    found = [one for one in found if one.is_file()]
    if not found:
        raise ValueError(
            f"--input={name}: the pattern matches no file. Put it in quotes, or correct"
            " it."
        )
    return found
