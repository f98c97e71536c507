"""What a trained model is, for those who did not train it: Markdown and JSON."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import tensorflow as tf

from tl_tf import config, cost, results, serving

JSON, MARKDOWN = "model_card.json", "model_card.md"
SCHEMA_VERSION = 1
LISTED_CLASSES = 30  # more are in the JSON alone
SHOWN_CLASSES = 10  # of more
PACKAGES = ("tl_tf", "tensorflow", "tf_keras")


def build(
    classifier: serving.Classifier,
    *,
    model_dir: Path,
    step: int,
    weights: str,
    view: Sequence[int],
    tflite: Mapping[str, Any],
) -> dict[str, Any]:
    """Gathers what is known of a model; gin must be loaded.

    Args:
      classifier: what is exported.
      model_dir: of the run, whose results of this step are taken in.
      step: of the training.
      weights: where they were read.
      view: shape of what the model sees at once, as [T, H, W, 3].
      tflite: of the TFLite file {"file", "view", "difference"}, or why
        there is none, {"file": None, "because"}.

    Returns:
      What `model_card.json` holds, but for the files.
    """
    trained, model = classifier.trained, classifier.model
    views = views_of(classifier)
    evaluations = list(_results(model_dir, step, views, classifier.merge))
    gin_files, bindings = config.loaded()
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model.name,
        "dataset": trained.dataset,
        "noun": trained.noun,
        "classes": list(trained.classes),
        "scores_by": classifier.loss.kind,
        "frames": trained.frames,
        "views": views,
        "merge": classifier.merge,
        "signatures": _signatures(trained.noun, len(trained.classes)),
        "tflite": dict(tflite),
        "precision": model.compute_dtype,
        "weights": {"from": weights, "step": step},
        "recipe": {
            "gin_files": gin_files,
            "bindings": bindings,
            "checksum": config.checksum(),
            "operative_config": gin.operative_config_str(),
        },
        "coverage": {
            **trained.coverage,
            **{result["split"]: result["coverage"] for result in evaluations},
        },
        "results": evaluations,
        "cost": _cost(classifier, view),
        "intended_use": _intended_use(classifier),
        "limits": _limits(trained.noun),
        "licence_of_training_data": "",
        "versions": _versions(),
        "git_revision": results.git_revision(),
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def views_of(classifier: serving.Classifier) -> dict[str, Any]:
    """What evaluation takes of an example: the fields of Views or Crops that say it."""
    fields = dataclasses.asdict(classifier.sampler)
    names = (
        ("num_clips", "num_crops", "num_frames", "frame_stride")
        + ("short_side_px", "crop_px")
        if classifier.is_video
        else ("crop", "image_px", "resize_px", "antialias")
    )
    one = {} if classifier.is_video else {"num_clips": 1, "num_crops": 1}
    return one | {name: fields[name] for name in names}


def write(card: dict[str, Any], folder: Path) -> None:
    """Writes both files of the card; those in the folder are added to it, summed."""
    card["files"] = {
        path.relative_to(folder).as_posix(): _facts_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (JSON, MARKDOWN)
    }
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    (folder / JSON).write_text(text, encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(card), encoding="utf-8")


def markdown(card: dict[str, Any]) -> str:
    """The card as people read it; classes of any number and of any name."""
    sections = {
        "": _about(card),
        "Intended use and limits": [card["intended_use"], "", card["limits"]],
        "Input and output": _interface(card),
        "Scores": _scores(card),
        "Training data": _data(card),
        "Cost": _cost_lines(card),
        f"Classes ({len(card['classes']):,})": _class_lines(card["classes"]),
        "Files": _table(
            ("file", "size", "SHA-256"),
            [
                (_code(name), size(facts["bytes"]), _code(facts["sha256"]))
                for name, facts in card["files"].items()
            ],
        ),
    }
    lines = [f"# {card['model']} on {_code(card['dataset'])}"]
    for title, body in sections.items():
        lines += ["", f"## {title}"] * bool(title) + ["", *body]
    return "\n".join(lines) + "\n"


def size(num_bytes: int) -> str:
    """Bytes for people: `812 kB`, `4.2 MB`."""
    if num_bytes < 1e6:
        return f"{math.ceil(num_bytes / 1e3)} kB"
    return f"{num_bytes / 1e6:,.1f} MB"


def _about(card: dict[str, Any]) -> list[str]:
    recipe, weights, versions = card["recipe"], card["weights"], card["versions"]
    bindings = [_code(binding) for binding in recipe["bindings"]]
    files = [_code(file) for file in recipe["gin_files"]]
    code = f"tl_tf {versions['tl_tf']}"
    if card["git_revision"]:
        code += f" at {_code(card['git_revision'])}"
    rows = [
        ("recipe", ", ".join([*files, *bindings])),
        ("configuration", f"{_code(recipe['checksum'])}, all of it in `{JSON}`"),
        ("weights", f"{_code(weights['from'])}, step {weights['step']:,}"),
        ("precision", card["precision"]),
        ("code", code),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in versions.items() if k != "tl_tf"),
        ),
        ("exported", card["exported"]),
    ]
    return _table(("", ""), rows)


def _interface(card: dict[str, Any]) -> list[str]:
    rows = [
        (f"`{name}`", *(_tensors(spec[part]) for part in ("inputs", "outputs")))
        for name, spec in card["signatures"].items()
    ]
    is_video = card["noun"] == "videos"
    free = f"B {card['noun']}{', F frames' * is_video} of h x w pixels: all are free."
    return [
        _video_views(card) if is_video else _image_view(card["views"]),
        "",
        *_table(("signature", "input", "output"), rows),
        "",
        f"{free} `features` are what the classifying layer reads"
        + ", the mean over the views." * is_video
        + "." * (not is_video),
        "",
        _tflite_line(card),
    ]


def _video_views(card: dict[str, Any]) -> str:
    views = card["views"]
    stride, px = views["frame_stride"], views["crop_px"]
    every = {1: "", 2: ", every 2nd", 3: ", every 3rd"}.get(
        stride, f", every {stride}th"
    )
    span = (views["num_frames"] - 1) * stride + 1
    return (
        f"Of a video at {card['frames']['fps']:g} frames a second, of any length, the"
        f" views of evaluation are taken: {views['num_clips']} clips x"
        f" {views['num_crops']} crops, each of {views['num_frames']} frames{every} (a"
        f" video shorter than {span} frames loops), {px} x {px} pixels where the short"
        f" side has {views['short_side_px']}. Of the views' scores the"
        f" {_merge_in_words(card)} is the video's."
    )


def _image_view(views: dict[str, Any]) -> str:
    px = views["image_px"]
    height, width = (px, px) if isinstance(px, int) else px
    how = f"resized to {height} x {width} pixels"
    if views["crop"] == "center":
        how = (
            f"resized to a short side of {views['resize_px']} pixels, and the middle"
            f" {height} x {width} are cut out"
        )
    return (
        f"An image of any size is {how}, as in evaluation. It must be upright: the EXIF"
        " orientation of a file is not looked at."
    )


def _tflite_line(card: dict[str, Any]) -> str:
    small, views = card["tflite"], card["views"]
    if small["file"] is None:
        return f"There is no TFLite file: {small['because']}."
    text = (
        f"`{small['file']}` takes one view, cut as said above, `pixels` uint8"
        f" {small['view']}, to `probabilities`, by TFLite's own operations alone. On a"
        f" random view it differs from the model by {small['difference']:.1g} at most."
    )
    if views["num_clips"] * views["num_crops"] > 1:
        text += (
            " The scores below are of all views: run it on each, and take the"
            f" {_merge_in_words(card)} by class."
        )
    return text


def _merge_in_words(card: dict[str, Any]) -> str:
    return {"max": "largest", "mean": "mean"}[card["merge"]]


def _scores(card: dict[str, Any]) -> list[str]:
    if not card["results"]:
        return ["Not evaluated at this step; `--mode=eval` does it, then export again."]
    rows = []
    for result in card["results"]:
        views = result["views"]
        of = f"{views['clips']} x {views['crops']}, {views['merge']}"
        if not result["is_of_these_views"]:
            of += " (not those exported)"
        values = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items())
        share = f"{result['coverage']['share']:.1%}"
        rows.append((result["split"], values, f"{result['examples']:,}", share, of))
    return _table(
        ("split", "scores", card["noun"], "coverage", "views, merged by"), rows
    )


def _data(card: dict[str, Any]) -> list[str]:
    rows = []
    for split, coverage in card["coverage"].items():
        got = coverage.get("videos_built", coverage.get("images_read"))
        wanted = coverage.get("official_videos") or coverage.get(
            "videos_expected", coverage.get("images_expected")
        )
        rows.append((split, f"{got:,}", f"{wanted:,}", f"{coverage['share']:.1%}"))
    licence = card["licence_of_training_data"] or (
        "______ (fill in: on which terms may models be trained on these data, and"
        " passed on?)"
    )
    head = (f"split of {_code(card['dataset'])}", "used", "of", "coverage")
    return [*_table(head, rows), "", f"Licence: {licence}"]


def _cost_lines(card: dict[str, Any]) -> list[str]:
    found = card["cost"]
    lines = [f"- {found['parameters'] / 1e6:,.3f}M parameters"]
    if "gflops_per_view" in found:
        one = card["noun"][:-1]
        lines.append("- " + cost.views_line(found, found["views"], noun=one))
    else:
        lines.append(f"- GFLOPs are not counted: {found['not_counted_because']}")
    lines += [
        f"- tokens of a view: {count['before']:,} before TokenLearner at"
        f" `{count['at']}`, {count['after']:,} after"
        for count in found["tokens"]
    ]
    return lines


def _class_lines(classes: Sequence[str]) -> list[str]:
    if len(classes) <= LISTED_CLASSES:
        return [f"{i}. {_code(name)}" for i, name in enumerate(classes)]
    first = ", ".join(_code(name) for name in classes[:SHOWN_CLASSES])
    return [f"{first}, … All, in the order of the scores, are in `{JSON}`."]


def _signatures(noun: str, num_classes: int) -> dict[str, dict[str, dict[str, str]]]:
    one, frames = ("frames", ", F") if noun == "videos" else ("images", "")
    pixels = {one: f"uint8 [B{frames}, h, w, 3]"}
    files = {one: f"string [B{frames}]"}
    scores = {
        "probabilities": f"float32 [B, {num_classes}]",
        "labels": f"string [{num_classes}]",
    }
    return {
        "serving_default": {"inputs": pixels, "outputs": scores},
        "encoded": {"inputs": files, "outputs": scores},
        "features": {"inputs": pixels, "outputs": {"features": "float32 [B, D]"}},
    }


def _results(
    model_dir: Path, step: int, views: dict[str, Any], merge: str
) -> Iterator[dict[str, Any]]:
    """Of the evaluations of this step in a run's results, what a card says of them."""
    exported = {key: views[f"num_{key}"] for key in ("clips", "crops")}
    for path in sorted((model_dir / "results").glob("*.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.get("step") != step or "metrics" not in raw:
                continue
            done = {key: raw["views"][key] for key in ("clips", "crops", "merge")}
            yield {
                "file": path.name,
                "split": raw["split"],
                "metrics": raw["metrics"],
                "examples": raw[f"num_{raw['noun']}"],
                "coverage": raw["coverage"],
                "views": done,
                "is_of_these_views": done == {**exported, "merge": merge},
                "config_checksum": raw["config_checksum"],
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: wanted the result of an evaluation, got"
                f" {type(error).__name__}: {error}. Evaluate again, or delete it."
            ) from None


def _cost(classifier: serving.Classifier, view: Sequence[int]) -> dict[str, Any]:
    model, views = classifier.model, views_of(classifier)
    num_views = views["num_clips"] * views["num_crops"]
    found = {
        "parameters": sum(v.shape.num_elements() for v in model.trainable_variables),
        "views": num_views,
        "tokens": [],
    }
    try:
        counted = cost.count(model, (1, *view))
    except ValueError as error:
        return {**found, "not_counted_because": str(error)}
    found["tokens"] = token_counts(counted.endpoints)
    return {**found, **cost.of_views(cost.of_view(counted), num_views)}


def token_counts(endpoints: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """How many tokens a view has before and after each TokenLearner, in order.

    Args:
      endpoints: shapes of a model's, of one view.

    Returns:
      Of each {"at", "before", "after"}.
    """
    counts = []
    for name, shape in endpoints.items():
        at, _, what = name.rpartition("/")
        learned = endpoints.get(f"{at}/learned_tokens")
        if what == "token_maps" and learned:
            before, after = (math.prod(size[:-1]) for size in (shape, learned))
            counts.append({"at": at, "before": before, "after": after})
    return counts


def _intended_use(classifier: serving.Classifier) -> str:
    trained = classifier.trained
    count = len(trained.classes)
    one = {"videos": "a video", "images": "an image"}[trained.noun]
    how_many = "one" if classifier.loss.kind == "softmax" else "any number"
    return (
        f"It says which of {count:,} classes {one} shows, {how_many} of them at once;"
        f" it is meant for {trained.noun} like those of {_code(trained.dataset)}, the"
        " data set it was trained on."
    )


def _limits(noun: str) -> str:
    return (
        f"It knows no other classes, so it scores these for {noun} that show none of"
        " them too; its scores are not calibrated, and what it does on other data, or"
        " differently for some people than for others, was not measured: test it on"
        " your own before anything depends on it."
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout
            found[package] = "(a checkout)"
    return {**found, "tensorflow": tf.__version__, "python": platform.python_version()}


def _facts_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _tensors(specs: dict[str, str]) -> str:
    return ", ".join(f"`{name}` {spec}" for name, spec in specs.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in cells
    ]


def _code(text: str) -> str:
    """As Markdown's code, shown as it is, in as many backticks as that takes."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"
