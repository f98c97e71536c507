import math

import gin
import pytest

from tests import test_cost, tiny
from tl_tf import config, cost, experiment, inspection, memory
from tl_tf.models import vit, vivit, x2p1d

SIZES = {"hidden_size": 12, "num_heads": 2, "mlp_size": 20, "depth": 3}
ESTIMATE = memory.Memory(
    (2, 5),
    inference_bytes=200,
    kept_bytes=500,
    training_bytes=1000,
    weight_bytes=70,
    trainable_bytes=60,
    kept_by_scope={"stem/conv": 100, "stem/norm": 50, "head": 300, "": 50},
)


@pytest.fixture(scope="module")
def counted():
    model = test_cost.TinyModel()
    model(test_cost.tf.zeros([2, 5, 7, 3]))
    return cost.count(model, [2, 5, 7, 3])


def test_the_table_states_its_conventions(counted):
    lines = inspection.table(counted, ESTIMATE.kept_by_scope).splitlines()
    assert lines[0] == "tiny, one forward pass of 2 x 5 x 7 x 3"
    assert "M multiply-adds" in lines[1]  # a small model's
    rows = {line.split()[0]: line for line in lines[2:]}
    total = counted.total  # tested by hand in test_cost
    sizes = (total.multiply_adds, total.xla_flops / 2, total.flops)
    millions = [f"{size / 1e6:.3f}" for size in sizes]
    assert rows["total"].split() == ["total", *millions, "0.0002", "0.0"]
    assert "2 x 5 x 7 x 4" in rows["stem"]
    assert "one each" in rows["multiply-adds:"]
    assert "one per multiply-add" in rows["XLA"]
    assert "two per multiply-add" in rows["profiler"]


def test_equal_blocks_share_a_line():
    model = vit.build_vit(
        7, image_px=24, patch_px=8, insert_before_block=2, num_tokens=4, **SIZES
    )
    counted = cost.count(model, [1, 24, 24, 3])
    lines = inspection.table(counted, {}).splitlines()
    (line,) = (line for line in lines if line.startswith("  block_0 "))
    assert line.startswith("  block_0 to block_1, each  9 x 12 ")
    rows = {row.scope: row for row in counted.at_depth(2)}
    shown = f"{rows['stage_1/block_1'].multiply_adds / 1e6:.3f}"
    assert shown == line.split()[7]


def test_what_is_kept_is_told_by_stage(counted):
    kept = {name: 1_000_000 * n for name, n in ESTIMATE.kept_by_scope.items()}
    lines = inspection.table(counted, kept).splitlines()
    found = {line.split()[0]: line.split()[-1] for line in lines[2:]}
    assert found["stem"] == "150.0" and found["head"] == "300.0"
    assert found["(model)"] == "50.0" and found["total"] == "500.0"


@pytest.mark.parametrize(
    "build, options, shape, noun, wanted",
    [
        (
            vit.build_vit,
            SIZES | {"image_px": 24, "patch_px": 8},
            [24, 24, 3],
            "an image",
            "tokens of an image: 9 patch tokens, all the way",
        ),
        (
            vit.build_vit,
            SIZES
            | {"image_px": 24, "patch_px": 8, "num_tokens": 4}
            | {"insert_before_block": 1},
            [24, 24, 3],
            "an image",
            "tokens of an image: 9 patch tokens, 4 learned tokens from block_1 on",
        ),
        (
            vit.build_vit,
            SIZES
            | {"image_px": 24, "patch_px": 8, "num_tokens": 4}
            | {"insert_before_block": 1, "restore": "fuser"},
            [24, 24, 3],
            "an image",
            "tokens of an image: 9 patch tokens, 4 learned tokens in block_1, block_2",
        ),
        (
            vivit.build_vivit,
            SIZES
            | {"num_frames": 6, "image_px": (16, 24), "patch_px": 8, "num_tokens": 2}
            | {"insert_before_block": 2},
            [6, 16, 24, 3],
            "a clip",
            "tokens of a clip: 18 patch tokens, 6 learned tokens from block_2 on",
        ),
        (
            x2p1d.build_x2p1d,
            {"num_frames": 2, "stage_depths": (1, 1, 1, 1), "width": 0.2}
            | {"module": "token_learner", "module_blocks": (0,), "num_tokens": 3},
            [2, 64, 96, 3],
            "a clip",
            "tokens of a clip: 12 patch tokens, 6 learned tokens in stage_4/block_0",
        ),
    ],
)
def test_tokens_are_counted_before_and_after(build, options, shape, noun, wanted):
    endpoints = cost.count(build(7, **options), [1, *shape]).endpoints
    assert inspection.tokens_line(endpoints, noun=noun) == wanted


def test_a_model_without_tokens_says_nothing_of_them():
    assert inspection.tokens_line({"stem": (1, 5, 7, 3)}, noun="a clip") == ""


def test_stages_have_the_shapes_of_their_endpoints():
    model = vit.build_vit(
        7, image_px=24, patch_px=8, insert_before_block=1, num_tokens=4, **SIZES
    )
    counted = cost.count(model, [1, 24, 24, 3])
    ends = counted.endpoints
    assert counted.outputs["embed"] == ends["embedding"] == (1, 3, 3, 12)
    assert counted.outputs["stage_1"] == ends["block_0"] == (1, 9, 12)
    learner = counted.outputs["stage_2/token_learner_1"]
    assert learner == ends["block_1/learned_tokens"] == (1, 4, 12)
    assert counted.outputs["stage_2"] == ends["block_2"] == (1, 4, 12)
    assert counted.outputs["classifier"] == (1, 7)


def test_a_device_holds_what_is_left_of_it():
    # 2 examples: 1000 bytes of activations in training, 1300 with what is added.
    fixed = 70 + (1 + 2) * 60
    assert ESTIMATE.largest_batch(fixed + 1300, slots=2) == 2
    assert ESTIMATE.largest_batch(fixed + 1299, slots=2) == 1
    assert ESTIMATE.largest_batch(fixed, slots=2) == 0
    assert ESTIMATE.largest_batch(70 + 260 * 3) == 6  # inference, 200 bytes


def test_what_fits_is_a_table():
    per_example = 4e9 / memory.HEADROOM  # with what is added
    one = memory.Memory((1, 5), per_example / 4, 0, per_example, 10**9, 10**9, {})
    lines = inspection.fits_table(
        {"float32": one}, slots=1, batch_size=10, noun="clips"
    ).splitlines()
    assert lines[0].split()[-8:] == ["8", "GB", "16", "GB", "32", "GB", "80", "GB"]
    cells = {line.strip().split("  ")[0]: line.split()[-4:] for line in lines[1:]}
    # 3 GB are taken: 5 / 4, 13 / 4, 29 / 4, 77 / 4
    assert cells["training, float32"] == ["1", "3", "7", "19"]
    assert cells["devices for a batch of 10"] == ["10", "4", "2", "1"]
    assert cells["inference, float32"] == ["7", "15", "31", "79"]
    assert (
        "weights 1.0 GB, in training with gradients and optimizer 3.0 GB" in lines[-1]
    )


def test_what_does_not_fit_says_so():
    one = memory.Memory((1, 5), 10**9, 0, 10**12, 10**9, 10**9, {})
    lines = inspection.fits_table(
        {"float32": one}, slots=1, batch_size=10, noun="clips"
    ).splitlines()
    assert lines[1].split()[-4:] == ["none"] * 4
    assert lines[2].split()[-4:] == ["-"] * 4


@pytest.mark.parametrize(
    "bindings, slots",
    [
        (["kind = 'momentum'"], 1),
        (["kind = 'adamw'"], 2),
        (["kind = 'adamw'", "ema_decay = 0.9"], 3),
    ],
)
def test_the_optimizers_values_are_counted(bindings, slots):
    gin.parse_config([f"build_optimizer.{binding}" for binding in bindings])
    assert inspection.count_slots() == slots


def test_training_has_its_own_crops(capfd, tmp_path):
    config.load([tiny.QUICKSTART], [*tiny.SHRINK, "TRAIN_CROP_PX = 40"])
    experiment.run("inspect", model_dir=tmp_path, data_dir=tmp_path, tpu=None)
    lines = capfd.readouterr().out.splitlines()
    assert any(
        line.startswith(
            "activation memory of 1 x 3 x 36 x 36 x 3 (training: 1 x 3 x 40"
        )
        for line in lines
    )
    assert any("devices for a batch of 2" in line for line in lines)
    (total,) = (line.split() for line in lines if line.startswith("total"))
    kept = next(line for line in lines if line.startswith("kept for the backward"))
    assert math.isclose(float(total[-1]), float(kept.split()[-1]), abs_tol=0.06)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_bytes, text", [(85e6, "85 MB"), (2.04e9, "2.0 GB")])
def test_sizes_are_readable(num_bytes, text):
    assert memory.size(num_bytes) == text
