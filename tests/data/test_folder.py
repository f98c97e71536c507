from pathlib import Path

import pytest

from data import build, folder, manifest
from tests.data import videos


def tree(root: Path, *names: str) -> Path:
    """Empty files: `read` opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def read(root: Path, *splits: str, **settings) -> manifest.Annotations:
    settings = folder.Settings(videos_dir=root, **settings)
    return folder.read(settings, splits or manifest.SPLITS)


def ids(read: manifest.Annotations, split: str) -> list[str]:
    return [clip.video_id for clip in read.clips[split]]


def test_divided_folders(tmp_path):
    names = ["train/b/2.mp4", "train/b/1.mkv", "train/a/x/y.MOV", "test/b/3.webm"]
    found = read(tree(tmp_path, *names))
    assert found.classes == ["a", "b"]
    assert found.label_kind == "single_label"
    assert ids(found, "train") == ["a__x__y", "b__1", "b__2"]
    assert [c.label_ids for c in found.clips["train"]] == [(0,), (1,), (1,)]
    assert found.clips["test"] == [
        manifest.Clip("b__3", tmp_path / "test/b/3.webm", label_ids=(1,))
    ]
    assert not found.remarks


def test_names_that_look_alike_get_a_checksum(tmp_path):
    names = ["train/a/x.mp4", "train/a/x.avi", "train/a/X.mp4", "test/a/x.mp4"]
    found = read(tree(tmp_path, *names))
    # CRC-32 of the paths below the folder
    assert ids(found, "train") == ["a__X-68267af0", "a__x-e37d265f", "a__x-a9e755f4"]
    assert ids(found, "test") == ["a__x-f18dcca7"]


def test_odd_names_give_safe_ids(tmp_path):
    names = ["my class (1)/-a b'c.mp4", "my class (1)/naïve.mp4", "-b/:%d;.mp4"]
    found = read(tree(tmp_path, *names), "train", test_share=0)
    assert found.classes == ["-b", "my class (1)"]
    wanted = ["-b____d_", "my_class__1___-a_b_c", "my_class__1___naïve"]
    assert ids(found, "train") == wanted


def test_accents_are_spelled_one_way(tmp_path):
    found = read(tree(tmp_path, "e\u0301/x.mp4", "\u00e9/y.mp4"), "train", test_share=0)
    assert found.classes == ["\u00e9"]
    assert ids(found, "train") == ["\u00e9__x", "\u00e9__y"]


def test_a_share_of_each_class_becomes_the_test(tmp_path):
    names = [f"{name}/{i}.mp4" for name in "ab" for i in range(10 if name > "a" else 5)]
    found = read(tree(tmp_path, *names), test_share=0.3)
    # 5 x 0.3 = 1.5 and 10 x 0.3 = 3, rounded half up
    test, train = ids(found, "test"), ids(found, "train")
    assert [i[0] for i in test] == ["a"] * 2 + ["b"] * 3
    assert sorted(train + test) == sorted(n[:-4].replace("/", "__") for n in names)
    assert "30% of each class is test, by the checksums" in found.remarks[0]
    # sha256sum of "a/0.mp4" .. "a/4.mp4": those of 2 and 4 are the lowest
    assert test[:2] == ["a__2", "a__4"]


def test_the_division_does_not_depend_on_the_split_or_place(tmp_path):
    names = [f"{name}/{i}.mp4" for name in "ab" for i in range(5)]
    both = read(tree(tmp_path / "one", *names))
    for split in manifest.SPLITS:
        other = read(tree(tmp_path / "two", *reversed(names)), split)
        assert ids(other, split) == ids(both, split)


def test_what_is_left_out_is_named(tmp_path):
    names = ["train/a/x.mp4", "test/a/y.mp4", "LICENSE", "val/a/z.mp4", "train/b.mp4"]
    names += ["train/a/.DS_Store", "train/a/notes.txt", "train/.git/HEAD"]
    names += ["train/a/.thumbs/x.mp4", "train/list.txt"]
    found = read(tree(tmp_path, *names))
    assert found.left_out["train"] == {
        "beside_train_and_test": ["LICENSE", "val"],
        "hidden": ["train/.git", "train/a/.DS_Store", "train/a/.thumbs"],
        "not_a_video": ["train/a/notes.txt", "train/list.txt"],
        "outside_a_class": ["train/b.mp4"],
    }


def test_links_to_files_and_folders_are_followed(tmp_path):
    store = tree(tmp_path / "store", "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4")
    fold = tmp_path / "fold0"
    for split in manifest.SPLITS:
        (fold / split / "a").mkdir(parents=True)
    (fold / "train" / "a" / "1.mp4").symlink_to(store / "a" / "1.mp4")
    (fold / "test" / "a" / "2.mp4").symlink_to(store / "a" / "2.mp4")
    (fold / "train" / "b").symlink_to(store / "b")
    (fold / "train" / "a" / "gone.mp4").symlink_to(store / "gone.mp4")
    found = read(fold)
    assert ids(found, "train") == ["a__1", "a__gone", "b__3", "b__4"]
    assert ids(found, "test") == ["a__2"]


def test_a_file_in_both_splits_is_an_error(tmp_path):
    root = tree(tmp_path, "train/a/1.mp4", "test/a/2.mp4")
    (root / "test/a/3.mp4").symlink_to(root / "train/a/1.mp4")
    with pytest.raises(ValueError, match="test/a/3.mp4: is the same file as .*/1.mp4"):
        read(root)


def test_a_link_in_a_circle_is_an_error(tmp_path):
    root = tree(tmp_path, "train/a/1.mp4")
    (root / "train/a/again").symlink_to(root / "train")
    with pytest.raises(
        ValueError, match="a/again/a: leads back to .*/train/a, which holds"
    ):
        read(root, "train")


def test_a_class_that_train_lacks_is_an_error(tmp_path):
    root = tree(tmp_path, "train/a/1.mp4", "test/b/2.mp4")
    with pytest.raises(ValueError, match="test has classes that train has not: b. tra"):
        read(root)


def test_a_class_without_a_video_is_an_error(tmp_path):
    root = tree(tmp_path, "a/1.mp4", "b/notes.txt")
    with pytest.raises(ValueError, match=r"/b: a class without a video.*ends in .3gp"):
        read(root)


def test_a_split_without_a_video_is_an_error(tmp_path):
    root = tree(tmp_path, "train/a/1.mp4")
    with pytest.raises(ValueError, match="no video for split test. Add some, or build"):
        read(root)
    assert ids(read(root, "train"), "train") == ["a__1"]


def test_a_class_name_must_be_text(tmp_path):
    root = tree(tmp_path, "a\udcff/1.mp4")
    with pytest.raises(
        ValueError, match=r"a\\udcff: the name of a class must be UTF-8"
    ):
        read(root)


def test_a_missing_folder_prints_the_layout(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder.\nfolder expects vi"):
        read(tmp_path / "nowhere")


def test_test_share_is_for_folders_that_are_not_divided(tmp_path):
    root = tree(tmp_path, "train/a/1.mp4", "test/a/2.mp4")
    with pytest.raises(ValueError, match="divided into train and test already. Leave"):
        read(root, test_share=0.5)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-x", "a*"])
def test_the_name_must_be_that_of_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match="folder: --name must consist of letters"):
        folder.Settings(videos_dir=tmp_path, name=name)


@pytest.mark.parametrize("name", ["csv", "charades", "kinetics400"])
def test_the_name_must_not_be_that_of_another_data_set(tmp_path, name):
    with pytest.raises(
        ValueError, match=f"--name={name} is where data.build puts anot"
    ):
        folder.Settings(videos_dir=tmp_path, name=name)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_test_share_is_a_share(tmp_path, share):
    with pytest.raises(ValueError, match="--test_share must be in 0..1, got"):
        folder.Settings(videos_dir=tmp_path, test_share=share)


def test_a_built_folder(tmp_path, capsys):
    root = tree(tmp_path / "mine", "train/a/notes.txt", "test/b/broken.mp4")
    (root / "train" / "b").mkdir()
    names = ["train/a/-1.mp4", "train/b/1:x.avi", "test/b/ü (2).mp4"]
    for number, name in enumerate(names):
        videos.write_video(root / name, videos.numbered(20 + number))
    (root / "test/b/broken.mp4").write_text("no video")
    arguments = [f"--data_dir={tmp_path}", f"--videos_dir={root}", "--name=my_set"]
    assert build.main(["folder", *arguments, "--max_skipped=0.5"]) == 0
    output = capsys.readouterr().out
    assert "my_set: 12 fps" in output and "2 classes (single_label)" in output
    assert "train: left out: 1 not_a_video\n  train/a/notes.txt" in output
    assert "  b__broken  unreadable:" in output
    first = {p.name: p.read_bytes() for p in (tmp_path / "my_set").iterdir()}
    assert "my_set-train-00000-of-00001.tfrecord" in first
    options = {"videos_dir": str(root), "name": "my_set", "max_skipped": 0.5}
    info = build.build("folder", tmp_path, **options)
    assert info.video_ids("train") == [["a__-1", "b__1_x"]]
    assert info.video_ids("test") == [["b__ü__2_"]]
    assert info.coverage("test")["share"] == 0.5
    assert {p.name: p.read_bytes() for p in info.folder.iterdir()} == first


def test_another_test_share_is_refused(tmp_path):
    root = tree(tmp_path / "mine")
    for i in range(4):
        path = root / "a" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        videos.write_video(path, videos.numbered(4))
    build.build("folder", tmp_path, videos_dir=root, splits=["train"])
    with pytest.raises(ValueError, match="test_share=None there, test_share=0.5 asked"):
        build.build("folder", tmp_path, videos_dir=root, test_share=0.5)


def test_a_set_of_another_kind_is_not_built_over(tmp_path):
    root = tree(tmp_path / "mine")
    (root / "a").mkdir(parents=True)
    videos.write_video(root / "a" / "1.mp4", videos.numbered(4))
    build.build("folder", tmp_path, videos_dir=root, name="x", splits=["train"])
    (root / "train.csv").write_text("path,labels\na/1.mp4,a\n")
    with pytest.raises(
        ValueError, match="test_share=None there, test_share=nothing ask"
    ):
        build.build("csv", tmp_path, annotations_dir=root, name="x", splits=["train"])
