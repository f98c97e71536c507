"""Input pipelines against the decoder's limit and rivals, interleaved.

  python -m benchmarks.input
  python -m benchmarks.input --data_dir=DIR --dataset=NAME --parts training evaluation

Reads the textured videos and images that it makes, or a data set of your own. The limit
is libjpeg-turbo, from C and without any framework, decoding the same windows of the
same files on as many threads as cores: what no pipeline that decodes JPEG can beat.
Prints a table a part; --json writes everything, --images_dir the curves.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

from benchmarks import measure, pipelines
from tl_tf import startup

PARTS = ("training", "evaluation", "images", "memory", "sweep")
LIMIT, OURS = "limit: libjpeg-turbo", "ours"
SWEEPS = {
    "num_frames": (16, 32, 64, 96),
    "crop_px": (112, 160, 224, 256),
    "batch_size": (1, 4, 16),
}
MEMORY_CLIPS = 2000


def contenders(part: str, task: pipelines.Task) -> list[measure.Contender]:
    """Those of a part; the first is the limit, the second ours."""
    if part == "training":
        found = {
            LIMIT: (pipelines.limit_of_clips, task),
            OURS: (pipelines.ours_training, task, False, False),
            "ours, resized": (pipelines.ours_training, task, True, False),
            "ours, resized, float32": (pipelines.ours_training, task, True, True),
            "simplejpeg in threads": (pipelines.simplejpeg_of_clips, task),
            "Model Garden (resized, float32)": (
                pipelines.model_garden_clips,
                task,
                True,
            ),
        }
        if task.videos_dir:
            found["PyAV from mp4"] = (pipelines.pyav_clips, task)
    elif part == "evaluation":
        found = {
            LIMIT: (pipelines.limit_of_clips, task),
            OURS: (pipelines.ours_evaluation, task),
            "Model Garden (float32)": (pipelines.model_garden_clips, task, False),
        }
    else:
        found = {
            LIMIT: (pipelines.limit_of_images, task),
            OURS: (pipelines.ours_images, task, False),
            "ours, float32": (pipelines.ours_images, task, True),
            "Model Garden (float32)": (pipelines.model_garden_images, task),
            "tf_keras (whole images, float32)": (pipelines.keras_images, task),
        }
    return [measure.Contender(n, b, tuple(args)) for n, (b, *args) in found.items()]


def compare(part: str, task: pipelines.Task, rounds: int) -> list[dict[str, Any]]:
    """Times a part's contenders and prints their table.  -> its rows"""
    results = measure.interleave(contenders(part, task), rounds=rounds)
    limit = results.get(LIMIT)
    rows = []
    print(f"\n{part}: {describe(part, task)}")
    print("| pipeline | share of the limit | ours is faster | peak memory, MB |")
    print("|---|---|---|---|")
    for name, result in results.items():
        row = {
            "part": part,
            "pipeline": name,
            "share_of_limit": limit and measure.speedup(result, limit),
            "ours_is_faster": measure.speedup(results[OURS], result),
            "peak_mb": result.peak_bytes / 1e6,
            "seconds": result.seconds,
            "task": dataclasses.asdict(task),
        }
        rows.append(row)
        print(
            f"| {name} | {row['share_of_limit'] or '–'} | {row['ours_is_faster']} |"
            f" {row['peak_mb']:.0f} |",
            flush=True,
        )
    return rows


def describe(part: str, task: pipelines.Task) -> str:
    """What is read, in a line."""
    if part == "images":
        return f"{task.crop_px} px, batches of {task.batch_size}"
    views = f", {task.num_clips} x {task.num_crops} views a video"
    return (
        f"{task.dataset}/{task.split}, {task.num_frames} frames of {task.crop_px} px,"
        f" batches of {task.batch_size}{views * (part == 'evaluation')}"
    )


def memory_curve(task: pipelines.Task, clips: int) -> list[tuple[int, float]]:
    """Resident megabytes over the clips read, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        curve = pool.apply(pipelines.resident_megabytes, (task, clips, 20))
    half = [megabytes for done, megabytes in curve if done >= clips / 2]
    print(
        f"\nmemory: resident {curve[0][1]:.0f} MB after {curve[0][0]} clips,"
        f" {min(half):.0f} to {max(half):.0f} MB in the second half of {curve[-1][0]}"
    )
    return curve


def sweep(task: pipelines.Task, field: str, rounds: int) -> list[dict[str, float]]:
    """Pixels a second of ours and of the limit, as shares of the limit at `task`."""
    found = []
    for value in SWEEPS[field]:
        changed = dataclasses.replace(task, **{field: value})
        changed = dataclasses.replace(changed, count=max(24, 2 * changed.batch_size))
        results = measure.interleave(
            [
                measure.Contender("base", pipelines.limit_of_clips, (task,)),
                *contenders("training", changed)[:2],
            ],
            rounds=rounds,
        )
        clips = {name: changed.count / task.count for name in results} | {"base": 1.0}
        rates = {
            name: statistics.median(
                clips[name] * base / own
                for own, base in zip(
                    result.seconds, results["base"].seconds, strict=True
                )
            )
            for name, result in results.items()
            if name != "base"
        }
        print(
            f"{field} {value}: " + ", ".join(f"{n} {r:.3g}" for n, r in rates.items())
        )
        found.append({"field": field, "value": value, **rates})
    return found


def main() -> None:
    """Runs the parts, prints tables, writes JSON and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, help="of a data set of your own")
    parser.add_argument("--dataset", help="its name, as data.build made it")
    parser.add_argument("--split", default="train")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fields", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/benchmark_input"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images_dir", type=Path, help="for the curves, as PNG")
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS)
    parser.add_argument("--clips", type=int, default=48, help="of a round")
    parser.add_argument("--memory_clips", type=int, default=MEMORY_CLIPS)
    flags = parser.parse_args()
    if (flags.data_dir is None) != (flags.dataset is None):
        parser.error("--data_dir and --dataset go together.")
    startup.quiet_tensorflow()
    videos = None
    if flags.dataset is None:
        videos = str(pipelines.make_videos(flags.work_dir))
        pipelines.make_images(flags.work_dir)
    task = pipelines.Task(
        str(flags.data_dir or flags.work_dir),
        flags.dataset or pipelines.NAME,
        split=flags.split,
        count=flags.clips,
        videos_dir=videos,
    )
    views = dataclasses.replace(task, batch_size=1, num_clips=4, num_crops=3, count=72)
    images = pipelines.Task(str(flags.work_dir), count=1024, batch_size=64)
    tasks = {"training": task, "evaluation": views, "images": images}
    content: dict[str, Any] = {"tables": [], "memory": [], "sweep": []}
    for part in flags.parts:
        if part == "images" and flags.dataset is not None:
            continue
        if part in tasks:
            content["tables"] += compare(part, tasks[part], flags.rounds)
        elif part == "memory":
            content["memory"] = memory_curve(task, flags.memory_clips)
            if flags.images_dir:
                measure.draw_curves(
                    flags.images_dir / "input_memory.png",
                    {"ours, training": content["memory"]},
                    title="Resident memory over clips read",
                    x_label="clips",
                    y_label="MB",
                )
        else:
            for field in flags.fields:
                rows = sweep(task, field, flags.rounds)
                content["sweep"] += rows
                if flags.images_dir:
                    draw_sweep(flags.images_dir / f"input_{field}.png", field, rows)
    if flags.json:
        measure.write_json(flags.json, content)


def draw_sweep(path: Path, field: str, rows: list[dict[str, float]]) -> None:
    """Clips a second over one of SWEEPS."""
    names = [name for name in rows[0] if name not in ("field", "value")]
    measure.draw_curves(
        path,
        {name: [(row["value"], row[name]) for row in rows] for name in names},
        title="Training input, 64 frames of 224 px in batches of 4 but for the axis",
        x_label=field,
        y_label="clips a second, limit at 64 x 224 px = 1",
    )


if __name__ == "__main__":
    main()
