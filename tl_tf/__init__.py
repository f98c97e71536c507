"""TokenLearner in TensorFlow 2, for images and videos (arXiv 2106.11297).

TokenLearner in a model of your own.  Its layers are of Keras 2, `tf_keras`:

    import tf_keras
    from tl_tf import TokenLearner

    images = tf_keras.Input([64, 64, 3])
    grid = tf_keras.layers.Conv2D(128, 8, strides=4)(images)  # [B, 15, 15, 128]
    tokens, maps = TokenLearner(num_tokens=8)(grid)  # [B, 8, 128], [B, 15, 15, 8]
    mixed = tf_keras.layers.MultiHeadAttention(4, key_dim=32)(tokens, tokens)
    pooled = tf_keras.layers.GlobalAveragePooling1D()(mixed)
    model = tf_keras.Model(images, tf_keras.layers.Dense(10)(pooled))

A ViT with the weights of an `.npz`, of Scenic's or vision_transformer's:

    import tensorflow as tf
    from tl_tf import build_vit, load_npz

    vit = build_vit(1000, image_px=384, variant="S", patch_px=32)
    load_npz("weights.npz", vit)
    logits, endpoints = vit(tf.zeros([1, 384, 384, 3]))  # pixels in -1..1

The input pipeline on records of your own, made by `tl-tf build folder`:

    from tl_tf import clip_dataset, normalize

    sizes = {"num_frames": 16, "crop_px": 64, "short_side_px": 80}
    data = clip_dataset("datasets", dataset="mine", split="train", is_training=True,
                        batch_size=8, seed=0, **sizes)
    batch = next(iter(data.batches))  # an endless stream, shuffled
    clips = normalize(batch["pixels"])  # [8, 16, 64, 64, 3] in -1..1

What `__all__` lists can be imported from here; TensorFlow is imported with the first of
these names, not with the package.  `tl-tf`, or `python -m tl_tf`, runs the recipes.
"""

import importlib

_HOMES = {
    # From many patch tokens to a few learned ones, and back.
    "TokenLearner": "layers.token_learner",
    "TokenLearnerV11": "layers.token_learner",
    "BottleneckTokenLearner": "layers.token_learner",
    "TokenFuser": "layers.token_learner",
    "VolumeTokenLearner": "layers.volume_token_learner",
    "VectorTransformer": "layers.vector_attention",
    "vector_attention": "layers.vector_attention",
    # Models, and their weights under the authors' names.
    "build_vit": "models.vit",
    "build_vivit": "models.vivit",
    "build_x2p1d": "models.x2p1d",
    "build_on_differences": "models.differences",
    "load_npz": "checkpoint",
    "save_npz": "checkpoint",
    # Batches out of records and of folders.
    "clip_dataset": "inputs.video",
    "image_dataset": "inputs.image",
    "normalize": "inputs.augment",
    # Scores of a whole evaluation.
    "charades_map": "metrics",
    "class_accuracy": "metrics",
    "real_accuracy": "metrics",
    "top_k_accuracy": "metrics",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
