"""What a video shows when: the scores of its segments, in words and as a picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np

SURE = 0.5  # from this score on a label is named even beside a better one
NAMED = 3  # labels of a stretch
DRAWN = 8  # classes in a picture
FAINT = 0.05  # below it all the time a class is not drawn
STRONG, PALE = "#1f5fa8", "#c9daee"  # where a class leads, and elsewhere


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video and its scores.

    Attributes:
      start: in seconds from the video's start.
      end: likewise.
      scores: float32 [K].
    """

    start: float
    end: float
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Neighbouring segments with the same labels.

    Attributes:
      start: in seconds.
      end: likewise.
      labels: names and mean scores, the best first.
    """

    start: float
    end: float
    labels: list[tuple[str, float]]


def top(
    scores: np.ndarray, classes: Sequence[str], count: int
) -> list[tuple[str, float]]:
    """The best labels with their scores, the best first.  scores [K]."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [(classes[k], float(scores[k])) for k in order]


def edges(segments: Sequence[Segment]) -> np.ndarray:
    """Where each segment's share of the time begins, and where the last one ends.

    Segments overlap: two of them meet halfway between their middles.

    Returns:
      float64 [segments + 1], seconds, ascending.
    """
    middles = np.array([(one.start + one.end) / 2 for one in segments])
    between = (middles[1:] + middles[:-1]) / 2
    return np.array([segments[0].start, *between, segments[-1].end])


def stretches(segments: Sequence[Segment], classes: Sequence[str]) -> list[Stretch]:
    """Joins neighbours with the same labels: the best one, and what else is sure."""
    bounds = edges(segments)
    named = []
    for segment in segments:
        order = np.argsort(-segment.scores, kind="stable")[:NAMED]
        is_named = segment.scores[order] >= SURE
        named.append(frozenset(order[is_named].tolist()) or frozenset([int(order[0])]))
    first, found = 0, []
    for i in range(1, len(segments) + 1):
        if i < len(segments) and named[i] == named[first]:
            continue
        mean = np.mean([one.scores for one in segments[first:i]], axis=0)
        labels = sorted(named[first], key=lambda k: -mean[k])
        found.append(
            Stretch(
                start=float(bounds[first]),
                end=float(bounds[i]),
                labels=[(classes[k], float(mean[k])) for k in labels],
            )
        )
        first = i
    return found


def clock(seconds: float, *, total: float) -> str:
    """A time within a video of `total` seconds: `7.5`, or `2:05` in a long one."""
    if total < 120:
        return f"{seconds:.1f}"
    seconds = round(seconds)
    if total < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def picture(
    segments: Sequence[Segment], classes: Sequence[str], *, title: str
) -> np.ndarray:
    """The best classes' scores over the seconds, a row a class, strong where it leads.

    Args:
      segments: in their order, at least one.
      classes: names, in the order of the scores.
      title: of the picture.

    Returns:
      uint8 [height, width, 3].
    """
    from matplotlib import figure, ticker
    from matplotlib.backends import backend_agg

    scores = np.array([one.scores for one in segments])  # [segments, K]
    shown = np.argsort(-scores.mean(axis=0), kind="stable")[:DRAWN]
    shown = [k for k in shown if scores[:, k].max() >= FAINT] or shown[:1]
    leads = scores.argmax(axis=1)
    bounds = edges(segments)
    sheet = figure.Figure(figsize=(9, 1.1 + 0.5 * len(shown)), dpi=110)
    backend_agg.FigureCanvasAgg(sheet)
    axes = sheet.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, k in zip(axes, shown, strict=True):
        axis.stairs(scores[:, k], bounds, fill=True, color=PALE, linewidth=0)
        leading = np.where(leads == k, scores[:, k], 0)
        axis.stairs(leading, bounds, fill=True, color=STRONG, linewidth=0)
        axis.set_ylim(0, 1)
        axis.set_yticks([0.5], labels=[""])
        axis.grid(axis="both", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color("0.7")
        axis.set_ylabel(
            classes[k], rotation=0, ha="right", va="center", fontsize=9, labelpad=8
        )
        axis.text(
            1.01,
            0.5,
            f"{scores[:, k].max():.2f}",
            transform=axis.transAxes,
            va="center",
            fontsize=8,
            color="0.35",
        )
    end = bounds[-1]
    axes[-1].set_xlim(bounds[0], end)
    if end >= 120:
        steps = [1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200]
        step = next((one for one in steps if end / one <= 10), 36000)
        axes[-1].xaxis.set_major_locator(ticker.MultipleLocator(step))
        axes[-1].xaxis.set_major_formatter(
            ticker.FuncFormatter(lambda x, _: clock(x, total=end))
        )
    unit = "seconds" if end < 120 else "minutes:seconds"
    unit = unit if end < 3600 else "hours:minutes:seconds"
    about = "each row: the score, 0 to 1, dark where the class leads"
    axes[-1].set_xlabel(f"{unit}  ({about})", fontsize=8)
    axes[0].text(
        1.01,
        1.1,
        "highest",
        transform=axes[0].transAxes,
        fontsize=7,
        color="0.35",
    )
    sheet.suptitle(title, fontsize=10)
    sheet.tight_layout(pad=0.6, h_pad=0.3)
    sheet.canvas.draw()
    return np.asarray(sheet.canvas.buffer_rgba())[..., :3].copy()
