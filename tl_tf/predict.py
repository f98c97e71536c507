"""Labels of people's files and streams, from the very pixels that evaluation takes.

A video is decoded as data.build does it.  One that is short enough is scored as
evaluation scores it; of a longer one and of a stream, whose frames are never all held,
the scores of sliding segments are merged as evaluation merges views.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf import files, media, report, scorers, timeline, visualize
from tl_tf import session as sessions

FILE = "predictions.jsonl"
PARTIAL = "predictions.partial.jsonl"  # after Ctrl-C
WHOLE_SECONDS = 120.0  # a longer video is scored by its segments alone
TIMELINE_SEGMENTS = 3  # a video that holds more of them end to end gets a timeline
PRINTED_LABELS = 3  # on a line
PRINTED_STRETCHES = 30
PRINTED_NAME = 48  # characters of a path
EVERY_SECONDS = 10.0  # a line of progress
OTHER_KINDS = {
    "image": "an image, and the model wants videos",
    "video": "a video, and the model wants images: take some out of it, as with"
    " ffmpeg -i VIDEO -vf fps=1 FOLDER/%05d.jpg",
}


@gin.configurable
def predict(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] | None = None,
    segment_seconds: float | None = None,
    stride_seconds: float | None = None,
    whole_seconds: float = WHOLE_SECONDS,
    top_k: int = 5,
) -> None:
    """Prints and writes the labels of every file that --input names.

    Into the folder `predictions` of the model's, or --output_dir: `predictions.jsonl`,
    for a long video `NAME.timeline.png`, and with --render `NAME.predicted.mp4`, or
    .png of an image.

    A line of `predictions.jsonl` has `file`, `labels` and `scores`, the best first, of
    a video `seconds`, whether it was `scored` "whole", as in evaluation, or from its
    "segments", and of a long one `segments` with `start`, `end`, `labels` and `scores`;
    or `error` with `reason` and `detail`.  Of a stream, each segment is a line as soon
    as it is scored, and the last line is about all of it.

    Args:
      session: mode, folders and devices; the inputs; checkpoint or exported model.
      build_model: the one that was trained; unused with an exported model.
      segment_seconds: of a segment, which is scored as a video of that length; None for
        the span of one clip.
      stride_seconds: from a segment to the next; None for half a segment.
      whole_seconds: a longer video is scored by its segments alone.
      top_k: labels of a file and of a segment that are written.

    Raises:
      ValueError: for inputs, bindings or a model that cannot be used, or if none of the
        inputs could be predicted.
    """
    for name, value in (
        ("segment_seconds", segment_seconds),
        ("stride_seconds", stride_seconds),
        ("whole_seconds", whole_seconds),
        ("top_k", top_k),
    ):
        if value is not None and value <= 0:
            raise ValueError(f"predict.{name} must be above 0, got {value}.")
    paths = media.find(session.inputs)
    is_stream = paths == [media.STDIN]
    if session.render and (is_stream or session.saved_model):
        raise ValueError(
            "--render wants files, and a recipe's checkpoint for the token maps: no"
            " stream, no --saved_model. Leave it out."
        )
    if session.saved_model:
        scorer = scorers.ExportedScorer(session.saved_model)
    else:
        scorer = scorers.CheckpointScorer(
            *sessions.restore_classifier(session, build_model)
        )
    session.check_config()
    cut = None
    if scorer.noun == "videos":
        cut = Cut.of_seconds(
            scorer,
            segment_seconds=segment_seconds,
            stride_seconds=stride_seconds,
            whole_seconds=whole_seconds,
        )
    folder = session.output_dir or session.model_dir / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    where = session.saved_model or session.model_dir
    about = f"{scorer.name}, {len(scorer.classes)} classes of {scorer.noun}"
    report.say(f"predict  {where}: {about}{f', {cut.facts}' if cut else ''}")
    if is_stream:
        predict_stream(scorer, cut, folder / FILE, top_k=top_k)
    else:
        predict_files(
            paths, scorer, cut, folder, top_k=top_k, does_render=session.render
        )


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a video is cut into segments, in frames.

    Attributes:
      fps: frames per second.
      segment: frames of one.
      stride: from one to the next.
      whole: a longer video is scored by its segments.
    """

    fps: float
    segment: int
    stride: int
    whole: int

    @classmethod
    def of_seconds(
        cls,
        scorer: scorers.Scorer,
        *,
        segment_seconds: float | None = None,
        stride_seconds: float | None = None,
        whole_seconds: float = WHOLE_SECONDS,
    ) -> "Cut":
        """As `predict` says.

        Raises:
          ValueError: for a stride that would leave frames between segments out.
        """
        segment = scorer.span
        if segment_seconds is not None:
            segment = max(1, round(segment_seconds * scorer.fps))
        stride = max(1, segment // 2)
        if stride_seconds is not None:
            stride = max(1, round(stride_seconds * scorer.fps))
        if stride > segment:
            raise ValueError(
                "predict.stride_seconds must be at most a segment,"
                f" {segment / scorer.fps:g} s, got {stride_seconds:g}."
            )
        return cls(scorer.fps, segment, stride, round(whole_seconds * scorer.fps))

    @property
    def facts(self) -> str:
        """In a few words."""
        segment, stride = self.segment / self.fps, self.stride / self.fps
        return f"{self.fps:g} fps, segments of {segment:.3g} s every {stride:.3g} s"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found in a file.

    Attributes:
      scores: float32 [K].
      seconds: of a video, else None.
      is_whole: scored as evaluation scores it; else merged from segments.
      segments: of a long video, else empty.
    """

    scores: np.ndarray
    seconds: float | None = None
    is_whole: bool = True
    segments: tuple[timeline.Segment, ...] = ()


def windows(
    frames: Iterable[bytes], segment: int, stride: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Yields sliding segments of a stream, with the number of their first frame.

    The last one ends with the stream, and is all of a stream shorter than a segment.
    `segment` frames are held.
    """
    window: collections.deque[bytes] = collections.deque(maxlen=segment)
    count = done = 0
    for frame in frames:
        window.append(frame)
        count += 1
        if count >= segment and (count - segment) % stride == 0:
            yield count - segment, list(window)
            done = count
    if done < count:
        yield count - len(window), list(window)


def score_segments(
    frames: Iterable[bytes], scorer: scorers.Scorer, cut: Cut
) -> Iterator[timeline.Segment]:
    """Yields the scores of each segment as soon as its frames have come."""
    for first, window in windows(frames, cut.segment, cut.stride):
        yield timeline.Segment(
            start=first / cut.fps,
            end=(first + len(window)) / cut.fps,
            scores=scorer.score_video(window),
        )


def predict_video(
    source: Path,
    scorer: scorers.Scorer,
    cut: Cut,
    *,
    on_segment: Callable[[timeline.Segment], None] = lambda segment: None,
) -> Prediction:
    """Scores a video, and the segments of one that is long.

    Holds at most `cut.whole` and `cut.segment` JPEG files, and every segment's scores.

    Args:
      source: a path that media.stream_video takes.
      scorer: of videos.
      cut: into segments.
      on_segment: called with each segment.

    Raises:
      media.VideoError: when it cannot be used.
    """
    stream = media.stream_video(source, fps=scorer.fps, short_side=scorer.short_side)
    rest = (frame for _, frame in stream)
    head = list(itertools.islice(rest, cut.whole + 1))
    is_whole = len(head) <= cut.whole
    if is_whole and len(head) <= TIMELINE_SEGMENTS * cut.segment:
        return Prediction(scorer.score_video(head), seconds=len(head) / cut.fps)
    scores = scorer.score_video(head) if is_whole else None
    frames = _emptied(head, rest)
    merged, segments = _Merged(scorer.merge), []
    for segment in score_segments(frames, scorer, cut):
        merged.add(segment.scores)
        segments.append(segment)
        on_segment(segment)
    if not is_whole:
        scores = merged.value
    return Prediction(scores, segments[-1].end, is_whole, tuple(segments))


def predict_image(path: Path, scorer: scorers.Scorer) -> Prediction:
    """Scores an image file.

    Raises:
      media.VideoError: when it cannot be used.
    """
    data, orientation = media.read_image(path)
    try:
        return Prediction(scorer.score_image(data, orientation))
    except tf.errors.OpError:
        raise media.VideoError("damaged", "its pixels cannot be decoded") from None


class _Merged:
    """The maximum or mean of scores that come one by one."""

    def __init__(self, merge: str):
        self._join = {"max": np.maximum, "mean": np.add}[merge]
        self._is_mean = merge == "mean"
        self._joined, self.count = None, 0

    def add(self, scores: np.ndarray) -> None:
        scores = scores.astype(np.float64)
        is_first = self._joined is None
        self._joined = scores if is_first else self._join(self._joined, scores)
        self.count += 1

    @property
    def value(self) -> np.ndarray:
        joined = self._joined / self.count if self._is_mean else self._joined
        return joined.astype(np.float32)


def predict_files(
    paths: list[Path],
    scorer: scorers.Scorer,
    cut: Cut | None,
    folder: Path,
    *,
    top_k: int,
    does_render: bool,
) -> None:
    """Predicts files one after the other; what cannot be used is named.

    Args:
      paths: of videos or images.
      scorer: of the model.
      cut: of videos into segments, None for a model of images.
      folder: which exists; for what `predict` says.
      top_k: labels that are written.
      does_render: whether token maps are drawn.

    Raises:
      ValueError: if none of them can be used.
    """
    progress = _Progress(len(paths))
    options = {"top_k": top_k, "does_render": does_render}
    with files.whole(folder / FILE) as temporary:
        try:
            # What is no UTF-8 in the name of a file becomes JSON's own "\udcff".
            with temporary.open("w", -1, "utf-8", "backslashreplace") as lines:
                faults = _predict_each(
                    paths, scorer, cut, folder, lines, progress, **options
                )
        except KeyboardInterrupt:
            temporary.rename(folder / PARTIAL)
            report.say(f"predict  interrupted; what was done  -> {folder / PARTIAL}")
            raise SystemExit(130) from None  # 128 + SIGINT
        if len(faults) == len(paths) == 1:
            raise ValueError(f"{faults[0][0]}: could not be predicted: {faults[0][1]}.")
        if len(faults) == len(paths):
            raise ValueError(
                f"none of {len(paths)} files could be predicted; the last:"
                f" {faults[-1][1]}."
            )
    report.say(
        f"predict  {len(paths) - len(faults)} of {len(paths)} files in {progress.spent}"
        f"{f'; {len(faults)} left out' if faults else ''}  -> {folder / FILE}"
    )


def _predict_each(
    paths: list[Path],
    scorer: scorers.Scorer,
    cut: Cut | None,
    folder: Path,
    lines: IO[str],
    progress: "_Progress",
    *,
    top_k: int,
    does_render: bool,
) -> list[tuple[str, str]]:
    """Writes a line for each file; returns the names left out, and why."""
    names, faults = _printed_names(paths), []
    width = max(map(len, names))
    for path, name, out in zip(paths, names, _output_names(paths), strict=True):
        about = {"file": str(path)}
        tell = functools.partial(progress.tell_segment, name=name)
        try:
            found = predict_file(path, scorer, cut, on_segment=tell)
        except media.VideoError as error:
            faults.append((name, f"{error.reason} ({error.detail})"))
            report.say(f"{name:{width}}  left out: {faults[-1][1]}")
            about["error"] = {"reason": error.reason, "detail": error.detail}
            _write_line(lines, about)
            progress.tell_file()
            continue
        _write_line(lines, about | _as_json(found, scorer.classes, top_k))
        _say_file(found, scorer.classes, f"{name:{width}}", is_only=len(paths) == 1)
        if found.segments:
            title = _printable(path.name)
            picture = timeline.picture(found.segments, scorer.classes, title=title)
            drawn = folder / f"{out}.timeline.png"
            files.write(drawn, tf.io.encode_png(picture).numpy())
            report.say(f"  -> {drawn}")
        if does_render:
            report.say(f"  -> {render(path, scorer, folder / out)}")
        progress.tell_file()
    return faults


def predict_file(
    path: Path, scorer: scorers.Scorer, cut: Cut | None, **arguments
) -> Prediction:
    """`predict_video` or `predict_image`, as the file is.

    Raises:
      media.VideoError: when it cannot be used, or the model wants the other.
    """
    kind = media.kind_of(path)
    if kind + "s" != scorer.noun and path.exists():
        raise media.VideoError("unreadable", OTHER_KINDS[kind])
    if kind == "image":
        return predict_image(path, scorer)
    return predict_video(path, scorer, cut, **arguments)


def predict_stream(scorer: scorers.Scorer, cut: Cut, path: Path, *, top_k: int) -> None:
    """Predicts the standard input: a line a segment, until its end or Ctrl-C.

    Raises:
      ValueError: if there was no segment.
    """
    if scorer.noun != "videos":
        raise ValueError("--input=-: wanted a model of videos, got one of images.")
    report.say("predict  reading the standard input; Ctrl-C ends it")
    merged, end, fault = _Merged(scorer.merge), 0.0, ""
    stream = media.stream_video(
        media.STDIN, fps=scorer.fps, short_side=scorer.short_side
    )
    frames = (frame for _, frame in stream)
    with open(path, "w", encoding="utf-8") as lines:
        try:
            for segment in score_segments(frames, scorer, cut):
                labels = _labels_line(segment.scores, scorer.classes)
                report.say(f"{segment.start:8.1f} - {segment.end:8.1f} s  {labels}")
                found = _segment_json(segment, scorer.classes, top_k)
                _write_line(lines, {"file": str(media.STDIN)} | found)
                lines.flush()
                merged.add(segment.scores)
                end = segment.end
        except KeyboardInterrupt:
            fault = "interrupted"
        except media.VideoError as error:
            fault = f"{error.reason} ({error.detail})"
        if merged.count:
            found = Prediction(merged.value, seconds=end, is_whole=False)
            about = {"file": str(media.STDIN)}
            _write_line(lines, about | _as_json(found, scorer.classes, top_k))
    if not merged.count:
        raise ValueError(f"--input=-: nothing could be predicted: {fault}.")
    report.say(
        f"predict  {end:.1f} s{f', {fault}' if fault else ''}; {merged.count} segments,"
        f" {scorer.merge}: {_labels_line(merged.value, scorer.classes)}  -> {path}"
    )


class _Progress:
    """A line every few seconds: how many files are done, how fast, how long yet."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._start = self._last = self._begun = time.perf_counter()
        self._first = 0.0  # when the first file was done: it held the tracing

    @property
    def spent(self) -> str:
        seconds = time.perf_counter() - self._start
        rate = f", {self._done / seconds:.3g} files/s" if self._done > 1 else ""
        return f"{seconds:.1f} s{rate}"

    def tell_file(self) -> None:
        now = time.perf_counter()
        self._done += 1
        self._begun, self._first = now, self._first or now
        if self._is_due(now) and 1 < self._done < self._total:
            left = (now - self._first) / (self._done - 1) * (self._total - self._done)
            report.say(
                f"predict  {self._done}/{self._total} files in {self.spent},"
                f" {report.time_left(left)} left"
            )

    def tell_segment(self, segment: timeline.Segment, *, name: str) -> None:
        now = time.perf_counter()
        if self._is_due(now):
            speed = segment.end / (now - self._begun)
            report.say(
                f"predict  {name}: {segment.end:.0f} s of it, {speed:.3g} x its speed"
            )

    def _is_due(self, now: float) -> bool:
        if now - self._last < EVERY_SECONDS:
            return False
        self._last = now
        return True


def _say_file(
    found: Prediction, classes: list[str], name: str, *, is_only: bool
) -> None:
    """A block for the only file, else a line; below it a long video's stretches."""
    total, num_segments = found.seconds, len(found.segments)
    length = "" if total is None else f"{total:.1f} s"
    how = "" if found.is_whole else f"  ({num_segments} segments merged)"
    if is_only:
        if found.is_whole and num_segments:
            how = "  (scored by the views that evaluation takes of it)"
        report.say(f"{name}  {length}{how}")
        for label, score in timeline.top(found.scores, classes, PRINTED_LABELS + 2):
            report.say(f"  {score:.3f}  {label}")
    else:
        report.say(f"{name}{length:>10}  {_labels_line(found.scores, classes)}{how}")
    if not found.segments:
        return
    stretches = timeline.stretches(found.segments, classes)
    for one in stretches[:PRINTED_STRETCHES]:
        start, end = (timeline.clock(at, total=total) for at in (one.start, one.end))
        labels = "   ".join(f"{label} {score:.2f}" for label, score in one.labels)
        report.say(f"  {start:>7} - {end:>7}  {labels}")
    if len(stretches) > PRINTED_STRETCHES:
        report.say(f"  and {len(stretches) - PRINTED_STRETCHES} stretches more")


def _labels_line(scores: np.ndarray, classes: list[str]) -> str:
    """The best labels in columns."""
    width = min(20, max(map(len, classes)))
    best = timeline.top(scores, classes, PRINTED_LABELS)
    return "  ".join(f"{score:.3f} {label:{width}}" for label, score in best).rstrip()


def _as_json(found: Prediction, classes: list[str], top_k: int) -> dict[str, Any]:
    raw = {} if found.seconds is None else {"seconds": _digits(found.seconds)}
    raw["scored"] = "whole" if found.is_whole else "segments"
    raw |= _top_json(found.scores, classes, top_k)
    if found.segments:
        raw["segments"] = [_segment_json(s, classes, top_k) for s in found.segments]
    return raw


def _segment_json(
    segment: timeline.Segment, classes: list[str], top_k: int
) -> dict[str, Any]:
    about = {"start": _digits(segment.start), "end": _digits(segment.end)}
    return about | _top_json(segment.scores, classes, top_k)


def _top_json(scores: np.ndarray, classes: list[str], top_k: int) -> dict[str, Any]:
    best = timeline.top(scores, classes, top_k)
    return {
        "labels": [label for label, _ in best],
        "scores": [_digits(score) for _, score in best],
    }


def _digits(value: float) -> float:
    """As many as float32 has."""
    return float(f"{value:.7g}")


def _write_line(file: IO[str], content: dict[str, Any]) -> None:
    file.write(json.dumps(content, ensure_ascii=False) + "\n")


def render(path: Path, scorer: scorers.CheckpointScorer, out: Path) -> Path:
    """Draws what the model sees of a file, its labels and token maps.

    Args:
      path: of a file that can be predicted.
      scorer: of such files.
      out: beside it is written, with the ending .predicted.mp4, or .png of an image.

    Returns:
      What was written.

    Raises:
      media.VideoError: when the file cannot be used.
    """

    def draw(look: scorers.Look, caption: str = "") -> np.ndarray:
        caption += _labels_line(look.scores, scorer.classes)
        return visualize.draw_clip(look.pixels, look.maps, caption=caption)

    if scorer.noun == "images":
        out = out.with_name(f"{out.name}.predicted.png")
        picture = draw(scorer.look_at_image(*media.read_image(path)))[0]
        files.write(out, tf.io.encode_png(picture).numpy())
        return out
    stream = media.stream_video(path, fps=scorer.fps, short_side=scorer.short_side)
    step = scorer.clip_frames * scorer.frame_stride

    def pictures() -> Iterator[np.ndarray]:
        end = 0  # of what is drawn, in source frames
        for first, window in windows((file for _, file in stream), step, step):
            count = -(-(first + len(window) - end) // scorer.frame_stride)
            end = first + len(window)
            seconds = f"{first / scorer.fps:.1f} - {end / scorer.fps:.1f} s   "
            drawn = draw(scorer.look_at_video(window), seconds)
            # Only the last clip shares frames with the one before; a video that is
            # shorter than a clip is looped in it.
            yield from drawn[-count:] if first else drawn[:count]

    out = out.with_name(f"{out.name}.predicted.mp4")
    media.write_mp4(out, pictures(), fps=scorer.fps / scorer.frame_stride)
    return out


def _output_names(paths: list[Path]) -> list[str]:
    """A name for each file's pictures: its own, with a number where it is taken."""
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for stem in (_printable(path.stem) for path in paths):
        seen[stem] += 1
        names.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return names


def _emptied(head: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    """The frames of both, those of `head` let go as they are taken."""
    waiting = collections.deque(head)
    head.clear()
    while waiting:
        yield waiting.popleft()
    yield from rest


def _printed_names(paths: list[Path]) -> list[str]:
    """The paths below the folder that holds them all; the ends of long ones."""
    if len(paths) > 1:
        shared = os.path.commonpath([path.absolute().parent for path in paths])
        paths = [path.absolute().relative_to(shared) for path in paths]
    names = [_printable(str(path)) for path in paths]
    return [n if len(n) <= PRINTED_NAME else "…" + n[1 - PRINTED_NAME :] for n in names]


def _printable(text: str) -> str:
    """A name of a file may hold anything: what would steer a terminal becomes "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)
