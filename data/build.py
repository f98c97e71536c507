"""From raw videos and annotations to TFRecord shards.

    python -m data.build folder --videos_dir=my_videos --name=mine --data_dir=datasets
    python -m data.build charades --annotations_dir=Charades --data_dir=datasets
    python -m data.build folder --help

A build that was stopped continues when the same command is given again.  The result is
the same, byte for byte, whatever the number of workers, and whether Beam runs it.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import importlib
import itertools
import math
import os
import shutil
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data import isolated, manifest

if TYPE_CHECKING:  # both import TensorFlow, which takes seconds; --help must not wait
    from data import shards
    from tl_tf import records

WAIT_SECONDS = 600  # for another build in the same folder
RUNNERS = ("DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")


class TooManySkipped(Exception):
    """The build is complete, and lacks more videos than allowed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    # TensorFlow's start-up messages say nothing about a build.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    options = {k: v for k, v in vars(args).items() if v is not None}
    if rest and "runner" not in options:
        parser.error(
            f"unrecognized arguments: {' '.join(rest)} (only with --runner are the"
            " remaining arguments passed on, to Beam)"
        )
    try:
        build(
            options.pop("dataset"), options.pop("data_dir"), **options, beam_args=rest
        )
    except TooManySkipped as error:
        return _complain(error, status=1)
    except (ValueError, OSError, ImportError, isolated.Failed) as error:
        return _complain(error, status=2)
    except KeyboardInterrupt:
        return _complain("stopped; the same command continues.", status=130)
    return 0


def build(
    dataset: str,
    data_dir: str | Path,
    *,
    splits: Sequence[str] = manifest.SPLITS,
    fps: float = 12.0,
    short_side: int = 256,
    num_shards: int | None = None,
    num_workers: int | None = None,
    limit: int | None = None,
    max_skipped: float = 0.05,
    max_seconds: float = 3600.0,
    timeout_seconds: float = 900.0,
    overwrite: bool = False,
    runner: str | None = None,
    beam_args: Sequence[str] = (),
    **settings: Any,
) -> "records.DatasetInfo":
    """Builds what is missing of a data set's folder in `data_dir`, and describes it.

    Args:
      dataset: one of manifest.DATASETS.
      data_dir: folder of all datasets.
      splits: which of "train" and "test".
      fps: frames per second to keep, above 0.
      short_side: of the frames, in pixels; smaller videos keep their size.
      num_shards: per split; None for one per 32 videos.
      num_workers: videos decoded at once; None for the number of processors.
      limit: of each split, build the first so many videos; None for all.
      max_skipped: share of a split's videos that may be unusable, 0..1.
      max_seconds: a longer video is skipped.
      timeout_seconds: a video whose decoding takes longer is skipped.
      overwrite: delete the shards of `splits` first, and made videos.
      runner: a Beam runner instead of local processes.
      beam_args: command-line arguments for Beam.
      **settings: fields of the dataset's Settings.

    Returns:
      The description that stands in dataset_info.json.

    Raises:
      ValueError: for options or annotation files that cannot be used.
      TooManySkipped: at the end, when more than max_skipped of a split is missing.
    """
    _check(
        dataset,
        splits=splits,
        fps=fps,
        short_side=short_side,
        num_shards=num_shards,
        num_workers=num_workers,
        limit=limit,
        max_skipped=max_skipped,
        max_seconds=max_seconds,
        timeout_seconds=timeout_seconds,
    )
    module: ModuleType = importlib.import_module(manifest.DATASETS[dataset])
    chosen = _settings(dataset, module, settings)
    from data import frames, local_build, plan, shards, summary
    from tl_tf import records

    splits = [s for s in manifest.SPLITS if s in splits]  # whatever order was asked for
    num_workers = num_workers or len(os.sched_getaffinity(0))
    folder = Path(data_dir) / chosen.name
    options = {
        "schema_version": records.SCHEMA_VERSION,
        "fps": float(fps),
        "short_side": short_side,
        "jpeg_quality": frames.JPEG_QUALITY,
        "max_seconds": float(max_seconds),
        "limit": limit,
        **{field.name: getattr(chosen, field.name) for field in _values(module)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for split in splits if overwrite else []:
            for path in folder.glob(f"{chosen.name}-{split}-*-of-*"):
                path.unlink()
        plan.check_options(folder, chosen.name, options)
        for leftover in folder.glob("*.tmp-*"):
            leftover.unlink()
        where = chosen
        if hasattr(module, "make"):
            if overwrite:
                shutil.rmtree(folder / "raw", ignore_errors=True)
            where = module.make(
                chosen,
                folder / "raw",
                functools.partial(
                    local_build.run_calls,
                    num_workers=num_workers,
                    timeout_seconds=timeout_seconds,
                ),
            )
        read: manifest.Annotations = module.read(where, splits)
        manifest.check(chosen.name, read)
        work = {
            split: plan.shards_of(
                split,
                read.clips[split][:limit],
                folder=folder,
                dataset=chosen.name,
                layout=module.LAYOUT,
                num_shards=num_shards,
                classes=read.classes,
                options=options,
                timeout_seconds=timeout_seconds,
            )
            for split in splits
        }
        plan.check_disjoint(chosen.name, work)
        _run(
            [shard for split in splits for shard in work[split]],
            num_workers=num_workers,
            runner=runner,
            beam_args=beam_args,
        )
        description = {
            "dataset": chosen.name,
            **options,
            "label_kind": read.label_kind,
            "class_list_checksum": records.class_list_checksum(read.classes),
            "classes": read.classes,
            "remarks": list(read.remarks),
            "sources": {
                path.name: shards.sha256(path) for path in sorted(read.sources)
            },
            "splits": {
                split: summary.split_entry(split, work[split], read) for split in splits
            },
        }
        shards.write_json(
            folder / summary.INFO_NAME, summary.merge(folder, description)
        )
    info = records.DatasetInfo.load(data_dir, chosen.name)
    print(summary.table(info))
    _check_skipped(info, splits, max_skipped)
    return info


def _check(dataset: str, **options: Any) -> None:
    """Raises a ValueError for a value that no build can use."""
    if dataset not in manifest.DATASETS:
        raise ValueError(
            f"no dataset {dataset!r}; known: {', '.join(manifest.DATASETS)}."
        )
    unknown = [s for s in options["splits"] if s not in manifest.SPLITS]
    if unknown or not options["splits"]:
        raise ValueError(
            f"--splits must be among {', '.join(manifest.SPLITS)}, got"
            f" {', '.join(unknown) or 'none'}."
        )
    for name in ("fps", "short_side", "max_seconds", "timeout_seconds"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"--{name} must be above 0, got {options[name]}.")
    for name in ("num_shards", "num_workers", "limit"):
        if options[name] is not None and options[name] < 1:
            raise ValueError(f"--{name} must be at least 1, got {options[name]}.")
    if not 0 <= options["max_skipped"] <= 1:
        raise ValueError(
            f"--max_skipped is a share and must be in 0..1, got"
            f" {options['max_skipped']}."
        )


def _settings(dataset: str, module: ModuleType, settings: Mapping[str, Any]) -> Any:
    """The dataset's Settings; paths may have come as strings."""
    fields = {field.name: field for field in dataclasses.fields(module.Settings)}
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ValueError(
            f"{dataset}: no setting {', '.join(unknown)}; known: {', '.join(fields)}."
        )
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and settings.get(name) is None:
            raise ValueError(f"{dataset}: --{name} is missing.\n{module.LAYOUT}")
    paths = {
        name: Path(value)
        for name, value in settings.items()
        if _type(fields[name]) is Path and value is not None
    }
    return module.Settings(**{**settings, **paths})


def _values(module: ModuleType) -> list[dataclasses.Field]:
    """The options that decide what is built; where the files are does not."""
    fields = dataclasses.fields(module.Settings)
    return [f for f in fields if f.name != "name" and _type(f) is not Path]


def _type(field: dataclasses.Field) -> type:
    """The type of an option's value: Path for `Path | None`."""
    return (typing.get_args(field.type) or (field.type,))[0]


def _run(
    work: Sequence["shards.Shard"],
    *,
    num_workers: int,
    runner: str | None,
    beam_args: Sequence[str],
) -> None:
    from data import local_build, shards

    todo = [shard for shard in work if shards.finished_report(shard) is None]
    if len(todo) < len(work):
        done = len(work) - len(todo)
        print(f"{done} of {len(work)} shards are built already", file=sys.stderr)
    if todo and runner:
        from data import beam_build

        beam_build.run(todo, runner, beam_args)
    elif todo:
        local_build.run(todo, num_workers)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder; the lock goes with the process, however that ends.

    Another build that holds it is waited for: several hosts may find the same data set
    missing, and what a killed build started may outlive it by a moment.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    with (folder / ".lock").open("w") as file:
        for attempt in itertools.count():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise ValueError(
                        f"{folder}: another data.build is at work here. Wait for it, or"
                        " choose another --data_dir."
                    ) from error
                if attempt == 10:
                    print(f"{folder}: waiting for another data.build", file=sys.stderr)
                time.sleep(0.2)
        yield


def _check_skipped(
    info: "records.DatasetInfo", splits: Sequence[str], max_skipped: float
) -> None:
    for split in splits:
        entry = info.split(split)
        expected, skipped = entry["videos_expected"], entry["videos_skipped"]
        if skipped > max_skipped * expected:
            reasons = entry["skipped_by_reason"].items()
            raise TooManySkipped(
                f"split {split}: {skipped} of {expected} videos"
                f" ({skipped / expected:.1%}) were skipped, more than --max_skipped="
                f"{max_skipped:g} ({', '.join(f'{k} {v}' for k, v in reasons)}). The"
                " shards are complete without them: mend the files and run the same"
                " command again, or accept the loss with a larger --max_skipped."
            )


def _complain(message: object, *, status: int) -> int:
    print(f"data.build: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.build",
        description="Builds TFRecord shards from raw videos and annotations. Killed and"
        " started again, it continues. DATASET --help shows the options of each.",
    )
    commands = parser.add_subparsers(
        dest="dataset", required=True, metavar="DATASET", title="data sets"
    )
    common = _common_options()
    for dataset, name in manifest.DATASETS.items():
        module = importlib.import_module(name)
        command = commands.add_parser(
            dataset,
            help=module.__doc__.splitlines()[0],
            description=module.LAYOUT,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,  # the rest goes to Beam, whose options may be similar
        )
        own = command.add_argument_group(f"of {dataset}")
        for field in dataclasses.fields(module.Settings):
            default = field.default
            is_plain = default not in (None, dataclasses.MISSING)
            own.add_argument(
                f"--{field.name}",
                type=_type(field),
                help=field.metadata["help"]
                + (f" (default: {default})" if is_plain else ""),
            )
    return parser


def _common_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False
    )
    add = parser.add_argument_group("of every data set").add_argument
    add("--data_dir", default="datasets", help="where datasets go (default: datasets)")
    add("--splits", nargs="+", choices=manifest.SPLITS, help="default: train test")
    add("--fps", type=float, help="frames per second to keep (default: 12)")
    add(
        "--short_side",
        type=int,
        help="of the frames in pixels; smaller videos keep their size (default: 256)",
    )
    add("--num_shards", type=int, help="of each split (default: one per 32 videos)")
    add("--num_workers", type=int, help="videos decoded at once (default: all cores)")
    add("--limit", type=int, help="build only the first LIMIT videos of each split")
    add(
        "--max_skipped",
        type=float,
        help="fail at the end when a larger share is unusable (default: 0.05)",
    )
    add("--max_seconds", type=float, help="skip longer videos (default: 3600)")
    add(
        "--timeout_seconds",
        type=float,
        help="skip a video that takes longer to decode (default: 900)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="delete the shards of these splits first, and the videos of synthetic",
    )
    add(
        "--runner",
        choices=RUNNERS,
        help="build with Apache Beam; it gets all arguments not listed here",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
