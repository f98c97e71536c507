"""X(2+1)D's backbone in Flax: 3-D convolutions with a side of 1."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from benchmarks.rivals import flax_vit
from benchmarks.rivals import sizes as sizes_lib


class X2Plus1D(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, training: bool = False):
        def conv(x, filters, kernel, stride=1):
            return nn.Conv(
                filters,
                kernel,
                strides=(1, stride, stride),
                use_bias=False,
                dtype=self.dtype,
            )(x)

        def norm(x):
            return nn.BatchNorm(
                use_running_average=not training,
                momentum=sizes_lib.BATCH_NORM_MOMENTUM,
                epsilon=sizes_lib.BATCH_NORM_EPSILON,
                dtype=self.dtype,
            )(x)

        x = conv(x, sizes_lib.STAGES[0][0], (1, 3, 3), 2)
        x = nn.relu(norm(conv(x, x.shape[-1], (5, 1, 1))))
        for filters, inner, depth in sizes_lib.STAGES:
            for i in range(depth):
                stride = 2 if i == 0 else 1
                y = nn.relu(norm(conv(x, inner, (1, 1, 1))))
                y = nn.relu(norm(conv(y, inner, (1, 3, 3), stride)))
                y = nn.relu(norm(conv(y, inner, (3, 1, 1))))
                y = norm(conv(y, filters, (1, 1, 1)))
                if i == 0:
                    x = norm(conv(x, filters, (1, 1, 1), stride))
                x = nn.relu(x + y)
        x = nn.relu(norm(conv(x, sizes_lib.STAGES[-1][1], (1, 1, 1))))
        x = nn.Dense(sizes_lib.HEAD_FILTERS, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(x).astype(jnp.float32).mean(axis=(1, 2, 3))
        x = nn.Dropout(sizes_lib.DROPOUT_RATE, deterministic=not training)(x)
        return nn.Dense(sizes_lib.NUM_CLASSES)(x)


def build(
    sizes: sizes_lib.ClipSizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    del is_compiled  # always
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    return flax_vit.timed(X2Plus1D(dtype), sizes, what)
