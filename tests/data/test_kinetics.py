from pathlib import Path

import pytest

from data import build, kinetics, manifest
from tests.data import videos

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = HEADER + (
    '"massaging person\'s head",-AbcdefghiJ,4,14,train,0\n'
    '"passing American football (in game)",0_cdefghi-J,84,94,train,1\n'
    "passing american football (not in game),0_cdefghi-J,7,17,train,0\n"
)
VAL = (
    "label,youtube_id,time_start,time_end,split\n"
    "air drumming,--CDEFGHIJK,0,10,validate\n"
    "air drumming,missing_one,1000,1010,validate\n"
)
LABELS = [
    "air drumming",
    "massaging person's head",
    "passing American football (in game)",
    "passing american football (not in game)",
]


def write(folder: Path, *clips: str, **lists: str) -> Path:
    """Writes lists by name, and empty clip files."""
    lists = {"kinetics-400_train": TRAIN, "validate": VAL, **lists}
    for name, text in lists.items():
        if text:
            (folder / f"{name}.csv").write_text(text)
    for name in clips:
        path = folder / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "clips").mkdir(exist_ok=True)
    return folder


def read(folder: Path, *splits: str, version: int = 400, **settings):
    settings = kinetics.Settings(
        version=version,
        annotations_dir=folder,
        videos_dir=folder / "clips",
        **settings,
    )
    return kinetics.read(settings, splits or manifest.SPLITS)


def test_clips_are_found_by_their_names(tmp_path):
    names = [
        "train/massaging_person's_head/-AbcdefghiJ_000004_000014.mp4",
        "train/passing American football (in game)/0_cdefghi-J_000084_000094.mp4",
        "0_cdefghi-J_7_17.MKV",
        "val/--CDEFGHIJK_000000_000010.mp4",
    ]
    found = read(write(tmp_path, *names))
    assert found.classes == LABELS and found.label_kind == "single_label"
    clips = tmp_path / "clips"
    assert found.clips["train"] == [
        manifest.Clip("-AbcdefghiJ_000004_000014", clips / names[0], label_ids=(1,)),
        manifest.Clip("0_cdefghi-J_000084_000094", clips / names[1], label_ids=(2,)),
        manifest.Clip("0_cdefghi-J_000007_000017", clips / names[2], label_ids=(3,)),
    ]
    assert [clip.video_path for clip in found.clips["test"]] == [
        clips / names[3],
        clips / "missing_one_001000_001010.mp4",
    ]
    assert found.official_videos == {"train": 246_534, "test": 19_906}


def test_the_class_order_does_not_depend_on_the_split(tmp_path):
    write(tmp_path)
    for split in manifest.SPLITS:
        assert read(tmp_path, split).classes == LABELS
        assert read(tmp_path, split).remarks == read(tmp_path).remarks
    assert [path.name for path in read(tmp_path, "test").sources] == [
        "kinetics-400_train.csv",
        "validate.csv",
    ]


def test_remarks_say_what_a_result_stands_on(tmp_path):
    names = ["ZZZZZZZZZZZ_000001_000011.mp4", "notes.txt", "0_cdefghi-J_7_17.txt"]
    remarks = read(write(tmp_path, *names)).remarks
    assert remarks == [
        "split test is the official validation set (validate.csv): the official test"
        " set has no labels.",
        "4 of 400 classes: label ids differ from those of the whole set, unless"
        " --classes_file gives all its labels.",
        "1 clips of VIDEOS_DIR are in none of the lists read.",
    ]


def test_a_class_list_gives_parts_the_official_ids(tmp_path):
    path = tmp_path / "classes.txt"
    names = sorted([*LABELS, *(f"x{i:03d}" for i in range(396))])
    path.write_text("\n".join(names))
    found = read(write(tmp_path), "train", classes_file=path)
    assert found.classes == names and len(found.remarks) == 1
    path.write_text("\n".join(LABELS[1:]))
    with pytest.raises(
        ValueError, match="lacks 1 labels of the lists, the first 'air d"
    ):
        read(tmp_path, classes_file=path)


def test_a_row_that_is_repeated_counts_once(tmp_path):
    found = read(write(tmp_path, validate=VAL + VAL.splitlines()[1] + "\n"))
    assert len(found.clips["test"]) == 2
    assert found.left_out["test"] == {"repeated_row": ["--CDEFGHIJK_000000_000010"]}


def test_links_to_one_file_are_one_clip(tmp_path):
    write(tmp_path, "--CDEFGHIJK_000000_000010.mp4")
    (tmp_path / "clips" / "by_class").mkdir()
    link = tmp_path / "clips" / "by_class" / "--CDEFGHIJK_0_10.mp4"
    link.symlink_to(tmp_path / "clips" / "--CDEFGHIJK_000000_000010.mp4")
    assert len(read(tmp_path).clips["test"]) == 2
    link.unlink()
    link.touch()
    with pytest.raises(
        ValueError, match="0_10.mp4: another file of the clip .*Keep the"
    ):
        read(tmp_path)


def test_the_versions_have_folders_of_their_own(tmp_path):
    for version in (400, 600, 700):
        settings = kinetics.Settings(version, Path("x"), Path("y"))
        assert settings.name == f"kinetics{version}"
    with pytest.raises(
        ValueError, match="--version must be one of 400, 600, 700, got 5"
    ):
        kinetics.Settings(500, Path("x"), Path("y"))


def row(**fields: str) -> str:
    fields = {
        "label": "a",
        "youtube_id": "0_cdefghi-J",
        "time_start": "1",
        "time_end": "11",
        "split": "val",
        "is_cc": "0",
        **fields,
    }
    return HEADER + ",".join(fields.values()) + "\n"


ERRORS = {
    "unlabelled": (
        "youtube_id,time_start,time_end,split\n",
        "csv, line 1: wanted the columns label,.*test set has no labels",
    ),
    "empty": ("\n", "got 'an empty file'"),
    "no label": (row(label=" "), "line 2: wanted a label, got 'none'"),
    "spreadsheet": (
        row(youtube_id="#NAME?"),
        "YouTube id of 11 characters, got '#NAME",
    ),
    "path": (row(youtube_id="../../../ab"), "YouTube id of 11 characters"),
    "other split": (
        row(split="train"),
        "wanted split val or validate or validation, g",
    ),
    "fraction": (row(time_start="1.5"), "later end in whole seconds, got '1.5 and 11'"),
    "backwards": (row(time_end="1"), "a start and a later end in whole seconds, got"),
    "two labels": (
        row() + row(label="b").splitlines()[1],
        "line 3: wanted one label a clip, got 'b for 0_cdefghi-J_000001_000011, a on l",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_file_line_and_cure(tmp_path, name):
    text, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, validate=text))


def test_lists_of_another_version_are_not_taken(tmp_path):
    write(tmp_path)
    with pytest.raises(
        ValueError, match="no list of split train.\nkinetics expects the"
    ):
        read(tmp_path, version=600)


def test_too_many_classes_are_another_version(tmp_path):
    lines = [f"c{i},0_cdefghi-J,{i},{i + 1},train,0\n" for i in range(401)]
    write(tmp_path, **{"kinetics-400_train": HEADER + "".join(lines), "validate": VAL})
    with pytest.raises(
        ValueError, match="wanted at most 400 classes, got 402. Give --v"
    ):
        read(tmp_path)


def test_two_lists_of_a_split_are_an_error(tmp_path):
    write(tmp_path, val=VAL)
    with pytest.raises(
        ValueError, match="one list of split test, got val.csv, validate"
    ):
        read(tmp_path)


def test_missing_folders_print_the_layout(tmp_path):
    for name in ("annotations_dir", "videos_dir"):
        folders = {
            "annotations_dir": tmp_path,
            "videos_dir": tmp_path,
            name: Path("no"),
        }
        with pytest.raises(ValueError, match="no: no such folder.\nkinetics expects"):
            kinetics.read(kinetics.Settings(version=400, **folders), ["test"])


def test_a_built_set(tmp_path, capsys):
    write(tmp_path, validate=VAL)
    for name in ("-AbcdefghiJ_000004_000014", "--CDEFGHIJK_000000_000010"):
        videos.write_video(tmp_path / "clips" / f"{name}.mp4", videos.numbered(9))
    folders = [f"--annotations_dir={tmp_path}", f"--videos_dir={tmp_path / 'clips'}"]
    arguments = ["kinetics", "--version=400", *folders, f"--data_dir={tmp_path}"]
    assert build.main([*arguments, "--max_skipped=0.7"]) == 0
    output = capsys.readouterr().out
    assert "test: coverage 0.0%: 1 of the 19,906 official videos" in output
    assert "  missing_one_001000_001010  missing: no such file" in output
    assert "split test is the official validation set" in output
    assert (tmp_path / "kinetics400" / "dataset_info.json").is_file()
