from pathlib import Path

import pytest

from data import build, csv_list, manifest
from tests.data import videos


def write(folder: Path, **files: str) -> Path:
    """Writes train.csv, test.csv and classes.txt; a list begins with its header."""
    for name, text in {"test": "path,labels\nz.mp4,a\n", **files}.items():
        suffix = ".txt" if name == "classes" else ".csv"
        (folder / name).with_suffix(suffix).write_text(text)
    return folder


def read(folder: Path, *splits: str) -> manifest.Annotations:
    settings = csv_list.Settings(annotations_dir=folder)
    return csv_list.read(settings, splits or manifest.SPLITS)


def test_rows_become_clips(tmp_path):
    text = (
        'labels,path,end,start\nb;a,"in/x, 1.mp4",9.5,\na,in/y.mp4,,12.25\n,-z.mp4,,\n'
    )
    found = read(write(tmp_path, train=text), "train")
    assert found.classes == ["a", "b"] and found.label_kind == "multi_label"
    assert found.clips == {
        "train": [
            manifest.Clip(
                "in__x__1_0-9.5", tmp_path / "in/x, 1.mp4", 0.0, 9.5, label_ids=(0, 1)
            ),
            manifest.Clip(
                "in__y_12.25-end", tmp_path / "in/y.mp4", 12.25, label_ids=(0,)
            ),
            manifest.Clip("-z", tmp_path / "-z.mp4"),
        ]
    }
    assert [path.name for path in found.sources] == ["train.csv", "test.csv"]


def test_times_may_be_left_out(tmp_path):
    (clip,) = read(write(tmp_path, train="path,labels\nx.mp4,b\n")).clips["train"]
    assert (clip.start_seconds, clip.end_seconds) == (0.0, None)


def test_one_label_a_row_is_one_kind_in_both_lists(tmp_path):
    write(tmp_path, train="path,labels\nx.mp4,a\n")
    assert read(tmp_path).label_kind == "single_label"
    write(tmp_path, train="path,labels\nx.mp4,a\n", test="path,labels\nz.mp4,\n")
    assert read(tmp_path, "train").label_kind == "multi_label"


def test_classes_are_those_of_both_lists_or_of_the_file(tmp_path):
    write(tmp_path, train="path,labels\nx.mp4,c\n", test="path,labels\nz.mp4,b\n")
    assert read(tmp_path, "train").classes == ["b", "c"]
    write(tmp_path, classes="c\nunused\na\nb\n")
    found = read(tmp_path)
    assert found.classes == ["c", "unused", "a", "b"]
    assert found.clips["train"][0].label_ids == (0,)
    assert found.sources[-1].name == "classes.txt"


def test_one_list_is_enough_for_one_split(tmp_path):
    write(tmp_path)
    assert len(read(tmp_path, "test").clips["test"]) == 1
    with pytest.raises(ValueError, match="train.csv: no such file.\ncsv expects the l"):
        read(tmp_path)


def test_a_video_may_have_several_clips(tmp_path):
    text = (
        "path,start,end,labels\nx.mp4,0,1,a\nx.mp4,0.5,2,a\nx.avi,0,1,a\n./x.mp4,3,,a\n"
    )
    test = "path,start,end,labels\nx.mp4,2,3,a\n"
    found = read(write(tmp_path, train=text, test=test))
    # CRC-32 of "x.mp4_0-1" and "x.avi_0-1", which would look alike
    assert [clip.video_id for clip in found.clips["train"]] == [
        "x_0-1-329d9b14",
        "x_0.5-2",
        "x_0-1-e3e71907",
        "x_3-end",
    ]


ERRORS = {
    "unknown column": (
        "path,label\nx.mp4,a\n",
        r"csv, line 1: wanted the columns path,",
    ),
    "other separator": (
        "path;labels\nx.mp4;a\n",
        "got 'path;labels'. Correct the first",
    ),
    "no labels column": ("path\nx.mp4\n", "wanted the columns path,labels or"),
    "column twice": ("path,labels,labels\nx,a,a\n", "line 1: wanted the columns"),
    "empty file": ("", "got 'an empty file'"),
    "missing field": ("path,labels\nx.mp4\n", "line 2: wanted 2 columns, got '1'"),
    "no path": (
        "path,labels\n ,a\n",
        "line 2: wanted a path below VIDEOS_DIR, got ' '",
    ),
    "absolute": ("path,labels\n/x.mp4,a\n", "a path below VIDEOS_DIR, got '/x.mp4'"),
    "outside": ("path,labels\na/../../x,a\n", "a path below VIDEOS_DIR"),
    "clock time": (
        "path,start,labels\nx.mp4,1:15,a\n",
        "line 2: wanted a time in seconds, 0 or more, got '1:15'. Write 75.5 and not",
    ),
    "nan": (
        "path,start,labels\nx.mp4,nan,a\n",
        "a time in seconds, 0 or more, got 'nan'",
    ),
    "infinite": ("path,end,labels\nx.mp4,inf,a\n", "in seconds, 0 or more, got 'inf'"),
    "negative": ("path,start,labels\nx.mp4,-1,a\n", "in seconds, 0 or more, got '-1'"),
    "backwards": (
        "path,start,end,labels\nx.mp4,3,2.5,a\n",
        "line 2: wanted an end after the start, got '3 to 2.5'. Correct",
    ),
    "no length": ("path,start,end,labels\nx.mp4,3,3,a\n", "an end after the start"),
    "label twice": ("path,labels\nx.mp4,a;a\n", "labels joined by ';', each once, got"),
    "label empty": (
        "path,labels\nx.mp4,a;\n",
        "labels joined by ';', each once, got 'a;",
    ),
    "row twice": (
        "path,start,labels\nx.mp4,,a\ny.mp4,,a\nx.mp4,0,b\n",
        "line 4: wanted each clip once, got 'x.mp4, also on line 2'. Remove one of the",
    ),
    "leak": (
        "path,start,end,labels\nz.mp4,4,5,a\n",
        "test.csv, line 2: wanted moments that train does not have, got 'z.mp4, which"
        " shares some with train.csv, line 2'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_file_line_and_cure(tmp_path, name):
    text, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, train=text))


def test_a_label_outside_the_class_list_is_an_error(tmp_path):
    write(tmp_path, train="path,labels\nx.mp4,a\ny.mp4,b\n", classes="a\n")
    message = (
        "train.csv, line 3: wanted one of the 1 classes of classes.txt, got 'b'. Co"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_the_name_must_be_that_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="csv: --name must consist of letters"):
        csv_list.Settings(annotations_dir=tmp_path, name="a/b")


def test_a_built_list(tmp_path):
    lists, clips = tmp_path / "lists", tmp_path / "clips"
    lists.mkdir()
    clips.mkdir()
    videos.write_video(clips / "x.mp4", videos.numbered(24))  # of one second
    rows = "x.mp4,0.5,,a\nx.mp4,,0.25,b;a\nx.mp4,2,,a\nx.mp4,0.75,9,a\n"
    write(lists, train="path,start,end,labels\n" + rows)
    info = build.build(
        "csv",
        tmp_path,
        annotations_dir=lists,
        videos_dir=clips,
        name="mine",
        splits=["train"],
        max_skipped=0.4,
    )
    assert info.folder == tmp_path / "mine"
    assert info.video_ids("train") == [["x_0.5-end", "x_0-0.25", "x_0.75-9"]]
    (report,) = info.reports("train")
    assert [video["frames"] for video in report["built"]] == [6, 3, 3]
    assert [video["seconds"] for video in report["built"]] == [0.5, 0.25, 0.25]
    assert info.split("train")["notes"] == {"end_past_video": 1}
    assert report["skipped"][0]["reason"] == "no_frames"
    assert info.raw["label_kind"] == "multi_label"
    assert info.coverage("train")["official_videos"] is None
