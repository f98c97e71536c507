"""Learned tokens ordered by importance, so that fewer can be used without retraining.

In training each example keeps the first so many of its S tokens, drawn anew each time;
the first ones then learn what matters most. What is dropped is not cut off, for shapes
are static: the kept tokens are repeated in its place. A softmax over tokens that are
all repeated equally often is the softmax over them once, and so is a mean: whatever
attends and pools sees just the tokens that are left.
"""

import tensorflow as tf


def levels(num_tokens: int) -> list[int]:
    """How many tokens may be kept: the divisors of S, ascending."""
    return [n for n in range(1, num_tokens + 1) if num_tokens % n == 0]


def draw_kept(batch_size, num_tokens: int, *, seed: tf.Tensor) -> tf.Tensor:
    """Draws for each example how many tokens it keeps: each level equally often.

    Source: "Learning Ordered Representations with Nested Dropout", arXiv 1402.0915.
    Differs: there the number is geometric, here its logarithm is about uniform, over
      the divisors of S.
    Args:
      batch_size: B, an int or a scalar tensor.
      num_tokens: S.
      seed: int32 [2].

    Returns:
      int32 [B].
    """
    choices = tf.constant(levels(num_tokens))
    draws = tf.random.stateless_uniform(
        [batch_size], seed, maxval=len(levels(num_tokens)), dtype=tf.int32
    )
    return tf.gather(choices, draws)  # [B]


def keep_first(tokens: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Puts token i modulo `kept` in the place of token i.

    Shapes: tokens [B, T, S, C], kept [B] -> [B, T, S, C]
    Args:
      tokens: of every frame, or of every window.
      kept: int32, divisors of S.
    """
    s = tokens.shape[2]
    sources = tf.range(s)[tf.newaxis] % kept[:, tf.newaxis]  # [B, S]
    copies = tf.one_hot(sources, s, dtype=tokens.dtype)  # [B, S, S]
    return tf.einsum("bsr,btrc->btsc", copies, tokens)


def is_kept(kept: tf.Tensor, num_tokens: int, dtype: tf.DType) -> tf.Tensor:
    """1 for a token that is kept, 0 for a repetition.  [B] -> [B, S]"""
    return tf.cast(tf.range(num_tokens)[tf.newaxis] < kept[:, tf.newaxis], dtype)


def check_used_tokens(name: str, used_tokens: int | None, num_tokens: int) -> None:
    """Raises a ValueError for a number of tokens that was not trained for."""
    if used_tokens is not None and used_tokens not in levels(num_tokens):
        raise ValueError(
            f"{name}: used_tokens must be None or a divisor of num_tokens={num_tokens},"
            f" one of {levels(num_tokens)}, got {used_tokens!r}."
        )
