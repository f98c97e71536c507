import numpy as np
import pytest
import tensorflow as tf

from tests.contract import random_normal
from tl_tf import transfer

C, K = 3, 4
POSITION = transfer.POSITION


def variables(**shapes):
    """Variables of ones, so that what stays at its start is seen."""
    names = {"block": (2, C)} | shapes
    return {name: tf.Variable(tf.ones(shape)) for name, shape in names.items()}


def arrays(**shapes):
    names = {"block": (2, C)} | shapes
    return {n: random_normal(*s, seed=i) for i, (n, s) in enumerate(names.items())}


def outcomes(rows):
    return {row.name: row.outcome for row in rows}


def assign(in_file, in_model, **options):
    return transfer.assign(in_file, in_model, where="x.npz", **options)


HEAD = {"head/kernel": (C, K), "head/bias": (K,)}
OTHER_HEAD = {"head/kernel": (C, K + 1), "head/bias": (K + 1,)}
PRE_LOGITS = {"pre_logits/kernel": (C, C), "pre_logits/bias": (C,)}


def test_equal_names_and_shapes_are_loaded():
    in_file, in_model = arrays(**HEAD), variables(**HEAD)
    rows = assign(in_file, in_model)
    assert set(outcomes(rows).values()) == {"loaded"}
    for name, value in in_file.items():
        np.testing.assert_array_equal(in_model[name], value)


def test_another_precision_and_a_1x1_convolution_are_loaded():
    in_file = {"block": np.arange(6.0).reshape(1, 1, 2, C).astype(np.float64)}
    in_model = variables()
    assign(in_file, in_model)
    np.testing.assert_array_equal(in_model["block"], [[0, 1, 2], [3, 4, 5]])


def test_a_head_of_other_classes_stays_at_its_start():
    rows = assign(arrays(**HEAD), in_model := variables(**OTHER_HEAD))
    assert outcomes(rows)["head/kernel"] == outcomes(rows)["head/bias"] == "replaced"
    np.testing.assert_array_equal(in_model["head/bias"], np.ones(K + 1))
    kernel = next(row for row in rows if row.name == "head/kernel")
    assert (kernel.file_shape, kernel.model_shape) == ((C, K), (C, K + 1))


@pytest.mark.parametrize("has_file", [True, False])
def test_a_head_behind_another_representation_stays_at_its_start(has_file):
    with_layer, without = HEAD | PRE_LOGITS, HEAD
    in_file = arrays(**(with_layer if has_file else without))
    in_model = variables(**(without if has_file else with_layer))
    got = outcomes(assign(in_file, in_model))
    assert got["head/kernel"] == got["head/bias"] == "replaced"
    assert got["pre_logits/kernel"] == ("left out" if has_file else "new")
    np.testing.assert_array_equal(in_model["head/kernel"], np.ones([C, K]))


# A grid of one row: halfway between neighbours, corners stay.
TABLE = np.array([[0, 10], [4, 30], [2, 0]], np.float32)
STRETCHED = np.array([[0, 10], [2, 20], [4, 30], [3, 15], [2, 0]], np.float32)


def test_positions_are_stretched_over_the_models_grid():
    in_model = {POSITION: tf.Variable(tf.ones([1, 5, 2]))}
    rows = assign({POSITION: TABLE[None]}, in_model, grid=(1, 5), from_grid=(1, 3))
    assert outcomes(rows) == {POSITION: "resized"}
    np.testing.assert_allclose(in_model[POSITION][0], STRETCHED, rtol=1e-6)


def test_a_square_is_taken_for_a_square():
    square = np.array([[0], [2], [4], [6]], np.float32)  # 2x2
    in_model = {POSITION: tf.Variable(tf.ones([1, 6, 1]))}
    assign({POSITION: square[None]}, in_model, grid=(2, 3))
    np.testing.assert_allclose(in_model[POSITION][0, :, 0], [0, 1, 2, 4, 5, 6])


def test_as_many_places_are_taken_for_the_same_grid():
    table = random_normal(1, 4, 2)
    in_model = {POSITION: tf.Variable(tf.ones([1, 4, 2]))}
    rows = assign({POSITION: table}, in_model, grid=(1, 4))
    assert outcomes(rows) == {POSITION: "loaded"}
    np.testing.assert_array_equal(in_model[POSITION], table)


def test_a_class_token_that_only_the_file_has_is_left_out():
    table = np.concatenate([[[7, 8]], TABLE])[None]
    in_model = {POSITION: tf.Variable(tf.ones([1, 5, 2]))}
    rows = assign(
        {POSITION: table, "cls": np.zeros([1, 1, 2])},
        in_model,
        grid=(1, 5),
        from_grid=(1, 3),
    )
    np.testing.assert_allclose(in_model[POSITION][0], STRETCHED, rtol=1e-6)
    assert outcomes(rows) == {
        POSITION: "resized",
        f"{POSITION}[0]": "left out",
        "cls": "left out",
    }


def test_a_class_token_that_only_the_model_has_starts_afresh():
    in_model = {
        POSITION: tf.Variable(tf.ones([1, 6, 2])),
        "cls": tf.Variable(tf.ones([1, 1, 2])),
    }
    rows = assign({POSITION: TABLE[None]}, in_model, grid=(1, 5), from_grid=(1, 3))
    np.testing.assert_array_equal(in_model[POSITION][0, 0], [1, 1])
    np.testing.assert_allclose(in_model[POSITION][0, 1:], STRETCHED, rtol=1e-6)
    assert outcomes(rows) == {
        POSITION: "resized",
        f"{POSITION}[0]": "new",
        "cls": "new",
    }


def test_a_class_token_of_both_keeps_its_place():
    table = np.concatenate([[[7, 8]], TABLE])[None]
    in_model = {
        POSITION: tf.Variable(tf.ones([1, 6, 2])),
        "cls": tf.Variable(tf.ones([1, 1, 2])),
    }
    in_file = {POSITION: table, "cls": random_normal(1, 1, 2)}
    assign(in_file, in_model, grid=(1, 5), from_grid=(1, 3))
    np.testing.assert_allclose(in_model[POSITION][0, 0], [7, 8])
    np.testing.assert_allclose(in_model[POSITION][0, 1:], STRETCHED, rtol=1e-6)
    np.testing.assert_array_equal(in_model["cls"], in_file["cls"])


@pytest.mark.parametrize(
    "in_file, in_model, message",
    [
        ({"a": (2,)}, {}, r"1 names do not fit this model: a \(in the file alone\)"),
        ({}, {"a": (2,)}, r"a \(not in the file\)"),
        ({"a": (2,)}, {"a": (3,)}, r"a \(2 in the file, 3 here\)"),
        (
            {f"a{i}": (2,) for i in range(7)},
            {},
            r"7 names .*a0 .*a4 \(in the file alone\), and 2 more\. Build the model",
        ),
        ({POSITION: (1, 6, 2)}, {POSITION: (1, 4, 2)}, "6 places, which is no square"),
        ({POSITION: (6, 2)}, {POSITION: (1, 4, 2)}, "0 places, which is no square"),
        (
            {POSITION: (1, 4, 3)},
            {POSITION: (1, 4, 2)},
            r"pos_embedding \(1x4x3 in the file, 1x4x2 here\)",
        ),
    ],
)
def test_anything_else_is_an_error_and_changes_nothing(in_file, in_model, message):
    model = variables(**in_model)
    with pytest.raises(ValueError, match=rf"^x\.npz: .*{message}"):
        assign(arrays(**in_file), model, grid=(2, 2))
    for variable in model.values():
        np.testing.assert_array_equal(variable, np.ones(variable.shape))


def test_patterns_allow_names():
    rows = assign(
        arrays(**{"opt/step": (), "a": (2,), "same": (1,)}),
        in_model := variables(**{"a": (3,), "x/TokenLearner_0/y": (2,), "same": (1,)}),
        allow_unused=("opt/*",),
        allow_new=("*TokenLearner*", "a"),
    )
    assert outcomes(rows) == {
        "block": "loaded",
        "a": "replaced",
        "x/TokenLearner_0/y": "new",
        "same": "loaded",
        "opt/step": "unused",
    }
    np.testing.assert_array_equal(in_model["a"], np.ones(3))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="x.npz: block holds values that are not"):
        assign({"block": np.full([2, C], np.nan)}, variables())


def test_the_table_has_a_line_for_each_name_and_counts_outcomes():
    rows = assign(arrays(**HEAD, cls=(1, 1, C)), variables(**OTHER_HEAD))
    assert transfer.format_rows(rows).splitlines() == [
        "block        loaded    2x3 -> 2x3",
        "head/kernel  replaced  3x4 -> 3x5",
        "head/bias    replaced  4 -> 5",
        "cls          left out  1x1x3 -> -",
        "1 loaded, 2 replaced, 1 left out",
    ]
    assert transfer.format_rows([]) == "nothing"
