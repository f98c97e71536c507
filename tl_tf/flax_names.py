"""The names that the authors' code gives our variables, for reading and writing .npz.

A walk per class, written out: what a variable is called can be read here.  A name is
the path of Flax modules joined by slashes.
"""

import collections
from collections.abc import Iterable

import tensorflow as tf
import tf_keras

from tl_tf.layers import (
    alternatives,
    attention,
    embedding,
    encoder,
    token_learner,
)
from tl_tf.models import vit, vivit

# "scenic" is the authors' code; "vision_transformer" is google-research's repository of
# that name; "released" are its older checkpoints, AugReg's among them, which count the
# modules of a block in one row.
STYLES = ("scenic", "vision_transformer", "released")
_BLOCK = "Transformer/encoderblock_"  # or Spatial- or TemporalTransformer
_RELEASED = {
    "/LayerNorm_1/": "/LayerNorm_2/",
    "/MultiHeadDotProductAttention_0/": "/MultiHeadDotProductAttention_1/",
    "/MlpBlock_0/": "/MlpBlock_3/",
}


def variables(
    target: tf_keras.Model | tf_keras.layers.Layer, style: str = "scenic"
) -> dict[str, tf.Variable]:
    """Every variable of a model or layer under its Flax name.

    Args:
      target: built: a ViT, ViViT, TokenLearner, TokenLearnerV11 or TokenFuser.
      style: one of STYLES.

    Raises:
      ValueError: the style is unknown, or the class or a variable has no name.
    """
    if style not in STYLES:
        raise ValueError(f"flax names: style must be one of {STYLES}, got {style!r}.")
    if not has_names(target):
        known = [kind.__name__ for kind in (*_MODELS, *_MODULES)]
        raise ValueError(
            f"flax names: {type(target).__name__} has none. Known: {', '.join(known)}."
        )
    is_model = isinstance(target, _MODELS)
    names = _model(target) if is_model else _MODULES[type(target)][1](target)
    named = {id(variable) for variable in names.values()}
    nameless = [v.name for v in target.variables if id(v) not in named]
    if nameless:
        raise ValueError(
            f"flax names: {type(target).__name__} has variables without a name:"
            f" {', '.join(nameless[:3])}. Name them in tl_tf/flax_names.py."
        )
    return {_styled(name, style): variable for name, variable in names.items()}


def has_names(target: tf_keras.Model | tf_keras.layers.Layer) -> bool:
    """Whether the authors' code, or this file, names the variables of such a class."""
    return isinstance(target, _MODELS) or type(target) in _MODULES


def style_of(names: Iterable[str]) -> str:
    """The style that the names of a file are in."""
    names = list(names)
    if any(_BLOCK in name and "/MlpBlock_3/" in name for name in names):
        return "released"
    has_head = any(name.startswith("head/") for name in names)
    return "vision_transformer" if has_head else "scenic"


def shape_in_file(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A variable's shape as the authors have it: a 1x1 convolution is a matrix here."""
    if len(shape) == 2 and name.endswith("Conv_0/kernel"):
        return (1, 1, *shape)
    return tuple(shape)


def _styled(name: str, style: str) -> str:
    if style == "released" and _BLOCK in name:
        for ours, theirs in _RELEASED.items():
            name = name.replace(ours, theirs)
    if style != "scenic" and name.startswith("output_projection/"):
        name = name.replace("output_projection/", "head/")
    return name


def _model(model: vit.ViT | vivit.ViViT) -> dict[str, tf.Variable]:
    names = _under("embedding", _dense(model.embed.projection))
    if isinstance(model, vit.ViT) and model.stem is not None:
        names.update(_under("stem", _conv_stem(model.stem)))
    temporal = model.temporal if isinstance(model, vivit.ViViT) else None
    if temporal is None:
        names.update(_encoder(model, "Transformer", class_token="cls"))
    else:
        for part, path in (
            (model, "SpatialTransformer"),
            (temporal, "TemporalTransformer"),
        ):
            names.update(_encoder(part, path, class_token=f"cls_{path}"))
    if model.pre_logits is not None:
        names.update(_under("pre_logits", _dense(model.pre_logits)))
    names.update(_under("output_projection", _dense(model.classifier)))
    return names


def _encoder(
    model: encoder.Encoder, path: str, *, class_token: str
) -> dict[str, tf.Variable]:
    names = {}
    if model.class_token is not None:
        names[class_token] = model.class_token
    position = model.position.position_embedding
    names[f"{path}/posembed_input/pos_embedding"] = position
    uses = collections.Counter()  # Flax numbers the modules of a class as they are used

    def add_module(layer) -> None:
        if layer is not None and type(layer) in _MODULES:
            module, walk = _MODULES[type(layer)]
            names.update(_under(f"{path}/{module}_{uses[module]}", walk(layer)))
            uses[module] += 1

    for i, block in enumerate(model.blocks):
        add_module(model.reducers.get(str(i)))
        names.update(_under(f"{path}/encoderblock_{i}", _block(block)))
        add_module(model.restorers.get(str(i)))
    names.update(_under(f"{path}/encoder_norm", _norm(model.norm)))
    return names


def _conv_stem(layer: embedding.ConvStem) -> dict[str, tf.Variable]:
    """The authors have none; the names are ours."""
    names = {}
    for i, (conv, norm) in enumerate(zip(layer.convs, layer.norms, strict=True)):
        names.update(_under(f"Conv_{i}", _dense(conv)))
        names.update(_under(f"LayerNorm_{i}", _norm(norm)))
    return names


def _block(block: attention.EncoderBlock) -> dict[str, tf.Variable]:
    return {
        **_under("LayerNorm_0", _norm(block.attention_norm)),
        **_under("MultiHeadDotProductAttention_0", _attention(block.attention)),
        **_under("LayerNorm_1", _norm(block.mlp_norm)),
        **_under("MlpBlock_0", _mlp(block.mlp)),
    }


def _attention(layer: attention.Attention) -> dict[str, tf.Variable]:
    return {
        **_under("query", _dense(layer.query)),
        **_under("key", _dense(layer.key)),
        **_under("value", _dense(layer.value)),
        **_under("out", _dense(layer.out)),
    }


def _mlp(layer: attention.Mlp) -> dict[str, tf.Variable]:
    return {
        **_under("Dense_0", _dense(layer.hidden)),
        **_under("Dense_1", _dense(layer.out)),
    }


def _token_learner(layer: token_learner.TokenLearner) -> dict[str, tf.Variable]:
    names = _under("LayerNorm_0", _norm(layer.norm))
    for i, conv in enumerate(layer.convs):
        names.update(_under(f"Conv_{i}", _dense(conv)))
    return names


def _token_learner_v11(layer: token_learner.TokenLearnerV11) -> dict[str, tf.Variable]:
    return {
        **_under("LayerNorm_0", _norm(layer.norm)),
        **_under("token_masking/Dense_0", _dense(layer.hidden)),
        **_under("token_masking/Dense_1", _dense(layer.scores)),
    }


def _token_fuser(layer: token_learner.TokenFuser) -> dict[str, tf.Variable]:
    names = {"Dense_0/kernel": layer.mix}
    if layer.mixing == "per_frame":
        names["Dense_0/bias"] = layer.mix_bias
    if layer.use_norm:
        names.update(_under("fuser_mix_norm1", _norm(layer.norm_before_mix)))
        names.update(_under("fuser_mix_norm2", _norm(layer.norm_after_mix)))
    if layer.beta_form != "linear":
        names.update(_under("LayerNorm_0", _norm(layer.beta_norm)))
    if layer.beta_form == "mlp":
        names.update(_under("token_masking/Dense_0", _dense(layer.beta_hidden)))
    beta = {"mlp": "token_masking/Dense_1", "conv": "Conv_0", "linear": "beta"}
    return names | _under(beta[layer.beta_form], _dense(layer.beta))


def _reprojection(layer: alternatives.Reprojection) -> dict[str, tf.Variable]:
    """The authors have none; the names are ours."""
    return {
        **_under("grid_norm", _norm(layer.grid_norm)),
        **_under("token_norm", _norm(layer.token_norm)),
        **_under("attention", _attention(layer.attention)),
        **_under("mlp_norm", _norm(layer.mlp_norm)),
        **_under("mlp", _mlp(layer.mlp)),
    }


def _norm(layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    return {"scale": layer.gamma, "bias": layer.beta}


def _dense(layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    names = {"kernel": layer.kernel, "bias": layer.bias}
    return {name: variable for name, variable in names.items() if variable is not None}


def _under(path: str, names: dict[str, tf.Variable]) -> dict[str, tf.Variable]:
    return {f"{path}/{name}": variable for name, variable in names.items()}


_MODELS = (vit.ViT, vivit.ViViT)
_MODULES = {
    token_learner.TokenLearner: ("TokenLearnerModule", _token_learner),
    token_learner.TokenLearnerV11: ("TokenLearnerModuleV11", _token_learner_v11),
    token_learner.TokenFuser: ("TokenFuser", _token_fuser),
    alternatives.Reprojection: ("Reprojection", _reprojection),
}
