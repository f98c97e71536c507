import pytest

from tl_tf import files


def test_a_file_is_seen_once_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write(path, "old\n")
    with files.whole(path) as temporary:
        temporary.write_text("new\n")
        assert path.read_text() == "old\n"
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    files.write(path, "old\n")
    with pytest.raises(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with files.whole(path) as first, files.whole(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert not path.exists()
    assert path.read_text() == "first"  # the outer block ended last


def test_the_disk_has_the_content_before_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a.txt", []

    def note(synced):
        order.append((synced, path.exists()))

    monkeypatch.setattr(files, "sync", note)
    with files.whole(path) as temporary:
        temporary.write_text("é")
    assert order == [(temporary, False), (tmp_path, True)]
    assert path.read_bytes() == "é".encode()
