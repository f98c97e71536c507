"""What a dataset tells the build: its classes, and one Clip per video.

A dataset is a module of this package, listed in `DATASETS`, with

    LABEL_KIND                             "multi_label" or "single_label"
    LAYOUT                                 the files it expects, for error messages
    classes(annotations_dir) -> list[str]  in the order of the official list
    clips(split, annotations_dir, videos_dir) -> Iterator[Clip], in file order
    sources(splits, annotations_dir) -> list[Path], the files that were read
    default_videos_dir(annotations_dir) -> Path

and, when it makes its own videos, a `Settings` dataclass and
`tasks(settings, folder)`; see synthetic.py.  Nothing here may import TensorFlow: the
command line answers at once, and decoding processes stay small.
"""

import dataclasses
from pathlib import Path

DATASETS = ("charades", "synthetic")
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video of a split, as its annotations describe it.

    Attributes:
      video_id: the dataset's own id, safe as a file name.
      video_path: where the file should be; it may be missing.
      start_seconds: where the clip starts in the file.
      end_seconds: where it ends; None for the end of the file.
      label_ids: class indices of the whole clip, ascending, without repetition.
      segments: (label id, start_seconds, end_seconds), as annotated, in file order.
      notes: names of annotation anomalies, one for each time one occurs.
      row: of the split, in file order from 0; the build counts them.  Evaluation ranks
        ties in this order.
    """

    video_id: str
    video_path: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None
    label_ids: tuple[int, ...] = ()
    segments: tuple[tuple[int, float, float], ...] = ()
    notes: tuple[str, ...] = ()
    row: int = 0
