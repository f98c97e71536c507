"""The input pipelines that benchmarks/input.py compares, and the data that they read.

A pipeline works ahead, also while others are timed: `_Paced` empties its buffers before
its turn and waits until they are full after it.
"""

import contextlib
import ctypes
import dataclasses
import io
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from tl_tf import startup

NAME = "textured"  # of the data sets that are made
FPS = 12
SCALE_RANGE = (0.9, 1.33)  # of the recipes on Charades and Kinetics
AREA_RANGE = (0.05, 1.0)  # of the crop "inception"
DRAIN_SECONDS = 0.4
THREADS = 2


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contender is to read, and how much of it in one turn.

    Attributes:
      data_dir: holds the data set's folder.
      dataset: its name.
      split: of the data set.
      count: clips, views or images of one turn; a multiple of `batch_size`.
      batch_size: clips or images; of an evaluation, videos.
      num_frames: T.
      crop_px: H and W.
      short_side_px: to which the short side is scaled before the crop.
      num_clips: of a video, in evaluation.
      num_crops: of a clip, in evaluation.
      videos_dir: the mp4 files, in class folders; None if there are none.
    """

    data_dir: str
    dataset: str = NAME
    split: str = "train"
    count: int = 48
    batch_size: int = 4
    num_frames: int = 64
    crop_px: int = 224
    short_side_px: int = 256
    num_clips: int = 1
    num_crops: int = 1
    videos_dir: str | None = None

    @property
    def shards(self) -> list[Path]:
        """The split's TFRecord files."""
        folder = Path(self.data_dir) / self.dataset
        return sorted(folder.glob(f"{self.dataset}-{self.split}-*.tfrecord"))


# Data.


def make_videos(
    data_dir: Path,
    *,
    count: int = 40,
    seconds: int = 10,
    height: int = 256,
    width: int = 340,
) -> Path:
    """Makes textured videos and builds a data set of them, once.  -> the mp4 files."""
    videos = data_dir / "raw"
    if (data_dir / NAME / "dataset_info.json").is_file():
        return videos
    import av

    from data import build

    shutil.rmtree(videos, ignore_errors=True)
    for index in range(count + 2):
        split = "train" if index < count else "test"
        path = videos / split / f"class{index % 2}" / f"{index:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        room = 64  # through which the picture moves
        picture = _texture(rng, height + room, width + room)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast"}
            for t in range(FPS * seconds):
                y = round(room / 2 * (1 + np.sin(t / 17)))
                x = round(room / 2 * (1 + np.cos(t / 23)))
                pixels = np.ascontiguousarray(picture[y : y + height, x : x + width])
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    build.build(
        "folder", data_dir, videos_dir=videos, name=NAME, fps=FPS, short_side=height
    )
    return videos


def make_images(
    data_dir: Path, *, count: int = 400, height: int = 375, width: int = 500
) -> None:
    """Makes a folder of class folders, and the same files as TFRecords, once."""
    done = data_dir / "images.tfrecord"
    if done.is_file():
        return
    import tensorflow as tf
    from PIL import Image

    partial = done.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for index in range(count):
            label = index % 2
            path = data_dir / "images" / "train" / f"class{label}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = _texture(np.random.default_rng(index), height, width)
            Image.fromarray(pixels).save(path, quality=90)
            feature = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[path.read_bytes()])
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[label])
                ),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    partial.rename(done)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of four sizes, coloured: 15 to 25 KB a JPEG of 340 x 256, quality 90."""
    from PIL import Image

    picture = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 60), (16, 30), (64, 20), (170, 7)):
        noise = rng.normal(size=(3, cells, cells)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[channel])
            layer = layer.resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += strength * np.asarray(layer)
    return np.clip(picture, 0, 255).astype(np.uint8)


# Contenders: functions of a Task, built in a process of their own.


def limit_of_clips(task: Task) -> Callable[[], None]:
    """libjpeg-turbo decodes the windows of clips, from memory, in two threads."""
    decode = _load_decoder()
    rng = np.random.default_rng(0)
    jobs = []
    for frames, height, width in itertools.islice(_videos(task), task.count):
        side = round(min(height, width) * task.crop_px / task.short_side_px)
        spans, window = task.num_clips, (side, side)
        y = rng.integers(height - side + 1)
        x = rng.integers(width - side + 1)
        if task.num_crops > 1:  # along the long side: together they cover it
            window = (side, width) if width > height else (height, side)
            y, x = (height - window[0]) // 2, (width - window[1]) // 2
        last = max(len(frames) - task.num_frames, 0)
        starts = [last * i // max(spans - 1, 1) for i in range(spans)]
        for start in starts if spans > 1 else [rng.integers(last + 1)]:
            indices = (start + np.arange(task.num_frames)) % len(frames)
            jobs.append(([frames[i] for i in indices], (y, x, *window)))
    return _in_threads(decode, jobs, task.count // task.num_crops)


def limit_of_images(task: Task) -> Callable[[], None]:
    """libjpeg-turbo decodes windows as those of Inception, in two threads."""
    decode = _load_decoder()
    rng = np.random.default_rng(0)
    jobs = []
    paths = sorted((Path(task.data_dir) / "images" / "train").glob("*/*.jpg"))
    for path in itertools.islice(itertools.cycle(paths), task.count):
        from PIL import Image

        with Image.open(path) as image:
            width, height = image.size
        while True:
            area = rng.uniform(*AREA_RANGE) * width * height
            aspect = rng.uniform(3 / 4, 4 / 3)
            h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                break
        window = rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
        jobs.append(([path.read_bytes()], window))
    return _in_threads(decode, jobs, task.count)


def simplejpeg_of_clips(task: Task) -> Callable[[], None]:
    """Simplejpeg decodes whole frames, from memory, in two threads, then crops."""
    import simplejpeg

    def decode(files, window, out):
        y, x, height, width = window
        for file, frame in zip(files, out, strict=True):
            whole = simplejpeg.decode_jpeg(file, fastdct=True)
            frame[:] = whole[y : y + height, x : x + width]

    jobs = []
    rng = np.random.default_rng(0)
    for frames, height, width in itertools.islice(_videos(task), task.count):
        side = round(min(height, width) * task.crop_px / task.short_side_px)
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        start = rng.integers(max(len(frames) - task.num_frames, 0) + 1)
        indices = (start + np.arange(task.num_frames)) % len(frames)
        jobs.append(([frames[i] for i in indices], (y, x, side, side)))
    return _in_threads(decode, jobs, task.count)


def ours_training(task: Task, scales: bool, is_float: bool) -> Callable:
    """clip_dataset: windows as they are stored, or of drawn scale, flipped."""
    batches = _open_training(task, scales)
    if is_float:
        batches = _as_float(batches)
    return _Paced(iter(batches), task.count // task.batch_size)


def ours_evaluation(task: Task) -> Callable:
    """clip_dataset with several views a video, uint8."""
    startup.quiet_tensorflow()
    from tl_tf.inputs import video

    data = video.clip_dataset(
        task.data_dir,
        dataset=task.dataset,
        split=task.split,
        is_training=False,
        batch_size=task.batch_size,
        num_frames=task.num_frames,
        crop_px=task.crop_px,
        short_side_px=task.short_side_px,
        num_clips=task.num_clips,
        num_crops=task.num_crops,
        seed=0,
    )
    views = task.batch_size * data.num_views
    return _Paced(iter(data.batches.repeat()), task.count // views)


def ours_images(task: Task, is_float: bool) -> Callable:
    """image_dataset: the crop "inception", flipped."""
    startup.quiet_tensorflow()
    from tl_tf.inputs import image

    batches = image.image_dataset(
        task.data_dir,
        dataset="images",
        split="train",
        is_training=True,
        batch_size=task.batch_size,
        image_px=task.crop_px,
        crop="inception",
        area_range=AREA_RANGE,
        flip=True,
        seed=0,
    ).batches
    if is_float:
        batches = _as_float(batches)
    return _Paced(iter(batches), task.count // task.batch_size)


def model_garden_clips(task: Task, is_training: bool) -> Callable:
    """official.vision's video_input on the same records: resized crop, float32."""
    startup.quiet_tensorflow()
    from official.core import input_reader
    from official.vision.configs import video_classification
    from official.vision.dataloaders import video_input

    params = video_classification.DataConfig(
        input_path=",".join(map(str, task.shards)),
        feature_shape=(task.num_frames, task.crop_px, task.crop_px, 3),
        min_image_size=task.short_side_px,
        global_batch_size=task.batch_size,
        is_training=is_training,
        num_test_clips=task.num_clips,
        num_test_crops=task.num_crops,
        num_classes=len(_info(task)["classes"]),
        drop_remainder=True,
        shuffle_buffer_size=16,  # as ours; its 64 whole videos would only cost memory
    )
    reader = input_reader.InputReader(
        params,
        decoder_fn=video_input.Decoder().decode,
        parser_fn=video_input.Parser(params).parse_fn(is_training),
        postprocess_fn=video_input.PostBatchProcessor(params),
    )
    batches = reader.read().repeat()  # an evaluation's ends after one pass
    per_batch = task.batch_size * task.num_clips * task.num_crops
    return _Paced(iter(batches), task.count // per_batch)


def model_garden_images(task: Task) -> Callable:
    """official.vision's classification_input: Inception's crop, float32."""
    startup.quiet_tensorflow()
    from official.core import input_reader
    from official.vision.configs import image_classification
    from official.vision.dataloaders import classification_input

    params = image_classification.DataConfig(
        input_path=str(Path(task.data_dir) / "images.tfrecord"),
        global_batch_size=task.batch_size,
        is_training=True,
        shuffle_buffer_size=400,
    )
    parser = classification_input.Parser(
        [task.crop_px, task.crop_px], num_classes=2, crop_area_range=AREA_RANGE
    )
    reader = input_reader.InputReader(
        params,
        decoder_fn=classification_input.Decoder().decode,
        parser_fn=parser.parse_fn(True),
    )
    return _Paced(iter(reader.read()), task.count // task.batch_size)


def keras_images(task: Task) -> Callable:
    """tf_keras' image_dataset_from_directory: whole images resized, float32."""
    startup.quiet_tensorflow()
    import tensorflow as tf
    import tf_keras

    with contextlib.redirect_stdout(io.StringIO()):  # it tells how many files there are
        batches = tf_keras.utils.image_dataset_from_directory(
            str(Path(task.data_dir) / "images" / "train"),
            image_size=(task.crop_px, task.crop_px),
            batch_size=task.batch_size,
        )
    batches = batches.repeat().prefetch(tf.data.AUTOTUNE)
    return _Paced(iter(batches), task.count // task.batch_size)


def pyav_clips(task: Task) -> Callable[[], None]:
    """PyAV decodes clips straight from mp4 files, in two threads, and crops."""
    import av

    paths = sorted(Path(task.videos_dir).glob(f"{task.split}/*/*.mp4"))
    rng = np.random.default_rng(0)
    jobs = []
    for path in itertools.islice(itertools.cycle(paths), task.count):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            height, width, frames = stream.height, stream.width, stream.frames
        side = round(min(height, width) * task.crop_px / task.short_side_px)
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        start = rng.integers(max(frames - task.num_frames, 0) + 1)
        jobs.append((range(task.num_frames), (path, start, (y, x, side, side))))

    def decode(numbers, what, out):
        path, start, (y, x, height, width) = what
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            tick = 1 / (stream.average_rate * stream.time_base)
            container.seek(int(start * tick), stream=stream)  # to a keyframe before
            done = 0
            for frame in container.decode(stream):
                if round(frame.pts / tick) < start:
                    continue
                whole = frame.to_ndarray(format="rgb24")
                out[done] = whole[y : y + height, x : x + width]
                done += 1
                if done == len(numbers):
                    return

    return _in_threads(decode, jobs, task.count, window_of=lambda what: what[2])


def resident_megabytes(task: Task, clips: int, points: int) -> list[tuple[int, float]]:
    """Clips read so far, and the resident set, while training reads `clips`."""
    batches = iter(_open_training(task, scales=True))
    curve = []
    for done in range(task.batch_size, clips + 1, task.batch_size):
        next(batches)
        if done % (clips // points) < task.batch_size:
            curve.append((done, _resident_bytes() / 1e6))
    return curve


# What the contenders share.


class _Paced:
    """Times `num_batches`, from empty buffers on; returns with full ones."""

    def __init__(self, batches: Iterator, num_batches: int):
        self._batches = batches
        self._num_batches = max(1, num_batches)

    def __call__(self) -> measure.Seconds:
        drained = time.perf_counter() + DRAIN_SECONDS
        while time.perf_counter() < drained:
            next(self._batches)
        start = time.perf_counter()
        for _ in range(self._num_batches):
            next(self._batches)
        seconds = time.perf_counter() - start
        before = -1.0
        while time.process_time() - before > 0.005:  # of 0.05: it still works ahead
            before = time.process_time()
            time.sleep(0.05)
        return measure.Seconds(seconds)


def _open_training(task: Task, scales: bool):
    startup.quiet_tensorflow()
    from tl_tf.inputs import video

    drawn = {"scale_range": SCALE_RANGE, "flip": True} if scales else {}
    return video.clip_dataset(
        task.data_dir,
        dataset=task.dataset,
        split=task.split,
        is_training=True,
        batch_size=task.batch_size,
        num_frames=task.num_frames,
        crop_px=task.crop_px,
        short_side_px=task.short_side_px,
        seed=0,
        **drawn,
    ).batches


def _as_float(batches):
    """As the rivals hand over: float32, made on the host."""
    import tensorflow as tf

    from tl_tf.inputs import augment

    def cast(batch):
        return {**batch, "pixels": augment.normalize(batch["pixels"])}

    return batches.map(cast, num_parallel_calls=tf.data.AUTOTUNE).prefetch(1)


def _load_decoder() -> Callable:
    """Compiles jpeg_window.c.

    Raises:
      ImportError: without a compiler or libjpeg-turbo's headers.
    """
    source = Path(__file__).with_name("jpeg_window.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "jpeg_window.so"
        command = ["cc", "-O3", "-shared", "-fPIC", source, "-o", target, "-ljpeg"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ImportError(
                "no C compiler, or no libjpeg-turbo to compile against"
                " (apt-get install gcc libjpeg62-turbo-dev)"
            ) from error
        library = ctypes.CDLL(str(target))

    def decode(files: list[bytes], window: Iterable[int], out: np.ndarray) -> None:
        library.decode_windows(
            (ctypes.c_char_p * len(files))(*files),
            (ctypes.c_ulong * len(files))(*map(len, files)),
            len(files),
            *map(int, window),
            out.ctypes.data_as(ctypes.c_void_p),
        )

    return decode


def _in_threads(
    decode: Callable,
    jobs: list[tuple],
    count: int,
    window_of: Callable[[Any], tuple] = lambda window: window,
) -> Callable[[], None]:
    """Calls decode(files, window, out) of `count` jobs, in two threads."""
    jobs = jobs[:count]
    most = max(len(files) * np.prod(window_of(w)[2:]) * 3 for files, w in jobs)
    spaces = [np.empty(int(most), np.uint8) for _ in range(THREADS)]

    def work(number: int) -> None:
        for files, window in jobs[number::THREADS]:
            shape = len(files), *window_of(window)[2:], 3
            out = spaces[number][: int(np.prod(shape))].reshape(shape)
            decode(files, window, out)

    def call() -> None:
        threads = [
            threading.Thread(target=work, args=(number,)) for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return call


def _videos(task: Task) -> Iterator[tuple[list[bytes], int, int]]:
    """Frames, height and width of each video of the split, again and again."""
    startup.quiet_tensorflow()
    import tensorflow as tf

    from tl_tf import records

    # A hundred of them: a large data set must not be held in memory.
    files = tf.data.TFRecordDataset([str(path) for path in task.shards]).take(100)
    read = []
    for serialized in files:
        frames = records.parse(serialized)["frames"].numpy().tolist()
        height, width, _ = tf.image.extract_jpeg_shape(frames[0]).numpy()
        read.append((frames, int(height), int(width)))
        yield read[-1]
    yield from itertools.cycle(read)


def _info(task: Task) -> dict[str, Any]:
    path = Path(task.data_dir) / task.dataset / "dataset_info.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
