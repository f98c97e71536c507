"""Videos a minute of data.build, against FFmpeg and libjpeg-turbo without a framework.

  python -m benchmarks.build_rate [--videos_dir=DIR] [--json=FILE]

Ours is `data.build folder` with two workers, all but the start of Python: reading the
layout, starting the decoders' processes, checksums and reports.  Both limits are two
processes, started before, that do nothing but make the same frames, of the same size
and quality, with the fastest encoder there is, and throw them away:

- "same pixels": decoding, the same scaling into RGB planes, libjpeg-turbo;
- "no RGB": scaling leaves 4:2:0 alone and libjpeg-turbo takes the planes.  It keeps the
  colours of BT.709 as they are, which a JPEG file cannot say: wrong, and a bound.

Without --videos_dir (class folders of videos) it makes H.264 videos of 640 x 360.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from benchmarks import measure
from data import frames

FPS, SHORT_SIDE, NUM_WORKERS = 12, 256, 2  # data.build's own
NUM_MADE, NUM_COPIES, MADE_SECONDS, MADE_FPS = 4, 8, 10, 30


def build_ours(videos_dir: Path, bytecode: str) -> Callable[[], None]:
    """Our build, into a folder of its own each time."""
    # Decoders are processes: they find byte code in place, as after pip.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", bytecode)
    from tl_tf import startup

    startup.quiet_tensorflow()
    from data import build

    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as data_dir,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            build.build(
                "folder",
                data_dir,
                videos_dir=videos_dir,
                fps=FPS,
                short_side=SHORT_SIDE,
                num_workers=NUM_WORKERS,
                max_skipped=0.0,
                test_share=0.0,
                splits=("train",),
            )

    return run


def build_limit(videos_dir: Path, has_rgb: bool) -> Callable[[], None]:
    """Decoding, scaling and encoding in as many processes."""
    import simplejpeg  # noqa: F401

    paths = videos_in(videos_dir)
    work = functools.partial(encode_video, has_rgb=has_rgb)
    pool = multiprocessing.get_context("spawn").Pool(NUM_WORKERS)
    return lambda: pool.map(work, paths, chunksize=1)


def encode_video(path: Path, *, has_rgb: bool) -> int:
    """Makes the frames of a video without errors.  -> their number"""
    import simplejpeg

    scale = functools.partial(
        VideoReformatter().reformat, interpolation=frames._RESIZE, threads=1
    )
    count, held, size = 0, None, None

    def encode(frame) -> None:
        if not has_rgb:
            planes = [_array(p) for p in scale(frame, *size, "yuvj420p").planes]
            simplejpeg.encode_jpeg_yuv_planes(*planes, quality=frames.JPEG_QUALITY)
            return
        green, blue, red = map(_array, scale(frame, *size, "gbrp").planes)
        simplejpeg.encode_jpeg(
            np.stack([red, green, blue], axis=-1),
            quality=frames.JPEG_QUALITY,
            colorsubsampling="420",
            fastdct=False,
        )

    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        for frame in container.decode(stream):
            if size is None:
                size = frames._output_size(frame, stream, SHORT_SIDE)
                origin = frame.time
            moments = (frame.time - origin) * FPS - count
            while held is not None and moments > 1e-3:
                encode(held)
                count, moments = count + 1, moments - 1
            held = frame
    encode(held)
    return count + 1


def make_videos(folder: Path, *, seconds: float = MADE_SECONDS) -> None:
    """Writes textured H.264 videos into class folders, each several times."""
    from PIL import Image

    width, height = 640, 360
    for k in range(NUM_MADE):
        random = np.random.default_rng(k)
        coarse = random.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize((2 * width, 2 * height))
        path = folder / f"class {k % 2}" / f"{k}_0.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=MADE_FPS)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(round(seconds * MADE_FPS)):
                x = round((1 + np.sin(i / 40)) * width / 2)
                y = round((1 + np.cos(i / 55)) * height / 2)
                picture = np.asarray(scene.crop((x, y, x + width, y + height)))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, MADE_FPS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        for copy in range(1, NUM_COPIES):
            shutil.copy(path, path.with_name(f"{k}_{copy}.mp4"))


def videos_in(folder: Path) -> list[Path]:
    """The files of all class folders."""
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def report(results: dict[str, measure.Result], count: int) -> str:
    """A table of ratios, and of videos a minute."""
    lines = ["contender                 ours against it      videos a minute"]
    for name, result in results.items():
        ratio = measure.speedup(results["ours"], result)
        rate = 60 * count / np.median(result.seconds)
        lines.append(f"{name:24}  {ratio!s:19}  {rate:8.0f}")
    return "\n".join(lines)


def _array(plane) -> np.ndarray:
    pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return np.ascontiguousarray(pixels[: plane.height, : plane.width])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos_dir", type=Path, help="class folders of videos")
    parser.add_argument("--seconds", type=float, default=MADE_SECONDS)
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS)
    parser.add_argument("--json", help="file to write")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        videos_dir = flags.videos_dir or Path(made) / "videos"
        if flags.videos_dir is None:
            make_videos(videos_dir, seconds=flags.seconds)
        count = len(videos_in(videos_dir))
        contenders = [
            measure.Contender("ours", build_ours, (videos_dir, made + "/bytecode")),
            measure.Contender("limit, same pixels", build_limit, (videos_dir, True)),
            measure.Contender("limit, no RGB", build_limit, (videos_dir, False)),
        ]
        results = measure.interleave(contenders, rounds=flags.rounds, warm_up=1)
    print(report(results, count))
    if flags.json:
        seconds = {name: result.seconds for name, result in results.items()}
        measure.write_json(flags.json, {"videos": count, "seconds": seconds})


if __name__ == "__main__":
    main()
