"""What TensorBoard shows of a run besides its curves: pictures, texts, bindings."""

import gin
import numpy as np
import tensorflow as tf

from tl_tf import best, hparams, report, visualize

SHOWN_EXAMPLES = 2


def show_inputs(tag: str, batch: dict[str, tf.Tensor], classes, *, step: int) -> None:
    """Sends strips of input frames, or images, with their labels to TensorBoard.

    Args:
      tag: as `train/inputs`.
      batch: pixels uint8 [B, T, H, W, 3] or [B, H, W, 3], labels [B, K].
      classes: names, in the order of the labels.
      step: of the training.
    """
    strips = [
        visualize.frame_strip(frames, title=_label_text(labels, classes))
        for frames, labels in zip(
            _with_time(batch["pixels"][:SHOWN_EXAMPLES].numpy()),
            batch["labels"][:SHOWN_EXAMPLES].numpy(),
            strict=True,
        )
    ]
    show_images(tag, strips, step=step)


def show_token_maps(
    tag: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    classes,
    *,
    step: int,
) -> None:
    """Sends the token maps over their frames to TensorBoard.

    Args:
      tag: as `eval/token_maps`.
      pixels: uint8 [B, T, H, W, 3] or [B, H, W, 3].
      labels: [B, K].
      maps: [b, T', h, w, S] of the first TokenLearner, for the first b <= B.
      classes: names, in the order of the labels.
      step: of the training.
    """
    shown = maps[:SHOWN_EXAMPLES]
    sheets = [
        visualize.token_map_sheet(f, m, title=_label_text(k, classes))
        for f, k, m in zip(
            _with_time(pixels[: len(shown)]),
            labels[: len(shown)],
            shown,
            strict=True,
        )
    ]
    show_images(tag, sheets, step=step)


def show_config(step: int) -> None:
    """Sends the parsed configuration to TensorBoard as text."""
    text = "\n".join("    " + line for line in gin.config_str().splitlines())
    tf.summary.text("config", text, step=step)


def show_hparams() -> None:
    """Sends the recipe's bindings to TensorBoard's HParams tab.

    It shows them beside the last value of every scalar of the same run, as eval/map.
    """
    from tensorboard.plugins.hparams import api

    api.hparams(hparams.bound())


def show_best(found: best.Best, *, step: int) -> None:
    """Says which evaluation was the best so far, on screen and in TensorBoard.

    Args:
      found: after the evaluation at `step`.
      step: of the training.
    """
    ago = found.evals_ago
    where = f", {ago} evaluation{'s' * (ago > 1)} ago" if ago else ""
    report.say(
        f"best   step {found.step}{where}: {found.metric} {found.value:.4f}"
        f"  -> {found.folder / f'ckpt-{found.step}'}"
    )
    tf.summary.scalar(f"best/{found.metric}", found.value, step=step)


def show_images(tag: str, images: list[np.ndarray], *, step: int) -> None:
    """Sends pictures to TensorBoard, on white where one is smaller than another.

    Args:
      tag: as `eval/confusion`.
      images: uint8 [height, width, 3].
      step: of the training.
    """
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    padded = np.full((len(images), height, width, 3), 255, np.uint8)
    for slot, image in zip(padded, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    with tf.summary.record_if(True):  # Orbit turns summaries off inside its train loop
        tf.summary.image(tag, padded, step=step, max_outputs=len(images))


def _with_time(pixels: np.ndarray) -> np.ndarray:
    """An image is a video of one frame.  -> [B, T, H, W, 3]"""
    return pixels if pixels.ndim == 5 else pixels[:, np.newaxis]


def _label_text(labels: np.ndarray, classes) -> str:
    return ", ".join(classes[k] for k in np.flatnonzero(labels)[:5]) or "(no label)"
