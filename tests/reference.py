"""The paper's equations in plain numpy, float64, written without looking at tl_tf.

They loop where a loop is clearest: the tests are small.
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(x, scale, bias, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def conv2d(x, kernel, bias=0.0):
    """SAME, stride 1: x [B, H, W, C], kernel [KH, KW, C, D], KH and KW odd."""
    kh, kw, _, d = kernel.shape
    b, h, w, _ = x.shape
    top, left = kh // 2, kw // 2
    padded = np.pad(x, [(0, 0), (top, top), (left, left), (0, 0)])
    out = np.zeros([b, h, w, d])
    for row in range(kh):
        for column in range(kw):
            window = padded[:, row : row + h, column : column + w]
            out += window @ np.asarray(kernel[row, column], np.float64)
    return out + bias


def pool(maps, x):
    """Eq. 1 with a sum for rho: maps [B, H, W, S], x [B, H, W, C] -> [B, S, C]."""
    b, _, _, s = maps.shape
    tokens = np.zeros([b, s, x.shape[-1]])
    for clip in range(b):
        for token in range(s):
            weighted = maps[clip, :, :, token, None] * x[clip]
            tokens[clip, token] = weighted.sum(axis=(0, 1))
    return tokens


def token_learner(x, scale, bias, kernels):
    """Version 1.0.  -> tokens (sum), maps."""
    scores = layer_norm(x, scale, bias)
    for kernel in kernels[:-1]:
        scores = gelu(conv2d(scores, kernel))
    maps = sigmoid(conv2d(scores, kernels[-1]))
    return pool(maps, x), maps


def token_learner_v11(x, scale, bias, hidden, scores):
    """Version 1.1; hidden and scores are (kernel, bias) pairs.  -> tokens, maps."""
    y = gelu(layer_norm(x, scale, bias) @ hidden[0] + hidden[1])
    maps = softmax(y @ scores[0] + scores[1], axis=1)  # [B, N, S]
    return np.swapaxes(maps, 1, 2) @ np.asarray(x, np.float64), maps


def mix(y, m, mixing, bias=None):
    """Y <- (Y^T M)^T, for y [B, T, S, C] and each of the three kinds of M."""
    b, t, s, c = y.shape
    out = np.zeros([b, t, s, c])
    for clip in range(b):
        if mixing == "joint":
            flat = y[clip].reshape(t * s, c)
            out[clip] = (flat.T @ m).T.reshape(t, s, c)
        elif mixing == "per_frame":
            for frame in range(t):
                out[clip, frame] = (y[clip, frame].T @ m + bias).T
        elif mixing == "per_token":
            for token in range(s):
                out[clip, :, token] = (y[clip, :, token].T @ m[token]).T
    return out


def fuse(y, x, beta):
    """Eq. 2 without its residual: y [B,T,S,C], x [B,T,N,C], beta [B,T,N,S]."""
    out = np.zeros(x.shape)
    for clip in range(x.shape[0]):
        for frame in range(x.shape[1]):
            out[clip, frame] = beta[clip, frame] @ y[clip, frame]
    return out


def vector_attention(q, k, v):
    """Eq. 3, one channel and one query at a time; q, k, v [B, N, C]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for clip, i, channel in np.ndindex(q.shape):
        weights = softmax(q[clip, i, channel] * k[clip, :, channel], axis=0)
        out[clip, i, channel] = weights @ v[clip, :, channel]
    return out


def conv1d_over_time(x, kernel):
    """SAME: x [B, T, H, W, C], kernel [K, C, D], K odd."""
    k, t = len(kernel), x.shape[1]
    padded = np.pad(x, [(0, 0), (k // 2, k // 2), (0, 0), (0, 0), (0, 0)])
    return sum(padded[:, i : i + t] @ kernel[i] for i in range(k))


def batch_norm(x, gamma, beta, mean, variance, epsilon=1e-5):
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def dense(x, kernel, bias):
    return np.asarray(x, np.float64) @ kernel + bias


def attend(x, y, query, key, value, out):
    """Multi-head attention; each projection a (kernel, bias), one head at a time."""
    b, length, c = x.shape
    heads, size = query[1].shape
    result = np.zeros([b, length, c])
    for clip in range(b):
        for head in range(heads):
            q, k, v = (
                dense(z[clip], kernel[:, head], bias[head])
                for z, (kernel, bias) in zip(
                    (x, y, y), (query, key, value), strict=True
                )
            )
            weights = softmax(q @ k.T / np.sqrt(size), axis=-1)  # [L, M]
            result[clip] += (weights @ v) @ out[0][head]
    return result + out[1]


def mlp(x, hidden, out):
    return dense(gelu(dense(x, *hidden)), *out)
