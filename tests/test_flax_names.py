import pytest
import tf_keras

from tests.contract import random_normal
from tl_tf import flax_names
from tl_tf.layers import token_learner
from tl_tf.models import vit, vivit

# Pairwise different sizes; no square image, no square patch.
SIZES = {
    "image_px": (12, 20),
    "patch_px": (3, 4),
    "hidden_size": 6,
    "num_heads": 2,
    "mlp_size": 7,
    "num_tokens": 3,
}


def build(**options):
    return vit.build_vit(5, **{**SIZES, "depth": 2} | options)


def build_video(**options):
    sizes = SIZES | {"num_frames": 8, "depth": 1}
    return vivit.build_vivit(5, **{**sizes, **options})


def shapes(target, style="scenic"):
    named = flax_names.variables(target, style)
    return {name: tuple(variable.shape) for name, variable in named.items()}


BLOCK_0 = {
    "LayerNorm_0/scale": (6,),
    "LayerNorm_0/bias": (6,),
    "MultiHeadDotProductAttention_0/query/kernel": (6, 2, 3),
    "MultiHeadDotProductAttention_0/query/bias": (2, 3),
    "MultiHeadDotProductAttention_0/key/kernel": (6, 2, 3),
    "MultiHeadDotProductAttention_0/key/bias": (2, 3),
    "MultiHeadDotProductAttention_0/value/kernel": (6, 2, 3),
    "MultiHeadDotProductAttention_0/value/bias": (2, 3),
    "MultiHeadDotProductAttention_0/out/kernel": (2, 3, 6),
    "MultiHeadDotProductAttention_0/out/bias": (6,),
    "LayerNorm_1/scale": (6,),
    "LayerNorm_1/bias": (6,),
    "MlpBlock_0/Dense_0/kernel": (6, 7),
    "MlpBlock_0/Dense_0/bias": (7,),
    "MlpBlock_0/Dense_1/kernel": (7, 6),
    "MlpBlock_0/Dense_1/bias": (6,),
}


def test_a_plain_vit_has_the_authors_names():
    model = build(depth=1, head="token", representation_size=9)
    block = {f"Transformer/encoderblock_0/{k}": v for k, v in BLOCK_0.items()}
    assert shapes(model) == block | {
        "embedding/kernel": (3, 4, 3, 6),
        "embedding/bias": (6,),
        "cls": (1, 1, 6),
        "Transformer/posembed_input/pos_embedding": (1, 21, 6),
        "Transformer/encoder_norm/scale": (6,),
        "Transformer/encoder_norm/bias": (6,),
        "pre_logits/kernel": (6, 9),
        "pre_logits/bias": (9,),
        "output_projection/kernel": (9, 5),
        "output_projection/bias": (5,),
    }


def test_a_joint_vivit_has_the_names_of_an_image_model():
    image = shapes(build(depth=1, head="token"))
    video = shapes(build_video(head="token", tubelet_frames=2))
    position = "Transformer/posembed_input/pos_embedding"
    assert {n for n in image if image[n] != video[n]} == {"embedding/kernel", position}
    assert video.keys() == image.keys()
    assert video["embedding/kernel"] == (2, 3, 4, 3, 6)
    assert video[position] == (1, 1 + 4 * 20, 6)
    sampled = shapes(build_video(head="token", num_sampled_frames=4))
    assert sampled == video | {"embedding/kernel": (3, 4, 3, 6)}


def test_a_factorised_vivit_has_two_transformers():
    model = build_video(
        encoder_form="factorised", head="token", temporal_depth=2, temporal_mlp_size=9
    )
    names = flax_names.variables(model)
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        "embedding",
        "cls_SpatialTransformer",
        "SpatialTransformer",
        "cls_TemporalTransformer",
        "TemporalTransformer",
        "output_projection",
    }
    block = {n.removeprefix("SpatialTransformer/encoderblock_0/") for n in names}
    assert block >= BLOCK_0.keys()
    found = shapes(model)
    assert found["SpatialTransformer/posembed_input/pos_embedding"] == (1, 21, 6)
    assert found["TemporalTransformer/posembed_input/pos_embedding"] == (1, 5, 6)
    inner = "TemporalTransformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"
    assert names[inner] is model.temporal.blocks[1].mlp.hidden.kernel
    assert found[inner] == (6, 9)
    assert names["cls_TemporalTransformer"] is model.temporal.class_token


def test_modules_are_numbered_by_their_uses():
    model = build(depth=4, insert_before_block=2, tokenizer="v1.0", restore="fuser")
    names = flax_names.variables(model)
    modules = {name.split("/")[1] for name in names if "Token" in name}
    assert modules == {
        "TokenLearnerModule_0",
        "TokenLearnerModule_1",
        "TokenFuser_0",
        "TokenFuser_1",
    }
    first = names["Transformer/TokenLearnerModule_1/Conv_2/kernel"]
    assert first is model.reducers["3"].convs[2].kernel
    mix = names["Transformer/TokenFuser_0/Dense_0/kernel"]
    assert mix is model.restorers["2"].mix


@pytest.mark.parametrize(
    "options",
    [
        {"head": "token", "representation_size": 9},
        {"stem_filters": [5], "stem_strides": [1], "insert_before_block": 1},
        {"insert_before_block": 0, "tokenizer": "v1.0"},
        {"insert_before_block": 1, "restore": "unpool"},
        {"insert_before_block": 0, "restore": "reproject"},
        {"insert_before_block": 0, "restore": "fuser", "fuser_beta": "conv"},
        {
            "insert_before_block": 0,
            "restore": "fuser",
            "fuser_beta": "linear",
            "fuser_mixing": "joint",
        },
        {"pool_before_blocks": [1], "pool_grids": [[2, 5]]},
    ],
)
@pytest.mark.parametrize("style", flax_names.STYLES)
def test_every_variable_has_a_name_of_its_own(options, style):
    model = build(**options)
    named = flax_names.variables(model, style)
    assert {id(v) for v in named.values()} == {id(v) for v in model.variables}
    assert len(named) == len(model.variables)
    assert flax_names.style_of(named) == style


@pytest.mark.parametrize(
    "options",
    [
        {"insert_before_block": 0, "restore": "fuser"},
        {"encoder_form": "factorised", "insert_before_block": 0, "head": "token"},
    ],
)
@pytest.mark.parametrize("style", flax_names.STYLES)
def test_every_variable_of_a_vivit_has_a_name_of_its_own(options, style):
    model = build_video(**options)
    named = flax_names.variables(model, style)
    assert {id(v) for v in named.values()} == {id(v) for v in model.variables}
    assert len(named) == len(model.variables)
    assert flax_names.style_of(named) == style


def test_released_checkpoints_count_the_modules_of_a_block():
    names = shapes(build(head="token"), "released")
    block = {n.split("/")[2] for n in names if "encoderblock_1" in n}
    assert block == {
        "LayerNorm_0",
        "MultiHeadDotProductAttention_1",
        "LayerNorm_2",
        "MlpBlock_3",
    }
    assert names["head/kernel"] == (6, 5)
    assert "output_projection/kernel" not in names


def test_blocks_after_the_tenth_keep_their_place():
    model = build(depth=12)
    names = flax_names.variables(model)
    got = names["Transformer/encoderblock_10/MlpBlock_0/Dense_0/kernel"]
    assert got is model.blocks[10].mlp.hidden.kernel


def test_a_1x1_convolution_is_stored_as_one():
    layer = token_learner.TokenFuser("per_frame", "conv", use_norm=True)
    layer(random_normal(2, 1, 4, 6), random_normal(2, 1, 11, 6))
    assert shapes(layer)["Conv_0/kernel"] == (6, 4)
    assert flax_names.shape_in_file("a/Conv_0/kernel", (6, 4)) == (1, 1, 6, 4)
    assert flax_names.shape_in_file("a/Dense_0/kernel", (6, 4)) == (6, 4)


def test_unknown_styles_and_classes_are_refused():
    with pytest.raises(ValueError, match=r"style must be one of \('scenic'"):
        flax_names.variables(build(), "flax")
    model = build()
    model.extra = model.add_weight(name="extra", shape=(2,))
    with pytest.raises(ValueError, match="ViT has variables without a name: extra:0"):
        flax_names.variables(model)
    with pytest.raises(ValueError, match="Dense has none. Known: ViT, ViViT, Token"):
        flax_names.variables(tf_keras.layers.Dense(2))
