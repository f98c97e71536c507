"""Compares our models with stored outputs of the authors' JAX code.

    python tests/check_reference.py DIR

Every .npz of DIR is a case: `__config__` says in JSON what it is of; beside it stand
parameters under their Flax names, `__input__`, `__output__`, intermediate tensors
(`__mid__/...`), gradients (`__grad__/...`) and losses. Prints a line per file, and
below it one per further tensor. The exit status is 0 if nothing that is supported is
off by more than LIMIT, relative to the largest value of its tensor.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tl_tf import startup

startup.quiet_tensorflow()  # before anything imports TensorFlow

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from tests import scenic_schedules  # noqa: E402
from tl_tf import checkpoint, fewshot, flax_names, npz, transfer  # noqa: E402
from tl_tf.layers import embedding, encoder, token_learner  # noqa: E402
from tl_tf.models import vit, vivit  # noqa: E402

LIMIT = 1e-5
# A gradient that is zero by theory is rounding noise in the reference; what is smaller
# than this share of the model's largest gradient is measured by that largest one.
NOISE = 1e-6
# In float32 the smallest gradients of tlvit_v11_fuser_loc2_grad differ from those of
# float64 by up to 5e-6 in the reference and 1e-5 here, 1e-8 of the largest one. So ours
# are computed in float64, and what then differs by less than this share of the largest
# is held for the reference's rounding.
ROUNDING = float(np.finfo(np.float32).eps)

IGNORED = {  # without a meaning in evaluation
    "attention_dropout_rate",
    "dropout_rate",
    "dtype",
    "name",
    "stochastic_depth",
}
BACKBONE = {"num_classes", "mlp_dim", "num_layers", "num_heads", "hidden_size"}
HEAD = {"classifier", "representation_size"}
VIDEO = {"num_classes", "hidden_size", "patches"}
VIDEO |= {"temporal_encoding_config", "attention_config"}
VIDEO_OPTIONS = HEAD | {"return_prelogits", "return_preclassifier"}
VIDEO_OPTIONS |= {"positional_embedding", "stochastic_droplayer_rate"}
FACTORISED = {
    f"{part}_{size}"
    for part in ("spatial", "temporal")
    for size in ("mlp_dim", "num_layers", "num_heads")
}
# Constructor fields: those that must be there, those that have a default.
FIELDS = {
    "TokenLearnerModule": ({"num_tokens"}, {"use_sum_pooling"}),
    "TokenLearnerModuleV11": ({"num_tokens"}, {"bottleneck_dim"}),
    "TokenFuser": (set(), {"use_normalization", "bottleneck_dim"}),
    "ViT": (BACKBONE | {"patches"}, HEAD | {"positional_embedding"}),
    "TokenLearnerViT": (BACKBONE | {"tokenizer"}, HEAD),
    "TokenLearnerViTRepresentation": (
        BACKBONE - {"num_classes"} | {"tokenizer"},
        {"target_channel_dim", "use_concat_final"},  # which it does not read
    ),
    "ViViT": (BACKBONE | VIDEO, VIDEO_OPTIONS),
    "SpaceTimeViViT": (VIDEO | FACTORISED, VIDEO_OPTIONS),
    "VisionTransformer": (
        {"num_classes", "hidden_size", "patches", "transformer"},
        HEAD | {"head_bias_init", "resnet", "model_name"},
    ),
}
TOKENIZER = (
    {"type", "patches"},
    {"num_tokens", "tokenlearner_loc", "use_tokenfuse", "use_v11"}
    | {"temporal_encoding_config"},
)
TEMPORAL_ENCODING = ({"method"}, {"kernel_init_method", "n_sampled_frames"})
ATTENTION = (
    set(),
    {"type", "spatial_only_baseline"}
    | {"attention_order", "attention_kernel_init_method"},
)
TRANSFORMER = ({"mlp_dim", "num_heads", "num_layers"}, {"add_position_embedding"})


class UnsupportedError(Exception):
    """What we do not have, in a few words."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """How far one tensor is off.

    of: output, mid, gradient, loss or value.
    excuse: why the error does not count, if it does not.
    """

    of: str
    name: str
    error: float
    excuse: str = ""

    @property
    def is_ok(self) -> bool:
        return bool(self.excuse) or self.error <= LIMIT  # False for NaN


@dataclasses.dataclass(frozen=True)
class Case:
    """A model or layer of ours, and how it is called.

    run: inputs -> output, and the intermediate tensors under their Flax names.
    has_head: False for a model without the classifier that ours always has.
    """

    target: tf_keras.layers.Layer
    run: Callable[[], tuple[tf.Tensor, dict[str, tf.Tensor]]]
    has_head: bool = True

    def load(self, path: Path) -> None:
        """Reads the parameters of a file."""
        new = () if self.has_head else ("output_projection/*",)
        checkpoint.load_npz(path, self.target, allow_unused=("__*",), allow_new=new)


def check_file(path: Path) -> list[Finding]:
    """Compares one file.

    Raises:
      UnsupportedError: for what we do not have.
      ValueError: the file cannot be understood, or its parameters do not fit.
    """
    arrays = npz.read(path)
    if "__config__" not in arrays:
        raise ValueError("has no __config__")
    config = json.loads(str(arrays["__config__"]))
    if "class" in config:
        return _check_model(path, arrays, config)
    keys = [key for key in arrays if not key.startswith("__")]
    if any("lr_configs" in case for case in config.values() if isinstance(case, dict)):
        return _check_schedules(arrays, config)
    if "l2_regs" in arrays and "shots" in arrays:
        return _check_fewshot(arrays, config)
    if any(key.endswith("/kernel_2d") for key in keys):
        return _check_inflation(arrays, config)
    if any("/before/" in key for key in keys):
        return _check_warm_start(arrays, config)
    if any(key.endswith("/from") for key in keys):
        return _check_resizes(arrays, config)
    raise ValueError(f"is of an unknown kind: {', '.join(sorted(keys)[:3])}, ...")


def _check_model(path: Path, arrays: dict, config: dict) -> list[Finding]:
    build = BUILDERS.get(config["class"])
    if build is None:
        known = ", ".join(BUILDERS)
        raise ValueError(f"class {config['class']!r} is unknown. Known: {known}")
    for name in ("__input__", "__output__", "constructor"):
        if name not in arrays and name not in config:
            raise ValueError(f"has no {name}")
    if config.get("call", {}).get("train") or not config.get("call", {}).get(
        "deterministic", True
    ):
        raise UnsupportedError("dropout of the authors' draws")
    required, optional = FIELDS[config["class"]]
    _check_fields(config["constructor"], required, optional | IGNORED, "constructor")

    case = build(arrays, config)
    case.load(path)
    output, mids = case.run()
    findings = [_compare("output", "output", output, arrays["__output__"])]
    for name, want in _inside(arrays, "__mid__/").items():
        if name not in mids:
            findings.append(Finding("mid", name, math.nan, "no counterpart in ours"))
            continue
        if name == "pre_logits" and case.target.pre_logits is not None:
            want = np.tanh(want)  # theirs is before it, ours after
        findings.append(_compare("mid", name, mids[name], want))
    if "__labels__" in arrays:
        for suffix, loss in _losses(output, arrays["__labels__"]).items():
            if f"__loss{suffix}__" in arrays:
                want = arrays[f"__loss{suffix}__"]
                findings.append(_compare("loss", f"loss{suffix}", loss, want))
    if any(name.startswith("__grad") for name in arrays):
        findings += _check_gradients(path, arrays, config, build)
    return findings


def _check_gradients(path: Path, arrays: dict, config: dict, build) -> list[Finding]:
    """In float64, so that the rounding is the reference's alone."""
    if "__labels__" not in arrays:
        raise ValueError("has gradients, but no __labels__")
    policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("float64")
    try:
        exact = {**arrays, "__input__": arrays["__input__"].astype(np.float64)}
        case = build(exact, config)
        case.load(path)
        with tf.GradientTape(persistent=True) as tape:
            losses = _losses(case.run()[0], arrays["__labels__"])
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    variables = flax_names.variables(case.target, flax_names.style_of(arrays))
    findings = []
    for suffix, loss in losses.items():
        wanted = _inside(arrays, f"__grad{suffix}__/")
        if wanted:
            findings += _compare_gradients(tape.gradient(loss, variables), wanted)
    return findings


def _losses(logits: tf.Tensor, labels: np.ndarray) -> dict[str, tf.Tensor]:
    """Softmax and sigmoid cross-entropy: sums over classes, means over examples."""
    if labels.ndim == 1:
        labels = np.eye(logits.shape[-1])[labels]
    labels = tf.constant(labels, logits.dtype)
    softmax = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    sigmoid = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    return {
        "": tf.reduce_mean(softmax),
        "_sigmoid": tf.reduce_mean(tf.reduce_sum(sigmoid, axis=-1)),
    }


def _compare_gradients(gradients: dict, wanted: dict) -> list[Finding]:
    largest = max(np.abs(want).max() for want in wanted.values())
    findings = []
    for name, want in wanted.items():
        if name not in gradients:
            raise ValueError(f"gradient {name}: no variable of ours has this name")
        scale = np.abs(want).max()
        scale = scale if scale >= NOISE * largest else largest
        got = gradients[name]
        got = np.zeros(want.shape) if got is None else np.reshape(got, want.shape)
        finding = _compare("gradient", name, got, want, scale=scale)
        if LIMIT < finding.error <= ROUNDING * largest / scale:
            finding = dataclasses.replace(finding, excuse="rounding")
        findings.append(finding)
    return findings


def _token_learner(arrays: dict, config: dict) -> Case:
    constructor, x = config["constructor"], arrays["__input__"]
    if x.ndim == 3:
        x = x.reshape(len(x), *_square(x.shape[1]), -1)
    pooling = "sum" if constructor.get("use_sum_pooling", True) else "mean"
    layer = token_learner.TokenLearner(constructor["num_tokens"], pooling)
    layer(x)
    return Case(layer, lambda: (layer(x)[0], {}))


def _token_learner_v11(arrays: dict, config: dict) -> Case:
    constructor, x = config["constructor"], arrays["__input__"]
    x = x.reshape(len(x), -1, x.shape[-1])  # [B, N, C]
    layer = token_learner.TokenLearnerV11(
        constructor["num_tokens"], hidden_size=constructor.get("bottleneck_dim", 64)
    )
    layer(x)
    return Case(layer, lambda: (layer(x)[0], {}))


def _token_fuser(arrays: dict, config: dict) -> Case:
    if "__original__" not in arrays:
        raise ValueError("has no __original__, the grid that TokenFuser writes to")
    constructor = config["constructor"]
    y, x = arrays["__input__"], arrays["__original__"]
    y = y[:, np.newaxis]  # [B, T = 1, S, C]
    x = x.reshape(len(x), 1, -1, x.shape[-1])  # [B, T = 1, N, C]
    layer = token_learner.TokenFuser(
        "per_frame",
        _beta_of(arrays),
        use_norm=constructor.get("use_normalization", True),
        zero_init=True,
        use_residual=False,
        hidden_size=constructor.get("bottleneck_dim", 64),
    )
    layer(y, x)
    # The authors' code flattens a 4-D grid, or not, depending on the release.
    shape = arrays["__output__"].shape
    if math.prod(shape) != x.size:
        raise ValueError(f"__output__ has shape {shape}, __original__ {x.shape}")
    return Case(layer, lambda: (tf.reshape(layer(y, x), shape), {}))


def _beta_of(arrays: dict) -> str:
    """TokenFuser of December 2021 has one 1x1 convolution, the later one an MLP."""
    is_conv = any(
        name.endswith("Conv_0/kernel") and "TokenLearnerModule" not in name
        for name in arrays
    )
    return "conv" if is_conv else "mlp"


def _scenic_vit(arrays: dict, config: dict) -> Case:
    constructor = config["constructor"]
    position = constructor.get("positional_embedding", "learned_1d")
    if position != "learned_1d":
        raise UnsupportedError(f"positional_embedding={position}")
    return _vit(arrays, constructor, patches=constructor["patches"])


def _token_learner_vit(arrays: dict, config: dict) -> Case:
    constructor = config["constructor"]
    tokenizer = constructor["tokenizer"]
    options = _tokenizer_options(arrays, constructor)
    if tokenizer["type"] == "video":
        return _vivit(arrays, constructor | tokenizer, **options)
    return _vit(arrays, constructor, patches=tokenizer["patches"], **options)


def _representation(arrays: dict, config: dict) -> Case:
    """Images or frames, each embedded by itself, to tokens."""
    constructor = config["constructor"] | {"num_classes": 1}
    tokenizer = constructor["tokenizer"]
    options = _tokenizer_options(arrays, constructor)
    if arrays["__input__"].ndim == 4:
        case = _vit(arrays, constructor, patches=tokenizer["patches"], **options)
        return _headless(case, arrays["__input__"], "norm")
    every_frame = {
        "method": "temporal_sampling",
        "n_sampled_frames": arrays["__input__"].shape[1],
    }
    constructor |= {"return_preclassifier": True, "patches": tokenizer["patches"]}
    constructor |= {"temporal_encoding_config": every_frame}
    return _vivit(arrays, constructor, is_per_frame=True, **options)


def _tokenizer_options(arrays: dict, constructor: dict) -> dict:
    """What TokenLearner adds to the arguments of our builders."""
    tokenizer = constructor["tokenizer"]
    _check_fields(tokenizer, *TOKENIZER, "constructor.tokenizer")
    if tokenizer["type"] not in ("patch", "dynamic", "video"):
        raise ValueError(
            "constructor.tokenizer.type must be patch, dynamic or video, got"
            f" {tokenizer['type']!r}"
        )
    location = tokenizer.get("tokenlearner_loc", 12)
    use_fuser = tokenizer.get("use_tokenfuse", False)
    location = max(location, 0) if use_fuser else location
    # The authors' code leaves a TokenLearner out that would stand after the last block.
    if tokenizer["type"] == "patch" or not 0 <= location < constructor["num_layers"]:
        return {}
    return {
        "insert_before_block": location,
        "num_tokens": tokenizer.get("num_tokens", 8),
        "tokenizer": "v1.1" if tokenizer.get("use_v11", True) else "v1.0",
        "restore": "fuser" if use_fuser else "none",
        "fuser_beta": _beta_of(arrays),
    }


def _scenic_vivit(arrays: dict, config: dict) -> Case:
    constructor = config["constructor"]
    _check_attention(constructor)
    return _vivit(arrays, constructor)


def _space_time_vivit(arrays: dict, config: dict) -> Case:
    constructor = config["constructor"]
    _check_attention(constructor)
    if constructor["attention_config"].get("spatial_only_baseline"):
        raise UnsupportedError("spatial_only_baseline")
    spatial = {
        size: constructor[f"spatial_{size}"]
        for size in ("mlp_dim", "num_layers", "num_heads")
    }
    return _vivit(
        arrays,
        constructor | spatial,
        encoder_form="factorised",
        temporal_depth=constructor["temporal_num_layers"],
        temporal_num_heads=constructor["temporal_num_heads"],
        temporal_mlp_size=constructor["temporal_mlp_dim"],
    )


def _check_attention(constructor: dict) -> None:
    attention = constructor["attention_config"] or {}
    _check_fields(attention, *ATTENTION, "constructor.attention_config")
    kind = attention.get("type", "spacetime")
    if kind not in ("spacetime", "factorized_encoder"):  # the same blocks
        raise UnsupportedError(f"attention_config.type={kind}")


def _vision_transformer(arrays: dict, config: dict) -> Case:
    constructor = dict(config["constructor"])
    if constructor.get("resnet") or not constructor["transformer"]:
        raise UnsupportedError("convolutional stem, or no Transformer")
    transformer = constructor.pop("transformer")
    required, optional = TRANSFORMER
    _check_fields(transformer, required, optional | IGNORED, "constructor.transformer")
    if not transformer.get("add_position_embedding", True):
        raise UnsupportedError("no position embeddings")
    constructor.setdefault("classifier", "token")
    if constructor["classifier"] not in ("token", "gap"):
        raise UnsupportedError(f"classifier={constructor['classifier']}")
    return _vit(arrays, constructor | transformer, patches=constructor["patches"])


def _vit(arrays: dict, constructor: dict, *, patches: dict, **options) -> Case:
    images = arrays["__input__"]
    if images.ndim != 4:
        raise UnsupportedError(f"input of rank {images.ndim}")
    image_size = images.shape[1:3]
    if "size" in patches:
        patch_size = patches["size"]
    elif "grid" in patches:
        patch_size = [i // n for i, n in zip(image_size, patches["grid"], strict=True)]
    else:
        raise ValueError(f"patches: wanted size or grid, got {patches}")
    head = constructor.get("classifier", "gap")
    grid = [i // p for i, p in zip(image_size, patch_size, strict=True)]
    if options.get("tokenizer") == "v1.0" and (head == "token" or grid[0] != grid[1]):
        # The authors' code reshapes whatever number of tokens it gets into a square.
        raise UnsupportedError("TokenLearner v1.0 on what is no square grid")
    model = vit.build_vit(
        image_px=image_size, patch_px=patch_size, **_sizes(constructor), **options
    )

    def run():
        logits, endpoints = model(images)
        return logits, _flax_endpoints(model, logits, endpoints)

    return Case(model, run)


def _sizes(constructor: dict) -> dict:
    """The arguments of our builders that are fields of every model."""
    return {
        "num_classes": constructor["num_classes"],
        "hidden_size": constructor["hidden_size"],
        "depth": constructor["num_layers"],
        "num_heads": constructor["num_heads"],
        "mlp_size": constructor["mlp_dim"],
        "head": constructor.get("classifier", "gap"),
        "representation_size": constructor.get("representation_size"),
    }


def _vivit(
    arrays: dict, constructor: dict, *, is_per_frame: bool = False, **options
) -> Case:
    frames = arrays["__input__"]
    if frames.ndim != 5:
        raise UnsupportedError(f"input of rank {frames.ndim}")
    sizes = _sizes(constructor)
    if sizes["head"] not in encoder.HEADS:
        raise UnsupportedError(f"classifier={sizes['head']}")
    if options.get("tokenizer") and sizes["head"] == "token":
        raise UnsupportedError("TokenLearner on a class token")  # nor have the authors
    position = constructor.get("positional_embedding", "learned_1d")
    if position != "learned_1d":
        raise UnsupportedError(f"positional_embedding={position}")
    encoding = constructor.get("temporal_encoding_config", {})
    _check_fields(encoding, *TEMPORAL_ENCODING, "temporal_encoding_config")
    if encoding["method"] not in ("3d_conv", "temporal_sampling"):
        raise UnsupportedError(f"temporal encoding {encoding['method']}")
    is_tubelet = encoding["method"] == "3d_conv"
    patch_size = constructor["patches"].get("size", ())
    if len(patch_size) != 2 + is_tubelet:
        raise ValueError(
            f"patches: wanted a size of {2 + is_tubelet} numbers for"
            f" {encoding['method']}, got {constructor['patches']}"
        )
    height, width = patch_size[:2]
    if is_tubelet:
        options["tubelet_frames"] = patch_size[2]
    else:
        if frames.shape[2] % height and not is_per_frame:
            # Sampled frames are put below each other before they are cut to patches.
            raise UnsupportedError("patches that reach into the next frame")
        taken = _sampled_frames(frames.shape[1], encoding["n_sampled_frames"])
        options |= {"tubelet_frames": 1, "num_sampled_frames": len(taken)}
        if taken != embedding.uniform_frames(frames.shape[1], len(taken)):
            frames = frames[:, taken]
    rows, columns = frames.shape[2] // height, frames.shape[3] // width
    if options.get("tokenizer") == "v1.0" and rows != columns:
        raise UnsupportedError("TokenLearner v1.0 on what is no square grid")
    model = vivit.build_vivit(
        num_frames=frames.shape[1],
        image_px=frames.shape[2:4],
        patch_px=(height, width),
        **sizes,
        **options,
    )

    def run():
        logits, endpoints = model(frames)
        mids = _flax_endpoints(model, logits, endpoints)
        if "__mid__/embedding" in arrays and "num_sampled_frames" in options:
            # Theirs is of frames below each other.
            mids["embedding"] = tf.reshape(
                mids["embedding"], arrays["__mid__/embedding"].shape
            )
        return logits, mids

    case = Case(model, run)
    for field, endpoint in (
        ("return_preclassifier", "norm"),
        ("return_prelogits", "pre_logits"),
    ):
        if constructor.get(field):
            return _headless(case, frames, endpoint)
    return case


def _headless(case: Case, inputs: np.ndarray, endpoint: str) -> Case:
    """A case whose output is an endpoint of ours, before the classifier."""

    def run():
        return case.target(inputs)[1][endpoint], case.run()[1]

    return Case(case.target, run, has_head=False)


def _sampled_frames(num_frames: int, count: int) -> list[int]:
    """What the authors' code takes: by float32, and so at times one frame more."""
    if count >= num_frames:
        return list(range(num_frames))
    step = num_frames / (count + 1)
    places = np.round(np.arange(step, num_frames, step, dtype=np.float32))
    return np.minimum(places, num_frames - 1).astype(int).tolist()


def _flax_endpoints(model, logits: tf.Tensor, endpoints: dict) -> dict:
    """Our endpoints under the names of the Flax modules that return them."""
    names = {
        "embedding": endpoints["embedding"],
        "pre_logits": endpoints["pre_logits"],
        "output_projection": logits,
        "head": logits,
    }
    temporal = getattr(model, "temporal", None)
    if temporal is None:
        return names | _encoder_endpoints(model, endpoints, "Transformer")
    # Of the spatial one, which the authors map over the slices, they have none.
    over_time = _inside(endpoints, "temporal/")
    return names | _encoder_endpoints(temporal, over_time, "TemporalTransformer")


def _encoder_endpoints(model, endpoints: dict, path: str) -> dict:
    names = {
        path: endpoints["norm"],
        f"{path}/posembed_input": endpoints["position"],
        f"{path}/encoder_norm": endpoints["norm"],
    }
    for i in range(len(model.blocks)):
        names[f"{path}/encoderblock_{i}"] = endpoints[f"block_{i}"]

    def of_slices(name: str) -> tf.Tensor:  # [B * T, L, C]
        _, length, channels = endpoints[name].shape
        length //= model.slices_attended
        return tf.reshape(endpoints[name], [-1, length, channels])

    for j, i in enumerate(sorted(map(int, model.reducers))):
        tokens = of_slices(f"block_{i}/learned_tokens")
        names[f"{path}/TokenLearnerModule_{j}"] = tokens
        names[f"{path}/TokenLearnerModuleV11_{j}"] = tokens
        if f"block_{i}/fused" in endpoints:
            names[f"{path}/TokenFuser_{j}"] = of_slices(f"block_{i}/fused")
    return names


BUILDERS = {
    "TokenLearnerModule": _token_learner,
    "TokenLearnerModuleV11": _token_learner_v11,
    "TokenFuser": _token_fuser,
    "ViT": _scenic_vit,
    "TokenLearnerViT": _token_learner_vit,
    "TokenLearnerViTRepresentation": _representation,
    "ViViT": _scenic_vivit,
    "SpaceTimeViViT": _space_time_vivit,
    "VisionTransformer": _vision_transformer,
}


def _check_schedules(arrays: dict, config: dict) -> list[Finding]:
    """Learning rates, up to the last step: there the authors' cosine starts again."""
    findings = []
    for name, case in config.items():
        if not isinstance(case, dict) or "lr_configs" not in case:
            continue
        schedule = scenic_schedules.schedule_of(case["lr_configs"])
        steps, want = arrays[f"{name}/steps"], arrays[f"{name}/lr"]
        if schedule.decay == "cosine":
            steps, want = (x[steps < schedule.total_steps] for x in (steps, want))
        got = np.array([schedule(tf.constant(step, tf.int64)) for step in steps])
        findings.append(_compare("value", name, got, want))
    return findings


def _check_fewshot(arrays: dict, config: dict) -> list[Finding]:
    """Accuracies for every number of shots and every l2, and the best l2."""
    findings, both = [], []
    names = [key.split("/")[0] for key in arrays if key.endswith("/x_train")]
    for name in names:
        x, y, x_test, y_test = (
            arrays[f"{name}/{part}"]
            for part in ("x_train", "y_train", "x_test", "y_test")
        )
        num_classes = config[name]["num_classes"]
        got = fewshot.accuracies(
            x,
            y,
            x_test,
            y_test,
            num_classes=num_classes,
            shots=arrays["shots"],
            l2_regs=arrays["l2_regs"],
        )
        both.append(got)
        want = arrays[f"{name}/accuracy"]
        findings.append(_compare("value", f"{name}/accuracy", got, want))
        several = f"{name}/accuracy_onehot_branch_l2_4"
        if several in arrays:
            hot, hot_test = np.eye(num_classes)[y], np.eye(num_classes)[y_test]
            found = fewshot.solve(x, hot, num_classes=num_classes, l2=4.0)
            got = fewshot.accuracy(found.scores(x_test), hot_test)
            findings.append(_compare("value", several, got, arrays[several]))
    if "best_l2_per_shot" in arrays:
        got = fewshot.best_l2(both, arrays["l2_regs"])
        want = arrays["best_l2_per_shot"]
        findings.append(_compare("value", "best_l2_per_shot", got, want))
    return findings


def _check_resizes(arrays: dict, config: dict) -> list[Finding]:
    """Position embeddings over another grid, or repeated over time."""
    findings = []
    for key in arrays:
        if key.endswith("/from"):
            name = key.removesuffix("/from")
            got = _resized(arrays, config[name], name)
            findings.append(_compare("value", name, got, arrays[f"{name}/result"]))
    return findings


def _resized(arrays: dict, case: dict, name: str) -> np.ndarray:
    table, want = arrays[f"{name}/from"], arrays[f"{name}/result"]
    settings = case.get("config", {})
    num_prefix = int(
        case.get("has_class_token", case.get("restored_classifier") == "token")
    )
    change = settings.get("init_from", {}).get("positional_embed_size_change", "resize")
    old, new = table.shape[1] - num_prefix, want.shape[1] - num_prefix
    repeats = 1
    if change == "tile":
        repeats = new // old
    elif change == "resize_tile":
        frames = settings["dataset_configs"]["num_frames"]
        repeats = frames // settings["model"]["patches"]["size"][2]
    elif change != "resize":
        raise ValueError(f"{name}: positional_embed_size_change={change} is unknown")
    grid_of = (lambda n: (1, n)) if case.get("is_temporal") else _square
    frame = table
    if new // repeats != old:
        frame = embedding.resize_position_embedding(
            table,
            from_grid=grid_of(old),
            to_grid=grid_of(new // repeats),
            num_prefix=num_prefix,
        )
    prefix, frame = frame[:, :num_prefix], frame[:, num_prefix:]
    return np.concatenate([prefix, np.tile(frame, [1, repeats, 1])], axis=1)


def _check_inflation(arrays: dict, config: dict) -> list[Finding]:
    """Kernels of patches put into those of tubelets; biases stay."""
    findings = []
    for key, want in arrays.items():
        name, _, part = key.rpartition("/")
        if part == "kernel_after":
            # Of an initialiser, not of an image model; that of the central frame keeps
            # a column of pixels instead.
            findings.append(Finding("value", key, math.nan, "no counterpart in ours"))
        elif part == "bias_3d":
            got = arrays[f"{name}/bias_2d"]
            findings.append(_compare("value", key, got, want))
        elif part == "kernel_3d":
            got = transfer.inflate_kernel(
                arrays[f"{name}/kernel_2d"],
                config[name]["t"],
                _inflation_of(config[name]["method"]),
            )
            findings.append(_compare("value", key, got, want))
    return findings


def _inflation_of(method: str) -> str:
    name = method.removesuffix("_initializer")
    if name not in transfer.INFLATIONS:
        raise UnsupportedError(f"kernel_init_method={method}")
    return name


def _check_warm_start(arrays: dict, config: dict) -> list[Finding]:
    """Video models started from image models: every parameter, then the output."""
    findings = []
    for name in dict.fromkeys(k.split("/")[0] for k in arrays if "/before/" in k):
        start, before, result = (
            _inside(arrays, f"{name}/{part}/") for part in ("from", "before", "result")
        )
        settings = config[name]
        model = settings["model"] | settings["model"].get("tokenizer", {})
        encoding = model["temporal_encoding_config"]
        case = _video_case(settings["model"], before, arrays[f"{name}/input"])
        variables = flax_names.variables(case.target)
        places = {"grid": case.target.grid, "num_slices": case.target.num_slices}
        transfer.assign(before, variables, where=f"{name}/before", **places)
        transfer.assign(
            _restored(start, before, settings.get("init_from", {})),
            variables,
            where=f"{name}/from",
            **places,
            inflate=_inflation_of(
                encoding.get("kernel_init_method", "central_frame_initializer")
            ),
            allow_new=("*",),  # what the image model lacks stays as it was before
        )
        for key, want in result.items():
            if key not in variables:  # theirs may keep what its model does not use
                findings.append(
                    Finding("value", key, math.nan, "no counterpart in ours")
                )
                continue
            got = variables[key].numpy().reshape(want.shape)
            findings.append(_compare("value", f"{name}/{key}", got, want))
        want = arrays[f"{name}/output"]
        findings.append(_compare("output", f"{name}/output", case.run()[0], want))
    return findings


def _restored(start: dict, before: dict, init_from: dict) -> dict[str, np.ndarray]:
    """What the authors' code takes from an image model."""
    names = dict(start)
    if "cls" in names and "cls_SpatialTransformer" in before:
        names["cls"] = before["cls_SpatialTransformer"]  # ours takes the image's
    leave = ["output_projection/"]
    if not init_from.get("restore_input_embedding", True):
        leave.append("embedding/")
    if not init_from.get("restore_positional_embedding", True):
        leave.append("Transformer/posembed_input/")
    return {n: v for n, v in names.items() if not n.startswith(tuple(leave))}


def _video_case(model: dict, parameters: dict, clips: np.ndarray) -> Case:
    """The video model that a warm start is of; sizes are told from its parameters."""
    constructor = model | {
        "hidden_size": len(parameters["embedding/bias"]),
        "num_classes": len(parameters["output_projection/bias"]),
    }
    kind = model.get("attention_config", {}).get("type", "spacetime")
    prefixes = {"Transformer/": ""}
    if kind == "factorized_encoder":
        prefixes = {
            "SpatialTransformer/": "spatial_",
            "TemporalTransformer/": "temporal_",
        }
    for path, prefix in prefixes.items():
        inside = _inside(parameters, path)
        block = _inside(inside, "encoderblock_0/")
        heads, _ = block["MultiHeadDotProductAttention_0/query/bias"].shape
        constructor |= {
            f"{prefix}num_layers": sum(n.endswith("LayerNorm_1/bias") for n in inside),
            f"{prefix}num_heads": heads,
            f"{prefix}mlp_dim": len(block["MlpBlock_0/Dense_0/bias"]),
        }
    name = "ViViT"
    if "tokenizer" in model:
        name = "TokenLearnerViT"
    elif kind == "factorized_encoder":
        name = "SpaceTimeViViT"
    arrays = {"__input__": clips, **parameters}
    return BUILDERS[name](arrays, {"constructor": constructor})


def _square(cells: int) -> tuple[int, int]:
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"wanted a square grid, got {cells} cells")
    return side, side


def _check_fields(fields: dict, required: set, optional: set, where: str) -> None:
    missing = sorted(required - fields.keys())
    unknown = sorted(fields.keys() - required - optional)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{where} has unknown fields: {', '.join(unknown)}")


def _inside(arrays: dict, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def _compare(of: str, name: str, got, want, *, scale: float | None = None) -> Finding:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"{of} {name}: wanted {want.shape}, got {got.shape}")
    if scale is None:
        scale = np.abs(want).max(initial=0)
    return Finding(of, name, float(np.abs(got - want).max(initial=0) / (scale or 1)))


def _describe(findings: list[Finding]) -> str:
    """The output's error, and the worst of each other kind with its name."""
    parts = []
    for of in ("output", "value", "mid", "loss", "gradient"):
        some = [f for f in findings if f.of == of and not f.excuse]
        if some:
            # NaN is worse than any number.
            worst = max(
                some, key=lambda f: math.inf if math.isnan(f.error) else f.error
            )
            named = "" if of == "output" else f" ({worst.name})"
            parts.append(f"{of} {worst.error:.1e}{named}")
    return "  ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Prints the report.

    Returns:
      The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="folder of .npz files")
    folder = parser.parse_args(arguments).dir
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        print(f"{folder}: there are no .npz files.", file=sys.stderr)
        return 1
    counts = {"ok": 0, "FAILED": 0, "unsupported": 0}
    width = max(len(path.stem) for path in paths)
    for path in paths:
        findings: list[Finding] = []
        try:
            findings = check_file(path)
            status = "ok" if all(f.is_ok for f in findings) else "FAILED"
            text = _describe(findings)
        except UnsupportedError as error:
            status, text = "unsupported", str(error)
        except Exception as error:  # one file's fault must not hide the others' results
            status = "FAILED"
            text = f"{path.name}: {error or type(error).__name__}"
        counts[status] += 1
        print(f"{path.stem:<{width}}  {status:<11}  {text}", flush=True)
        for finding in findings:
            mark = f"  ({finding.excuse})" if finding.excuse else ""
            mark = mark if finding.is_ok else "  FAILED"
            if finding.of != "output":
                print(f"    {finding.of:<8}  {finding.error:.1e}  {finding.name}{mark}")
    print(
        f"{len(paths)} files: "
        + ", ".join(f"{count} {status}" for status, count in counts.items())
        + f" (limit {LIMIT:.0e} of a tensor's largest value)."
    )
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
