import pytest

from data import reading


def test_empty_lines_of_a_table_do_not_count(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n\n1,"2\n3"\n\n4,5\n')
    rows = reading.table(path, lambda header: None)
    assert list(rows) == [(4, {"a": "1", "b": "2\n3"}), (6, {"a": "4", "b": "5"})]


def test_a_class_list_keeps_its_order(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("walk\n jump (it's) \nrun\n\n")
    assert reading.class_list(path) == ["walk", "jump (it's)", "run"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: wanted one class a line, each once, got 'an empty line'"),
        ("a\n\nb", "line 2: wanted one class a line, each once, got 'an empty line'"),
        ("a\nb\na", "line 3: .* got 'a, also on line 1'. Remove the line"),
    ],
)
def test_a_class_list_has_each_class_once(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        reading.class_list(path)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            '{"a":\n1,}',
            "x.json, line 2: wanted JSON, got 'Illegal trailing comma|line 2",
        ),
        ('{"a": 1, "a": 1}', "x.json: wanted each key once, got 'a' twice. Remove one"),
        ("[]", "x.json, line 1: wanted an object {...}, got 'list'"),
    ],
)
def test_a_json_file_is_one_object(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        reading.json_object(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("é,b\n".encode("utf-16"), "wanted UTF-8 text, got byte 0xff at offset 0"),
        ("é,b\n".encode("latin-1"), "wanted UTF-8 text, got byte 0xe9 at offset 0"),
        ("é,b\n".encode("utf-16-le"), "wanted UTF-8 text, got byte 0xe9 at offset 0"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: {message}.*save it as UTF-8"):
        list(reading.table(path, lambda header: None))


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("é,b\n1,2\n".encode("utf-8-sig"))
    assert list(reading.table(path, lambda header: None)) == [(2, {"é": "1", "b": "2"})]


def test_a_file_of_any_size_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 1 << 20)
    with (tmp_path / "x.csv").open("wb") as file:
        file.truncate(1 << 40)  # with holes
    with pytest.raises(ValueError, match="x.csv: wanted at most 1 MiB of text, got mo"):
        reading.text(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 10**6, "x.json, line 1: wanted JSON, got 'lists that are too deep'"),
        ('{"a":' * 10**5, "x.json, line 1: wanted JSON, got 'lists that are too deep'"),
        ('{"a": %s}' % ("9" * 5000), "x.json, line 1: wanted JSON, got 'Exceeds the"),
    ],
    ids=["lists", "objects", "digits"],
)
def test_json_that_would_end_the_process_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        reading.json_object(path)
