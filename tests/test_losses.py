import numpy as np
import pytest
import tensorflow as tf

from tl_tf import losses

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], np.float32)
LABELS = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_sigmoid_is_the_mean_over_classes():
    p = sigmoid(LOGITS.astype(np.float64))
    entropies = -(LABELS * np.log(p) + (1 - LABELS) * np.log(1 - p))
    loss = losses.build_loss("sigmoid")
    np.testing.assert_allclose(loss(LOGITS, LABELS), entropies.mean(axis=1), rtol=1e-6)


def test_softmax_with_smoothing():
    labels = np.eye(3, dtype=np.float32)[[2, 1]]
    smoothed = labels * 0.8 + 0.2 / 3
    logits = LOGITS.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = losses.build_loss("softmax", label_smoothing=0.2)
    expected = -(smoothed * log_p).sum(axis=1)
    np.testing.assert_allclose(loss(LOGITS, labels), expected, rtol=1e-6)


def test_sigmoid_smoothing_moves_targets_towards_a_half():
    smooth = losses.build_loss("sigmoid", label_smoothing=0.5)
    plain = losses.build_loss("sigmoid")
    moved = LABELS * 0.5 + 0.25
    np.testing.assert_allclose(smooth(LOGITS, LABELS), plain(LOGITS, moved), rtol=1e-6)


def test_scores_are_probabilities():
    np.testing.assert_allclose(
        losses.build_loss("sigmoid").scores(LOGITS), sigmoid(LOGITS), rtol=1e-6
    )
    scores = losses.build_loss("softmax").scores(LOGITS).numpy()
    np.testing.assert_allclose(scores.sum(axis=-1), [1, 1], rtol=1e-6)


def test_loss_is_float32_whatever_the_logits():
    loss = losses.build_loss("sigmoid")
    assert loss(tf.cast(LOGITS, tf.bfloat16), LABELS).dtype == tf.float32


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"kind": "hinge"}, r"kind must be one of \('sigmoid', 'softmax'\)"),
        ({"kind": "softmax", "label_smoothing": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        losses.build_loss(**arguments)
