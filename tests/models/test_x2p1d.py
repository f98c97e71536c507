import json

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests import golden_summary
from tests.contract import random_normal, randomize
from tl_tf.models import x2p1d

B, T, H, W, K, S = 2, 6, 48, 80, 5, 4
SMALL = {"num_frames": T, "stage_depths": (1, 1, 1, 2), "width": 0.25}
TOKENS = SMALL | {"module": "token_learner", "module_blocks": (1,), "num_tokens": S}
SEED = tf.constant([3, 4])


def frames(b=B, h=H, w=W, seed=0):
    return tf.constant(random_normal(b, T, h, w, 3, seed=seed))


@pytest.fixture(scope="module")
def model():
    model = x2p1d.build_x2p1d(K, **TOKENS)
    randomize(model)
    return model


def test_endpoints_name_every_stage_and_the_token_maps(model):
    logits, endpoints = model(frames())
    assert logits.shape == (B, K)
    shapes = {name: tuple(x.shape) for name, x in endpoints.items()}
    tokens = {
        "stage_4/block_1/learned_tokens": (B, T, S, 108),
        "stage_4/block_1/token_maps": (B, T, 2, 3, S),
    }
    assert shapes == tokens | {
        "stem": (B, T, 24, 40, 6),
        "stage_1/block_0": (B, T, 12, 20, 6),
        "stage_1": (B, T, 12, 20, 6),
        "stage_2/block_0": (B, T, 6, 10, 12),
        "stage_2": (B, T, 6, 10, 12),
        "stage_3/block_0": (B, T, 3, 5, 24),
        "stage_3": (B, T, 3, 5, 24),
        "stage_4/block_0": (B, T, 2, 3, 48),
        "stage_4/block_1": (B, T, 2, 3, 48),
        "stage_4": (B, T, 2, 3, 48),
        "head": (B, T, 2, 3, 2048),
        "pooled": (B, 2048),
    }


def test_weights_serve_any_height_and_width(model):
    for h, w in ((224, 224), (256, 320)):
        assert model(frames(1, h // 4, w // 4))[0].shape == (1, K)


def test_eager_graph_and_compiled_agree(model):
    want = model(frames())[0]
    for jit_compile in (False, True):
        got = tf.function(model, jit_compile=jit_compile)(frames())[0]
        limit = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)


def test_clips_do_not_see_each_other(model):
    want = model(frames())[0]
    got = model(frames()[:1])[0]
    np.testing.assert_allclose(got, want[:1], atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    "policy, jit_compile, options",
    [
        ("mixed_bfloat16", True, {"batch_norm": "local"}),
        (
            "float32",
            False,
            {"batch_norm": "sync", "cost_matching": True, "stem_kernel": "depthwise"},
        ),
        (
            "mixed_bfloat16",
            False,
            {
                "batch_norm": "frozen",
                "tokenizer": "v1.1",
                "mixing": "per_frame",
                "beta": "mlp",
                "use_norm": True,
                "zero_init": True,
                "use_early_pooling": True,
            },
        ),
        (
            "float32",
            False,
            {"use_conv2d": False, "tokenizer": "v1.0", "beta": "conv"},
        ),
        ("mixed_bfloat16", True, {"module": "joint"}),
        ("mixed_bfloat16", False, {"module": "temporal", "transformer": "vector"}),
        ("float32", False, {"module": "spatial", "use_conv2d": False}),
        ("float32", False, {"module": "spatial_temporal", "use_conv2d": False}),
        ("mixed_bfloat16", False, {"module": "mlp_mixer"}),
        ("float32", False, {"module": "spatial_token_learner"}),
        ("mixed_bfloat16", False, {"transformer": "mhsa", "restore": "broadcast"}),
        ("mixed_bfloat16", False, {"transformer": "prior", "tokenizer": "grid"}),
        ("float32", False, {"tokenizer": "dense", "dense_grid": (2, 3)}),
        ("float32", False, {"tokenizer": "pooled", "restore": "fuser"}),
        ("float32", False, {"tokenizer": "v1.1", "restore": "unpool"}),
    ],
)
def test_a_training_step_reaches_every_weight(policy, jit_compile, options):
    tf_keras.mixed_precision.set_global_policy(policy)
    options = {"stage_depths": (1, 1, 1, 1), "module_blocks": (0,)} | options
    options = {"num_heads": 4} | options
    model = x2p1d.build_x2p1d(K, **TOKENS | options)

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            logits, _ = model(x, training=True, seed=SEED)
            loss = tf.reduce_mean(logits**2)
        return logits, tape.gradient(loss, model.trainable_weights)

    logits, gradients = step(frames())
    assert logits.dtype == tf.float32
    assert all(np.isfinite(g).all() for g in gradients)  # None is not finite
    assert model.trainable_weights


def test_every_block_may_have_its_own_module():
    modules = ("spatial_temporal", "conv1d", "token_learner")
    model = x2p1d.build_x2p1d(
        K,
        num_frames=T,
        width=0.125,  # 54 channels
        stage_depths=(1, 1, 1, 4),
        module=modules,
        module_blocks=(0, 1, 3),
        num_heads=3,
    )
    blocks = model.stages["stage_4"]
    assert [tuple(block.layer_options) for block in blocks] == [
        ("spatial", "temporal"),
        ("conv1d",),
        ("conv1d",),
        ("token_module",),
    ]
    endpoints = model(frames(1))[1]
    maps = [name for name in endpoints if name.endswith("token_maps")]
    assert maps == ["stage_4/block_3/token_maps"]


@pytest.mark.parametrize("module", x2p1d.MODULES)
def test_a_checkpoint_restores_every_module(module, tmp_path):
    options = {"num_frames": T, "stage_depths": (1, 1, 1, 1), "width": 0.125}
    options |= {"module": module, "module_blocks": (0,), "num_heads": 3}
    model, copy = (x2p1d.build_x2p1d(K, **options) for _ in range(2))
    randomize(model)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "ckpt")
    tf.train.Checkpoint(model=copy).restore(path).assert_consumed()
    for h, w in ((32, 48), (64, 64)):  # of weights that know neither
        x = frames(1, h, w)
        np.testing.assert_array_equal(copy(x)[0], model(x)[0])
    keys = " ".join(name for name, _ in tf.train.list_variables(path))
    for layer in x2p1d.MODULES[module]:
        assert f"model/stages/stage_4/0/{layer}/" in keys


def test_the_transformer_of_a_module_is_the_papers_unless_named():
    def transformers(**options):
        model = x2p1d.build_x2p1d(
            K, **TOKENS | {"module": "spatial_token_learner", "num_heads": 4} | options
        )
        block = model.stages["stage_4"][1]
        names = type(block.spatial.transformer), type(block.token_module.transformer)
        return [name.__name__ for name in names]

    assert transformers() == ["Mhsa", "VectorTransformer"]
    assert transformers(transformer="mhsa") == ["Mhsa", "Mhsa"]
    assert transformers(transformer="prior") == ["Mhsa", "PriorAttention"]


def test_dropout_is_a_function_of_its_seed():
    model = x2p1d.build_x2p1d(K, **SMALL, batch_norm="frozen")
    x = frames(1)
    first = model(x, training=True, seed=[1, 2])[0]
    np.testing.assert_array_equal(first, model(x, training=True, seed=[1, 2])[0])
    assert np.any(first != model(x, training=True, seed=[1, 3])[0])
    assert np.any(first != model(x)[0])


def test_dropout_needs_a_seed_in_training():
    model = x2p1d.build_x2p1d(K, **SMALL)
    with pytest.raises(ValueError, match="dropout needs a seed, int32"):
        model(frames(), training=True)
    without = x2p1d.build_x2p1d(K, **SMALL, dropout_rate=0.0)
    assert without(frames(), training=True)[0].shape == (B, K)


def test_another_number_of_frames_is_refused(model):
    with pytest.raises(
        ValueError, match="num_frames=6, got frames of shape .*1, 3, 48"
    ):
        model(frames(1)[:, :3])


def test_checkpoint_restores_the_same_logits(model, tmp_path):
    path = tf.train.Checkpoint(model=model).save(tmp_path / "ckpt")
    copy = x2p1d.build_x2p1d(K, **TOKENS)
    tf.train.Checkpoint(model=copy).restore(path).assert_consumed()
    np.testing.assert_array_equal(copy(frames())[0], model(frames())[0])
    keys = [name for name, _ in tf.train.list_variables(path)]
    kernel = "model/stages/stage_4/1/token_module/transformer/query/kernel"
    assert f"{kernel}/.ATTRIBUTES/VARIABLE_VALUE" in keys


@pytest.mark.parametrize(
    "argument, value, wanted",
    [
        ("num_classes", 0, ">= 1"),
        ("num_frames", 0, ">= 1"),
        ("num_tokens", 0, ">= 1"),
        ("num_heads", 0, ">= 1"),
        ("width", 0, "> 0"),
        ("dropout_rate", 1.0, r"in \[0, 1\)"),
        ("stage_depths", (1, 2, 3), "4 depths >= 1"),
        ("stage_depths", (1, 2, 0, 3), "4 depths >= 1"),
        ("module", "lstm", r"one of \('conv1d', 'joint', .*'spatial_token_learner'\)"),
        ("module", ("joint", "lstm"), "one, or one for each of the 1 module_blocks"),
        ("module_blocks", (1, 2), r"in 0..1 \(depth of the last stage 2\)"),
        ("module_blocks", (), r"in 0..1 \(depth of the last stage 2\)"),
        ("tokenizer", "v2", r"one of \('bottleneck', 'v1.0', .*'pooled'"),
        ("transformer", "lstm", r"one of \(None, 'vector', .*'mlp_mixer'\)"),
        ("restore", "none", r"one of \('fuser', 'broadcast', 'unpool'\)"),
        ("mixing", "all", r"one of \('joint', 'per_frame', 'per_token'\)"),
        ("beta", "cnn", r"one of \('linear', 'mlp', 'conv'\)"),
        ("stem_kernel", "3d", r"one of \('full', 'depthwise'\)"),
        ("batch_norm", "none", r"one of \('local', 'sync', 'frozen'\)"),
    ],
)
def test_bad_arguments_name_the_binding_to_change(argument, value, wanted):
    arguments = {"num_classes": K} | TOKENS | {argument: value}
    message = f"x2p1d: {argument} must be {wanted}.*, got .*build_x2p1d.{argument} in"
    with pytest.raises(ValueError, match=message):
        x2p1d.build_x2p1d(**arguments)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokenizer": "v1.1", "cost_matching": True}, "cost_matching must be False"),
        ({"module": "conv1d", "cost_matching": True}, "cost_matching must be False"),
        ({"module": "joint", "cost_matching": True}, "cost_matching must be False"),
        ({"module": "conv1d", "use_conv2d": False}, "use_conv2d must be True with"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        x2p1d.build_x2p1d(K, **TOKENS | options)


def test_model_files_bind_the_builder():
    gin.add_config_file_search_path(str(golden_summary.ROOT))
    gin.parse_config_file("gin/models/x2p1d_m_tl.gin")
    gin.bind_parameter("build_x2p1d.stage_depths", (1, 1, 1, 2))
    gin.bind_parameter("build_x2p1d.module_blocks", (0,))
    gin.bind_parameter("build_x2p1d.width", 0.25)
    gin.bind_parameter("NUM_FRAMES/macro.value", 3)
    model = x2p1d.build_x2p1d(K)
    assert model.num_frames == 3
    names = [weight.name for weight in model.weights]
    assert "stage_4/block_0/token_module/token_fuser/mix:0" in names


def test_backbone_is_the_papers():
    golden = json.loads(golden_summary.golden_path("x2p1d_m").read_text())
    assert golden["gflops"] == pytest.approx(532.5, rel=5e-4)  # Table XI prints 532
    assert golden["parameters"] == pytest.approx(27.1e6, rel=2e-3)
