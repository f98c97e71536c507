"""The costs of Tables I to VI beside ours, written into docs/RESULTS.md.

`python -m benchmarks.cost_table` builds every model of the image recipes (some minutes,
2 GB) and replaces what is between the two markers in docs/RESULTS.md.
"""

import dataclasses
import gc
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from tl_tf import config, cost  # noqa: E402
from tl_tf.models import vit  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "RESULTS.md"
MARKERS = ("<!-- python -m benchmarks.cost_table -->", "<!-- end of the table -->")
NUM_CLASSES = 1000
COMPUTED_WITHIN = 0.005  # of the independent count


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the paper.

    Attributes:
      row: in docs/RESULTS.md.
      name: of the model file, gin/models/vit_<name>.gin, and of the recipe.
      pixels: H and W of its images.
      tables: of the paper.
      gflops: as printed, of each table; "–" where none is.
      computed: an independent count, layer by layer; None where there is none.
      accuracy: top-1 on ImageNet, and on ReaL after a slash.
    """

    row: str
    name: str
    pixels: int
    tables: str
    gflops: str
    computed: float | None
    accuracy: str

    @property
    def model_file(self) -> str:
        """Path from the repository's root."""
        return f"gin/models/vit_{self.name}.gin"

    @property
    def recipe(self) -> str:
        """Path from the repository's root; it includes the model file."""
        return f"gin/imagenet_ft{self.pixels}_vit_{self.name}.gin"


PUBLISHED = (
    Published("I1", "s32", 384, "I", "3.4", 3.44, "77.87"),
    Published("I2", "s32_tl8_6", 384, "I", "1.9", 1.90, "76.13"),
    Published("I3", "s32_22_tl8_11", 384, "I", "3.3", 3.33, "79.42"),
    Published("I4", "b32", 384, "I", "19.8", 13.00, "80.69"),
    Published("I5", "b32_20_tl8_10", 384, "I", "11.5", 11.47, "82.74"),
    Published("I6", "b16", 384, "I, IV", "55.6, 55.63", 55.63, "84.73"),
    Published(
        "I7", "b16_tl8_6", 384, "I, V", "28.7, 28.3", 28.36, "83.65, 83.2 / 88.1"
    ),
    Published("I8", "b16_21_tl8_10", 384, "I", "47.1", 47.08, "85.21"),
    Published("I9", "b16_21_tl16_10", 384, "I", "47.7", 47.74, "85.45"),
    Published("I10", "l16", 512, "II, VI", "363.1", 363.12, "87.35"),
    Published(
        "I11",
        "l16_tl16_12",
        512,
        "II, V, VI",
        "178.1, 184.6, 184.6",
        184.56,
        "87.68, 87.6 / 90.4",
    ),
    Published("I12", "l16_35_tl16_12", 512, "II", "186.8", 186.79, "87.47"),
    Published("I13", "l16_30_tl8_18", 512, "II", "274.2", 273.84, "88.11"),
    Published("I14", "l14_35_tl16_18", 512, "II", "361.6", 361.55, "88.37"),
    Published("I15", "l10_35_tl16_18", 512, "III, V", "–, 849.0", None, "88.5 / 90.75"),
    Published("I16", "l8_35_tl16_18", 512, "III", "–", None, "88.87 / 91.05"),
    Published("I17", "l16_tl16_2", 384, "IV", "20.91", 20.91, "83.89"),
    Published("I18", "l16_tl16_3", 384, "IV", "28.66", 28.66, "85.40"),
    Published("I19", "l16_tl16_6", 384, "IV", "51.92", 51.92, "86.44"),
    Published("I20", "b16_tl8_6_fuser", 384, "V", "28.5", 28.60, "83.7 / 88.4"),
    Published("I21", "b16_tl16_6", 384, "V", "28.7", None, "83.2 / 88.0"),
    Published("I22", "b16_tl16_6_fuser", 384, "V", "29.1", 29.20, "83.9 / 88.7"),
    Published("I23", "l16_tl16_12_fuser", 512, "V", "187.1", 186.92, "87.6 / 90.5"),
    Published("I24", "l16_tl8_18", 512, "V", "273.2", None, "87.9 / 90.8"),
    Published("I25", "l16_tl8_18_fuser", 512, "V", "273.8", 273.80, "88.2 / 90.9"),
    Published("I26", "l10_35_tl16_18_fuser", 512, "V", "856.9", 857.22, "88.5 / 90.9"),
    Published("I27", "l16_pool_9_18", 512, "VI", "144.3", 144.32, "85.63"),
    Published("I28", "l16_pool_12_18", 512, "VI", "187.2", 187.16, "86.41"),
    Published("I29", "l16_pool_12", 512, "VI", "184.4", 184.39, "83.93"),
)


def count(published: Published) -> cost.Row:
    """Counts the model of a recipe."""
    gin.clear_config()
    config.load([published.model_file], [f"IMAGE_PX = {published.pixels}"])
    model = vit.build_vit(NUM_CLASSES)
    return cost.count(model, [1, published.pixels, published.pixels, 3]).total


def difference(ours: cost.Row, published: Published) -> float | None:
    """Of our count from the independent one, as a share."""
    if published.computed is None:
        return None
    return ours.xla_flops / 2e9 / published.computed - 1


def line(published: Published, ours: cost.Row) -> str:
    """A row of the Markdown table."""
    share = difference(ours, published)
    cells = [
        published.row,
        f"`{Path(published.recipe).name}`",
        published.tables,
        published.gflops,
        "–" if published.computed is None else f"{published.computed:.2f}",
        f"{ours.xla_flops / 2e9:.2f}",
        "–" if share is None else f"{share:+.2%}",
        f"{ours.multiply_adds / 1e9:.2f}",
        f"{ours.flops / 1e9:.2f}",
        f"{ours.parameters / 1e6:.1f}M",
        published.accuracy,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Counts all rows, prints them, and writes them between the markers.

    Raises:
      ValueError: a count is further from the independent one than it may be.
    """
    names = ["row", "recipe in gin/", "table", "published", "computed", "**ours**"] + [
        "difference",
        "multiply-adds",
        "profiler",
        "parameters",
        "published top-1",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    print(*lines, sep="\n")
    far = []
    for published in PUBLISHED:
        ours = count(published)
        lines.append(line(published, ours))
        print(lines[-1], flush=True)
        if abs(difference(ours, published) or 0) > COMPUTED_WITHIN:
            far.append(published.row)
        gc.collect()  # a model's graphs and weights refer to each other
    if far:
        raise ValueError(f"not within {COMPUTED_WITHIN:.1%}: {', '.join(far)}.")
    before, rest = RESULTS.read_text(encoding="utf-8").split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    text = "\n".join([before + MARKERS[0], *lines, MARKERS[1] + after])
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
