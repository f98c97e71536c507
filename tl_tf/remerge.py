"""Merges the stored scores of an evaluation anew, without its model.

  python -m tl_tf.remerge runs/NAME/results/validation-100.json --crops=centre
  python -m tl_tf.remerge runs/NAME/results/validation-100.json --clips=0,3 --merge=max

Clips count from 0, at a video's start; crops are first, centre and last, from the left
or the top. What is found is written beside the result, as validation-100-mean-4x1.json.
"""

import argparse
import json
import sys
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

from tl_tf import results, scores  # noqa: E402


def remerge(
    path: Path,
    *,
    merge: str | None = None,
    clips: list[int] | None = None,
    crops: list[str] | None = None,
) -> Path:
    """Merges some or all views; returns the path of the new JSON.

    Args:
      path: of an evaluation's JSON, its `.scores.npz` beside it.
      merge: of scores.MERGES; None for that of the evaluation.
      clips: to merge, from 0; None for all.
      crops: to merge; None for all.

    Raises:
      ValueError: for missing files, another merge, or views that were not scored.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Name the .json of an evaluation.")
    about = json.loads(path.read_text(encoding="utf-8"))
    views = scores.ViewScores.load(path.with_suffix(".scores.npz"))
    views = views.take(clips=clips, crops=crops)
    merge = merge or about["views"]["merge"]
    evaluation = scores.evaluate(views, metric=about["metric"], merge=merge)
    name = f"{path.stem}-{merge}-{views.num_clips}x{views.num_crops}.json"
    results.write_result(path.with_name(name), evaluation, about, merge=merge)
    return path.with_name(name)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_tf.remerge", description=__doc__.splitlines()[0]
    )
    parser.add_argument("result", type=Path, help="the .json of an evaluation")
    parser.add_argument(
        "--merge", choices=sorted(scores.MERGES), help="default: as was"
    )
    parser.add_argument("--clips", help="as 0,3; default: all")
    parser.add_argument("--crops", help="as centre; default: all")
    flags = parser.parse_args()
    try:
        remerge(
            flags.result,
            merge=flags.merge,
            clips=flags.clips and [int(clip) for clip in flags.clips.split(",")],
            crops=flags.crops and flags.crops.split(","),
        )
    except ValueError as error:
        sys.exit(f"remerge: {error}")


if __name__ == "__main__":
    main()
