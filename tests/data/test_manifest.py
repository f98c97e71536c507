from pathlib import Path

import pytest

from data import build, manifest
from tests.data import videos

NAMES = {
    "up": "../../x",
    "root": "/etc/x",
    "nul": "a\0b",
    "terminal": "\x1b[2Jx",
    "line": "a\nb",
    "long": "x" * 5000,
    "empty": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_safe_as_file_names(name):
    clip = manifest.Clip(NAMES[name], Path("x.mp4"))
    read = manifest.Annotations("single_label", ["a"], {"train": [clip]})
    with pytest.raises(ValueError, match="toy: wanted a video id of at most 4096 lett"):
        manifest.check("toy", read)


@pytest.mark.parametrize("name", ["nul", "terminal", "line", "long"])
def test_classes_are_safe_on_a_terminal(name):
    read = manifest.Annotations("single_label", ["../a b/é", NAMES[name]], {})
    with pytest.raises(
        ValueError, match="toy: wanted class names of at most 4096 char"
    ):
        manifest.check("toy", read)


def test_a_set_without_classes_is_an_error():
    with pytest.raises(ValueError, match="toy: the annotations name no class"):
        manifest.check("toy", manifest.Annotations("single_label", [], {}))


def test_hostile_names_of_files_stay_in_the_folder(tmp_path):
    source = tmp_path / "source"
    for name in ("a/\x1b[2J.mp4", "a/;rm -rf x.mp4", "a/%2e%2e.mp4", "b/-x.mp4"):
        path = source / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        videos.write_video(path, videos.numbered(3))
    info = build.build(
        "folder", tmp_path / "out", videos_dir=source, name="toy", splits=["train"]
    )
    assert info.split("train")["videos_built"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"toy"}


@pytest.mark.parametrize("path", ["../x.mp4", "/etc/x.mp4", "a/../../x.mp4"])
def test_paths_of_a_list_stay_below_its_folder(tmp_path, path):
    (tmp_path / "train.csv").write_text(f"path,labels\n{path},a\n")
    with pytest.raises(ValueError, match="line 2: wanted a path below VIDEOS_DIR"):
        build.build("csv", tmp_path, annotations_dir=tmp_path, splits=["train"])


def test_a_name_that_no_file_can_have_is_a_missing_video(tmp_path):
    videos.write_video(tmp_path / "x.mp4", videos.numbered(3))
    text = f"path,labels\nx.mp4,a\n{'y' * 3000}.mp4,a\n"
    (tmp_path / "train.csv").write_text(text)
    info = build.build(
        "csv", tmp_path, annotations_dir=tmp_path, splits=["train"], max_skipped=0.5
    )
    assert info.split("train")["skipped_by_reason"] == {"missing": 1}
