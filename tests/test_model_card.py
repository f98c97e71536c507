import json
import re

import markdown_it  # comes with TensorFlow
import pytest

from tests import tiny, toy_model
from tl_tf import experiment, losses, model_card, serving  # noqa: F401 recipes bind it
from tl_tf.inputs import crops, views

COVERAGE = {
    "videos_expected": 9,
    "videos_built": 8,
    "official_videos": 10,
    "share": 0.8,
}
RESULT = {
    "dataset": "toy",
    "split": "test",
    "step": 7,
    "noun": "videos",
    "metrics": {"map": 0.5, "loss": 0.25},
    "num_videos": 8,
    "coverage": COVERAGE,
    "views": {"views": 2, "clips": 2, "crops": 1, "merge": "max"},
    "config_checksum": "0123456789ab",
}
TFLITE = {
    "file": "model.tflite",
    "view": [1, 3, 5, 5, 3],
    "difference": 1.2e-7,
}


def classifier(classes=("a", "b", "c", "d"), noun="videos", kind="sigmoid"):
    sampler = views.Views(
        is_training=False,
        num_frames=3,
        frame_stride=2,
        crop_px=5,
        short_side_px=6,
        fps=6.0,
        num_classes=len(classes),
        num_clips=2,
    )
    if noun == "images":
        sampler = crops.Crops(
            is_training=False, crop="center", image_px=(5, 7), resize_px=9
        )
    return serving.Classifier(
        toy_model.ToyModel(),
        sampler=sampler,
        loss=losses.Loss(kind),
        merge="max",
        trained=serving.Trained(
            dataset="my | set",
            noun=noun,
            classes=list(classes),
            frames={"fps": 6.0, "short_side": 6} if noun == "videos" else {},
            coverage={"train": COVERAGE},
        ),
    )


def build(model_dir, served=None, **changes):
    tiny.load(tiny.QUICKSTART, "LEARNING_RATE = 0.5")
    arguments = {
        "model_dir": model_dir,
        "step": 7,
        "weights": "runs/toy/ckpt-7",
        "view": [3, 5, 5, 3],
        "tflite": TFLITE,
    }
    return model_card.build(served or classifier(), **arguments | changes)


def text_of(card, folder) -> str:
    model_card.write(card, folder)
    return (folder / "model_card.md").read_text(encoding="utf-8")


def with_results(model_dir, *results):
    (model_dir / "results").mkdir()
    for i, result in enumerate(results):
        (model_dir / "results" / f"{i}.json").write_text(json.dumps(result))
    return model_dir


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables as a reader of Markdown finds them: rows of cells."""
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    found, cells = [], []
    for token in parser.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline" and token.level > 3:  # within a row
            cells.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            found[-1].append(cells)
    return found


def test_the_json_says_what_a_program_needs(tmp_path):
    card = build(tmp_path)
    text_of(card, tmp_path)
    read = json.loads((tmp_path / "model_card.json").read_text(encoding="utf-8"))
    assert read["classes"] == ["a", "b", "c", "d"] and read["noun"] == "videos"
    assert read["frames"] == {"fps": 6.0, "short_side": 6}
    assert read["views"] == {
        "num_clips": 2,
        "num_crops": 1,
        "num_frames": 3,
        "frame_stride": 2,
        "short_side_px": 6,
        "crop_px": 5,
    }
    assert (read["merge"], read["scores_by"]) == ("max", "sigmoid")
    assert read["signatures"]["encoded"]["inputs"] == {"frames": "string [B, F]"}
    assert read["recipe"]["gin_files"] == [tiny.QUICKSTART]
    assert "LEARNING_RATE = 0.5" in read["recipe"]["bindings"]
    assert re.fullmatch("[0-9a-f]{12}", read["recipe"]["checksum"])
    # Of the toy model by hand: 3 x 4 weights.
    assert read["cost"]["parameters"] == 12


def test_results_of_this_step_are_told_from_others(tmp_path):
    centre = {**RESULT["views"], "clips": 1}
    with_results(
        tmp_path,
        RESULT,
        {**RESULT, "step": 6},
        {**RESULT, "split": "other", "views": centre},
        {"step": 7, "shots": [1]},  # of few-shot classification
    )
    card = build(tmp_path)
    found = [(r["split"], r["is_of_these_views"]) for r in card["results"]]
    assert found == [("test", True), ("other", False)]
    assert card["coverage"].keys() == {"train", "test", "other"}
    scores = next(t for t in tables_of(text_of(card, tmp_path)) if t[0][0] == "split")
    assert scores[1] == ["test", "map 0.5000, loss 0.2500", "8", "80.0%", "2 x 1, max"]
    assert scores[2][-1] == "1 x 1, max (not those exported)"


def test_what_was_not_evaluated_is_said(tmp_path):
    text = text_of(build(tmp_path), tmp_path)
    assert "Not evaluated at this step; `--mode=eval` does it" in text


def test_a_result_that_cannot_be_read_is_named(tmp_path):
    with_results(tmp_path, {**RESULT, "views": None})
    with pytest.raises(ValueError, match="0.json: wanted the result of an evaluation"):
        build(tmp_path)


@pytest.mark.parametrize("count", [4, 1000])
def test_classes_are_listed_as_far_as_people_read(count, tmp_path):
    names = [f"class {i}" for i in range(count)]
    text = text_of(build(tmp_path, classifier(names)), tmp_path)
    assert f"## Classes ({count:,})" in text
    assert ("3. `class 3`" in text) == (count == 4)
    assert ("`class 9`, … All, in the order" in text) == (count == 1000)
    assert "class 10" not in text
    read = json.loads((tmp_path / "model_card.json").read_text(encoding="utf-8"))
    assert read["classes"] == names
    assert len(text.splitlines()) < 100


def test_names_of_strangers_break_no_table(tmp_path):
    names = ["a|b", "`code`", "<b>*x*</b>", "line\nbreak"]
    (tmp_path / "saved_model.pb").write_bytes(b"x" * 1500)
    text = text_of(build(tmp_path, classifier(names)), tmp_path)
    for table in tables_of(text):
        assert len({len(row) for row in table}) == 1
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    code = [
        child.content
        for token in parser.parse(text)
        for child in token.children or ()
        if child.type == "code_inline"
    ]
    assert {"a|b", "`code`", "<b>*x*</b>", "line break", "my | set"} <= set(code)
    assert ["saved_model.pb", "2 kB"] in [row[:2] for t in tables_of(text) for row in t]


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({}, "by TFLite's own operations alone. On a random view it differs from"),
        ({}, "run it on each, and take the largest by class"),
        ({"file": None, "because": "too large"}, "There is no TFLite file: too large."),
    ],
)
def test_the_card_says_what_the_tflite_file_is(changes, wanted, tmp_path):
    assert wanted in text_of(build(tmp_path, tflite=TFLITE | changes), tmp_path)


def test_the_views_are_told_in_words(tmp_path):
    text = text_of(build(tmp_path), tmp_path)
    assert "2 clips x 1 crops, each of 3 frames, every 2nd (a video shorter" in text
    assert "shorter than 5 frames loops), 5 x 5 pixels" in text


def test_the_view_of_an_image_is_told_in_words(tmp_path):
    served = classifier(noun="images", kind="softmax")
    text = text_of(build(tmp_path, served), tmp_path)
    assert "a short side of 9 pixels, and the middle 5 x 7 are cut out" in text
    assert "which of 4 classes an image shows, one of them at once" in text


def test_a_model_that_cannot_be_counted_has_a_card(tmp_path):
    card = build(tmp_path, view=[None, 5, 5, 3])
    assert "GFLOPs are not counted: cost: " in text_of(card, tmp_path)
