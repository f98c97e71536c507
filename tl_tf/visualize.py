"""Pictures: frames, where learned tokens look, what attends to what, confusions.

Frames and maps are put together with Pillow: a clip of them takes a fraction of a
second.  What has axes is Matplotlib's.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MAX_FRAMES = 8
MAX_TOKENS = 16
MAX_BLOCKS = 6
NAMED_CLASSES = 30  # more names than that cannot be read beside a matrix
NUMBERED_CLASSES = 12
FOR, AGAINST = (216, 96, 20), (40, 105, 175)  # the class: orange, and blue

_TILE_PX = 112  # height of a frame on a sheet
_GAP_PX = 5
_MARGIN_PX = 12
_LINE_PX = 18  # of text above a sheet
_BAR_PX = 3  # below a map that plays
_INK, _PALE = (30, 30, 30), (120, 120, 120)
_MIN_RATIO = 1.25  # smaller differences of attention stay pale


def frame_strip(frames: np.ndarray, *, title: str) -> np.ndarray:
    """Frames of one clip side by side, their labels above.

    Args:
      frames: uint8 [T, H, W, 3]; MAX_FRAMES of them, evenly spaced, are shown.
      title: the video's id and its labels.

    Returns:
      uint8 [height, width, 3].
    """
    return _rows(frames, np.zeros([len(frames), 1, 1, 0]), title=title)


def token_map_sheet(
    frames: np.ndarray,
    maps: np.ndarray,
    *,
    title: str,
    importance: np.ndarray | None = None,
    seconds: Sequence[float] | None = None,
) -> np.ndarray:
    """Where each learned token looks, over the frames (Fig. 10).

    The first row holds the frames, each further row one token's maps over them; of a
    single image, the image and the maps beside it.  A token's maps have one scale, from
    its smallest to its largest weight: a bright cell is one that the token pools most
    of all, anywhere in the clip.

    Args:
      frames: uint8 [T, H, W, 3].
      maps: float [T', h, w, S], the token maps; T' may be below T, when the model
        strides over time.  Of more than MAX_TOKENS, the most important ones are shown,
        or the first.
      title: of the sheet; its first line is set in bold.
      importance: [S], what the logit of the class in the title loses without the
        token: a number and a bar, orange for the class and blue against it.
      seconds: of each of the T' slices; their numbers by default.

    Returns:
      uint8 [height, width, 3].
    """
    if len(maps) == 1:
        return draw_clip(frames[:1], maps, caption=title, importance=importance)[0]
    return _rows(frames, maps, title=title, importance=importance, seconds=seconds)


def draw_clip(
    frames: np.ndarray,
    maps: np.ndarray,
    *,
    caption: str = "",
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """A clip that plays: each frame, and beside it every token's map over it.

    Args:
      frames: uint8 [T, H, W, 3]; small ones are enlarged.
      maps: as in `token_map_sheet`, with its scale.
      caption: a line or more above; what is too long ends in "…".
      importance: as in `token_map_sheet`.

    Returns:
      uint8 [T, height, width, 3], of even height and width.
    """
    from PIL import Image, ImageDraw

    num_frames, height, width, _ = frames.shape
    tokens = _shown_tokens(maps, importance)
    rows = max(1, math.ceil(math.sqrt(len(tokens) / 2)))
    columns = math.ceil(len(tokens) / rows)
    tile = _fit(height, width, max(96, 256 // rows))
    line = _font(12).size + 6  # above each map
    cell = (tile[0] + _GAP_PX, line + tile[1] + 1 + _BAR_PX + _GAP_PX)
    head = _head_px(caption)
    large = _fit(height, width, rows * cell[1] - (cell[1] - tile[1]))
    left = _MARGIN_PX + large[0] + 2 * _GAP_PX
    size = (
        _even(left + columns * cell[0] - _GAP_PX + _MARGIN_PX),
        _even(head + rows * cell[1] + _MARGIN_PX - _GAP_PX),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    _write_head(draw, caption, size[0])
    corners = [
        (left + i % columns * cell[0], head + i // columns * cell[1] + line)
        for i in range(len(tokens))
    ]
    for (x, y), token in zip(corners, tokens, strict=True):
        name = f"token {token}"
        draw.text((x, y - line + 2), name, _INK, _font(12))
        if importance is not None:
            text, ink = _signed(importance[token])
            draw.text((x + tile[0], y - line + 2), text, ink, _font(12), anchor="ra")
            share = importance[token] / _most(importance)
            _draw_bar(draw, (x, y + tile[1] + 1), tile[0], share, height=_BAR_PX)
    scaled = _scaled(maps)
    clip = np.repeat(np.asarray(sheet)[np.newaxis], num_frames, axis=0)
    for t, frame in enumerate(frames):
        _put(clip[t], _resized(frame, large), _MARGIN_PX, head + line)
        small = _grey(_resized(frame, tile))
        for (x, y), token in zip(corners, tokens, strict=True):
            weights = scaled[t * len(maps) // num_frames, ..., token]
            _put(clip[t], _heat(small, weights), x, y)
    return clip


def attention_picture(
    attention: Mapping[str, np.ndarray],
    *,
    title: str,
    seconds: Sequence[float] | None = None,
) -> np.ndarray:
    """How much the learned tokens of each frame look at those of each other frame.

    Above a matrix for each block, from the frame that looks (a row) to the frame that
    is looked at (a column), a mean over its tokens; below, of the last block, one for
    each token that looks.  Of a single frame, a matrix of tokens for each block.  The
    colours are shares of attention against an even one, whose logarithm they follow.

    Args:
      attention: by the block's name, float [M, S, M, S], from token to token; of each
        token it sums to 1.
      title: of the picture.
      seconds: of each of the M windows of frames; their numbers by default.

    Returns:
      uint8 [height, width, 3].
    """
    names = [list(attention)[i] for i in _evenly(len(attention), MAX_BLOCKS)]
    last = attention[names[-1]]
    num_windows, num_tokens, _, _ = last.shape
    if num_windows == 1:
        rows = [{name: attention[name][0, :, 0] for name in names}]  # [S, S]
        axis = "token"
    else:
        by_frame = {name: a.sum(axis=-1) for name, a in attention.items()}  # [M, S, M]
        rows = [{name: by_frame[name].mean(axis=1) for name in names}]  # [M, M]
        if num_tokens > 1:
            of_last = by_frame[names[-1]]
            shown = range(min(num_tokens, MAX_FRAMES))
            rows.append({f"token {s}": of_last[:, s] for s in shown})
        axis = "frame" if seconds is None else "second"
    ratios = [
        {name: np.log2(np.maximum(m * m.shape[1], 1e-9)) for name, m in row.items()}
        for row in rows
    ]
    found = max(np.abs(m).max() for row in ratios for m in row.values())
    limit = float(np.clip(found, np.log2(_MIN_RATIO), 3))
    side = 1.75  # inches of a matrix
    columns = max(map(len, rows))
    sheet = _figure(columns * side + 1.3, len(rows) * (side + 0.45) + 0.5)
    axes = sheet.subplots(len(rows), columns, squeeze=False)
    for k, (row, some) in enumerate(zip(axes, ratios, strict=True)):
        for cell in row[len(some) :]:
            cell.set_visible(False)
        for i, (cell, (name, matrix)) in enumerate(
            zip(row, some.items(), strict=False)
        ):
            image = cell.imshow(
                matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            ticks = np.unique(np.linspace(0, len(matrix) - 1, 4).astype(int))
            shown = [f"{seconds[k]:.2f}" if axis == "second" else f"{k}" for k in ticks]
            cell.set_xticks(ticks, shown, fontsize=7)
            cell.set_yticks(ticks, shown if i == 0 else [], fontsize=7)
            cell.set_title(name, fontsize=9)
        whose = f"{names[-1]}\n" if k else ""
        row[0].set_ylabel(f"{whose}{axis} that looks", fontsize=8)
    axes[-1][0].set_xlabel(f"{axis} looked at", fontsize=8)
    bar = sheet.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    marks = [-limit, -limit / 2, 0, limit / 2, limit]
    bar.set_ticks(marks, labels=[f"x {2**m:.2g}" for m in marks], fontsize=7)
    bar.set_label("attention, times an even share", fontsize=8)
    sheet.suptitle(title, fontsize=10)
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


def _rows(
    frames: np.ndarray,
    maps: np.ndarray,
    *,
    title: str,
    importance: np.ndarray | None = None,
    seconds: Sequence[float] | None = None,
) -> np.ndarray:
    """The frames in a row, and in each row below the maps of a token."""
    from PIL import Image, ImageDraw

    num_slices, tokens = len(maps), _shown_tokens(maps, importance)
    columns = _evenly(num_slices, MAX_FRAMES)
    tile = _fit(*frames.shape[1:3], _TILE_PX)
    cell = (tile[0] + _GAP_PX, tile[1] + _GAP_PX)
    left = _MARGIN_PX + (64 if tokens else 0)
    end = left + len(columns) * cell[0]
    head = _head_px(title) + 18
    sheet = Image.new(
        "RGB",
        (
            end + _MARGIN_PX + (0 if importance is None else 112),
            head + (1 + len(tokens)) * cell[1] + _MARGIN_PX - _GAP_PX,
        ),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    _write_head(draw, title, sheet.width)
    if importance is not None:
        draw.text((end + 8, head - 5), "logit lost without it", _PALE, _font(11), "ls")
    for row, token in enumerate(tokens, start=1):
        y = head + row * cell[1] + tile[1] // 2
        draw.text((left - 8, y), f"token {token}", _INK, _font(12), anchor="rm")
        if importance is not None:
            text, ink = _signed(importance[token])
            draw.text((end + 8, y - 4), text, ink, _font(13), anchor="ls")
            share = importance[token] / _most(importance)
            _draw_bar(draw, (end + 8, y), 88, share, height=10)
    scaled = _scaled(maps)
    for column, t in enumerate(columns):
        x, source = left + column * cell[0], t * len(frames) // num_slices
        if len(frames) > 1:
            name = f"frame {source}" if seconds is None else f"{seconds[t]:.2f} s"
            at = (x + tile[0] // 2, head - 5)
            draw.text(at, name, _PALE, _font(11), anchor="ms")
        frame = _resized(frames[source], tile)
        sheet.paste(Image.fromarray(frame), (x, head))
        for row, token in enumerate(tokens, start=1):
            heat = _heat(_grey(frame), scaled[t, ..., token])
            sheet.paste(Image.fromarray(heat), (x, head + row * cell[1]))
    return np.asarray(sheet)


def _shown_tokens(maps: np.ndarray, importance: np.ndarray | None) -> list[int]:
    count = maps.shape[-1]
    if count <= MAX_TOKENS or importance is None:
        return list(range(min(count, MAX_TOKENS)))
    order = np.argsort(-np.abs(importance), kind="stable")
    return sorted(order[:MAX_TOKENS].tolist())


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Each token's weights from 0 to 1 over the clip; a flat map is 0."""
    low = maps.min(axis=(0, 1, 2))
    span = maps.max(axis=(0, 1, 2)) - low
    return (maps - low) / np.where(span > 0, span, 1)


def _heat(grey: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights [h, w] of 0..1 as colours over a grey frame.  -> uint8 [H, W, 3]"""
    from PIL import Image

    height, width, _ = grey.shape
    small = Image.fromarray(weights.astype(np.float32))
    large = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    large = large.clip(0, 1)[..., np.newaxis]  # [H, W, 1]
    colours = _colours()[(255 * large[..., 0]).astype(np.uint8)]
    share = 0.35 + 0.35 * large  # where nobody looks, the frame is seen better
    return ((1 - share) * grey + share * colours).astype(np.uint8)


def _grey(frame: np.ndarray) -> np.ndarray:
    return frame.mean(axis=-1, keepdims=True)  # [H, W, 1]


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    smooth = Image.Resampling.BICUBIC  # widened where it shrinks
    return np.asarray(Image.fromarray(frame).resize(size, smooth))


def _fit(height: int, width: int, to_height: int) -> tuple[int, int]:
    """Width and height of a picture made `to_height` high."""
    return max(1, round(to_height * width / height)), to_height


def _put(picture: np.ndarray, part: np.ndarray, x: int, y: int) -> None:
    picture[y : y + part.shape[0], x : x + part.shape[1]] = part


def _even(size: int) -> int:
    return size + size % 2


def _most(values: np.ndarray) -> float:
    return float(np.abs(values).max()) or 1.0


def _signed(value: float) -> tuple[str, tuple[int, int, int]]:
    """A number with its sign, and the colour of that sign."""
    return f"{value:+.2g}", FOR if value > 0 else AGAINST


def _draw_bar(draw, corner, width: int, share: float, *, height: int) -> None:
    """A bar of |share| of a width, in the colour of its sign."""
    (x, y), long = corner, round(abs(share) * width)
    if long:
        ink = FOR if share > 0 else AGAINST
        draw.rectangle((x, y, x + long - 1, y + height - 1), fill=ink)


def _write_head(draw, text: str, width: int) -> None:
    """The lines above a sheet, each cut to its width; the first is bold."""
    y = _MARGIN_PX
    for i, line in enumerate(text.splitlines()):
        font = _font(12, is_bold=i == 0)
        while line and draw.textlength(line, font) > width - 2 * _MARGIN_PX:
            line = line.rstrip("…")[:-1] + "…"
        draw.text((_MARGIN_PX, y), line, _INK, font)
        y += _LINE_PX


def _head_px(text: str) -> int:
    return _MARGIN_PX + _LINE_PX * len(text.splitlines())


@functools.cache
def _font(size: int, *, is_bold: bool = False):
    """Matplotlib's own font, which has more letters than Pillow's."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


@functools.cache
def _colours() -> np.ndarray:
    """Of weights 0..255, from black to yellow.  -> uint8 [256, 3]"""
    import matplotlib

    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round()).astype(int)


def _figure(width: float, height: float):
    """An empty figure; Matplotlib is imported when the first picture is drawn."""
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    sheet = figure.Figure(figsize=(width, height), dpi=100, layout="constrained")
    backend_agg.FigureCanvasAgg(sheet)
    return sheet


def _pixels(sheet) -> np.ndarray:
    sheet.canvas.draw()
    return np.asarray(sheet.canvas.buffer_rgba())[..., :3].copy()
