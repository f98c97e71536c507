import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import token_learner

B, T, H, W, C, S = 2, 3, 5, 7, 6, 4
N = 11
SIZES = {"B": B, "T": T, "H": H, "W": W, "N": N, "C": C, "S": S}

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def assert_close(got, want, tolerance=1e-5):
    """Compares up to a share of the largest wanted value."""
    want = np.asarray(want)
    limit = tolerance * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=limit)


def built(layer, *inputs):
    layer(*inputs)
    randomize(layer)
    return layer


@pytest.mark.parametrize("pooling", token_learner.POOLINGS)
def test_token_learner_keeps_the_contract(pooling):
    check_layer(token_learner.TokenLearner(S, pooling), SIZES)


def test_token_learner_v11_keeps_the_contract():
    # A softmax does not see a constant added to all its scores.
    check_layer(
        token_learner.TokenLearnerV11(S, hidden_size=9),
        SIZES,
        zero_gradients=("scores/bias",),
    )


@pytest.mark.parametrize("use_projection", [False, True])
def test_bottleneck_token_learner_keeps_the_contract(use_projection):
    check_layer(
        token_learner.BottleneckTokenLearner(S, use_projection=use_projection), SIZES
    )


@pytest.mark.parametrize(
    "mixing, beta, options, zero_gradients",
    [
        ("joint", "linear", {}, ()),
        ("per_frame", "conv", {}, ()),
        # The LayerNorm after the mixing undoes a bias that is equal for all channels.
        ("per_frame", "mlp", {"use_norm": True, "use_residual": False}, ("mix_bias",)),
        ("per_token", "conv", {"zero_init": True, "hidden_size": 9}, ()),
    ],
)
def test_token_fuser_keeps_the_contract(mixing, beta, options, zero_gradients):
    layer = token_learner.TokenFuser(mixing, beta, **options)
    check_layer(layer, SIZES, zero_gradients=zero_gradients)


def test_token_learner_is_equation_1_with_four_convolutions():
    x = random_normal(B, H, W, C)
    layer = built(token_learner.TokenLearner(S), x)
    norm = layer.norm
    kernels = [conv.kernel.numpy() for conv in layer.convs]
    want = reference.token_learner(x, norm.gamma.numpy(), norm.beta.numpy(), kernels)
    for got, wanted in zip(layer(x), want, strict=True):
        assert_close(got, wanted)


def test_mean_pooling_is_the_sum_over_the_number_of_cells():
    x = random_normal(B, H, W, C)
    summed = built(token_learner.TokenLearner(S), x)
    mean = built(token_learner.TokenLearner(S, "mean"), x)
    assert_close(mean(x)[0] * (H * W), summed(x)[0])


def test_token_learner_v11_is_a_softmax_over_positions():
    x = random_normal(B, N, C)
    layer = built(token_learner.TokenLearnerV11(S, hidden_size=9), x)
    want = reference.token_learner_v11(
        x,
        layer.norm.gamma.numpy(),
        layer.norm.beta.numpy(),
        [w.numpy() for w in layer.hidden.weights],
        [w.numpy() for w in layer.scores.weights],
    )
    for got, wanted in zip(layer(x), want, strict=True):
        assert_close(got, wanted)


def test_equal_patches_give_equal_learned_tokens_v11():
    x = random_normal(B, N, C)
    layer = built(token_learner.TokenLearnerV11(S), x)
    flat = np.broadcast_to(x[:, :1], x.shape)
    assert_close(layer(flat)[0], flat[:, :S])


def test_patch_order_does_not_matter_v11():
    x = random_normal(B, N, C)
    layer = built(token_learner.TokenLearnerV11(S), x)
    assert_close(layer(x[:, ::-1])[0], layer(x)[0])


@pytest.mark.parametrize("use_projection", [False, True])
def test_bottleneck_token_learner_averages(use_projection):
    x = random_normal(B, H, W, C)
    layer = token_learner.BottleneckTokenLearner(S, use_projection=use_projection)
    built(layer, x)
    kernel, bias = (w.numpy() for w in layer.scores.weights)
    maps = reference.sigmoid(reference.conv2d(x, kernel, bias))
    pooled = x
    if use_projection:
        pooled = reference.conv2d(x, layer.projection.kernel.numpy())
    tokens, got_maps = layer(x)
    assert_close(got_maps, maps)
    assert_close(tokens, reference.pool(maps, pooled) / (H * W))


@pytest.mark.parametrize("mixing", token_learner.MIXINGS)
@pytest.mark.parametrize("beta", token_learner.BETAS)
@pytest.mark.parametrize("use_norm", [False, True])
def test_token_fuser_is_equation_2(mixing, beta, use_norm):
    y, x = random_normal(B, T, S, C), random_normal(B, T, N, C, seed=1)
    layer = token_learner.TokenFuser(mixing, beta, use_norm=use_norm)
    built(layer, y, x)

    def norm(name, z):
        weights = getattr(layer, name)
        return reference.layer_norm(z, weights.gamma.numpy(), weights.beta.numpy())

    mixed = norm("norm_before_mix", y) if use_norm else y
    bias = layer.mix_bias.numpy() if mixing == "per_frame" else None
    mixed = reference.mix(mixed, layer.mix.numpy(), mixing, bias)
    mixed = norm("norm_after_mix", mixed) if use_norm else mixed

    scores = x if beta == "linear" else norm("beta_norm", x)
    if beta == "mlp":
        kernel, hidden_bias = (w.numpy() for w in layer.beta_hidden.weights)
        scores = reference.gelu(scores @ kernel + hidden_bias)
    scores = scores @ layer.beta.kernel.numpy()
    if beta != "conv":
        scores = scores + layer.beta.bias.numpy()

    fused = reference.fuse(mixed, x, reference.sigmoid(scores))
    assert_close(layer(y, x), x + fused)


def test_token_fuser_leaves_the_residual_to_the_caller():
    y, x = random_normal(B, T, S, C), random_normal(B, T, N, C, seed=1)
    with_x = built(token_learner.TokenFuser(), y, x)
    without = built(token_learner.TokenFuser(use_residual=False), y, x)
    assert_close(with_x(y, x), without(y, x) + x)


def test_token_fuser_starts_as_its_residual_with_zero_init():
    y, x = random_normal(B, T, S, C), random_normal(B, T, N, C, seed=1)
    layer = token_learner.TokenFuser(zero_init=True)
    np.testing.assert_array_equal(layer(y, x), x)


@pytest.mark.parametrize("mixing", token_learner.MIXINGS)
def test_token_fuser_starts_with_unit_gain_per_mixed_token(mixing):
    t, s = 40, 8
    layer = token_learner.TokenFuser(mixing)
    layer(random_normal(1, t, s, C), random_normal(1, t, N, C))
    mixed_tokens = {"joint": s * t, "per_frame": s, "per_token": t}[mixing]
    std = np.std(layer.mix.numpy())
    np.testing.assert_allclose(std * np.sqrt(mixed_tokens), 1, rtol=0.15)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: token_learner.TokenLearner(0), "num_tokens must be >= 1, got 0"),
        (lambda: token_learner.TokenLearnerV11(-1), "num_tokens must be >= 1, got -1"),
        (lambda: token_learner.BottleneckTokenLearner(0), "num_tokens must be >= 1"),
        (
            lambda: token_learner.TokenLearner(1, "max"),
            r"pooling must be one of \('sum'",
        ),
        (lambda: token_learner.TokenFuser("all"), r"mixing must be one of \('joint'"),
        (lambda: token_learner.TokenFuser(beta="x"), r"beta must be one of \('linear'"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_token_fuser_needs_a_static_t():
    layer = token_learner.TokenFuser()
    with pytest.raises(ValueError, match="y needs static T and S"):
        layer.build([None, None, S, C])


# The authors' names of a norm's and a dense layer's weights, and ours.
NORM = {"scale": "gamma", "bias": "beta"}
DENSE = {"kernel": "kernel", "bias": "bias"}
FUSER = {"use_norm": True, "use_residual": False}


def from_square(x):
    """Gives [B, N, C] the H and W that the authors' code assumes: H = W."""
    side = int(np.sqrt(x.shape[1]))
    return x.reshape(x.shape[0], side, side, -1) if x.ndim == 3 else x


def load(case):
    if not REFERENCE.is_dir():
        pytest.skip("the authors' outputs are not here")
    with np.load(REFERENCE / f"{case}.npz") as file:
        return dict(file), json.loads(str(file["__config__"]))


def copy_weights(arrays, layers):
    """Assigns Flax arrays to layers: {"LayerNorm_0": (layer, NORM), ...}."""
    for path, values in arrays.items():
        if not path.startswith("__"):
            *module, leaf = path.split("/")
            layer, names = layers["/".join(module)]
            getattr(layer, names[leaf]).assign(values)


@pytest.mark.parametrize("case", ["tl_v10_sum_3d", "tl_v10_sum_4d", "tl_v10_mean_3d"])
def test_token_learner_equals_the_authors(case):
    arrays, config = load(case)
    x = from_square(arrays["__input__"])
    pooling = "sum" if config["constructor"]["use_sum_pooling"] else "mean"
    layer = token_learner.TokenLearner(8, pooling)
    layer(x)
    layers = {f"Conv_{i}": (conv, DENSE) for i, conv in enumerate(layer.convs)}
    copy_weights(arrays, layers | {"LayerNorm_0": (layer.norm, NORM)})
    assert_close(layer(x)[0], arrays["__output__"])


@pytest.mark.parametrize("case", ["tl_v11_3d_lowvar", "tl_v11_4d"])
def test_token_learner_v11_equals_the_authors(case):
    arrays, _ = load(case)
    x = arrays["__input__"].reshape(2, -1, 32)
    layer = token_learner.TokenLearnerV11(8)
    layer(x)
    layers = {
        "LayerNorm_0": (layer.norm, NORM),
        "token_masking/Dense_0": (layer.hidden, DENSE),
        "token_masking/Dense_1": (layer.scores, DENSE),
    }
    copy_weights(arrays, layers)
    assert_close(layer(x)[0], arrays["__output__"])


@pytest.mark.parametrize(
    "case, beta, options",
    [
        ("fuser_nonorm_3d", "mlp", {"use_residual": False}),
        ("fuser_norm_3d", "mlp", FUSER),
        ("fuser_norm_3d_b", "mlp", FUSER | {"hidden_size": 16}),
        ("rel2021_fuser_norm", "conv", FUSER),
    ],
)
def test_token_fuser_equals_the_authors(case, beta, options):
    arrays, _ = load(case)
    y = arrays["__input__"][:, None]  # [B, 1, S, C]
    x = arrays["__original__"].reshape(len(y), 1, -1, 32)  # [B, 1, N, C]
    if "Conv_0/kernel" in arrays:
        arrays["Conv_0/kernel"] = arrays["Conv_0/kernel"][0, 0]  # 1x1 -> [C, S]
    layer = token_learner.TokenFuser("per_frame", beta, zero_init=True, **options)
    layer(y, x)
    layers = {
        "Dense_0": (layer, {"kernel": "mix", "bias": "mix_bias"}),
        "LayerNorm_0": (layer.beta_norm, NORM),
        "Conv_0": (layer.beta, DENSE),
        "token_masking/Dense_1": (layer.beta, DENSE),
    }
    if beta == "mlp":
        layers["token_masking/Dense_0"] = (layer.beta_hidden, DENSE)
    if layer.use_norm:
        layers["fuser_mix_norm1"] = (layer.norm_before_mix, NORM)
        layers["fuser_mix_norm2"] = (layer.norm_after_mix, NORM)
    copy_weights(arrays, layers)
    want = arrays["__output__"]
    assert_close(tf.reshape(layer(y, x), want.shape), want)


@pytest.mark.parametrize("mixing", token_learner.MIXINGS)
def test_token_fuser_drops_tokens_as_if_they_were_not_there(mixing):
    y, x = random_normal(B, T, S, C), random_normal(B, T, N, C, seed=1)
    layer = built(token_learner.TokenFuser(mixing, use_norm=True), y, x)
    keep = np.array([[1, 1, 0, 0]] * B, np.float32)
    fewer = layer(y[:, :, :2], x)
    assert_close(layer(y, x, keep), fewer)
    assert np.abs(layer(y, x) - fewer).max() > 0.01
