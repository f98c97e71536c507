import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import pytest
import tensorflow as tf

from data import build, charades, frames, shards
from tests.data import videos
from tl_tf import records

ROOT = Path(__file__).parents[2]
ROWS = {
    "train": [
        ("AAAA0", "c001 0.00 0.50;c003 0.20 2.00", "1.00"),
        ("AAAA1", "", "1.00"),
        ("AAAA2", "c001 0.30 0.10", "1.00"),
        ("AAAA3", "c000 0.00 0.10", "1.00"),
        ("AAAA4", "c004 0.00 0.10", "1.00"),
        ("AAAA5", "c004 0.00 0.10", "1.00"),
        ("BROKE", "c002 0.00 0.10", "1.00"),
    ],
    "test": [("CCCC0", "c000 0.10 0.90", "1.00"), ("CCCC1", "", "1.00")],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Annotations and videos; one of the videos is a text file."""
    folder = videos.write_annotations(tmp_path_factory.mktemp("charades"), ROWS)
    videos_dir = folder / "Charades_v1_480"
    videos_dir.mkdir()
    for number, (video_id, _, _) in enumerate(ROWS["train"] + ROWS["test"]):
        path = videos_dir / f"{video_id}.mp4"
        videos.write_video(path, videos.numbered(20 + number))
    (videos_dir / "BROKE.mp4").write_text("no video")
    return folder


def run(source: Path, data_dir: Path, **options) -> records.DatasetInfo:
    defaults = {"num_shards": 3, "num_workers": 2, "max_skipped": 0.2}
    return build.build(
        "charades", data_dir, annotations_dir=source, **{**defaults, **options}
    )


def contents(data_dir: Path, dataset: str = "charades") -> dict[str, bytes]:
    folder = data_dir / dataset
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("built")
    run(source, data_dir)
    return data_dir


def test_records_hold_what_the_annotations_say(built):
    info = records.DatasetInfo.load(built, "charades")
    found = {}
    for path in info.shard_paths("train"):
        for serialized in tf.data.TFRecordDataset(str(path)):
            record = records.parse(serialized)
            found[record["video_id"].numpy().decode()] = record
    assert sorted(found) == [f"AAAA{i}" for i in range(6)]
    record = found["AAAA0"]
    assert record["labels"].numpy().tolist() == [1, 3]
    assert record["segment_labels"].numpy().tolist() == [1, 3]
    assert record["segment_ends"].numpy().tolist() == [0.5, 1.0]
    assert record["fps"] == 12 and len(record["frames"]) == 10
    assert found["AAAA1"]["labels"].shape == 0
    assert found["AAAA2"]["labels"].numpy().tolist() == [1]
    assert found["AAAA2"]["segment_labels"].shape == 0


def test_shards_follow_the_id_and_keep_the_order_of_the_annotations(built):
    info = records.DatasetInfo.load(built, "charades")
    ids = info.video_ids("train")
    wanted = [[], [], []]
    for video_id, _, _ in ROWS["train"][:6]:
        wanted[records.shard_of(video_id, 3)].append(video_id)
    assert ids == wanted


def test_info_counts_everything(built):
    info = records.DatasetInfo.load(built, "charades")
    train = info.split("train")
    assert (train["videos_expected"], train["videos_built"]) == (7, 6)
    assert train["videos_skipped"] == 1
    assert train["videos_without_label"] == 1
    assert train["skipped"][0]["id"] == "BROKE"
    assert train["skipped_by_reason"] == {"unreadable": 1}
    assert train["labels_per_class"] == [1, 2, 0, 1, 2]
    assert train["frames"] == 10 + 11 + 11 + 12 + 12 + 13
    assert train["frames_per_video"]["median"] == 11.5
    assert train["frames_per_video"]["shorter_than_64"] == 6
    assert train["notes"] == {
        "end_past_length": 1,
        "no_actions": 1,
        "start_after_end": 1,
    }
    assert sum(s["records"] for s in train["shards"]) == 6
    for shard in train["shards"]:
        path = info.folder / shard["file"]
        assert shard["bytes"] == path.stat().st_size
        assert shard["sha256"] == shards.sha256(path)
    assert info.raw["label_kind"] == "multi_label"
    assert sorted(info.raw["sources"]) == [
        "Charades_v1_classes.txt",
        "Charades_v1_test.csv",
        "Charades_v1_train.csv",
    ]
    assert info.coverage("train") == {
        "official_videos": 7985,
        "videos_expected": 7,
        "videos_built": 6,
        "videos_skipped": 1,
        "share": 6 / 7985,
    }


def test_table_is_printed(source, tmp_path, capsys):
    run(source, tmp_path, num_workers=1)
    captured = capsys.readouterr()
    assert "train         7      6       1        1        69" in captured.out
    assert "6 of 6 have fewer than 64" in captured.out
    assert "  BROKE  unreadable: Invalid data found" in captured.out
    assert "train: coverage 0.1%: 6 of the 7,985 official videos" in captured.out
    assert "start_after_end 1" in captured.out
    assert "videos 9/9" in captured.err


def test_the_number_of_workers_does_not_matter(source, built, tmp_path):
    run(source, tmp_path, num_workers=1)
    assert contents(tmp_path) == contents(built)


def test_workers_that_share_a_shard_keep_its_order(source, tmp_path):
    run(source, tmp_path / "one", num_shards=1, num_workers=1)
    run(source, tmp_path / "five", num_shards=1, num_workers=5)
    assert contents(tmp_path / "five") == contents(tmp_path / "one")


def test_the_folder_names_do_not_matter(source, built, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    run(
        tmp_path / "copy",
        tmp_path,
        videos_dir=tmp_path / "copy" / "Charades_v1_480",
    )
    assert contents(tmp_path) == contents(built)


def test_beam_builds_the_same(source, built, tmp_path):
    pytest.importorskip("apache_beam")
    run(source, tmp_path, runner="DirectRunner")
    assert contents(tmp_path) == contents(built)


def test_without_beam_one_sentence(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match="--runner=FlinkRunner needs Apache Beam.*pip"):
        run(source, tmp_path, runner="FlinkRunner")


def test_what_is_built_is_left_alone(source, built, tmp_path, capsys):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "charades"
    before = {p: p.stat().st_ino for p in folder.glob("charades-*")}
    leftover = folder / ".charades-train-00000-of-00003.tfrecord.tmp-00ff00ff"
    leftover.write_text("x")
    run(source, tmp_path)
    assert "6 of 6 shards are built already" in capsys.readouterr().err
    assert before == {p: p.stat().st_ino for p in folder.glob("charades-*")}
    assert not leftover.exists()


def test_lost_and_cut_shards_are_built_again(source, built, tmp_path, capsys):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "charades"
    (folder / "charades-train-00000-of-00003.tfrecord").unlink()
    (folder / "charades-train-00001-of-00003.json").unlink()
    (folder / "charades-train-00002-of-00003.tfrecord").write_text("cut")
    (folder / "charades-test-00000-of-00003.json").write_text("{")
    run(source, tmp_path)
    assert "2 of 6 shards are built already" in capsys.readouterr().err
    assert contents(tmp_path) == contents(built)


def test_a_mended_video_is_taken_in(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    assert run(copy, tmp_path).split("train")["videos_built"] == 6
    video = copy / "Charades_v1_480" / "BROKE.mp4"
    shutil.copy(video.with_name("AAAA0.mp4"), video)
    assert run(copy, tmp_path).split("train")["videos_built"] == 7


def test_changed_annotations_are_taken_in(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    run(copy, tmp_path)
    videos.write_annotations(copy, {"test": [("CCCC0", "c002 0 1", "1")]})
    assert run(copy, tmp_path).split("test")["labels_per_class"] == [0, 0, 1, 0, 0]


def test_other_options_are_refused_unless_overwriting(source, tmp_path):
    run(source, tmp_path, splits=["test"])
    with pytest.raises(ValueError, match=r"fps=12.0 there, fps=6.0 asked for. Ask for"):
        run(source, tmp_path, fps=6)
    with pytest.raises(
        ValueError, match="another number of shards than 2. Ask for the"
    ):
        run(source, tmp_path, num_shards=2)
    info = run(source, tmp_path, splits=["test"], fps=6, num_shards=2, overwrite=True)
    assert info.fps == 6 and len(info.split("test")["shards"]) == 2
    assert len(list((tmp_path / "charades").glob("*.tfrecord"))) == 2


def test_splits_may_be_built_one_after_the_other(source, built, tmp_path):
    assert list(run(source, tmp_path, splits=["test"]).splits) == ["test"]
    run(source, tmp_path, splits=["train"])
    assert contents(tmp_path) == contents(built)


def test_splits_must_share_their_class_list(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    run(copy, tmp_path, splits=["test"])
    (copy / "Charades_v1_classes.txt").write_text(
        "".join(f"c00{i} other\n" for i in range(5))
    )
    with pytest.raises(
        ValueError, match="split test was built with another class list"
    ):
        run(copy, tmp_path, splits=["train"])


def test_too_many_skipped_fails_at_the_end(source, tmp_path):
    with pytest.raises(
        build.TooManySkipped,
        match=r"split train: 1 of 7 videos \(14.3%\) were skipped, more than"
        r" --max_skipped=0.1 \(unreadable 1\)",
    ):
        run(source, tmp_path, max_skipped=0.1)
    assert records.DatasetInfo.load(tmp_path, "charades").split("test")


def test_crashes_and_hangs_cost_one_video_each(tmp_path, monkeypatch, capsys):
    ids = ["AAAA0", "CRASH", "HANGS", "RAISE", "AAAA1", "GONE1"]
    source = videos.write_annotations(
        tmp_path, {"test": [(video_id, "c000 0 1", "1") for video_id in ids]}
    )
    (source / "Charades_v1_480").mkdir()
    for video_id in ids[:5]:
        path = source / "Charades_v1_480" / f"{video_id}.mp4"
        videos.write_video(path, videos.numbered(4))
    monkeypatch.setattr(frames, "extract", videos.extract_or_fail)
    info = run(
        source,
        tmp_path,
        splits=["test"],
        num_shards=1,
        timeout_seconds=12,
        max_skipped=1,
    )
    assert info.video_ids("test") == [["AAAA0", "AAAA1"]]
    skipped = info.split("test")["skipped"]
    assert [(s["id"], s["row"], s["reason"], s["detail"]) for s in skipped] == [
        ("CRASH", 1, "crashed", "the process was ended by SIGSEGV"),
        ("GONE1", 5, "missing", "no such file"),
        ("HANGS", 2, "timeout", "no answer after 12 s"),
        (
            "RAISE",
            3,
            "unreadable",
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0:"
            " made up",
        ),
    ]
    assert all(s["labels"] == [0] for s in skipped)


def test_limit_takes_the_first_videos(source, tmp_path):
    info = run(source, tmp_path, limit=2, num_shards=1)
    assert info.video_ids("train") == [["AAAA0", "AAAA1"]]


def test_one_build_at_a_time(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "WAIT_SECONDS", 0)
    (tmp_path / "charades").mkdir()
    with build._locked(tmp_path / "charades"):
        with pytest.raises(ValueError, match="another data.build is at work here"):
            run(source, tmp_path)


def test_a_second_build_waits_for_the_first(source, tmp_path):
    (tmp_path / "charades").mkdir()
    with futures.ThreadPoolExecutor() as pool:
        with build._locked(tmp_path / "charades"):
            second = pool.submit(run, source, tmp_path, limit=1, num_shards=1)
            with pytest.raises(futures.TimeoutError):
                second.result(timeout=0.5)
        assert second.result().split("train")["videos_built"] == 1


def test_killed_and_started_again(tmp_path):
    command = [sys.executable, "-m", "data.build", "synthetic", "--num_workers=1"]
    command += ["--train_videos=40", "--test_videos=4", "--num_shards=8"]
    command += ["--video_seconds=0.5", f"--data_dir={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "synthetic"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "dataset_info.json").exists()
    settings = {"train_videos": 40, "test_videos": 4, "video_seconds": 0.5}
    for name in ("killed", "whole"):
        build.build("synthetic", tmp_path / name, num_shards=8, **settings)
    assert contents(tmp_path / "killed", "synthetic") == contents(
        tmp_path / "whole", "synthetic"
    )


def test_overwriting_makes_the_videos_anew(tmp_path):
    settings = {"train_videos": 2, "test_videos": 2, "video_seconds": 0.5}
    build.build("synthetic", tmp_path, **settings)
    video = tmp_path / "synthetic" / "raw" / "Charades_v1_480" / "A0000.mp4"
    before = video.read_bytes()
    video.write_text("damaged")
    build.build("synthetic", tmp_path, overwrite=True, **settings)
    assert video.read_bytes() == before


USER_ERRORS = {
    "no annotations": (["charades"], "--annotations_dir is missing.\nCharades expects"),
    "wrong folder": (
        ["charades", "--annotations_dir=/nowhere"],
        f"no such file.\n{charades.LAYOUT}",
    ),
    "no videos": (["folder"], "--videos_dir is missing.\nfolder expects videos in"),
    "no version": (["kinetics"], "--version is missing.\nkinetics expects the csv"),
    "version": (
        ["kinetics", "--version=40", "--annotations_dir=x", "--videos_dir=x"],
        "--version must be one of 400, 600, 700, got 40.",
    ),
    "no lists": (["csv"], "--annotations_dir is missing.\ncsv expects the lists"),
    "rate": (["synthetic", "--fps=0"], "--fps must be above 0, got 0.0"),
    "rate nan": (["synthetic", "--fps=nan"], "--fps must be above 0, got nan"),
    "workers": (["synthetic", "--num_workers=0"], "--num_workers must be at least 1"),
    "share": (["synthetic", "--max_skipped=5"], "must be in 0..1, got 5.0"),
    "odd size": (["synthetic", "--width=51"], "width must be even (H.264) and at"),
    "few": (["synthetic", "--test_videos=0"], "test_videos must be in 1..9999, got 0"),
    "short": (["synthetic", "--video_seconds=0"], "video_seconds must be in 0.5..600"),
    "seed sign": (["synthetic", "--seed=-1"], "seed must be >= 0, got -1"),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_user_errors_are_sentences(tmp_path, capsys, name):
    arguments, message = USER_ERRORS[name]
    assert build.main([*arguments, f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("data.build: ") and message in error
    assert not list(tmp_path.iterdir()) or name == "wrong folder"


def test_no_video_there_prints_the_layout(source, tmp_path, capsys):
    arguments = [f"--annotations_dir={source}", f"--videos_dir={tmp_path}"]
    assert build.main(["charades", *arguments, f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "none of the 7 videos of split train is there; the first would be" in error
    assert charades.LAYOUT in error


def test_no_row_is_an_error(tmp_path):
    source = videos.write_annotations(tmp_path, {"test": []})
    with pytest.raises(ValueError, match="annotations of split test list no video"):
        run(source, tmp_path, splits=["test"])


def test_a_video_in_both_splits_is_an_error(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    videos.write_annotations(copy, {"test": [("AAAA1", "c002 0 1", "1")]})
    with pytest.raises(ValueError, match="AAAA1 is in splits train and test. Remove"):
        run(copy, tmp_path)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no dataset 'k400'; known: folder, csv, char"):
        build.build("k400", tmp_path)
    with pytest.raises(ValueError, match="--splits must be among train, test, got val"):
        build.build("synthetic", tmp_path, splits=["val"])
    with pytest.raises(ValueError, match="no setting size; known: train_videos, test"):
        build.build("synthetic", tmp_path, size=3)


def test_unknown_arguments_need_a_runner(capsys):
    for arguments in (["synthetic", "--region=x"], ["charades", "--seed=3"]):
        with pytest.raises(SystemExit):
            build.main(arguments)
        message = f"unrecognized arguments: {arguments[1]} (only with"
        assert message in capsys.readouterr().err


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        build.main(["synthetic", "--num_work=3"])
    assert "unrecognized arguments: --num_work=3" in capsys.readouterr().err


def test_exit_status_of_too_many_skipped(source, tmp_path, capsys):
    arguments = [f"--annotations_dir={source}", f"--data_dir={tmp_path}"]
    assert build.main(["charades", *arguments, "--max_skipped=0"]) == 1
    assert "data.build: split train: 1 of 7" in capsys.readouterr().err
    assert build.main(["charades", *arguments, "--max_skipped=0.2"]) == 0


def test_a_full_disk_is_a_sentence(source, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")

    monkeypatch.setattr(tf.io.TFRecordWriter, "write", fail)
    arguments = [f"--annotations_dir={source}", f"--data_dir={tmp_path}"]
    assert build.main(["charades", *arguments]) == 2
    assert "no space left" in capsys.readouterr().err


def test_help_does_not_wait_for_tensorflow():
    code = (
        "import sys\nfrom data import build\n"
        "for arguments in (['--help'], ['charades', '--help']):\n"
        "    try: build.main(arguments)\n    except SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules or 'av' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ})
    assert result.returncode == 0


def test_report_lists_each_video(built):
    path = built / "charades" / "charades-test-00000-of-00003.json"
    reports = [
        json.loads(p.read_text()) for p in sorted(path.parent.glob("*-test-*.json"))
    ]
    entries = {v["id"]: v for r in reports for v in r["built"]}
    assert entries["CCCC0"] == {
        "id": "CCCC0",
        "row": 0,
        "frames": 14,
        "height": 36,
        "width": 48,
        "bytes": entries["CCCC0"]["bytes"],
        "seconds": 1.125,
        "labels": [0],
        "damaged": 0,
    }
