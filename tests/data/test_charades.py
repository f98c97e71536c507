import re
from pathlib import Path

import pytest

from data import charades
from tests.data import videos

HEADER = ",".join(charades.COLUMNS)
SHARED_CSV = videos.MEDIA.parent / "data" / "charades_like" / "charades_like.csv"


def write(folder: Path, *lines: str, header: str = HEADER, end: str = "\r\n") -> Path:
    classes = "".join(f"c{i:03d} Class {i}\n" for i in range(157))
    (folder / "Charades_v1_classes.txt").write_text(classes)
    text = end.join([header, *lines, ""])
    (folder / "Charades_v1_train.csv").write_bytes(text.encode())
    return folder


def row(video_id="AAAA1", actions="", length="10.50") -> str:
    return f"{video_id},S001,Kitchen,6,7,Yes,A script.,box,x,{actions},{length}"


def read(folder: Path) -> list:
    return list(charades.clips("train", folder, Path("videos")))


# What each trap of the official files becomes: labels, segments, notes.
TRAPS = {
    "plain": ("c092 1.90 9.20", (92,), [(92, 1.9, 9.2)], ()),
    "several": (
        "c147 0.00 12.60;c003 0.10 5.00",
        (3, 147),
        [(147, 0.0, 10.5), (3, 0.1, 5.0)],
        ("end_past_length",),
    ),
    "no actions": ("", (), [], ("no_actions",)),
    "class repeated": (
        "c061 5.00 6.00;c061 0.00 8.00",
        (61,),
        [(61, 5.0, 6.0), (61, 0.0, 8.0)],
        ("class_repeated",),
    ),
    "action repeated": (
        "c061 5.00 6.00;c061 5.00 6.00",
        (61,),
        [(61, 5.0, 6.0), (61, 5.0, 6.0)],
        ("action_repeated",),
    ),
    "start after end": ("c071 8.00 6.00", (71,), [], ("start_after_end",)),
    "start past length": ("c000 10.50 12.00", (0,), [], ("start_past_length",)),
    "end past length": ("c156 0.00 12.04", (156,), [(156, 0.0, 10.5)], None),
    "end zero": ("c005 0.00 0.00", (5,), [(5, 0.0, 0.0)], ()),
    "whole seconds": ("c005 1 2", (5,), [(5, 1.0, 2.0)], ()),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_actions_become_labels_and_segments(tmp_path, trap):
    actions, labels, segments, notes = TRAPS[trap]
    (clip,) = read(write(tmp_path, row(actions=actions)))
    assert clip.label_ids == labels
    assert clip.segments == tuple(segments)
    assert clip.notes == (("end_past_length",) if notes is None else notes)


def test_ids_that_look_like_numbers_stay_text(tmp_path):
    ids = ["05124", "00607", "07E49", "150E6"]
    clips = read(write(tmp_path, *(row(video_id=i) for i in ids)))
    assert [c.video_id for c in clips] == ids
    assert clips[1].video_path == Path("videos/00607.mp4")


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_quotes_line_ends_and_byte_order_mark(tmp_path, start, end):
    line = f'AAAA2,S002,"Hall, long",,,No,"Two ""words"";{end}next",,x,c001 0 1,12.50'
    folder = write(
        tmp_path, line, row(video_id="AAAA3"), header=start + HEADER, end=end
    )
    first, second = read(folder)
    assert (first.video_id, first.label_ids) == ("AAAA2", (1,))
    assert (second.video_id, second.label_ids) == ("AAAA3", ())


ERRORS = {
    "columns swapped": (
        {"header": HEADER.replace("id,subject", "subject,id")},
        r"csv, line 1: wanted the header id,subject.*got 'subject,id.*official file",
    ),
    "empty file": ({"header": "", "end": ""}, r"line 1: .*got 'an empty file'"),
    "missing column": (
        {"lines": [row(), "AAAA2,S1,x"]},
        r"line 3: wanted 11 columns, got '3'. Quote fields",
    ),
    "lower-case id": ({"lines": [row("aaaa1")]}, "line 2: wanted an id of 5 char"),
    "spreadsheet id": ({"lines": [row("607")]}, "got '607'.*not one saved by a spread"),
    "path in id": ({"lines": [row("../A1")]}, "wanted an id of 5 characters"),
    "id twice": (
        {"lines": [row(), row()]},
        "line 3: wanted each id once, got 'AAAA1, also on line 2'",
    ),
    "two spaces": (
        {"lines": [row(actions="c001  0.0 1.0")]},
        r"line 2: wanted 'cNNN start end' with NNN in 000\.\.156, got 'c001  0.0 1.0'",
    ),
    "unknown class": ({"lines": [row(actions="c157 0 1")]}, "got 'c157 0 1'"),
    "negative start": ({"lines": [row(actions="c001 -1 1")]}, "got 'c001 -1 1'"),
    "no length": ({"lines": [row(length="")]}, "wanted a length above 0 seconds, got"),
    "length zero": ({"lines": [row(length="0")]}, "a length above 0 seconds, got '0'"),
    "length nan": ({"lines": [row(length="nan")]}, "a length above 0 seconds"),
    "open quote": (
        {"lines": [row(), 'AAAA2,"open,' + row()[8:]]},
        "line 3: wanted comma-separated values with closed quotes",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_file_line_and_cure(tmp_path, name):
    arguments, message = ERRORS[name]
    write(
        tmp_path,
        *arguments.get("lines", []),
        header=arguments.get("header", HEADER),
        end=arguments.get("end", "\r\n"),
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_long_field_is_not_quoted_whole(tmp_path):
    with pytest.raises(ValueError) as error:
        read(write(tmp_path, row(actions="x" * 9999)))
    assert len(str(error.value)) < 800


def test_other_encodings_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "Charades_v1_train.csv"
    path.write_bytes(path.read_bytes() + b"caf\xe9")
    with pytest.raises(ValueError, match="wanted UTF-8 text, got byte 0xe9 at offset"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("c001 Holding\n", r"classes.txt, line 1: wanted 'c000 <name>', got 'c001 Hol"),
        ("c000 a\nc002 b\n", "line 2: wanted 'c001 <name>', got 'c002 b'"),
        ("c000\n", "line 1: wanted 'c000 <name>', got 'c000'"),
        ("", "got 'an empty file'"),
    ],
)
def test_class_list_must_count_from_0(tmp_path, text, message):
    (tmp_path / "Charades_v1_classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        charades.classes(tmp_path)


def test_classes_are_in_file_order(tmp_path):
    text = "c000 Zip (it's)\r\nc001 About\r\n"
    (tmp_path / "Charades_v1_classes.txt").write_bytes(text.encode())
    assert charades.classes(tmp_path) == ["Zip (it's)", "About"]


def test_missing_files_print_the_expected_layout(tmp_path):
    with pytest.raises(ValueError, match=re.escape(charades.LAYOUT)):
        charades.classes(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"Charades_v1_test.csv: no such file.\nChar"):
        list(charades.clips("test", tmp_path, Path("videos")))


def test_unknown_split_lists_the_known_ones(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        list(charades.clips("val", tmp_path, Path("videos")))


@pytest.mark.skipif(not SHARED_CSV.is_file(), reason="needs ../shared/data")
def test_the_shared_example_file(tmp_path):
    write(tmp_path)
    (tmp_path / "Charades_v1_train.csv").write_bytes(SHARED_CSV.read_bytes())
    clips = {c.video_id: c for c in read(tmp_path)}
    assert list(clips) == ["AAAA1", "AAAA2", "00SL0", "AAAA4", "1E500"]
    assert clips["00SL0"].label_ids == (71, 81) and not clips["00SL0"].segments
    assert clips["AAAA4"].segments[-1] == (156, 0.0, 29.5)
