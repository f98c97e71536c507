import numpy as np
import pytest
import tensorflow as tf

from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import volume_token_learner

B, T, H, W, C, S = 2, 6, 5, 7, 4, 3
WINDOW = 2
SIZES = {"B": B, "T": T, "H": H, "W": W, "C": C, "S": S, "M": T // WINDOW}


def built():
    layer = volume_token_learner.VolumeTokenLearner(S, WINDOW)
    layer(random_normal(B, T, H, W, C))
    randomize(layer)
    return layer


def test_keeps_the_contract():
    check_layer(volume_token_learner.VolumeTokenLearner(S, WINDOW), SIZES)


def test_tokens_are_weighted_means_over_whole_windows():
    layer, x = built(), random_normal(B, T, H, W, C)
    tokens, maps = layer(x)
    maps = maps.numpy()
    assert ((maps > 0) & (maps < 1)).all()
    first = x[:, WINDOW : 2 * WINDOW]  # the second window
    weights = maps[:, WINDOW : 2 * WINDOW]
    want = np.einsum("bthws,bthwc->bsc", weights, first) / (WINDOW * H * W)
    np.testing.assert_allclose(tokens[:, 1], want, rtol=1e-4, atol=1e-6)


def test_maps_see_the_frames_before_and_after():
    layer, x = built(), random_normal(1, T, H, W, C)
    changed = x.copy()
    changed[:, 0] += 1
    difference = np.abs(layer(changed)[1] - layer(x)[1]).max(axis=(0, 2, 3, 4))
    assert (difference[:2] > 1e-4).all()  # itself and the next frame
    assert (difference[2:] < 1e-6).all()


@pytest.mark.parametrize("argument", ["num_tokens", "window_frames"])
def test_sizes_below_one_are_refused(argument):
    arguments = {"num_tokens": S, "window_frames": WINDOW, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} must be >= 1, got 0"):
        volume_token_learner.VolumeTokenLearner(**arguments)


def test_windows_must_fill_the_clip():
    layer = volume_token_learner.VolumeTokenLearner(S, 4)
    with pytest.raises(ValueError, match="a multiple of window_frames=4, got 6"):
        layer(tf.zeros([B, T, H, W, C]))
