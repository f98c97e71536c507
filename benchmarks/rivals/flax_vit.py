"""ViT and TokenLearner v1.1 in Flax, as the authors' code has them, under jax.jit."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.rivals import sizes as sizes_lib


class Mlp(nn.Module):
    hidden_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = nn.gelu(nn.Dense(self.hidden_size, dtype=self.dtype)(x))
        return nn.Dense(channels, dtype=self.dtype)(x)


class Block(nn.Module):
    num_heads: int
    mlp_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x += nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(y, y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        return x + Mlp(self.mlp_size, dtype=self.dtype)(y)


class TokenLearnerV11(nn.Module):
    num_tokens: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(64, dtype=self.dtype)(y))
        scores = nn.Dense(self.num_tokens, dtype=self.dtype)(y)  # [B, N, S]
        return jnp.einsum("bns,bnc->bsc", jax.nn.softmax(scores, axis=1), x)


class ViT(nn.Module):
    sizes: sizes_lib.Sizes
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, training: bool = False):
        sizes = self.sizes
        patch = (sizes.patch_px, sizes.patch_px)
        x = nn.Conv(
            sizes.hidden_size, patch, strides=patch, padding="VALID", dtype=self.dtype
        )(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        position = self.param(
            "position", nn.initializers.normal(0.02), (1, *x.shape[1:])
        )
        x += position.astype(self.dtype)
        for i in range(sizes.depth):
            if i == sizes.insert_before_block:
                x = TokenLearnerV11(sizes.num_tokens, self.dtype)(x)
            x = Block(sizes.num_heads, sizes.mlp_size, self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x).mean(axis=1)
        return nn.Dense(sizes_lib.NUM_CLASSES)(x.astype(jnp.float32))


def build(
    sizes: sizes_lib.Sizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    del is_compiled  # always
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    return timed(ViT(sizes, dtype), sizes, what)


def timed(
    model: nn.Module, sizes: sizes_lib.Sizes | sizes_lib.ClipSizes, what: str
) -> Callable[[], None]:
    """A forward pass or a step of a model, which may have batch statistics."""
    key = jax.random.key(0)
    shape = (sizes.batch_size, *sizes.input_shape)
    images = jax.random.uniform(key, shape, minval=-1.0)
    labels = jnp.arange(sizes.batch_size)
    weights = jax.jit(model.init)(key, images)
    statistics = {k: v for k, v in weights.items() if k != "params"}
    weights = weights["params"]
    optimizer = optax.sgd(sizes_lib.LEARNING_RATE, momentum=sizes_lib.MOMENTUM)

    if what == "forward":
        forward = jax.jit(model.apply)
        variables = {"params": weights, **statistics}
        return lambda: forward(variables, images).block_until_ready()

    def loss_of(weights, statistics, key):
        logits, statistics = model.apply(
            {"params": weights, **statistics},
            images,
            training=True,
            mutable=list(statistics),
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), statistics

    def step(state):
        weights, momenta, statistics, key = state
        key, draw = jax.random.split(key)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = gradient_of(weights, statistics, draw)
        updates, momenta = optimizer.update(gradients, momenta)
        weights = optax.apply_updates(weights, updates)
        return (weights, momenta, statistics, key), loss

    step = jax.jit(step, donate_argnums=0)
    state = (weights, optimizer.init(weights), statistics, key)

    def call() -> None:
        nonlocal state
        state, loss = step(state)
        jax.block_until_ready((state, loss))

    return call
