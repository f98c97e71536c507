"""Reads a built data set whole, decodes every frame, and says what is wrong with it.

    python -m data.verify datasets/charades
    python -m data.verify datasets/charades --num_workers=8 --json=found.json

The set is left as it is.  Every shard and record that is not as dataset_info.json and
the shards' reports say is named in a sentence; the exit status is 0 for a whole set, 1
for one with faults, and 2 where nothing can be read.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from data import isolated
from tl_tf import files

TIMEOUT_SECONDS = 300.0  # of one record: a minute of video decodes in seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(
        prog="python -m data.verify", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="of dataset_info.json")
    parser.add_argument(
        "--num_workers", type=int, help="records decoded at once (default: all cores)"
    )
    parser.add_argument("--json", type=Path, help="where to write what was found")
    options = parser.parse_args(argv)
    if options.num_workers is not None and options.num_workers < 1:
        parser.error(f"--num_workers must be at least 1, got {options.num_workers}.")
    try:
        found = verify(options.folder, num_workers=options.num_workers)
        print("\n".join(_lines(found)))
        if options.json:
            files.write(options.json, json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"data.verify: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.verify: stopped.", file=sys.stderr)
        return 130
    return 0 if found["is_whole"] else 1


def verify(folder: Path, *, num_workers: int | None = None) -> dict[str, Any]:
    """Reads everything.

    Args:
      folder: of the data set, which holds dataset_info.json.
      num_workers: processes that decode; None for the number of processors.

    Returns:
      {"folder", "is_whole", "faults": of the set as a whole, "splits": {name:
      {"shards", "records", "frames", "bad_records", "faults"}}}; a fault is {"shard",
      "record", "fault"}, its record None where the shard as a whole is meant.

    Raises:
      ValueError: there is no description, or it cannot be one.
    """
    from data import local_build
    from tl_tf import records

    folder = Path(folder).resolve()
    info = records.DatasetInfo.load(folder.parent, folder.name)
    num_workers = num_workers or len(os.sched_getaffinity(0))
    work = [
        (split, shard)
        for split, entry in info.splits.items()
        for shard in entry["shards"]
    ]
    progress = local_build.Progress(sum(s["records"] for _, s in work), "videos read")
    with (
        isolated.Workers(num_workers, TIMEOUT_SECONDS) as workers,
        futures.ThreadPoolExecutor(num_workers) as readers,
    ):
        check = functools.partial(
            _check_shard,
            # The rest may be large, and goes to another process with each record.
            dataclasses.replace(info, raw={}, splits={}),
            workers=workers,
            num_ahead=2 * num_workers,
            on_record=progress.step,
        )
        try:
            found = list(readers.map(check, (shard for _, shard in work)))
        except BaseException:
            progress.is_stopped = True
            readers.shutdown(wait=False, cancel_futures=True)
            workers.close()
            raise
    splits = {
        split: _add_up([f for (s, _), f in zip(work, found, strict=True) if s == split])
        for split in info.splits
    }
    faults = _faults_of_set(info, found)
    bad = len(faults) + sum(len(split["faults"]) for split in splits.values())
    return {
        "folder": str(folder),
        "is_whole": not bad,
        "faults": faults,
        "splits": splits,
    }


def _check_shard(
    info,
    shard: dict[str, Any],
    *,
    workers: isolated.Workers,
    num_ahead: int,
    on_record: Callable[[], None],
) -> dict[str, Any]:
    from data import shards
    from tl_tf import integrity

    path, faults, built = info.folder / shard["file"], [], []
    num_records = num_frames = bad_records = 0

    def note(record: int | None, fault: str) -> None:
        faults.append({"shard": shard["file"], "record": record, "fault": fault})

    try:
        built = info.report(shard)["built"]
    except ValueError as error:
        note(None, str(error))
    try:
        info.shard_path(shard)
    except ValueError as error:
        note(None, str(error))
    places, rest = [], ""
    if path.is_file():
        try:
            places, rest = integrity.places(path)
        except ValueError as error:
            note(None, str(error))
    waiting: collections.deque = collections.deque()
    for record, (offset, _) in enumerate(places):
        expected = built[record] if record < len(built) else {}
        call = workers.submit(
            integrity.fault_at,
            path,
            offset,
            info,
            video_id=expected.get("id"),
            num_frames=expected.get("frames"),
            decode=integrity.decode_by_pillow,
        )
        waiting.append((record, expected, call))
        while len(waiting) >= num_ahead or (waiting and record == len(places) - 1):
            number, expected, call = waiting.popleft()
            try:
                fault = call.result()
            except isolated.Failed as error:
                fault = f"wanted a record that can be decoded, but {error}"
            num_records += 1
            num_frames += expected.get("frames", 0)
            if fault:
                bad_records += 1
                note(number, integrity.sentence(path, number, fault))
            on_record()
    others = [fault for fault in faults if ": wanted video " in fault["fault"]]
    if len(others) == len(places) > 1:  # one sentence for what is one fault
        faults[:] = [fault for fault in faults if fault not in others]
        what = (
            f"all {len(places)} records are other videos than its report says: it was"
        )
        note(None, f"{path}: {what} swapped. {integrity.records.REBUILD}")
    lost = max(shard["records"] - len(places), 0)
    if rest:
        what = f"{rest}; {lost} of {shard['records']} records cannot be read"
        note(len(places), integrity.sentence(path, len(places), what))
    elif len(places) != shard["records"] and path.is_file():
        what = f"wanted {shard['records']} records in the shard, got {len(places)}"
        note(None, integrity.sentence(path, len(places), what))
    elif not faults and shard.get("sha256", "") not in ("", shards.sha256(path)):
        what = "wanted the SHA-256 that dataset_info.json lists, got another: other"
        note(None, f"{path}: {what} records stand here. {integrity.records.REBUILD}")
    return {
        "ids": [video["id"] for video in built],
        "records": num_records,
        "frames": num_frames,
        "bad_records": bad_records + lost,
        "faults": faults,
    }


def _add_up(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "shards": len(found),
        **{
            name: sum(shard[name] for shard in found)
            for name in ("records", "frames", "bad_records")
        },
        "faults": [fault for shard in found for fault in shard["faults"]],
    }


def _faults_of_set(info, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What no shard alone tells."""
    listed = {s["file"] for entry in info.splits.values() for s in entry["shards"]}
    there = {path.name for path in info.folder.glob("*.tfrecord")}
    faults = [
        f"{info.folder / name}: dataset_info.json does not list it. The build has not"
        " ended: run the same data.build command again."
        for name in sorted(there - listed)
    ]
    times = collections.Counter(name for shard in found for name in shard["ids"])
    faults += [
        f"{info.folder}: wanted each video once in all splits, got {name} {count}"
        " times. Build the set again."
        for name, count in times.items()
        if count > 1
    ]
    return [{"shard": None, "record": None, "fault": fault} for fault in faults]


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, split in found["splits"].items():
        count = len(split["faults"])
        lines.append(
            f"{name}: {split['records']} videos with {split['frames']} frames read in"
            f" {split['shards']} shards; {split['bad_records']} bad,"
            f" {count} fault{'s' * (count != 1)}"
        )
        lines += [f"  {fault['fault']}" for fault in split["faults"]]
    lines += [f"  {fault['fault']}" for fault in found["faults"]]
    verdict = "whole" if found["is_whole"] else "NOT whole"
    return [*lines, f"{found['folder']}: {verdict}"]


if __name__ == "__main__":
    sys.exit(main())
