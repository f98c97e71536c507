"""A trained model as a folder that needs none of this code.

A SavedModel from pixels or files to probabilities with names, a TFLite file of one view
for small models, and a model card that says where both come from.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from tl_tf import checkpoint, model_card, report, serving, tflite
from tl_tf import session as sessions
from tl_tf.layers import vector_attention

TFLITE = "model.tflite"
TFLITE_PARAMETERS = 50_000_000  # the largest model that gets a TFLite file unasked
# Exact, and of operations that every runtime has: what is chosen for long sequences in
# training is compiled by XLA, which TensorFlow Serving has not got by default.
ATTENTION = "chunked"


@gin.configurable
def export(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    tflite: bool | None = None,
) -> None:
    """Writes the trained model into `--output_dir`, by default `model_dir/export`.

    An earlier export there is replaced, once the new one is whole.

    Args:
      session: mode, folders and devices.
      build_model: the one that was trained.
      tflite: whether a TFLite file is written as well; None for models of at most
        TFLITE_PARAMETERS parameters, and where it can be.

    Raises:
      ValueError: for a missing checkpoint, a folder that holds something else, or a
        TFLite file that was asked for and cannot be.
    """
    folder = session.output_dir or session.model_dir / "export"
    _check_free(folder)
    classifier, step = sessions.restore_classifier(session, build_model)
    session.check_config()
    if not session.is_chief:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        save(classifier, temporary)
        card = model_card.build(
            classifier,
            model_dir=session.model_dir,
            step=step,
            weights=_origin(session),
            view=view_shape(classifier)[1:],
            tflite=write_tflite(classifier, temporary / TFLITE, is_wanted=tflite),
        )
        model_card.write(card, temporary)
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report.say(summary(card, folder))


def save(classifier: serving.Classifier, folder: Path) -> None:
    """Writes a SavedModel: what evaluation does, from pixels or files to probabilities.

    `serving_default` takes pixels, uint8, of videos `frames` [B, F, h, w, 3], at the
    data set's rate, of images `images` [B, h, w, 3]; `encoded` takes files, strings:
    JPEG frames of one size a video, [B, F], or upright JPEG and PNG images, [B].  Both
    give `probabilities` float32 [B, K] and `labels` string [K].  `features` takes
    pixels, and gives what the classifying layer reads, the mean over the views:
    `features` float32 [B, D].  B, F, h and w are free.

    Args:
      classifier: of any strategy.
      folder: is made.
    """
    is_video = classifier.is_video
    name = "frames" if is_video else "images"
    labels, view = list(classifier.trained.classes), view_shape(classifier)
    pixels = tf.TensorSpec(_pixels_shape(is_video, batch=True), tf.uint8, name)
    files = tf.TensorSpec([None] * (2 if is_video else 1), tf.string, name)

    # One graph for all signatures, which take of it what they give.
    @tf.function(
        input_signature=[tf.TensorSpec([None, *view], tf.uint8)], autograph=False
    )
    def outputs_of(views: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores, features = classifier.view_outputs(views)
        return classifier.merged(scores), tf.reduce_mean(features, axis=1)

    def outputs(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        spec = tf.TensorSpec(view, tf.uint8)
        return outputs_of(
            tf.map_fn(classifier.views_of, examples, fn_output_signature=spec)
        )

    def classify(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = tf.ensure_shape(outputs(examples)[0], [None, len(labels)])
        return {"probabilities": scores, "labels": tf.constant(labels)}

    def features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"features": outputs(examples)[1]}

    _save(
        classifier.model,
        folder,
        serving_default=(classify, pixels),
        encoded=(classify, files),
        features=(features, pixels),
    )


def save_view(classifier: serving.Classifier, folder: Path) -> None:
    """Writes a SavedModel of one view: `pixels` uint8 [1, ...] to `probabilities`."""
    spec = tf.TensorSpec([1, *view_shape(classifier)[1:]], tf.uint8, "pixels")

    def score(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": classifier.scores(pixels)}

    _save(classifier.model, folder, serving_default=(score, spec))


def view_shape(classifier: serving.Classifier) -> list[int]:
    """V, T, H, W, 3, or of images 1, H, W, 3."""
    spec = tf.TensorSpec(_pixels_shape(classifier.is_video), tf.uint8)
    views_of = tf.function(classifier.views_of, autograph=False)
    return views_of.get_concrete_function(spec).structured_outputs.shape.as_list()


def _pixels_shape(is_video: bool, *, batch: bool = False) -> list[int | None]:
    return [None] * (batch + is_video + 2) + [3]


def _save(model: tf_keras.Model, folder: Path, **functions) -> None:
    """Saves graphs by their signatures: a function and the spec of what it takes.

    The variables are all that is saved of the model: Keras would have every layer's
    graph besides, which takes as long again and is read by nobody.
    """
    saved = tf.Module()
    saved.weights_ = model.variables
    with vector_attention.implemented(model, ATTENTION):
        signatures = {
            name: tf.function(function, autograph=False).get_concrete_function(spec)
            for name, (function, spec) in functions.items()
        }
        tf.saved_model.save(saved, str(folder), signatures=signatures)


def write_tflite(
    classifier: serving.Classifier, path: Path, *, is_wanted: bool | None
) -> dict[str, Any]:
    """Writes a TFLite file of one view.

    Args:
      classifier: of any strategy.
      path: of the file.
      is_wanted: as `export.tflite`.

    Returns:
      What `model_card.build` wants to know of it.

    Raises:
      ValueError: it is wanted, and cannot be.
    """
    because = _no_tflite(classifier.model, is_wanted)
    if not because:
        with tempfile.TemporaryDirectory() as folder:
            save_view(classifier, Path(folder))
            try:
                difference = tflite.convert(Path(folder), path)
                view = [1, *view_shape(classifier)[1:]]
                return {"file": path.name, "view": view, "difference": difference}
            except tflite.ConversionError as error:
                because = str(error)
    if is_wanted:
        raise ValueError(
            f"export.tflite is True, but there can be no TFLite file: {because}. Leave"
            " it at None to export without one."
        )
    return {"file": None, "because": because}


def _no_tflite(model: tf_keras.Model, is_wanted: bool | None) -> str:
    """Why no TFLite file is tried; "" if one is."""
    count = sum(v.shape.num_elements() for v in model.variables)
    if is_wanted is False:
        return "export.tflite is False"
    if is_wanted is None and count > TFLITE_PARAMETERS:
        return (
            f"the model has {count / 1e6:,.0f}M parameters, and it is for models of up"
            f" to {TFLITE_PARAMETERS / 1e6:,.0f}M unless export.tflite is True"
        )
    if model.compute_dtype != "float32":
        return (
            f"TFLite does not compute in {model.compute_dtype}; it can be had with"
            " configure_runtime.precision = 'float32'"
        )
    return ""


def _origin(session: sessions.Session) -> str:
    """Where the weights were read, as restore_classifier does it."""
    if not session.has_checkpoint:
        return str(gin.get_bindings("warm_start")["path"])
    return str(checkpoint.find(session.model_dir, session.checkpoint))


def summary(card: dict[str, Any], folder: Path) -> str:
    """What was written, and how it is used, for people.

    Args:
      card: as `model_card.write` left it.
      folder: of the export.
    """
    sizes = {name: facts["bytes"] for name, facts in card["files"].items()}
    small, fps = card["tflite"], card["frames"].get("fps")
    if small["file"] is None:
        about_small = f"none: {small['because']}"
    else:
        shape = ", ".join(str(length) for length in small["view"])
        about_small = f"{model_card.size(sizes.pop(TFLITE))}: one view, [{shape}]"
    signatures = card["signatures"]
    ((name, spec),) = signatures["serving_default"]["inputs"].items()
    spec += f", {fps:g} frames a second" if fps else ""
    files = '[[{"b64": "..."}, ...]]' if fps else '[{"b64": "..."}]'
    service = Path((*card["recipe"]["gin_files"], card["model"])[0]).stem
    return f"""\
export  step {card["weights"]["step"]}  {card["weights"]["from"]}  -> {folder}
        SavedModel    {model_card.size(sum(sizes.values()))}: {", ".join(signatures)}
        TFLite        {about_small}
        model card    {model_card.MARKDOWN}, {model_card.JSON}
        With TensorFlow alone:
          model = tf.saved_model.load("{folder}")
          found = model.signatures["serving_default"]({name}={name})  # {spec}
          found["probabilities"], found["labels"]
        As a service:
          docker run -p 8501:8501 -v {folder.resolve()}:/models/{service}/1 \\
            -e MODEL_NAME={service} tensorflow/serving
          curl localhost:8501/v1/models/{service}:predict -d \\
            '{{"signature_name": "encoded", "inputs": {{"{name}": {files}}}}}'"""


def _check_free(folder: Path) -> None:
    """Refuses to replace anything but an earlier export."""
    is_export = (folder / model_card.JSON).is_file()
    is_taken = folder.is_file() or folder.is_dir() and any(folder.iterdir())
    if is_taken and not is_export:
        raise ValueError(
            f"{folder}: holds something else than an export, which would be lost. Name"
            " another --output_dir."
        )


def _put(temporary: Path, folder: Path) -> None:
    """Gives a finished folder its name; an earlier export is deleted."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
