"""Makes the video files and annotations that the tests read."""

import csv
import io
import os
import re
import signal
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data import charades, frames

MEDIA = Path(__file__).parents[3] / "shared" / "media"


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    fps: Fraction | int = 24,
    milliseconds: Sequence[int] | None = None,
    codec: str = "libx264",
    rotation: float | None = None,
    hflip: bool = False,
    aspect: Fraction | None = None,
    encoder: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Writes pictures uint8 [H, W, 3] or [H, W]; `milliseconds` gives each its time.

    `encoder` holds options of the codec in place of ours, `options` the container's.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.thread_count = 1
        if encoder is not None:
            stream.options = encoder
        elif codec == "libx264":
            stream.options = {"crf": "1", "preset": "ultrafast"}
        else:
            stream.options = {"qmin": "1", "qmax": "1", "b": "8M"}
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            kind = "gray" if picture.ndim == 2 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered(count: int, *, height: int = 36, width: int = 48) -> list[np.ndarray]:
    """Pictures whose grey level is 16 + 5 x their number, up to 44 of them."""
    return [np.full((height, width), 16 + 5 * i, np.uint8) for i in range(count)]


def numbers(video: frames.Video) -> list[int]:
    """Which of the `numbered` pictures each frame shows."""
    return [round((decode(jpeg).mean() - 16) / 5) for jpeg in video.frames]


def decode(jpeg: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of one JPEG file."""
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def write_audio(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_annotations(
    folder: Path, rows: dict[str, list[tuple]], *, classes: Sequence[str] = "abcde"
) -> Path:
    """Writes the three files of Charades; a row is (id, actions, length)."""
    lines = [f"c{i:03d} {name}\n" for i, name in enumerate(classes)]
    (folder / "Charades_v1_classes.txt").write_text("".join(lines))
    for split, split_rows in rows.items():
        path = folder / f"Charades_v1_{split}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, charades.COLUMNS, restval="x")
            writer.writeheader()
            for video_id, actions, length in split_rows:
                writer.writerow({"id": video_id, "actions": actions, "length": length})
    return folder


def erase_packets(path: Path, which: Sequence[int]) -> None:
    """Overwrites the content of some video packets with zeros."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for number in which:
        position, size = places[number]
        content[position : position + size] = bytes(size)
    path.write_bytes(content)


def extract_or_fail(path: Path, **kwargs) -> frames.Video:
    """Stands in for frames.extract: some videos crash or hang the process."""
    if path.stem == "CRASH":
        crash()
    if path.stem == "HANGS":
        time.sleep(60)
    if path.stem == "RAISE":
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "made up")
    return frames.extract(path, **kwargs)


def crash() -> None:
    """What a decoder does on the wrong file."""
    os.kill(os.getpid(), signal.SIGSEGV)


def pid_after(seconds: float) -> int:
    """The number of this process, which is busy for a while."""
    time.sleep(seconds)
    return os.getpid()


def peak_megabytes(path: Path, **kwargs) -> float:
    """Peak resident memory of this process after it has extracted one video."""
    frames.extract(path, **kwargs)
    return _peak_megabytes()


def stream_megabytes(path: Path, *, early: int, **kwargs) -> tuple[float, float, int]:
    """Peak memory after `early` frames of a stream, and after all; bytes of JPEG."""
    num_bytes = 0
    for number, (_, jpeg) in enumerate(frames.stream(path, **kwargs)):
        num_bytes += len(jpeg)
        if number == early:
            megabytes = _peak_megabytes()
    return megabytes, _peak_megabytes(), num_bytes


def repeat_packets(path: Path, longer: Path, *, times: int) -> Path:
    """Writes a video whose packets follow each other again and again, not encoded."""
    with av.open(str(path)) as source, av.open(str(longer), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number in range(times * len(packets)):
            packet = packets[number % len(packets)]
            packet.pts = packet.dts = number
            packet.stream = stream
            container.mux(packet)
    return longer


def _peak_megabytes() -> float:
    # Not getrusage: its maximum includes the parent process before exec.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
