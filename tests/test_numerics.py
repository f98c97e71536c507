"""What stays in float32 when a model computes in bfloat16."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import contract, test_trainer, toy_model
from tl_tf import losses, runtime, trainer
from tl_tf.layers import attention, vector_attention
from tl_tf.models import vivit, x2p1d

# Of statistics and of what is exponential: eight bits of them are too few.
IN_FLOAT32 = {
    *("Exp", "Expm1", "Log", "Log1p", "LogSoftmax", "Softmax"),
    *("SoftmaxCrossEntropyWithLogits", "Rsqrt", "Sqrt", "SquaredDifference"),
}
# In these, statistics have a type of their own.
FUSED_NORMS = ("FusedBatchNormV3", "FusedBatchNormGradV3")


def x2p1d_step(implementation, *, batch_norm="local"):
    """The paper's module: TokenLearner, Vector Transformer, TokenFuser with norms."""
    model = x2p1d.build_x2p1d(
        toy_model.K,
        num_frames=4,
        width=0.2,
        stage_depths=(1, 1, 1, 1),
        module="token_learner",
        module_blocks=(0,),
        num_tokens=3,
        use_norm=True,
        batch_norm=batch_norm,
    )
    for layer in model.submodules:
        if isinstance(layer, vector_attention.VectorTransformer):
            layer.implementation = implementation
    _, optimizer, pixels, mix = test_trainer.video_step()
    return model, optimizer, pixels, mix


def vivit_step():
    model = vivit.build_vivit(
        toy_model.K,
        num_frames=4,
        image_px=(12, 20),
        patch_px=4,
        hidden_size=8,
        num_heads=2,
        mlp_size=12,
        depth=2,
        insert_before_block=1,
        num_tokens=3,
        encoder_form="factorised",
        temporal_depth=1,
    )
    _, optimizer, _, _ = test_trainer.image_step()
    return model, optimizer, tf.zeros([2, 4, 12, 20, 3], tf.uint8), None


def operations(graph) -> list[tf.Operation]:
    """Of a graph and all the functions that it calls."""
    found, functions = list(graph.get_operations()), graph._functions.values()
    for function in functions:
        found += getattr(function, "graph", tf.Graph()).get_operations()
    return found


@pytest.mark.parametrize(
    "build, kind, wanted",
    [
        (test_trainer.image_step, "softmax", {"Softmax", "Rsqrt"}),
        (test_trainer.image_step, "sigmoid", {"Softmax", "Log1p"}),
        (vivit_step, "softmax", {"Softmax", "Rsqrt"}),
        (functools.partial(x2p1d_step, "naive"), "softmax", {"Softmax", "Rsqrt"}),
        (functools.partial(x2p1d_step, "chunked"), "sigmoid", {"Exp", "Log1p"}),
        (functools.partial(x2p1d_step, "fast"), "sigmoid", {"Exp", "Log1p"}),
        (
            functools.partial(x2p1d_step, "auto", batch_norm="sync"),
            "softmax",
            {"Exp", "Rsqrt"},
        ),
    ],
    ids="softmax sigmoid vivit x2p1d chunked fast sync".split(),
)
def test_statistics_softmax_and_loss_are_float32_in_a_bfloat16_step(
    build, kind, wanted
):
    runtime.configure_runtime(None, precision="mixed_bfloat16")
    model, optimizer, pixels, mix = build()
    optimizer.build(model.trainable_variables)
    labels = tf.ones([2, toy_model.K])
    data = tf.data.Dataset.from_tensors({"pixels": pixels, "labels": labels})
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss(kind),
        strategy=tf.distribute.get_strategy(),
        iterator=iter(data),
        seed=1,
        clip_norm=1.0,
        mix=mix,
    )
    step = tf.function(loop.replica_step, autograph=False)
    found = operations(step.get_concrete_function(pixels, labels).graph)
    kinds = {(op.type, op.outputs[0].dtype) for op in found if op.outputs}
    low = {name for name, dtype in kinds if dtype == tf.bfloat16}
    assert low >= {"MatMul", "AddV2"}  # it does compute in bfloat16
    assert wanted <= {name for name, dtype in kinds if dtype == tf.float32}
    assert not low & IN_FLOAT32
    assert {op.get_attr("U") for op in found if op.type in FUSED_NORMS} <= {tf.float32}


def test_a_norm_of_bfloat16_is_as_exact_as_its_rounding():
    """Far from 0, statistics in bfloat16 would lose the variance altogether."""
    runtime.configure_runtime(None, precision="mixed_bfloat16")
    block = attention.EncoderBlock(num_heads=2, mlp_size=12)
    x = tf.cast(100 + contract.random_normal(2, 5, 64), tf.bfloat16)
    block(x)
    norms = [n for n in block.submodules if type(n).__name__ == "LayerNormalization"]
    assert norms
    values = x.numpy().astype(np.float64)
    centred = values - values.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norms[0].epsilon)
    got = tf.cast(norms[0](x), tf.float32)
    np.testing.assert_allclose(got, wanted, rtol=2**-8, atol=2**-10)
