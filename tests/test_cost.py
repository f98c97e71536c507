import re

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from benchmarks import cost_table
from tests import toy_model
from tl_tf import (
    config,
    cost,
    experiment,  # noqa: F401  recipes bind its modes
    inspection,
)
from tl_tf.layers import vector_attention
from tl_tf.models import vit, x2p1d

CLIP = [1, 64, 256, 256, 3]  # Section 6.1's test size, for which Table XI states costs


class Arithmetic(tf_keras.Model):
    """No products at all."""

    def call(self, x, training=False):
        x = tf.math.squared_difference(tf.pow(x, 3.0), 1.0)  # [2, 5, 3]
        x = tf.tanh(tf.sigmoid(tf.math.rsqrt(x * 2.0)))
        return tf.reduce_mean(tf.reduce_max(x, axis=1), axis=-1)


class TinyModel(tf_keras.Model):
    """One of each: convolutions, matrix products, softmax, arithmetic."""

    def __init__(self):
        super().__init__(name="tiny")
        self.conv = tf_keras.layers.Conv2D(4, (3, 2), padding="same", name="stem/conv")
        self.depthwise = tf_keras.layers.DepthwiseConv2D(
            3, padding="same", use_bias=False, name="stem/depthwise"
        )
        self.norm = tf_keras.layers.BatchNormalization(name="stem/norm")
        self.dense = tf_keras.layers.Dense(9, use_bias=False, name="head")

    def call(self, x, training=False):
        x = self.norm(self.depthwise(self.conv(x)), training=training)  # [2, 5, 7, 4]
        x = tf.reshape(x, [2, 35, 4])
        x = tf.matmul(x, x, transpose_a=True)  # [2, 4, 4]
        x = tf.einsum("bij,bkj->bik", x, x)  # [2, 4, 4]
        x = tf.nn.softmax(self.dense(x))  # [2, 4, 9]
        return tf.reduce_sum(x * 2.0, axis=-1)


@pytest.fixture(scope="module")
def tiny_cost():
    model = TinyModel()
    model(tf.zeros([2, 5, 7, 3]))
    return cost.count(model, [2, 5, 7, 3])


def test_counts_equal_a_count_by_hand(tiny_cost):
    conv = 2 * 5 * 7 * 4 * (3 * 2 * 3)
    depthwise = 2 * 5 * 7 * 4 * (3 * 3)
    square = 2 * 4 * 4 * 35
    einsum = 2 * 4 * 4 * 4
    dense = 2 * 4 * 9 * 4
    multiply_adds = conv + depthwise + square + einsum + dense
    bias, softmax, double, total = 2 * 5 * 7 * 4, 5 * 72, 72, 72
    assert tiny_cost.total.multiply_adds == multiply_adds
    other = bias + softmax + double + total
    assert tiny_cost.total.flops == 2 * multiply_adds + other
    norm = 4 * 2 * 5 * 7 * 4
    other = bias + norm + 4 * 72 + double + total
    assert tiny_cost.total.xla_flops == 2 * multiply_adds + other


def test_xla_counts_powers_as_products_and_nothing_for_transcendentals():
    total = cost.count(Arithmetic(), [2, 5, 3]).total
    assert total.multiply_adds == 0
    cube, difference, double, most, mean = 2 * 30, 2 * 30, 30, 30, 6
    assert total.xla_flops == cube + difference + double + most + mean
    cube, difference, rsqrt, double, most, mean = 30, 30, 30, 30, 0, 6
    assert total.flops == cube + difference + rsqrt + double + most + mean


def test_parameters_leave_out_moving_statistics(tiny_cost):
    assert tiny_cost.total.parameters == (72 + 4) + 36 + 8 + 36


def test_rows_add_up_by_scope(tiny_cost):
    rows = {row.scope: row for row in tiny_cost.at_depth(1)}
    assert set(rows) == {"stem", "head", "einsum", ""}
    assert rows["stem"].parameters == (72 + 4) + 36 + 8
    assert rows["head"].multiply_adds == 2 * 4 * 9 * 4
    for column in ("multiply_adds", "xla_flops", "flops", "parameters"):
        total = sum(getattr(row, column) for row in rows.values())
        assert total == getattr(tiny_cost.total, column)


def test_the_cost_of_all_views_of_a_video(tiny_cost):
    one = cost.of_view(tiny_cost)
    total = tiny_cost.total  # tested by hand above
    assert one["gflops_per_view"] == total.xla_flops / 2e9
    assert one["profiler_gflops_per_view"] == total.flops / 1e9
    both = cost.of_views(one, 12)
    assert both["gflops_per_example"] == pytest.approx(12 * total.xla_flops / 2e9)
    assert both["profiler_gflops_per_example"] == pytest.approx(12 * total.flops / 1e9)
    assert "one per multiply-add" in both["convention"]


def test_gflops_are_told_per_view_and_per_video():
    one = {"gflops_per_view": 766.06, "profiler_gflops_per_view": 1533.767}
    assert cost.views_line(one, 12, noun="video") == (
        "GFLOPs: 766.1 per view, 9,193 per video (one per multiply-add, Tables I-IX);"
        " 1,534 per view, 18,405 per video (two, Tables XI-XIII)"
    )


@pytest.mark.parametrize("published", cost_table.MODULES, ids=lambda row: row.row)
def test_modules_cost_what_tables_xii_and_xiii_print(published):
    """Within 0.5 % of the independent count, or to the printed digits if there is none.

    The text's definition of a TokenLearner fits no printed number.
    """
    ours = cost_table.count_module(published)
    counts = (ours.flops / 1e9, ours.parameters / 1e6)
    printed = published.printed.removesuffix("M").split(", ")
    for count, computed, text in zip(counts, published.computed, printed, strict=True):
        if computed is None:
            np.testing.assert_allclose(count, float(text), rtol=0.015)
        else:
            np.testing.assert_allclose(count, computed, rtol=cost_table.COMPUTED_WITHIN)


@pytest.mark.parametrize("published", cost_table.NETWORKS[1:3], ids=lambda row: row.row)
def test_token_learner_model_costs_what_table_xi_prints(published):
    """Three modules in place of both the conv2d and the conv1d.

    The backbone's 532 is in tests/golden/x2p1d_m.json.
    """
    ours = cost_table.count_network(published).flops / 1e9
    np.testing.assert_allclose(ours, published.computed[0], rtol=5e-4)


def test_counting_leaves_the_model_as_it_was():
    model = x2p1d.build_x2p1d(
        3,
        num_frames=2,
        module="token_learner",
        module_blocks=(0,),
        stage_depths=(1, 1, 1, 1),
        width=0.2,
    )
    cost.count(model, [1, 2, 48, 80, 3])
    (layer,) = (
        layer
        for layer in model.submodules
        if isinstance(layer, vector_attention.VectorTransformer)
    )
    assert layer.implementation == "auto"


@pytest.mark.parametrize(
    "published",
    [
        pytest.param(
            row,
            id=row.row,
            marks=[] if row.name.startswith("s32") else pytest.mark.slow,
        )
        for row in cost_table.PUBLISHED
    ],
)
def test_image_models_cost_what_tables_i_to_vi_print(published):
    """Within 0.5 % of the independent count, or of the paper where there is none."""
    ours = cost_table.count(published).xla_flops / 2e9
    wanted = published.computed
    if wanted is None:
        printed = published.gflops.split(", ")[-1]
        wanted = float("nan") if printed == "–" else float(printed)
    if np.isfinite(wanted):
        np.testing.assert_allclose(ours, wanted, rtol=cost_table.COMPUTED_WITHIN)


@pytest.mark.parametrize("published", cost_table.PUBLISHED, ids=lambda row: row.row)
def test_the_recipe_of_a_row_is_of_its_model(published):
    text = (cost_table.ROOT / published.recipe).read_text()
    assert f"docs/RESULTS.md row {published.row}." in text
    assert f"include '{published.model_file}'" in text
    assert f"\nIMAGE_PX = {published.pixels} " in text
    assert published.accuracy.split()[0].rstrip(",") in text


@pytest.mark.parametrize("published", cost_table.VIVIT, ids=lambda row: row.row)
def test_the_recipe_of_a_row_of_vivit_is_of_its_model(published):
    text = (cost_table.ROOT / published.recipe).read_text()
    assert f"docs/RESULTS.md row {published.row}." in text
    assert f"include '{published.model_file}'" in text
    assert f"Table {published.tables.split(',')[0]} (top-1" in text
    for accuracy in re.findall(r"\d\d\.\d", published.accuracy):
        assert accuracy in text
    config.load([published.recipe], [])
    sizes = ("NUM_CLASSES", "NUM_FRAMES", "TRAIN_CROP_PX", "EVAL_CLIPS", "EVAL_CROPS")
    assert [gin.query_parameter(f"%{size}") for size in sizes] == [
        published.classes,
        cost_table.FRAMES,
        published.pixels,
        cost_table.CLIPS,
        cost_table.CROPS,
    ]


def test_a_row_of_vivit_has_the_cost_of_a_view_and_of_a_video():
    row = next(row for row in cost_table.VIVIT if row.row == "K4")
    ours = cost.Row("total", 765_190_000_000, 1_540_000_000_000, 0, 307_740_000)
    assert cost_table.vivit_line(row, ours) == (
        "| K4 | `kinetics400_vivit_l16_tl16_12.gin` | VII, VIII | 766 | 765.9 | 770.00"
        " | +0.54% | 765.19 | 4 × 3 | 9240 | 308M | 307.7M | 83.5, 6 views 82.1 |"
    )


def test_a_table_is_written_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_table, "RESULTS", tmp_path / "RESULTS.md")
    start, end = cost_table.VIVIT_MARKERS
    cost_table.RESULTS.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    rows = [("K1", "| K1 | 3 |", [0.005]), ("K2", "| K2 | 7 |", [None, -0.005])]
    cost_table.fill(["row", "ours"], rows, cost_table.VIVIT_MARKERS)
    table = "| row | ours |\n|---|---|\n| K1 | 3 |\n| K2 | 7 |"
    written = f"before\n{start}\n{table}\n{end}\nafter\n"
    assert cost_table.RESULTS.read_text() == written
    rows.append(("K3", "| K3 | 9 |", [None, -0.006]))
    with pytest.raises(ValueError, match=r"not within 0.5%: K3\."):
        cost_table.fill(["row", "ours"], rows, cost_table.VIVIT_MARKERS)
    assert cost_table.RESULTS.read_text() == written


def test_costs_come_by_stage_and_by_block():
    model = vit.build_vit(
        3,
        image_px=24,
        patch_px=8,
        hidden_size=12,
        num_heads=2,
        mlp_size=20,
        depth=2,
        insert_before_block=1,
        num_tokens=4,
    )
    counted = cost.count(model, [1, 24, 24, 3])
    stages = {row.scope for row in counted.at_depth(1)}
    assert {"embed", "position", "stage_1", "stage_2", "norm", "classifier"} <= stages
    rows = {row.scope: row for row in counted.at_depth(3)}
    learner = rows["stage_2/token_learner_1"].multiply_adds
    learner += sum(
        row.multiply_adds
        for scope, row in rows.items()
        if scope.startswith("stage_2/token_learner_1/")
    )
    assert learner == 9 * (12 * 64 + 64 * 4 + 4 * 12)
    assert rows["stage_1/block_0/attention"].xla_flops > 2 * 9 * 4 * 12 * 12
    lines = inspection.table(counted, {}).splitlines()
    assert [line.split()[0] for line in lines[5:10]] == [
        "block_0", "stage_2", "token_learner_1", "block_1", "norm",
    ]  # fmt: skip


class Unknown(tf_keras.Model):
    def call(self, x, training=False):
        return tf.signal.rfft(x)


class Dynamic(tf_keras.Model):
    def call(self, x, training=False):
        return 2.0 * tf.boolean_mask(x, x > 0)


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match="is a RFFT, whose cost is unknown. Add it to"):
        cost.count(Unknown(), [2, 8])


def test_dynamic_shapes_are_refused(monkeypatch):
    known = ["Greater", "Where", "GatherV2", "Prod", "Range"]
    monkeypatch.setattr(cost, "FREE", cost.FREE | set(known))
    with pytest.raises(ValueError, match="wanted static ones"):
        cost.count(Dynamic(), [2, 8])


def test_replicas_have_the_cost_of_one():
    """Outside of a replica, moving statistics are read as a mean over all of them."""
    with toy_model.two_replicas().scope():
        model = TinyModel()
        model(tf.zeros([2, 5, 7, 3]))
    alone = TinyModel()
    alone(tf.zeros([2, 5, 7, 3]))
    assert cost.count(model, [2, 5, 7, 3]) == cost.count(alone, [2, 5, 7, 3])
