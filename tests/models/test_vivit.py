import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from benchmarks import cost_table
from tests.contract import random_normal, randomize
from tl_tf.models import vivit

B, F, Y, X, K, C, S, HIDDEN = 2, 7, 14, 23, 5, 6, 3, 8
T, H, W = 3, 4, 5  # tubelets of 2x3x4; a frame, two rows, three columns are cut off
N = H * W
SEED = tf.constant([3, 4])
SIZES = {
    "num_frames": F,
    "image_px": (Y, X),
    "patch_px": (3, 4),
    "tubelet_frames": 2,
    "hidden_size": C,
    "depth": 3,
    "num_heads": 2,
    "mlp_size": HIDDEN,
    "num_tokens": S,
}
LEARNER = {"insert_before_block": 1}
FACTORISED = {"encoder_form": "factorised", "depth": 2, "temporal_depth": 1}
FACTORISED |= {"temporal_num_heads": 3, "temporal_mlp_size": 9}
VARIANTS = {
    "plain": {},
    "token": {"head": "token", "representation_size": 9},
    "v1.0": LEARNER | {"tokenizer": "v1.0"},
    "v1.1 and a class token": LEARNER | {"head": "token"},
    "fuser": LEARNER | {"restore": "fuser", "fuser_beta": "conv"},
    "fuser of the text": LEARNER
    | {"restore": "fuser", "fuser_mixing": "joint", "fuser_beta": "linear"},
    "unpool": LEARNER | {"restore": "unpool"},
    "sampled": {"num_sampled_frames": 4},
    "factorised": FACTORISED,
    "factorised with tokens": FACTORISED | LEARNER | {"head": "token"},
}


def build(**options):
    return vivit.build_vivit(options.pop("num_classes", K), **SIZES | options)


def random_model(**options):
    model = build(**options)
    randomize(model)
    return model


def frames(b=B, seed=0):
    return tf.constant(random_normal(b, F, Y, X, 3, seed=seed))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def model(variant):
    return random_model(**variant)


def assert_close(got, want, tolerance=1e-5):
    limit = tolerance * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)


def per_block(*shape):
    return {f"block_{i}": shape for i in range(3)}


PLAIN = per_block(B, T * N, C) | {
    "embedding": (B, T, H, W, C),
    "position": (B, T * N, C),
    "norm": (B, T * N, C),
    "pre_logits": (B, C),
}
WITH_CLASS_TOKEN = per_block(B, 1 + T * N, C) | dict.fromkeys(
    ("position", "norm"), (B, 1 + T * N, C)
)


def learned(i):
    return {
        f"block_{i}/learned_tokens": (B, T * S, C),
        f"block_{i}/token_maps": (B, T, H, W, S),
    }


@pytest.mark.parametrize(
    "name, want",
    [
        ("plain", PLAIN),
        ("token", PLAIN | WITH_CLASS_TOKEN | {"pre_logits": (B, 9)}),
        (
            "v1.0",
            PLAIN
            | learned(1)
            | dict.fromkeys(("block_1", "block_2", "norm"), (B, T * S, C)),
        ),
        (
            "v1.1 and a class token",
            PLAIN
            | WITH_CLASS_TOKEN
            | learned(1)
            | dict.fromkeys(("block_1", "block_2", "norm"), (B, 1 + T * S, C)),
        ),
        (
            "fuser",
            PLAIN
            | learned(1)
            | learned(2)
            | dict.fromkeys(("block_1", "block_2"), (B, T * S, C))
            | dict.fromkeys(("block_1/fused", "block_2/fused"), (B, T * N, C)),
        ),
        (
            "sampled",
            PLAIN
            | per_block(B, 4 * N, C)
            | dict.fromkeys(("position", "norm"), (B, 4 * N, C))
            | {"embedding": (B, 4, H, W, C)},
        ),
        (
            "factorised with tokens",
            {
                "embedding": (B, T, H, W, C),
                "position": (B * T, 1 + N, C),
                "block_0": (B * T, 1 + N, C),
                "block_1/learned_tokens": (B * T, S, C),
                "block_1/token_maps": (B, T, H, W, S),
                "block_1": (B * T, 1 + S, C),
                "norm": (B * T, 1 + S, C),
                "temporal/position": (B, 1 + T, C),
                "temporal/block_0": (B, 1 + T, C),
                "temporal/norm": (B, 1 + T, C),
                "pre_logits": (B, C),
            },
        ),
    ],
)
def test_endpoints_name_every_intermediate_tensor(name, want):
    logits, endpoints = build(**VARIANTS[name])(frames())
    assert {name: tuple(x.shape) for name, x in endpoints.items()} == want
    assert logits.shape == (B, K)


def test_eager_and_compiled_agree(model):
    function = tf.function(lambda x: model(x)[0], jit_compile=True)
    assert_close(function(frames()), model(frames())[0])


def test_shapes_are_static_but_for_the_batch(model):
    spec = tf.TensorSpec([None, F, Y, X, 3], tf.float32)
    graph = tf.function(lambda x: model(x)[1]).get_concrete_function(spec)
    for name, shape in graph.output_shapes.items():
        assert shape[1:].is_fully_defined(), name


def test_clips_do_not_see_each_other(model):
    assert_close(model(frames()[:1])[0], model(frames())[0][:1])


def test_a_gradient_reaches_every_variable(model):
    direction = tf.constant(random_normal(B, K, seed=7))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(frames())[0] * direction)
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


def test_every_variable_has_a_name_of_its_own(model):
    names = [variable.name for variable in model.variables]
    assert len(set(names)) == len(names)


def test_bfloat16_keeps_variables_and_logits_in_float32(model, variant):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    copy = build(**variant)
    copy.set_weights(model.get_weights())
    logits, endpoints = copy(frames())
    assert {v.dtype for v in copy.variables} == {tf.float32}
    assert logits.dtype == tf.float32
    for key, value in endpoints.items():
        wanted = tf.float32 if key.endswith("token_maps") else tf.bfloat16
        assert value.dtype == wanted, key
    assert_close(logits, model(frames())[0], tolerance=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"insert_before_block": 0, "restore": "fuser"},
        FACTORISED | {"insert_before_block": 0, "head": "token"},
    ],
)
def test_training_compiles(options):
    rates = {"dropout_rate": 0.3, "drop_path_rate": 0.3}
    model = random_model(**options | rates | {"depth": 1})

    @tf.function(jit_compile=True)
    def train(x, seed):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True, seed=seed)[0] ** 2)
        return loss, tape.gradient(loss, model.embed.projection.kernel)

    loss, gradient = train(frames(), SEED)
    assert np.isfinite(loss) and np.abs(gradient).max() > 0
    assert loss == train(frames(), SEED)[0]


@pytest.mark.parametrize("name", ["plain", "factorised"])
def test_training_draws_by_its_seed_alone(name):
    model = random_model(**VARIANTS[name], dropout_rate=0.5)
    first = model(frames(), training=True, seed=SEED)[0].numpy()
    np.testing.assert_array_equal(first, model(frames(), training=True, seed=SEED)[0])
    other = model(frames(), training=True, seed=tf.constant([3, 5]))[0].numpy()
    assert (first != other).any()
    np.testing.assert_array_equal(model(frames())[0], model(frames(), seed=SEED)[0])
    with pytest.raises(ValueError, match="dropout needs a seed"):
        model(frames(), training=True)


def test_the_two_encoders_draw_for_themselves():
    """They would drop the same elements otherwise where their shapes are alike."""
    options = {"num_frames": 2, "image_px": (3, 4)}  # one slice of one cell
    model = random_model(**FACTORISED | options, dropout_rate=0.5)
    x = tf.constant(random_normal(64, 2, 3, 4, 3))
    endpoints = model(x, training=True, seed=SEED)[1]
    drops = [endpoints[f"{part}position"].numpy() == 0 for part in ("", "temporal/")]
    assert (drops[0] != drops[1]).any()


def changed_cells(model, endpoint):
    """Which of the T slices of an endpoint another last slice of the clip changes."""
    x = frames().numpy()
    before = model(x)[1][endpoint].numpy()
    x[:, 4:6] += 1.0  # the frames of slice 2
    after = model(x)[1][endpoint].numpy()
    difference = np.abs(after - before).reshape(B, T, -1).max(axis=(0, 2))
    return (difference > 1e-6).tolist()


@pytest.mark.parametrize("tokenizer", ["v1.0", "v1.1"])
def test_token_learner_looks_at_one_slice(tokenizer):
    model = random_model(insert_before_block=0, tokenizer=tokenizer)
    assert changed_cells(model, "embedding") == [False, False, True]
    assert changed_cells(model, "block_0/learned_tokens") == [False, False, True]
    assert changed_cells(model, "block_0/token_maps") == [False, False, True]
    assert changed_cells(model, "block_0") == [True, True, True]  # attention mixes


def test_the_fuser_writes_to_the_slice_of_its_tokens():
    model = random_model(insert_before_block=0, restore="fuser", depth=1)
    endpoints = model(frames())[1]
    tokens, cells = endpoints["block_0"], endpoints["position"]
    for t in range(T):
        slice_tokens = tokens[:, t * S : (t + 1) * S]
        slice_cells = cells[:, t * N : (t + 1) * N]
        want = model.restorers["0"](slice_tokens[:, None], slice_cells[:, None])[:, 0]
        got = endpoints["block_0/fused"][:, t * N : (t + 1) * N]
        assert_close(got, want)


def test_learned_tokens_stand_in_the_order_of_the_slices():
    model = random_model(**LEARNER)
    endpoints = model(frames())[1]
    cells = endpoints["block_0"].numpy().reshape(B, T, N, C)
    maps = endpoints["block_1/token_maps"].numpy().reshape(B, T, N, S)
    want = np.einsum("btns,btnc->btsc", maps, cells).reshape(B, T * S, C)
    assert_close(endpoints["block_1/learned_tokens"], want)


def test_the_class_token_passes_by_token_learner():
    model = random_model(**VARIANTS["v1.1 and a class token"])
    endpoints = model(frames())[1]
    before, learned_tokens = endpoints["block_0"], endpoints["block_1/learned_tokens"]
    want = model.reducers["1"](tf.reshape(before[:, 1:], [B * T, N, C]))[0]
    assert_close(learned_tokens, tf.reshape(want, [B, T * S, C]))
    after = model.blocks[1](tf.concat([before[:, :1], learned_tokens], axis=1))
    assert_close(endpoints["block_1"], after)
    assert_close(endpoints["pre_logits"], endpoints["norm"][:, 0])


@pytest.mark.parametrize("head", ["token", "gap", "gmp", "gsp"])
def test_the_factorised_encoder_attends_in_a_slice_then_over_time(head):
    model = random_model(**FACTORISED, head=head)
    logits, endpoints = model(frames())

    def encode(part, x):  # [L, C] -> [C]
        if head == "token":
            x = np.concatenate([part.class_token[0], x])
        x = part.position(x[np.newaxis])
        for block in part.blocks:
            x = block(x)
        x = part.norm(x)[0].numpy()
        pools = {"token": lambda x, axis: x[0]}
        pools |= {"gap": np.mean, "gmp": np.max, "gsp": np.sum}
        return pools[head](x, axis=0)

    clip = endpoints["embedding"].numpy()[1].reshape(T, N, C)
    over_time = np.stack([encode(model, cells) for cells in clip])  # [T, C]
    representation = encode(model.temporal, over_time)
    assert_close(endpoints["pre_logits"][1], representation)
    assert_close(logits[1], model.classifier(representation[np.newaxis])[0])


def test_the_factorised_encoder_has_sizes_of_its_own_over_time():
    model = build(**FACTORISED | LEARNER, drop_path_rate=0.4)
    (block,) = model.temporal.blocks
    assert (block.num_heads, block.mlp_size) == (3, 9)
    assert not model.temporal.reducers and not model.temporal.restorers
    same = build(encoder_form="factorised").temporal.blocks
    assert [(b.num_heads, b.mlp_size) for b in same] == [(2, HIDDEN)] * 4


def test_sampled_frames_alone_are_seen():
    model = random_model(num_sampled_frames=3)  # of 7: 1.75, 3.5, 5.25
    x = frames().numpy()
    want = model(x)[0]
    x[:, [0, 1, 3, 6]] = 0
    np.testing.assert_array_equal(model(x)[0], want)
    x[:, 4] = 0
    assert np.abs(model(x)[0] - want).max() > 1e-6


@pytest.mark.parametrize(
    "options, grid, num_slices, tubelet_frames",
    [
        ({}, (4, 5), 3, 2),
        ({"tubelet_frames": 3}, (4, 5), 2, 3),
        ({"num_sampled_frames": 4}, (4, 5), 4, 1),
        (FACTORISED, (4, 5), 3, 2),
    ],
)
def test_a_warm_start_is_told_the_sizes(options, grid, num_slices, tubelet_frames):
    model = build(**options)
    assert (model.grid, model.num_slices) == (grid, num_slices)
    assert model.tubelet_frames == tubelet_frames


def test_gin_binds_the_builder():
    gin.parse_config("build_vivit.depth = 1\nbuild_vivit.num_classes = 4")
    model = vivit.build_vivit(**{k: v for k, v in SIZES.items() if k != "depth"})
    assert len(model.blocks) == 1
    assert model(frames())[0].shape == (B, 4)


@pytest.mark.slow  # some minutes; tests/golden holds the cost of B/16
@pytest.mark.parametrize(
    "published",  # the rest differ from these in their classes alone
    [*cost_table.VIVIT[:7], cost_table.VIVIT[-1]],
    ids=lambda row: row.row,
)
def test_models_cost_what_tables_vii_to_ix_print(published):
    total = cost_table.count_vivit(published)
    limit = cost_table.COMPUTED_WITHIN
    np.testing.assert_allclose(total.xla_flops / 2e9, published.computed, rtol=limit)
    if published.row not in ("K2", "K3", "K12"):  # see docs/RESULTS.md; not printed
        millions = float(published.parameters.removesuffix("M"))
        np.testing.assert_allclose(total.parameters / 1e6, millions, rtol=0.002)


@pytest.mark.parametrize("shape", [(B, F - 1, Y, X, 3), (B, F, X, Y, 3)])
def test_clips_of_another_size_are_refused(shape):
    message = r"vivit: built for 7 frames of \[14, 23\] pixels and 3 channels, got"
    with pytest.raises(ValueError, match=message):
        build()(tf.zeros(shape))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"variant": "XL"}, r"variant must be one of \('S', 'B', 'L', 'H'\), got 'XL'"),
        ({"tubelet_frames": 0}, r"tubelet_frames must be in 1..7 \(num_frames\), got"),
        ({"tubelet_frames": 8}, r"tubelet_frames must be in 1..7 \(num_frames\), got"),
        ({"num_sampled_frames": 0}, "num_sampled_frames must be None or in 1..7"),
        ({"num_sampled_frames": 8}, "num_sampled_frames must be None or in 1..7"),
        ({"encoder_form": "axial"}, r"encoder_form must be one of \('joint', 'fact"),
        (FACTORISED | {"temporal_depth": 0}, "temporal_depth must be >= 1, got 0"),
        (FACTORISED | {"temporal_mlp_size": 0}, "temporal_mlp_size must be >= 1"),
        (
            FACTORISED | {"temporal_num_heads": 4},
            "temporal_num_heads must be a divisor of hidden_size=6, got 4",
        ),
        (
            {"insert_before_block": 3},
            r"insert_before_block must be None or in 0\.\.2 \(depth 3 with",
        ),
        (
            LEARNER | {"restore": "fuser", "head": "token"},
            r"head must be one of \('gap', 'gmp', 'gsp'\) with restore='fuser'",
        ),
        ({"patch_px": 16}, r"patch_px must be at most image_px=\(14, 23\), got 16"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    argument = message.split()[0]
    with pytest.raises(ValueError, match=f"^vivit: {message}") as error:
        build(**options)
    assert f"Set build_vivit.{argument} in the model's gin file." in str(error.value)
