import json
from pathlib import Path

import pytest

from data import avid, build, manifest
from tests.data import videos

TRAIN = {"bbbbbbbb.mp4": "jump", "aaaaaaaa.mp4": "walk", "cccccccc.mp4": "none"}
VAL = {"dddddddd.mp4": "", "eeeeeeee.mp4": "playing cymblas", "ffffffff.mp4": "none"}


def write(folder: Path, *, train=TRAIN, val=VAL) -> Path:
    (folder / "avid_train.json").write_text(json.dumps(train))
    (folder / "avid_val.json").write_text(json.dumps(val))
    return folder


def read(folder: Path, *splits: str) -> manifest.Annotations:
    settings = avid.Settings(annotations_dir=folder, videos_dir=folder / "videos")
    return avid.read(settings, splits or manifest.SPLITS)


def test_classes_are_those_of_both_lists_whichever_split_is_built(tmp_path):
    found = read(write(tmp_path), "train")
    assert found.classes == ["jump", "playing cymblas", "walk"]
    assert found.clips["train"] == [
        manifest.Clip("bbbbbbbb", tmp_path / "videos/bbbbbbbb.mp4", label_ids=(0,)),
        manifest.Clip("aaaaaaaa", tmp_path / "videos/aaaaaaaa.mp4", label_ids=(2,)),
    ]
    assert found.remarks == ["3 classes are in the lists; the paper reports 887."]


def test_videos_without_action_are_left_out_by_name(tmp_path):
    found = read(write(tmp_path))
    assert found.left_out == {
        "train": {"labelled_none": ["cccccccc.mp4"]},
        "test": {"labelled_none": ["ffffffff.mp4"], "without_label": ["dddddddd.mp4"]},
    }
    assert [clip.label_ids for clip in found.clips["test"]] == [(1,)]
    assert found.official_videos == {"test": 46_850 - 3_505 - 4}


def test_887_classes_need_no_remark(tmp_path):
    train = {f"{i:08d}.mp4": f"class {i}" for i in range(886)}
    assert not read(write(tmp_path, train=train)).remarks


@pytest.mark.parametrize(
    "val, message",
    [
        (
            {"x.avi": "walk"},
            r"avid_val.json: wanted .*, got 'x.avi': 'walk'. Use the off",
        ),
        ({"../x.mp4": "walk"}, "got '../x.mp4'"),
        ({"x.mp4": 3}, "got 'x.mp4': '3'"),
        ({"x.mp4": {"label": "walk"}}, "got 'x.mp4': \"{'label': 'walk'}\""),
    ],
)
def test_other_entries_are_errors(tmp_path, val, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, val=val))


def test_both_lists_are_needed(tmp_path):
    (write(tmp_path) / "avid_train.json").unlink()
    with pytest.raises(
        ValueError, match="train.json: no such file.\navid expects the t"
    ):
        read(tmp_path, "test")


def test_a_built_set(tmp_path, capsys):
    write(tmp_path)
    (tmp_path / "videos").mkdir()
    for name in ("aaaaaaaa", "bbbbbbbb", "eeeeeeee"):
        videos.write_video(tmp_path / "videos" / f"{name}.mp4", videos.numbered(5))
    info = build.build(
        "avid", tmp_path, annotations_dir=tmp_path, videos_dir=tmp_path / "videos"
    )
    assert info.video_ids("train") == [["bbbbbbbb", "aaaaaaaa"]]
    assert info.coverage("test")["share"] == 1 / 43_341
    output = capsys.readouterr().out
    assert "test: left out: 1 labelled_none\n  ffffffff.mp4" in output
    assert "3 classes are in the lists; the paper reports 887." in output
