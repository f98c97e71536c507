import json

import pytest
import tensorflow as tf

from tl_tf.inputs import real_labels

LISTS = [[2], [], [0, 4, 1]]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(LISTS))
    return path


def test_the_table_has_several_labels_or_none(path):
    table = real_labels.read_table(path, num_classes=5)
    assert table.tolist() == [[2, -1, -1], [-1, -1, -1], [0, 4, 1]]


def test_names_lead_to_rows_in_python_and_in_the_graph(path):
    table = tf.constant(real_labels.read_table(path, num_classes=5))
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (3, 1, 2)]
    rows = [real_labels.row_of(name, num_rows=3) for name in names]
    assert rows == [2, 0, 1]
    dataset = tf.data.Dataset.from_tensor_slices(names)
    labels = list(dataset.map(lambda name: real_labels.labels_of(name, table)))
    assert [row.numpy().tolist() for row in labels] == tf.gather(
        table, rows
    ).numpy().tolist()


@pytest.mark.parametrize("name", ["cat.jpg", "val_00000004.JPEG", "val_0.JPEG"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: wanted a name as ILSVRC2012_val_"):
        real_labels.row_of(name, num_rows=3)


def test_other_files_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="wanted labels of 4 classes, got 4. ReaL"):
        real_labels.read_table(path, num_classes=4)
    for text in "{", "3", '["a"]':
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(
            ValueError, match="other.json: wanted a list of label lists"
        ):
            real_labels.read_table(tmp_path / "other.json", num_classes=4)
    with pytest.raises(ValueError, match="none.json: wanted a list of label lists"):
        real_labels.read_table(tmp_path / "none.json", num_classes=4)
