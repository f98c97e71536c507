"""TokenLearner in TensorFlow 2, for images and videos (arXiv 2106.11297).

What `__all__` lists can be imported from here; TensorFlow is imported with the first of
these names, not with the package.

    import tensorflow as tf
    from tl_tf import TokenLearnerV11

    tokens, maps = TokenLearnerV11(num_tokens=8)(tf.random.normal([2, 196, 768]))

`python -m tl_tf`, or `tl-tf` where the package is installed, is run.py.
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
