"""Frames of a video file at a stated rate, as JPEG files: plain functions, no Beam.

The rules, for a video whose first frame is shown at time 0:

- Frame k of the result is what a player shows at k / fps seconds: the last frame whose
  presentation time stamp has come.  A frame is held until the next one, the last one
  for its own duration, so a constant and a variable frame rate need no difference.
- The picture is turned and mirrored as the file's display matrix says, its pixels are
  made square, and it shrinks until its short side is `short_side` pixels.  A smaller
  video keeps its size: training resizes anyway, and made-up pixels only cost disk.
- Time stamps are rounded to ticks of the file (1 ms in Matroska), so a frame may come
  half a tick early, or half a millisecond where ticks are coarser.
- A damaged packet is passed over and the frame before it held.  A video is refused as
  truncated when less than 90 % of its claimed time can be decoded, and as damaged when
  more than 10 % of its packets are.

One thread decodes, so that the concealment of damage is the same each time.

A clip that starts late in an MP4 or Matroska file is decoded from the key frame before
it, to the same bytes; when anything is amiss there, the file is decoded from its start.
What comes before that key frame is then not looked at, and its damage not counted.

`extract` gives a whole video, `stream` the same frames one by one, of any length.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.sidedata.sidedata import Type
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

REASONS = (
    "missing",
    "empty_file",
    "unreadable",
    "no_video_stream",
    "no_frames",
    "truncated",
    "damaged",
    "encrypted",
    "too_large",
    "timeout",
    "crashed",
)

JPEG_QUALITY = 90
MIN_DECODED_SHARE = Fraction(9, 10)
MAX_DAMAGED_SHARE = Fraction(1, 10)
MAX_SIDE_PX = 8192
MAX_ASPECT = 16
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # have an index of key frames
SEEK_LEAD = Fraction(1)  # s; MP4 is sought by decoding time, which is a little earlier
MAX_VIDEO_BYTES = 1 << 30  # of JPEG; a protocol buffer ends at 2 GiB
MAX_HELD_SECONDS = 3600  # of one frame in a stream: more is a leap of its time stamps
_RESIZE = (
    Interpolation.BICUBIC  # widened by swscale when it shrinks: no aliasing
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT  # the same bytes whatever the processor
)


class VideoError(Exception):
    """Why a video cannot be used: one of REASONS, and a sentence of detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Video:
    """What was decoded: JPEG files, all of height x width pixels.

    `seconds` is the time from start to end, `damaged` the number of packets passed over
    and of frames that the decoder had to patch up.
    """

    frames: list[bytes]
    height: int
    width: int
    seconds: float
    damaged: int


def extract(
    path: Path,
    *,
    fps: float,
    short_side: int,
    max_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Video:
    """Decodes one file; holds one decoded frame at a time.

    Args:
      path: of the video file.
      fps: frames per second to take, above 0.
      short_side: of the result in pixels, unless the video is smaller.
      max_seconds: a longer video is refused; its header is not trusted to say so.
      start_seconds: where to start, counted from the first frame.
      end_seconds: where to end; None for the end of the video.

    Raises:
      VideoError: when the file cannot be used.
    """
    _check_file(path)
    chosen = {
        "fps": fps,
        "short_side": short_side,
        "max_seconds": max_seconds,
        "start": Fraction(str(start_seconds)),
        "end": None if end_seconds is None else Fraction(str(end_seconds)),
    }
    if start_seconds > SEEK_LEAD:
        with contextlib.suppress(VideoError):
            video = _decode(path, chosen, seeks=True)
            if not video.damaged:
                return video
    return _decode(path, chosen, seeks=False)


def stream(
    source: Path | BinaryIO, *, fps: float, short_side: int
) -> Iterator[tuple[float, bytes]]:
    """Yields what `extract` collects, as it is decoded; holds one frame at a time.

    Whether a file is truncated or damaged is only known, and told, at its end.

    Args:
      source: path of a file, or a file that is open for reading, as a pipe.
      fps: frames per second to take, above 0.
      short_side: of the result in pixels, unless the video is smaller.

    Yields:
      The time in seconds, k / fps, and the JPEG file.

    Raises:
      VideoError: when the video cannot be used.
    """
    if isinstance(source, Path):
        _check_file(source)
    before, held = None, 0
    with _opened(source) as container:
        sampler = _Sampler(
            container, fps=fps, short_side=short_side, max_seconds=math.inf
        )
        for number, jpeg in enumerate(sampler.jpegs(seeks=False)):
            held = held + 1 if jpeg is before else 0
            if held > MAX_HELD_SECONDS * fps:
                raise VideoError(
                    "too_large", f"one frame lasts more than {MAX_HELD_SECONDS} s"
                )
            before = jpeg
            yield number / fps, jpeg


def _check_file(path: Path) -> None:
    if not os.path.exists(path):  # a name may be too long to be asked for
        raise VideoError("missing", "no such file")
    if not path.is_file():
        raise VideoError("unreadable", "not a regular file")
    if path.stat().st_size == 0:
        raise VideoError("empty_file", "0 bytes")


def _decode(path: Path, chosen: Mapping[str, Any], *, seeks: bool) -> Video:
    with _opened(path) as container:
        return _Sampler(container, **chosen).run(seeks=seeks)


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[av.container.InputContainer]:
    av.logging.set_level(None)
    if isinstance(source, Path):
        # A whole path: FFmpeg takes the "a" of "a:b.mp4" for a protocol.
        file = str(source.absolute())
    else:
        file = source if source.seekable() else _Pipe(source)
    try:
        # Metadata is in whatever encoding the camera had; none of it is used.
        with av.open(file, metadata_errors="ignore") as container:
            yield container
    except MemoryError as error:
        raise VideoError("too_large", "decoding it takes too much memory") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError("unreadable", _sentence(error)) from error


class _Pipe:
    """A file that FFmpeg can only read on from.  Ctrl-C is its end."""

    def __init__(self, file: BinaryIO):
        self._read = getattr(file, "read1", file.read)  # what is there, without waiting
        self._has_ended = False

    def read(self, size: int) -> bytes:
        if self._has_ended:  # FFmpeg may ask once more, and would wait for ever
            return b""
        try:
            return self._read(size)
        except KeyboardInterrupt:  # would be lost between C and Python
            self._has_ended = True
            return b""


class _Sampler:
    """Walks once through the frames of a container and encodes those asked for."""

    def __init__(
        self, container, *, fps, short_side, max_seconds, start=Fraction(0), end=None
    ):
        self.container, self.stream = container, _video_stream(container)
        self.interval, self.short_side = 1 / Fraction(str(fps)), short_side
        self.max_seconds, self.start, self.end = max_seconds, start, end
        self.count = 0  # of the JPEG files so far
        self.seconds = 0.0  # from start to end, once that is reached
        self.size: tuple[int, int] | None = None  # of every frame, before turning
        early = min((self.stream.time_base or 0) / 2, Fraction(1, 2000))
        self.due = self.start + early  # what ends by then is not shown any more
        self.reformatter = VideoReformatter()
        self.origin: Fraction | None = None  # time stamp of the first frame
        self.packets = self.damaged = 0
        self.error = ""

    def run(self, *, seeks: bool) -> Video:
        jpegs, num_bytes = [], 0
        for jpeg in self.jpegs(seeks=seeks):
            num_bytes += len(jpeg)
            if num_bytes > MAX_VIDEO_BYTES:
                raise VideoError(
                    "too_large",
                    f"more than {MAX_VIDEO_BYTES >> 20} MiB of JPEG; lower --fps or"
                    " --short_side",
                )
            jpegs.append(jpeg)
        width, height = Image.open(io.BytesIO(jpegs[0])).size
        return Video(jpegs, height, width, self.seconds, damaged=self.damaged)

    def jpegs(self, *, seeks: bool) -> Iterator[bytes]:
        """Yields what is shown at start, one interval later, and so on: at least one.

        A picture that is shown for longer is the same object again.
        """
        held, shown = None, Fraction(0)
        decoded = self._from_key_frame() if seeks else self._decoded()
        for time, frame in self._timed(decoded):
            if held is not None:
                yield from self._shown(held, until=time)
            held, shown = frame, time
            if self.end is not None and time >= self.end:
                break
        if held is None:
            raise VideoError("no_frames", self._no_frames())
        until = shown + self._duration(held)
        self._check_shares(until)
        yield from self._shown(held, until=until)
        if not self.count and until <= self.start > 0:
            raise VideoError(
                "no_frames",
                f"starts at {float(self.start):g} s, past its end at"
                f" {float(until):g} s",
            )
        if not self.count:  # a single frame that lasts no time
            yield from self._shown(held, until=self.start + self.interval)
        until = until if self.end is None else min(until, self.end)
        self.seconds = float(until - self.start)

    def _shown(self, frame: av.VideoFrame, *, until: Fraction) -> Iterator[bytes]:
        """Yields `frame` for each moment that falls before `until`."""
        if self.end is not None:
            until = min(until, self.end)
        jpeg = None
        while self.due < until:
            if self.count * self.interval >= self.max_seconds:
                raise VideoError(
                    "too_large",
                    f"longer than {self.max_seconds:g} s; raise --max_seconds",
                )
            jpeg = jpeg or self._encode(frame)
            self.count += 1
            self.due += self.interval
            yield jpeg

    def _encode(self, frame: av.VideoFrame) -> bytes:
        if self.size is None:
            self.size = _output_size(frame, self.stream, self.short_side)
        width, height = self.size
        # In planes: the same values as "rgb24", in less than half the time.
        planar = self.reformatter.reformat(
            frame, width, height, "gbrp", interpolation=_RESIZE, threads=1
        )
        green, blue, red = (
            Image.frombuffer("L", (width, height), p, "raw", "L", p.line_size, 1)
            for p in planar.planes
        )
        image = _upright(Image.merge("RGB", (red, green, blue)), frame)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def _from_key_frame(self) -> Iterator[av.VideoFrame]:
        """Decodes the first frame, for its time stamp, and goes on before the start."""
        first = _stamp(next(self._decoded(), None))
        if first is None or self.container.format.name not in SEEKABLE:
            raise VideoError("unreadable", "cannot seek")
        self.origin = first
        target = (first + self.start - SEEK_LEAD) / self.stream.time_base
        self.container.seek(int(target), stream=self.stream)
        later = self._decoded()
        for frame in later:
            # What a decoder shows before may lack the frames it refers to.
            if frame.key_frame and frame.pict_type == PictureType.I:
                break
        else:
            raise VideoError("unreadable", "no key frame")
        stamp = _stamp(frame)
        if stamp is None or stamp - first > self.start:
            raise VideoError("unreadable", "the key frame is past the start")
        return itertools.chain([frame], later)

    def _timed(
        self, decoded: Iterator[av.VideoFrame]
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Yields frames with the time each is first shown, the first one's being 0."""
        time = before = None
        for frame in decoded:
            stamp = _stamp(frame)
            if self.origin is None:
                self.origin = stamp or Fraction(0)
            if stamp is not None:
                # A stamp that goes back in time is damage: show the frame as it comes.
                time = max(time or Fraction(0), stamp - self.origin)
            else:
                time = Fraction(0) if before is None else time + self._duration(before)
            before = frame
            yield time, frame

    def _decoded(self) -> Iterator[av.VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.error, self.damaged = _sentence(error), self.damaged + 1
                return
            self.packets += 1
            if packet.has_sidedata("encryption_info"):
                raise VideoError("encrypted", "its packets are encrypted")
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError as error:
                self.error, self.damaged = _sentence(error), self.damaged + 1
                continue
            for frame in frames:
                self.damaged += frame.is_corrupt
                if max(frame.width, frame.height) > MAX_SIDE_PX:
                    raise VideoError(*_too_many_pixels(frame.width, frame.height))
                yield frame

    def _duration(self, frame: av.VideoFrame) -> Fraction:
        if frame.duration and frame.time_base:
            return frame.duration * frame.time_base
        rate = self.stream.average_rate
        return 1 / rate if rate else Fraction(0)

    def _check_shares(self, decoded: Fraction) -> None:
        error = f": {self.error}" if self.error else ""
        claimed = self._claimed_seconds()
        if self.end is not None:
            claimed = min(claimed, self.end)
        if decoded < claimed * MIN_DECODED_SHARE:
            raise VideoError(
                "truncated",
                f"{float(decoded):.2f} s of {float(claimed):.2f} s decode{error}",
            )
        if self.damaged > self.packets * MAX_DAMAGED_SHARE:
            raise VideoError(
                "damaged", f"{self.damaged} of {self.packets} packets{error}"
            )

    def _claimed_seconds(self) -> Fraction:
        if self.stream.duration and self.stream.time_base:
            claimed = self.stream.duration * self.stream.time_base
        else:
            claimed = Fraction(self.container.duration or 0, av.time_base)
        # Matroska and Flash count from 0, the others from the first frame.
        return claimed - max(self.origin, 0)

    def _no_frames(self) -> str:
        name = self.stream.codec_context.name
        return f"no {name} frame decodes" + (f": {self.error}" if self.error else "")


def _stamp(frame: av.VideoFrame | None) -> Fraction | None:
    if frame is None or frame.pts is None or not frame.time_base:
        return None
    return frame.pts * frame.time_base


def _video_stream(container) -> av.VideoStream:
    streams = [
        s
        for s in container.streams.video
        if not s.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        others = sorted({s.type for s in container.streams}) or ["none"]
        raise VideoError("no_video_stream", f"streams: {', '.join(others)}")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("unreadable", "its codec is unknown")
    if max(context.width, context.height) > MAX_SIDE_PX:
        raise VideoError(*_too_many_pixels(context.width, context.height))
    stream.thread_type = "NONE"
    stream.thread_count = 1
    return stream


def _output_size(frame, stream, short_side: int) -> tuple[int, int]:
    """Width and height with square pixels, before turning."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = frame.width * (aspect if aspect > 0 else 1), frame.height
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise VideoError(
            "too_large",
            f"one side is more than {MAX_ASPECT} times the other:"
            f" {frame.width}x{frame.height}, pixels {aspect.numerator}:"
            f"{aspect.denominator}",
        )
    scale = min(Fraction(1), Fraction(short_side) / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _upright(image: Image.Image, frame: av.VideoFrame) -> Image.Image:
    """Applies the display matrix, rounded to quarter turns and mirrorings."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return image
    # Column x and row y are shown at (a x + c y, b x + d y).
    a, b, _, c, d = struct.unpack_from("<5i", bytes(data))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def _too_many_pixels(width: int, height: int) -> tuple[str, str]:
    return "too_large", f"{width}x{height}; the limit is {MAX_SIDE_PX} pixels a side"


def _sentence(error: Exception) -> str:
    # str(error) of an FFmpegError holds the path, which differs between machines.
    return str(getattr(error, "strerror", None) or error)
