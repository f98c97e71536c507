"""Pictures for TensorBoard: the frames a model saw, and where its tokens look."""

from collections.abc import Sequence

import numpy as np

MAX_FRAMES = 8
MAX_TOKENS = 8
NAMED_CLASSES = 30  # more names than that cannot be read beside a matrix
NUMBERED_CLASSES = 12
_INCHES = 1.6  # of one frame


def frame_strip(frames: np.ndarray, *, title: str) -> np.ndarray:
    """Frames of one clip side by side, their labels above.

    Args:
      frames: uint8 [T, H, W, 3]; MAX_FRAMES of them, evenly spaced, are shown.
      title: the video's id and its labels.

    Returns:
      uint8 [height, width, 3].
    """
    shown = _evenly(len(frames), MAX_FRAMES)
    sheet, axes = _sheet(1, len(shown), frames.shape[1] / frames.shape[2], title)
    for axis, t in zip(axes[0], shown, strict=True):
        axis.imshow(frames[t])
        axis.set_xlabel(f"frame {t}" if len(frames) > 1 else "", fontsize=7)
    return _pixels(sheet)


def token_map_sheet(
    frames: np.ndarray, maps: np.ndarray, *, title: str, names: Sequence[str] = ()
) -> np.ndarray:
    """Where each learned token looks, over the frames (Fig. 10).

    The first row holds the frames, each further row one token's maps over them; of a
    single image, the first column and the further ones.  A token's maps have one scale,
    from its smallest to its largest weight: a bright cell is one that the token pools
    most of all, anywhere in the clip.

    Args:
      frames: uint8 [T, H, W, 3].
      maps: float [T', h, w, S], the token maps; T' may be below T, when the model
        strides over time.
      title: of the sheet.
      names: of the tokens; their numbers by default.

    Returns:
      uint8 [height, width, 3].
    """
    shown = _evenly(len(maps), MAX_FRAMES)
    tokens = range(min(maps.shape[-1], MAX_TOKENS))
    height, width = frames.shape[1:3]
    is_image = len(maps) == 1
    if is_image:
        sheet, axes = _sheet(1, 1 + len(tokens), height / width, title)
        axes = axes.T
        axes[0][0].set_xlabel("image", fontsize=7)
    else:
        sheet, axes = _sheet(1 + len(tokens), len(shown), height / width, title)
        axes[0][0].set_ylabel("frames", fontsize=7)
    for column, t in enumerate(shown):
        frame = frames[t * len(frames) // len(maps)]
        axes[0][column].imshow(frame)
        grey = frame.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)
        for token in tokens:
            axis = axes[1 + token][column]
            axis.imshow(grey)
            axis.imshow(
                maps[t, ..., token],
                cmap="inferno",
                alpha=0.6,
                vmin=maps[..., token].min(),
                vmax=maps[..., token].max(),
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
            name = names[token] if names else f"token {token}"
            if is_image:
                axis.set_xlabel(name, fontsize=7)
            elif column == 0:
                axis.set_ylabel(name, fontsize=7)
            if token == tokens[-1] and not is_image:
                axis.set_xlabel(f"frame {t * len(frames) // len(maps)}", fontsize=7)
    return _pixels(sheet)


def confusion_picture(
    matrix: np.ndarray, names: Sequence[str], *, title: str
) -> np.ndarray:
    """What each class was taken for, as a heat map: a right answer is on the diagonal.

    Shares are of a class's examples; a class without any is an empty row.  The colours
    follow the root of the share, so that one wrong answer in twenty is seen.

    Args:
      matrix: int [K, K], a row a class, a column what it was taken for.
      names: of the classes; their numbers stand beside a large matrix.
      title: of the picture.

    Returns:
      uint8 [height, width, 3].
    """
    from matplotlib import colors

    num_classes = len(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = matrix / totals  # [K, K], NaN where there is no example
    is_named = num_classes <= NAMED_CLASSES
    longest = max(map(len, names)) if is_named else 4
    # At least a pixel a class, of those that are drawn at all.
    side = max(3.0, min(0.36 * num_classes, 9.0), 0.015 * num_classes)  # inches
    margin = 0.6 + 0.085 * longest
    sheet = _figure(side + margin + 0.9, side + margin + 0.4)
    axis = sheet.subplots()
    norm = colors.PowerNorm(0.5, vmin=0, vmax=1)
    image = axis.imshow(shares, cmap="gist_heat_r", norm=norm, interpolation="nearest")
    axis.set_facecolor("0.85")
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("class", fontsize=8)
    axis.set_xlabel("taken for", fontsize=8)
    if is_named:
        axis.set_yticks(range(num_classes), names, fontsize=7)
        axis.set_xticks(range(num_classes), names, fontsize=7, rotation=90)
        axis.tick_params(length=0)
    else:
        axis.tick_params(labelsize=7)
    if num_classes <= NUMBERED_CLASSES:
        for k, taken_for in np.argwhere(matrix):
            shade = "white" if shares[k, taken_for] > 0.35 else "black"
            text = f"{matrix[k, taken_for]}"
            axis.text(
                taken_for, k, text, color=shade, fontsize=7, ha="center", va="center"
            )
    bar = sheet.colorbar(image, ax=axis, fraction=0.04, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return _pixels(sheet)


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round()).astype(int)


def _figure(width: float, height: float):
    """An empty figure; Matplotlib is imported when the first picture is drawn."""
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    sheet = figure.Figure(figsize=(width, height), dpi=100)
    backend_agg.FigureCanvasAgg(sheet)
    return sheet


def _sheet(rows: int, columns: int, aspect: float, title: str):
    sheet = _figure(columns * _INCHES, rows * _INCHES * aspect + 0.5)
    axes = sheet.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    sheet.suptitle(title, fontsize=9)
    return sheet, axes


def _pixels(sheet) -> np.ndarray:
    sheet.tight_layout(pad=0.4)
    sheet.canvas.draw()
    return np.asarray(sheet.canvas.buffer_rgba())[..., :3].copy()
