import json
import shutil
import sys

import numpy as np
import pytest

from tests import tiny
from tl_tf import experiment, remerge

FULL = (
    "EVAL_CLIPS = 2",
    "eval/clip_dataset.num_crops = 3",
    "build_evaluator.merge = 'mean'",
)


@pytest.fixture(scope="module")
def evaluated(tiny_data, tmp_path_factory):
    """The JSON of an evaluation of six views a video."""
    model_dir = tmp_path_factory.mktemp("run")
    tiny.load(tiny.QUICKSTART, *FULL)
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=tiny_data, tpu=None)
    return model_dir / "results" / "test-2.json"


def read(path) -> dict:
    return json.loads(path.read_text())


def test_all_views_merge_to_the_same_result(evaluated, capfd):
    path = remerge.remerge(evaluated)
    assert path.name == "test-2-mean-2x3.json"
    assert read(path) == read(evaluated)
    assert "eval   step 2  synthetic/test: map" in capfd.readouterr().out


def test_another_merge_is_what_the_model_would_have_given(
    evaluated, tiny_data, tmp_path
):
    again = read(remerge.remerge(evaluated, merge="max", crops=["centre"]))
    model_dir = shutil.copytree(evaluated.parents[1], tmp_path / "run")
    bindings = ("eval/clip_dataset.num_crops = 1", "build_evaluator.merge = 'max'")
    tiny.load(tiny.QUICKSTART, *FULL, *bindings)
    experiment.run("eval", model_dir=model_dir, data_dir=tiny_data, tpu=None)
    fresh = read(model_dir / "results" / "test-2.json")
    assert again["views"] == fresh["views"] and again["cost"] == fresh["cost"]
    assert again["metrics"] == pytest.approx(fresh["metrics"], rel=1e-6)


def test_the_views_of_one_video_differ(evaluated):
    """Real pixels through the whole pipeline: other crops, other scores."""
    with np.load(evaluated.with_suffix(".scores.npz")) as stored:
        assert stored["view_crops"].tolist() == ["first", "centre", "last"] * 2
        for scores in stored["view_scores"]:
            assert len(np.unique(scores.round(7), axis=0)) == 6


def test_the_command_line(evaluated, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["remerge", str(evaluated), "--clips=1", "--crops=first,last"]
    )
    remerge.main()
    result = read(evaluated.with_name("test-2-mean-1x2.json"))
    assert result["views"] == {"views": 2, "clips": 1, "crops": 2, "merge": "mean"}
    monkeypatch.setattr(sys, "argv", ["remerge", str(evaluated), "--clips=7"])
    with pytest.raises(SystemExit, match="remerge: clips: wanted some of"):
        remerge.main()


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(ValueError, match="a.json: no such file. Name the .json of"):
        remerge.remerge(tmp_path / "a.json")
