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


T, PATCH = 3, (4, 5, 3, 2)
KERNEL = transfer.PATCH_KERNEL


@pytest.mark.parametrize(
    "inflate, num_frames, shares",
    [
        ("central_frame", 1, [1]),
        ("central_frame", 2, [0, 1]),
        ("central_frame", 3, [0, 1, 0]),
        ("central_frame", 4, [0, 0, 1, 0]),
        ("average_frame", 1, [1]),
        ("average_frame", 4, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_a_patch_kernel_is_inflated(inflate, num_frames, shares):
    in_model = {KERNEL: tf.Variable(tf.ones([num_frames, *PATCH]))}
    in_file = {KERNEL: random_normal(*PATCH)}
    (row,) = assign(in_file, in_model, inflate=inflate)
    assert (row.outcome, row.file_shape) == ("inflated", PATCH)
    for frame, share in enumerate(shares):
        np.testing.assert_array_equal(
            in_model[KERNEL][frame], np.float32(share) * in_file[KERNEL]
        )


def arrays_of(name, shape):
    return {name: random_normal(*shape)}


def test_kernels_of_one_rank_are_loaded():
    for shape in (PATCH, (T, *PATCH)):
        in_model = {KERNEL: tf.Variable(tf.ones(shape))}
        assert outcomes(assign(arrays_of(KERNEL, shape), in_model))[KERNEL] == "loaded"


@pytest.mark.parametrize(
    "in_file, in_model, message",
    [
        ((4, 7, 3, 2), (T, *PATCH), r"\(4x7x3x2 in the file, 3x4x5x3x2 here\)"),
        ((2, *PATCH), (T, *PATCH), r"\(2x4x5x3x2 in the file, 3x4x5x3x2 here\)"),
        ((T, *PATCH), PATCH, r"\(3x4x5x3x2 in the file, 4x5x3x2 here\)"),
    ],
)
def test_a_kernel_that_fits_neither_way_is_refused(in_file, in_model, message):
    with pytest.raises(ValueError, match=rf"embedding/kernel {message}"):
        assign(arrays_of(KERNEL, in_file), {KERNEL: tf.Variable(tf.ones(in_model))})


def test_an_unknown_inflation_names_the_known_ones():
    in_model = {KERNEL: tf.Variable(tf.ones([T, *PATCH]))}
    with pytest.raises(
        ValueError, match=r"inflate must be one of \('central_frame', .*got 'mean'\."
    ):
        assign(arrays_of(KERNEL, PATCH), in_model, inflate="mean")


def test_an_images_positions_are_tiled_over_the_slices():
    in_model = {POSITION: tf.Variable(tf.ones([1, T * 3, 2]))}
    rows = assign({POSITION: TABLE[None]}, in_model, grid=(1, 3), num_slices=T)
    assert outcomes(rows) == {POSITION: "tiled"}
    np.testing.assert_array_equal(in_model[POSITION][0], np.concatenate([TABLE] * T))


def test_they_are_resized_first_and_the_class_tokens_place_is_kept_once():
    table = np.concatenate([[[7, 8]], TABLE])[None]
    in_model = {
        POSITION: tf.Variable(tf.ones([1, 1 + T * 5, 2])),
        "cls": tf.Variable(tf.ones([1, 1, 2])),
    }
    in_file = {POSITION: table, "cls": random_normal(1, 1, 2)}
    rows = assign(in_file, in_model, grid=(1, 5), num_slices=T, from_grid=(1, 3))
    assert outcomes(rows) == {POSITION: "resized and tiled", "cls": "loaded"}
    np.testing.assert_array_equal(in_model[POSITION][0, 0], [7, 8])
    np.testing.assert_allclose(
        in_model[POSITION][0, 1:], np.concatenate([STRETCHED] * T), rtol=1e-6
    )


def video(shape):
    """Positions beside a tubelet's kernel, by which they are known for a video's."""
    in_file = arrays_of(POSITION, (1, *shape)) | {KERNEL: np.ones([2, *PATCH])}
    return in_file, {KERNEL: tf.Variable(tf.zeros([2, *PATCH]))}


def test_a_videos_positions_are_stretched_in_time():
    in_file, in_model = video((2 * 15, 1))
    in_model[POSITION] = tf.Variable(tf.ones([1, 3 * 15, 1]))
    rows = assign(in_file, in_model, grid=(3, 5), num_slices=3)
    assert outcomes(rows)[POSITION] == "resized"
    first, last = in_file[POSITION].reshape(2, 15)
    np.testing.assert_allclose(
        tf.reshape(in_model[POSITION], [3, 15]),
        [first, (first + last) / 2, last],
        rtol=1e-6,
    )


def test_a_videos_positions_are_stretched_in_space():
    in_file, in_model = video((2 * 4, 1))
    in_file[POSITION] = np.array([0, 2, 4, 6, 10, 12, 14, 16], np.float32)[
        None, :, None
    ]
    in_model[POSITION] = tf.Variable(tf.ones([1, 2 * 6, 1]))
    rows = assign(in_file, in_model, grid=(2, 3), num_slices=2)
    assert outcomes(rows)[POSITION] == "resized"
    np.testing.assert_allclose(
        tf.reshape(in_model[POSITION], [2, 6]),
        [[0, 1, 2, 4, 5, 6], [10, 11, 12, 14, 15, 16]],
    )


def test_from_grid_says_how_a_videos_places_are_read():
    in_file, in_model = video((4 * 16, 1))  # 4x4x4, or 16 slices of the model's 2x2
    in_model[POSITION] = tf.Variable(tf.ones([1, 4 * 4, 1]))
    options = {"grid": (2, 2), "num_slices": 4}
    message = "64 places, which may be 4x4x4 or 16x2x2. Give the grid"
    with pytest.raises(ValueError, match=message):
        assign(in_file, in_model, **options)
    assign(in_file, in_model, from_grid=(4, 4), **options)
    corners = in_file[POSITION].reshape(4, 4, 4)[:, ::3, ::3]
    np.testing.assert_allclose(
        tf.reshape(in_model[POSITION], [4, 2, 2]), corners, rtol=1e-6
    )


def test_an_images_places_are_never_read_as_slices():
    """4x4 of an image at twice the size, not the 4 slices of 2x2 that the model has."""
    in_file, in_model = video((16, 1))
    in_file[KERNEL] = np.ones(PATCH)
    in_model[POSITION] = tf.Variable(tf.ones([1, 4 * 4, 1]))
    rows = assign(in_file, in_model, grid=(2, 2), num_slices=4)
    assert outcomes(rows)[POSITION] == "resized and tiled"
    corners = in_file[POSITION].reshape(4, 4)[::3, ::3]
    for position in tf.reshape(in_model[POSITION], [4, 2, 2]):
        np.testing.assert_allclose(position, corners, rtol=1e-6)


def test_sampled_frames_have_an_images_kernel():
    """The same model again, and an image model of its grid."""
    in_file, in_model = video((3 * 6, 1))
    in_file[KERNEL], in_model[KERNEL] = np.ones(PATCH), tf.Variable(tf.ones(PATCH))
    in_model[POSITION] = tf.Variable(tf.ones([1, 3 * 6, 1]))
    options = {"grid": (2, 3), "num_slices": 3}
    assert outcomes(assign(in_file, in_model, **options))[POSITION] == "loaded"
    in_file[POSITION] = in_file[POSITION][:, :6]
    assert outcomes(assign(in_file, in_model, **options))[POSITION] == "tiled"
    in_file[POSITION] = random_normal(1, 36, 1)  # 6x6, or 6 slices of 2x3
    with pytest.raises(ValueError, match="36 places, which may be 1x6x6 or 6x2x3"):
        assign(in_file, in_model, **options)


def factorised():
    shapes = {
        KERNEL: (2, *PATCH),
        "cls_SpatialTransformer": (1, 1, 2),
        "SpatialTransformer/posembed_input/pos_embedding": (1, 1 + 5, 2),
        "SpatialTransformer/norm": (2,),
        "cls_TemporalTransformer": (1, 1, 2),
        "TemporalTransformer/posembed_input/pos_embedding": (1, 1 + T, 2),
        "TemporalTransformer/norm": (2,),
    }
    return {name: tf.Variable(tf.ones(shape)) for name, shape in shapes.items()}


def test_a_factorised_encoder_starts_its_spatial_transformer_from_an_image_model():
    table = np.concatenate([[[7, 8]], TABLE])[None]
    in_file = {
        KERNEL: random_normal(*PATCH),
        "cls": random_normal(1, 1, 2, seed=1),
        POSITION: table,
        "Transformer/norm": random_normal(2, seed=2),
    }
    in_model = factorised()
    rows = assign(in_file, in_model, grid=(1, 5), num_slices=T, from_grid=(1, 3))
    position = "SpatialTransformer/posembed_input/pos_embedding"
    assert outcomes(rows) == {
        KERNEL: "inflated",
        "cls_SpatialTransformer": "loaded",
        position: "resized",
        "SpatialTransformer/norm": "loaded",
        "cls_TemporalTransformer": "new",
        "TemporalTransformer/posembed_input/pos_embedding": "new",
        "TemporalTransformer/norm": "new",
    }
    np.testing.assert_allclose(in_model[position][0, 1:], STRETCHED, rtol=1e-6)
    np.testing.assert_array_equal(
        in_model["SpatialTransformer/norm"], in_file["Transformer/norm"]
    )
    np.testing.assert_array_equal(in_model["TemporalTransformer/norm"], [1, 1])


def test_a_factorised_encoder_of_other_clips_is_stretched_in_time():
    in_file = {name: value.numpy() for name, value in factorised().items()}
    name = "TemporalTransformer/posembed_input/pos_embedding"
    in_file[name] = np.array([[[9, 9], [0, 4], [2, 2]]], np.float32)  # 1 + T = 2
    in_model = factorised()
    rows = assign(in_file, in_model, grid=(1, 5), num_slices=T)
    assert {n for n, outcome in outcomes(rows).items() if outcome != "loaded"} == {name}
    np.testing.assert_allclose(in_model[name][0], [[9, 9], [0, 4], [1, 3], [2, 2]])


def test_a_video_models_joint_transformer_is_not_taken_for_a_spatial_one():
    in_file = {KERNEL: np.ones([2, *PATCH]), "Transformer/norm": np.ones(2)}
    with pytest.raises(ValueError, match=r"TemporalTransformer/norm \(not in the file"):
        assign(in_file, factorised(), grid=(1, 5), num_slices=T)


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


def test_the_table_leaves_room_for_the_longest_outcome():
    in_model = {
        KERNEL: tf.Variable(tf.ones([2, *PATCH])),
        POSITION: tf.Variable(tf.ones([1, 2 * 5, 2])),
    }
    in_file = {KERNEL: random_normal(*PATCH), POSITION: TABLE[None]}
    rows = assign(in_file, in_model, grid=(1, 5), num_slices=2, from_grid=(1, 3))
    assert transfer.format_rows(rows).splitlines() == [
        f"embedding/kernel{' ' * 24}  inflated           4x5x3x2 -> 2x4x5x3x2",
        f"{POSITION}  resized and tiled  1x3x2 -> 1x10x2",
        "1 inflated, 1 resized and tiled",
    ]
