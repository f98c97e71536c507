import numpy as np
import pytest
import tensorflow as tf

from tests.contract import random_normal
from tl_tf.layers import nested_tokens, vector_attention

B, T, S, C = 3, 2, 6, 5


def test_levels_are_the_divisors():
    assert nested_tokens.levels(6) == [1, 2, 3, 6]
    assert nested_tokens.levels(1) == [1]


def test_every_level_is_drawn_equally_often_and_repeatably():
    seed = tf.constant([3, 4])
    drawn = nested_tokens.draw_kept(4000, S, seed=seed).numpy()
    again = nested_tokens.draw_kept(4000, S, seed=seed).numpy()
    np.testing.assert_array_equal(drawn, again)
    counts = np.bincount(drawn, minlength=S + 1)
    assert set(np.flatnonzero(counts)) == {1, 2, 3, 6}
    np.testing.assert_allclose(counts[[1, 2, 3, 6]] / 4000, 0.25, atol=0.04)


def test_kept_tokens_take_the_places_of_the_others():
    tokens = random_normal(B, T, S, C)
    got = nested_tokens.keep_first(tf.constant(tokens), tf.constant([2, 6, 1])).numpy()
    np.testing.assert_array_equal(got[0], tokens[0][:, [0, 1, 0, 1, 0, 1]])
    np.testing.assert_array_equal(got[1], tokens[1])
    np.testing.assert_array_equal(got[2], tokens[2][:, [0] * 6])


def test_repeated_tokens_attend_as_if_they_were_there_once():
    tokens = tf.constant(random_normal(1, T, S, C))
    kept = 2
    repeated = nested_tokens.keep_first(tokens, tf.constant([kept]))

    def attended(x):
        x = tf.reshape(x, [1, -1, C])
        return vector_attention.vector_attention(x, x * 0.7, v=x).numpy()

    got = attended(repeated).reshape(1, T, S, C)[:, :, :kept]
    want = attended(tokens[:, :, :kept]).reshape(1, T, kept, C)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_is_kept_marks_the_first_ones():
    got = nested_tokens.is_kept(tf.constant([2, 1]), 3, tf.float32).numpy()
    np.testing.assert_array_equal(got, [[1, 1, 0], [1, 0, 0]])


def test_only_divisors_can_be_used():
    nested_tokens.check_used_tokens("x", None, 6)
    nested_tokens.check_used_tokens("x", 3, 6)
    with pytest.raises(ValueError, match=r"x: used_tokens must be .*6, one of \[1, 2"):
        nested_tokens.check_used_tokens("x", 4, 6)
