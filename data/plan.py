"""Which shard holds which clip, and whether what is there can be continued."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data import manifest, shards
from tl_tf import records

VIDEOS_PER_SHARD = 32  # Charades: 250 shards of about 200 MB for training


def shards_of(
    split: str,
    clips: Sequence[manifest.Clip],
    *,
    folder: Path,
    dataset: str,
    layout: str,
    num_shards: int | None,
    classes: Sequence[str],
    options: Mapping[str, Any],
    timeout_seconds: float,
) -> list[shards.Shard]:
    """Assigns the clips of a split to shards by their ids.

    Raises:
      ValueError: when no video is there, or what is there has other shards.
    """
    if not clips:
        raise ValueError(f"{dataset}: the annotations of split {split} list no video.")
    if not any(os.path.isfile(clip.video_path) for clip in clips):
        raise ValueError(
            f"{dataset}: none of the {len(clips)} videos of split {split} is there; the"
            f" first would be {clips[0].video_path}.\n{layout}"
        )
    num_shards = num_shards or math.ceil(len(clips) / VIDEOS_PER_SHARD)
    for path, _ in _reports(folder, dataset, split):
        if not path.stem.endswith(f"-of-{num_shards:05d}"):
            raise ValueError(
                f"{path}: belongs to another number of shards than {num_shards}. Ask"
                " for the same --num_shards, choose another --data_dir, or pass"
                " --overwrite to delete what is there."
            )
    members: list[list[manifest.Clip]] = [[] for _ in range(num_shards)]
    for row, clip in enumerate(clips):
        shard = records.shard_of(clip.video_id, num_shards)
        members[shard].append(dataclasses.replace(clip, row=row))
    return [
        shards.Shard(
            path=folder / records.shard_name(dataset, split, i, num_shards),
            clips=tuple(members[i]),
            classes=tuple(classes),
            options=options,
            timeout_seconds=timeout_seconds,
        )
        for i in range(num_shards)
    ]


def check_options(folder: Path, dataset: str, options: Mapping[str, Any]) -> None:
    """Raises a ValueError when shards in `folder` were built with other options."""
    for path, built in _reports(folder, dataset):
        if built == options:
            continue
        pairs = {  # an option that another kind of data set has not
            key: (built.get(key, "nothing"), options.get(key, "nothing"))
            for key in sorted({*built, *options})
        }
        differences = [
            f"{key}={there} there, {key}={asked} asked for"
            for key, (there, asked) in pairs.items()
            if there != asked
        ]
        raise ValueError(
            f"{path}: was built with other options: {'; '.join(differences)}. Ask for"
            " the same ones, choose another --data_dir, or pass --overwrite to delete"
            " what is there."
        )


def check_disjoint(dataset: str, work: Mapping[str, Sequence[shards.Shard]]) -> None:
    """Raises a ValueError when a video is in two splits: a test on training data."""
    split_of: dict[str, str] = {}
    for split, split_shards in work.items():
        for clip in (clip for shard in split_shards for clip in shard.clips):
            if split_of.setdefault(clip.video_id, split) != split:
                raise ValueError(
                    f"{dataset}: video {clip.video_id} is in splits"
                    f" {split_of[clip.video_id]} and {split}. Remove it from one of"
                    " the annotation files."
                )


def _reports(
    folder: Path, dataset: str, split: str = "*"
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the path of each shard's report, and the options it was built with."""
    for path in sorted(folder.glob(f"{dataset}-{split}-*-of-*.json")):
        try:
            yield path, records.read_shard_report(path)["options"]
        except (ValueError, KeyError, TypeError):  # not a report: it will be replaced
            path.unlink()
