"""Tokens over windows, and fewer of them at inference: beyond the paper."""

import numpy as np
import pytest
import tensorflow as tf

from tests.contract import random_normal, randomize
from tl_tf.layers import nested_tokens
from tl_tf.models import vit, vivit, x2p1d

SEED = tf.constant([3, 4])
SMALL_X2P1D = {
    "num_frames": 4,
    "module": "token_learner",
    "module_blocks": (0,),
    "num_tokens": 4,
    "width": 0.1,
    "stage_depths": (1, 1, 1, 1),
    "stage_strides": (2, 1, 1, 2),
    "dropout_rate": 0.0,
    "batch_norm": "frozen",  # the same statistics in training and inference
}
SMALL_VIT = {
    "image_px": (16, 24),
    "patch_px": 8,
    "hidden_size": 8,
    "depth": 3,
    "num_heads": 2,
    "mlp_size": 12,
    "insert_before_block": 1,
    "num_tokens": 4,
}
MODELS = {
    "fuser": (x2p1d.build_x2p1d, SMALL_X2P1D),
    "volume": (
        x2p1d.build_x2p1d,
        {**SMALL_X2P1D, "tokenizer": "volume", "window_frames": 2},
    ),
    "broadcast": (x2p1d.build_x2p1d, {**SMALL_X2P1D, "restore": "broadcast"}),
    "unpool": (x2p1d.build_x2p1d, {**SMALL_X2P1D, "restore": "unpool"}),
    "vit": (vit.build_vit, SMALL_VIT),
    "vivit": (vivit.build_vivit, {**SMALL_VIT, "num_frames": 8, "window_slices": 2}),
}
INPUTS = {
    x2p1d.build_x2p1d: (2, 4, 32, 32, 3),
    vit.build_vit: (2, 16, 24, 3),
    vivit.build_vivit: (2, 8, 16, 24, 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_fewer_tokens_give_what_training_with_so_few_gave(name, monkeypatch):
    build, arguments = MODELS[name]
    x = random_normal(*INPUTS[build])
    trained = build(3, nested_dropout=True, **arguments)
    randomize(trained)
    outputs = []
    for kept in nested_tokens.levels(4):
        monkeypatch.setattr(
            nested_tokens, "draw_kept", lambda n, s, seed, kept=kept: tf.fill([n], kept)
        )
        want = trained(x, training=True, seed=SEED)[0].numpy()
        fewer = build(3, used_tokens=kept, **arguments)
        fewer.set_weights(trained.get_weights())
        got, endpoints = fewer(x)
        tolerance = 1e-5 * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
        maps = [e for name, e in endpoints.items() if name.endswith("token_maps")]
        assert [m.shape[-1] for m in maps] == [kept]
        outputs.append(want)
    assert np.abs(outputs[0] - outputs[-1]).max() > 1e-3  # the number does matter


def test_each_clip_draws_its_own_number():
    model = vivit.build_vivit(
        3, nested_dropout=True, **{**SMALL_VIT, "num_frames": 8, "num_tokens": 6}
    )
    randomize(model)
    x = np.repeat(random_normal(1, 8, 16, 24, 3), 16, axis=0)
    got = model(x, training=True, seed=SEED)[0].numpy()
    assert 2 <= len(np.unique(got.round(4), axis=0)) <= 4  # 6 has 4 divisors
    np.testing.assert_array_equal(got, model(x, training=True, seed=SEED)[0])
    with pytest.raises(ValueError, match="needs a seed"):
        model(x, training=True)


def test_a_window_of_slices_is_pooled_together():
    model = vivit.build_vivit(3, **SMALL_VIT, num_frames=8, window_slices=2)
    randomize(model)
    _, endpoints = model(random_normal(2, 8, 16, 24, 3))
    tokens, maps = (endpoints[f"block_1/{n}"] for n in ("learned_tokens", "token_maps"))
    assert tokens.shape == (2, 2 * 4, 8)  # two windows of two slices
    grid = endpoints["block_0"].numpy().reshape(2, 4, 2, 3, 8)  # [B, T', H, W, C]
    windows = maps.numpy().reshape(2, 2, 12, 4)
    np.testing.assert_allclose(windows.sum(axis=2), 1, rtol=1e-5)
    want = np.einsum("bmns,bmnc->bmsc", windows, grid.reshape(2, 2, 12, 8))
    np.testing.assert_allclose(tokens, want.reshape(2, 8, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build, arguments, message",
    [
        (x2p1d.build_x2p1d, {"used_tokens": 3}, r"used_tokens must be .* \[1, 2, 4\]"),
        (x2p1d.build_x2p1d, {"window_frames": 2}, "but with tokenizer='volume'"),
        (
            x2p1d.build_x2p1d,
            {"tokenizer": "volume", "window_frames": 3},
            "a divisor of num_frames=4",
        ),
        (
            x2p1d.build_x2p1d,
            {"transformer": "prior", "nested_dropout": True},
            "treats all tokens alike",
        ),
        (vit.build_vit, {"used_tokens": 3}, r"used_tokens must be .* \[1, 2, 4\]"),
        (
            vit.build_vit,
            {"restore": "fuser", "nested_dropout": True},
            "nested_dropout must be False",
        ),
        (
            vivit.build_vivit,
            {"tokenizer": "v1.0", "window_slices": 2},
            "window_slices must be 1, or above with tokenizer v1.1",
        ),
        (vivit.build_vivit, {"window_slices": 3}, "a divisor of 16"),
    ],
)
def test_what_cannot_be_is_refused(build, arguments, message):
    small = SMALL_X2P1D if build is x2p1d.build_x2p1d else SMALL_VIT
    with pytest.raises(ValueError, match=message):
        build(3, **{**small, **arguments})
