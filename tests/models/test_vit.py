import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.contract import random_normal, randomize
from tl_tf.layers import alternatives, token_learner
from tl_tf.models import vit

B, Y, X, K, C, S, HIDDEN = 2, 14, 23, 5, 6, 3, 7
H, W = 4, 5  # patches of 3x4; two rows and three columns are cut off
N = H * W
SEED = tf.constant([3, 4])
SIZES = {
    "image_px": (Y, X),
    "patch_px": (3, 4),
    "hidden_size": C,
    "depth": 3,
    "num_heads": 2,
    "mlp_size": HIDDEN,
    "num_tokens": S,
}
FUSER = {"insert_before_block": 1, "restore": "fuser"}
VARIANTS = {
    "plain": {},
    "token": {"head": "token", "representation_size": 9},
    "v1.0": {"insert_before_block": 1, "tokenizer": "v1.0"},
    "v1.1": {"insert_before_block": 1},
    "v1.1 and a class token": {"insert_before_block": 1, "head": "token"},
    "fuser": FUSER,
    "fuser of v1.0": FUSER | {"tokenizer": "v1.0", "fuser_beta": "conv"},
    "fuser of the text": FUSER | {"fuser_mixing": "joint", "fuser_beta": "linear"},
    "unpool": FUSER | {"restore": "unpool"},
    "reproject": FUSER | {"restore": "reproject"},
    "pool": {"pool_before_blocks": [0, 2], "pool_grids": [[4, 1], [2, 1]]},
    "stem": {"image_px": (16, 24), "patch_px": (2, 4)}
    | {"stem_filters": [4], "stem_strides": [2]},
}


def build(**options):
    return vit.build_vit(options.pop("num_classes", K), **SIZES | options)


def images(b=B, seed=0, y=Y, x=X):
    return tf.constant(random_normal(b, y, x, 3, seed=seed))


def images_of(model, b=B):
    return images(b, y=model.image_size[0], x=model.image_size[1])


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def model(variant):
    model = build(**variant)
    randomize(model)
    return model


def shapes(endpoints):
    return {name: tuple(x.shape) for name, x in endpoints.items()}


PLAIN = {
    "embedding": (B, H, W, C),
    "position": (B, N, C),
    "block_0": (B, N, C),
    "block_1": (B, N, C),
    "block_2": (B, N, C),
    "norm": (B, N, C),
    "pre_logits": (B, C),
}
MAPS = {"learned_tokens": (B, S, C), "token_maps": (B, 1, H, W, S)}
MAPS_1 = {f"block_1/{name}": shape for name, shape in MAPS.items()}
MAPS_2 = {f"block_2/{name}": shape for name, shape in MAPS.items()}
FUSED = {"block_1/fused": (B, N, C), "block_2/fused": (B, N, C)}
ON_TOKENS = {"block_1": (B, S, C), "block_2": (B, S, C)}
WITH_CLASS_TOKEN = dict.fromkeys(
    ("position", "block_0", "block_1", "block_2", "norm"), (B, N + 1, C)
)


@pytest.mark.parametrize(
    "name, want",
    [
        ("plain", PLAIN),
        ("token", PLAIN | WITH_CLASS_TOKEN | {"pre_logits": (B, 9)}),
        ("v1.0", PLAIN | ON_TOKENS | MAPS_1 | {"norm": (B, S, C)}),
        ("v1.1", PLAIN | ON_TOKENS | MAPS_1 | {"norm": (B, S, C)}),
        (
            "v1.1 and a class token",
            PLAIN | WITH_CLASS_TOKEN | ON_TOKENS | MAPS_1 | {"norm": (B, S, C)},
        ),
        ("fuser", PLAIN | ON_TOKENS | MAPS_1 | MAPS_2 | FUSED),
        ("unpool", PLAIN | ON_TOKENS | MAPS_1 | MAPS_2 | FUSED),
        ("reproject", PLAIN | ON_TOKENS | MAPS_1 | MAPS_2),
        (
            "pool",
            PLAIN
            | {"block_0/pooled": (B, 4, C), "block_2/pooled": (B, 2, C)}
            | {"block_0": (B, 4, C), "block_1": (B, 4, C), "block_2": (B, 2, C)}
            | {"norm": (B, 2, C)},
        ),
    ],
)
def test_endpoints_name_every_intermediate_tensor(name, want):
    logits, endpoints = build(**VARIANTS[name])(images())
    assert shapes(endpoints) == want
    assert logits.shape == (B, K)


def test_eager_and_compiled_agree(model):
    x = images_of(model)
    want = model(x)[0]
    function = tf.function(lambda x: model(x)[0], jit_compile=True)
    limit = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(function(x), want, rtol=0, atol=limit)


def test_images_do_not_see_each_other(model):
    want = model(images_of(model))[0]
    limit = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(
        model(images_of(model)[:1])[0], want[:1], rtol=0, atol=limit
    )


def test_a_gradient_reaches_every_variable(model):
    direction = tf.constant(random_normal(B, K, seed=7))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images_of(model))[0] * direction)
    variables = model.trainable_variables
    assert len(variables) == len(model.variables)
    gradients = tape.gradient(loss, variables)
    missing = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    assert not missing
    # A softmax, or a LayerNorm, takes these away.
    zero = ("key/bias", "scores/bias", "mix_bias")
    for variable, gradient in zip(variables, gradients, strict=True):
        if not variable.name.removesuffix(":0").endswith(zero):
            assert np.abs(gradient).max() > 0, variable.name


def test_bfloat16_keeps_variables_and_logits_in_float32(model, variant):
    want = model(images_of(model))[0]
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    copy = build(**variant)
    copy.set_weights(model.get_weights())
    logits, endpoints = copy(images_of(model))
    assert {v.dtype for v in copy.variables} == {tf.float32}
    assert logits.dtype == tf.float32
    assert endpoints["block_0"].dtype == tf.bfloat16
    for key, value in endpoints.items():
        wanted = tf.float32 if key.endswith("token_maps") else tf.bfloat16
        assert value.dtype == wanted, key
    limit = 0.1 * np.abs(want).max()
    np.testing.assert_allclose(logits, want, rtol=0, atol=limit)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_training_compiles(rate):
    model = build(**FUSER, depth=2, dropout_rate=rate, drop_path_rate=rate)
    randomize(model)
    x = images(8)

    def train(x, seed):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True, seed=seed)[0] ** 2)
        return loss, tape.gradient(loss, model.classifier.kernel)

    compiled = tf.function(train, jit_compile=True)
    got = compiled(x, SEED)
    # XLA's draws are not those of TensorFlow's kernels, but they repeat as well.
    want = compiled(x, SEED) if rate else train(x, SEED)
    for y, wanted in zip(got, want, strict=True):
        limit = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(y, wanted, rtol=0, atol=limit)


@pytest.mark.parametrize(
    "rate", ["dropout_rate", "attention_dropout_rate", "drop_path_rate"]
)
def test_training_draws_by_its_seed_alone(rate):
    model = build(**{rate: 0.5})
    randomize(model)
    x = images(8)
    first = model(x, training=True, seed=SEED)[0].numpy()
    np.testing.assert_array_equal(first, model(x, training=True, seed=SEED)[0])
    other = model(x, training=True, seed=tf.constant([3, 5]))[0].numpy()
    assert (first != other).any()
    np.testing.assert_array_equal(model(x)[0], model(x, seed=SEED)[0])
    with pytest.raises(ValueError, match="dropout needs a seed"):
        model(x, training=True)


def test_stochastic_depth_grows_over_the_blocks():
    model = build(depth=2, extra_blocks=1, drop_path_rate=0.4)
    rates = [block.drop_path_rate for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4])


def test_blocks_draw_for_themselves():
    """Two equal blocks on equal input would drop the same examples otherwise."""
    model = build(depth=2, dropout_rate=0.5)
    for block in model.blocks:
        for variable in block.variables:
            variable.assign(tf.zeros_like(variable))
        block.mlp.out.bias.assign(tf.ones([C]))
    endpoints = model(images(4), training=True, seed=SEED)[1]
    first = endpoints["block_0"] - endpoints["position"]
    second = endpoints["block_1"] - endpoints["block_0"]
    assert (np.abs(first - second) > 1).any()


@pytest.mark.parametrize(
    "head, pool",
    [
        ("gap", lambda x: x.mean(axis=1)),
        ("gmp", lambda x: x.max(axis=1)),
        ("gsp", lambda x: x.sum(axis=1)),
        ("token", lambda x: x[:, 0]),
    ],
)
def test_the_head_pools_the_last_tokens(head, pool):
    model = build(head=head)
    randomize(model)
    logits, endpoints = model(images())
    pooled = pool(endpoints["norm"].numpy())
    np.testing.assert_allclose(endpoints["pre_logits"], pooled, atol=1e-6)
    want = pooled @ model.classifier.kernel.numpy() + model.classifier.bias.numpy()
    np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())


def test_the_pre_logits_end_in_a_tanh():
    model = build(representation_size=9)
    randomize(model)
    endpoints = model(images())[1]
    pooled = endpoints["norm"].numpy().mean(axis=1)
    want = np.tanh(pooled @ model.pre_logits.kernel.numpy() + model.pre_logits.bias)
    np.testing.assert_allclose(endpoints["pre_logits"], want, atol=1e-5)


def test_the_model_starts_with_the_heads_bias():
    logits, _ = build(head_bias=-10.0)(images())
    np.testing.assert_array_equal(logits, np.full([B, K], -10))


def test_a_fused_block_adds_the_grid():
    model = build(**FUSER)
    endpoints = model(images())[1]
    # The matrix starts at zero, and LayerNorm makes zeros of its constant.
    np.testing.assert_allclose(endpoints["block_1/fused"], np.zeros([B, N, C]))
    np.testing.assert_allclose(
        endpoints["block_2/learned_tokens"],
        model.reducers["2"](endpoints["block_0"])[0],
        atol=1e-6,
    )


def test_token_maps_pool_the_grid_into_the_learned_tokens():
    model = build(insert_before_block=1)
    randomize(model)
    endpoints = model(images())[1]
    maps = endpoints["block_1/token_maps"].numpy().reshape(B, N, S)
    want = np.einsum("bns,bnc->bsc", maps, endpoints["block_0"])
    np.testing.assert_allclose(
        endpoints["block_1/learned_tokens"], want, atol=1e-5 * np.abs(want).max()
    )


def test_the_class_token_does_not_show_in_the_maps():
    model = build(insert_before_block=1, head="token")
    randomize(model)
    endpoints = model(images())[1]
    _, maps = model.reducers["1"](endpoints["block_0"])  # [B, 1 + N, S]
    want = maps.numpy()[:, 1:].reshape(B, 1, H, W, S)
    np.testing.assert_allclose(endpoints["block_1/token_maps"], want, rtol=1e-5)


@pytest.mark.parametrize(
    "size, millions",  # counted by hand, at 224 pixels with a 1000-way classifier
    [("S", 22.05), ("B", 86.57)],
)
def test_variants_have_the_known_number_of_parameters(size, millions):
    model = vit.build_vit(1000, variant=size, head="token")
    np.testing.assert_allclose(model.count_params() / 1e6, millions, atol=0.01)


def test_sizes_override_the_variants():
    model = vit.build_vit(2, image_px=32, variant="S", depth=1, extra_blocks=2)
    assert len(model.blocks) == 3
    assert model.embed.projection.filters == 384
    assert model.blocks[0].num_heads == 6 and model.blocks[0].mlp_size == 1536


@pytest.mark.parametrize(
    "options, reducers, restorers",
    [
        ({}, [], []),
        ({"insert_before_block": 1}, [1], []),
        ({"insert_before_block": 4, "extra_blocks": 2}, [4], []),
        ({"insert_before_block": 1, "restore": "fuser"}, [1, 2], [1, 2]),
        ({"insert_before_block": 0, "restore": "unpool"}, [0, 1, 2], [0, 1, 2]),
    ],
)
def test_modules_stand_before_their_blocks(options, reducers, restorers):
    model = build(**options)
    assert list(model.reducers) == [str(i) for i in reducers]
    assert list(model.restorers) == [str(i) for i in restorers]


def test_modules_are_what_was_asked_for():
    model = build(**FUSER | {"tokenizer": "v1.0", "pooling": "mean"})
    assert isinstance(model.reducers["1"], token_learner.TokenLearner)
    assert model.reducers["1"].pooling == "mean"
    fuser = model.restorers["1"]
    assert isinstance(fuser, token_learner.TokenFuser)
    assert fuser.use_norm and fuser.zero_init and not fuser.use_residual
    model = build(**FUSER | {"restore": "reproject"})
    assert isinstance(model.restorers["2"], alternatives.Reprojection)


def test_gin_binds_the_builder():
    gin.parse_config("build_vit.depth = 1\nbuild_vit.num_classes = 4")
    assert len(vit.build_vit(image_px=32).blocks) == 1
    with pytest.raises(ValueError, match="head must be one of"):
        vit.build_vit(head="mean")


def test_other_images_are_refused():
    model = build()
    wanted = rf"built for images of \[{Y}, {X}\] pixels .* Set build_vit.image_px"
    for shape in ((B, X, Y, 3), (B, Y, X, 1)):
        with pytest.raises(ValueError, match=wanted):
            model(tf.zeros(shape))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"variant": "XL"}, r"variant must be one of \('S', 'B', 'L', 'H'\), got 'XL'"),
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"num_heads": 0}, "num_heads must be >= 1, got 0"),
        ({"mlp_size": 0}, "mlp_size must be >= 1, got 0"),
        ({"num_tokens": 0}, "num_tokens must be >= 1, got 0"),
        ({"representation_size": 0}, "representation_size must be >= 1, got 0"),
        ({"patch_px": 0}, "patch_px must be >= 1, got 0"),
        ({"patch_px": (4, 0)}, "patch_px must be >= 1, got 0"),
        ({"patch_px": 16}, r"patch_px must be at most image_px=\(14, 23\), got 16"),
        ({"extra_blocks": -1}, "extra_blocks must be >= 0, got -1"),
        ({"hidden_size": 7}, "hidden_size must be a multiple of num_heads=2, got 7"),
        ({"hidden_size": 0}, "hidden_size must be a multiple of num_heads=2, got 0"),
        ({"dropout_rate": 1}, r"dropout_rate must be in \[0, 1\), got 1"),
        ({"attention_dropout_rate": -0.1}, r"attention_dropout_rate must be in \[0, 1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        ({"tokenizer": "v2"}, r"tokenizer must be one of \('v1.0', 'v1.1'\), got 'v2'"),
        ({"pooling": "max"}, r"pooling must be one of \('sum', 'mean'\), got 'max'"),
        ({"restore": "all"}, r"restore must be one of \('none', 'fuser', 'unpool',"),
        ({"fuser_mixing": "per_token"}, r"fuser_mixing must be one of \('per_frame',"),
        ({"fuser_beta": "dense"}, r"fuser_beta must be one of \('linear', 'mlp',"),
        (
            {"head": "mean"},
            r"head must be one of \('gap', 'gmp', 'gsp', 'token'\), got",
        ),
        (
            {"insert_before_block": 4, "extra_blocks": 1},
            r"insert_before_block must be None or in 0\.\.3 \(depth 4 with",
        ),
        ({"insert_before_block": -1}, r"insert_before_block must be None or in 0\.\.2"),
        ({"restore": "fuser"}, "restore must be 'none' without insert_before_block"),
        (
            {"pool_before_blocks": [2, 1], "pool_grids": [[2, 5], [1, 1]]},
            r"pool_before_blocks must be ascending, in 0\.\.2 .*, got \[2, 1\]",
        ),
        (
            {"pool_before_blocks": [3], "pool_grids": [[2, 5]]},
            r"pool_before_blocks must be ascending, in 0\.\.2",
        ),
        ({"pool_before_blocks": [1]}, r"pool_grids must be 1 grids, got \(\)"),
        (
            {"pool_before_blocks": [1], "pool_grids": [[5, 2]]},
            r"pool_grids must be grids that divide 4x5, got \[5, 2\]",
        ),
        (
            {"pool_before_blocks": [0, 1], "pool_grids": [[2, 5], [4, 5]]},
            r"pool_grids must be grids that divide 2x5, got \[4, 5\]",
        ),
        (
            {"pool_before_blocks": [1], "pool_grids": [[0, 5]]},
            "pool_grids must be grids",
        ),
        ({"pool_before_blocks": [1], "pool_grids": [[2]]}, "pool_grids must be grids"),
        (
            {"pool_before_blocks": [1], "pool_grids": [[2, 5]]}
            | {"insert_before_block": 1},
            "pool_before_blocks must be empty with insert_before_block",
        ),
        (
            {"head": "token", "insert_before_block": 1, "tokenizer": "v1.0"},
            r"head must be one of \('gap', 'gmp', 'gsp'\) with tokenizer v1.0 or",
        ),
        (
            {"head": "token", "pool_before_blocks": [1], "pool_grids": [[2, 5]]},
            r"head must be one of \('gap', 'gmp', 'gsp'\) with tokenizer v1.0 or",
        ),
        (
            {"stem_filters": [4], "stem_strides": [2]},
            r"stem_strides must be one for each of stem_filters=\[4\], their product",
        ),
        ({"stem_filters": [4]}, r"stem_strides must be one for each of .*, got \(\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    argument = message.split()[0]
    with pytest.raises(ValueError, match=f"^vit: {message}") as error:
        build(**options)
    assert f"Set build_vit.{argument} in the model's gin file." in str(error.value)
