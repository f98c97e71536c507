"""The costs of Tables I to IX and XI to XIII beside ours, written into docs/RESULTS.md.

`python -m benchmarks.cost_table` builds every model of the image recipes (some minutes,
3 GB), of the ViViT recipes (five minutes, 4 GB) and of X(2+1)D (one minute), and
replaces what is between the markers in docs/RESULTS.md; `--only` takes one of them.
"""

import argparse
import dataclasses
import gc
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from tl_tf import config, cost  # noqa: E402
from tl_tf.layers import conv2plus1d  # noqa: E402
from tl_tf.models import vit, vivit, x2p1d  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "RESULTS.md"
MARKERS = ("<!-- python -m benchmarks.cost_table -->", "<!-- end of the table -->")
VIDEO_MARKERS = (
    "<!-- python -m benchmarks.cost_table --only=x2p1d -->",
    "<!-- end of the table of X(2+1)D -->",
)
VIVIT_MARKERS = (
    "<!-- python -m benchmarks.cost_table --only=vivit -->",
    "<!-- end of the table of ViViT -->",
)
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


@dataclasses.dataclass(frozen=True)
class PublishedViViT:
    """A row of Tables VII to IX.

    Attributes:
      row: in docs/RESULTS.md.
      classes: 400 or 600, of Kinetics.
      name: of the model file, gin/models/vivit_<name>.gin, and of the recipe.
      tables: of the paper.
      gflops: of a view, as printed.
      computed: an independent count, layer by layer.
      parameters: as printed; "–" where they are not.
      accuracy: top-1.
      pixels: H and W of its clips.
    """

    row: str
    classes: int
    name: str
    tables: str
    gflops: str
    computed: float
    parameters: str
    accuracy: str
    pixels: int = 224

    @property
    def model_file(self) -> str:
        """Path from the repository's root."""
        return f"gin/models/vivit_{self.name}.gin"

    @property
    def recipe(self) -> str:
        """Path from the repository's root; it includes the model file."""
        size = "" if self.pixels == 224 else f"_{self.pixels}"
        return f"gin/kinetics{self.classes}_vivit_{self.name}{size}.gin"


FRAMES, CLIPS, CROPS = 32, 4, 3  # Tables VIII and IX: "4x3 = 12"
_L10 = "l10_35_tl16_18"
VIVIT = (
    PublishedViViT(
        "K1", 400, "l16", "VII, VIII", "1446", 1445.8, "308M", "82.8, own run 83.4"
    ),
    PublishedViViT("K2", 400, "l16", "VII", "3992", 3993.1, "308M", "83.5", pixels=320),
    PublishedViViT("K3", 400, "h14", "VII", "3981", 3980.9, "654M", "84.8"),
    PublishedViViT(
        "K4",
        400,
        "l16_tl16_12",
        "VII, VIII",
        "766",
        765.9,
        "308M",
        "83.5, 6 views 82.1",
    ),
    PublishedViViT(
        "K5",
        400,
        "l16_30_tl8_18",
        "VII, VIII",
        "1105",
        1105.1,
        "383M",
        "84.5, 6 views 83.2",
    ),
    PublishedViViT(
        "K6", 400, "l14_35_tl16_18", "VII, VIII", "1621", 1620.9, "447M", "84.7"
    ),
    PublishedViViT("K7", 400, _L10, "VII, VIII", "4076", 4066.6, "450M", "85.4"),
    PublishedViViT("K8", 600, "l16", "IX", "1446", 1445.8, "–", "84.3"),
    PublishedViViT("K9", 600, "l16_tl16_12", "IX", "766", 765.9, "–", "84.4"),
    PublishedViViT("K10", 600, "l16_30_tl8_18", "IX", "1105", 1105.1, "–", "86.0"),
    PublishedViViT("K11", 600, _L10, "IX", "4076", 4066.6, "–", "86.1"),
    PublishedViViT("K12", 600, f"{_L10}_fuser", "IX", "4100", 4092.1, "–", "86.3"),
)


def count(published: Published) -> cost.Row:
    """Counts the model of a recipe."""
    gin.clear_config()
    config.load([published.model_file], [f"IMAGE_PX = {published.pixels}"])
    model = vit.build_vit(NUM_CLASSES)
    return cost.count(model, [1, published.pixels, published.pixels, 3]).total


def count_vivit(published: PublishedViViT) -> cost.Row:
    """Counts one view by the model of a recipe."""
    gin.clear_config()
    sizes = [f"NUM_FRAMES = {FRAMES}", f"TRAIN_CROP_PX = {published.pixels}"]
    config.load([published.model_file], sizes)
    model = vivit.build_vivit(published.classes)
    return cost.count(model, [1, FRAMES, published.pixels, published.pixels, 3]).total


def difference(ours: cost.Row, published: Published | PublishedViViT) -> float | None:
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


def vivit_line(published: PublishedViViT, ours: cost.Row) -> str:
    """A row of the Markdown table."""
    cells = [
        published.row,
        f"`{Path(published.recipe).name}`",
        published.tables,
        published.gflops,
        f"{published.computed:.1f}",
        f"{ours.xla_flops / 2e9:.2f}",
        f"{difference(ours, published):+.2%}",
        f"{ours.multiply_adds / 1e9:.2f}",
        f"{CLIPS} × {CROPS}",
        f"{CLIPS * CROPS * ours.xla_flops / 2e9:.0f}",
        published.parameters,
        f"{ours.parameters / 1e6:.1f}M",
        published.accuracy,
    ]
    return "| " + " | ".join(cells) + " |"


@dataclasses.dataclass(frozen=True)
class PublishedVideo:
    """A row of Tables XI to XIII, by the profiler's convention.

    Attributes:
      row: in docs/RESULTS.md.
      what: as the paper calls it, and what it leaves open.
      name: of the model file, gin/models/x2p1d_<name>.gin.
      bindings: on top of it.
      tables: of the paper.
      printed: its GFLOPs and parameters.
      computed: GFLOPs and 10^6 parameters by an independent count, or None.
      accuracy: mAP on Charades at 6 and at 12 fps, accuracy on AViD.
    """

    row: str
    what: str
    name: str
    bindings: tuple[str, ...]
    tables: str
    printed: str
    computed: tuple[float | None, float | None]
    accuracy: str


_AS_PRINTED = ("build_x2p1d.cost_matching = True",)
_TOKENS, _SPATIAL = "m_tl_no_conv2d", "m_spatial_tl_no_conv2d"
MODULES = (
    PublishedVideo(
        "M1",
        "conv2d + conv1d",
        "m",
        (),
        "XIII",
        "18.3, 2.24M",
        (18.35, 2.24),
        "56.6, –, –",
    ),
    PublishedVideo(
        "M2",
        "conv2d + MLPMixer",
        "m_mlp_mixer",
        (),
        "XIII",
        "13.8, 2.06M",
        (13.81, 2.061),
        "57.0, –, –",
    ),
    PublishedVideo(
        "M3",
        "conv2d + temporal",
        "m_temporal",
        (),
        "XIII",
        "16.5, 1.98M",
        (16.5, 1.977),
        "58.4, –, –",
    ),
    PublishedVideo(
        "M4",
        "spatial + temporal",
        "m_spatial_temporal_no_conv2d",
        (),
        "XIII",
        "5.5, 0.59M",
        (5.48, 0.594),
        "58.8, –, –",
    ),
    PublishedVideo(
        "M5",
        "conv2d + spatial + temporal",
        "m_spatial_temporal",
        (),
        "XIII",
        "19.2, 2.27M",
        (19.24, 2.274),
        "58.0, –, –",
    ),
    PublishedVideo(
        "M6",
        "joint space-time MHSA",
        "m_joint_no_conv2d",
        (),
        "XII",
        "22.0, 0.30M",
        (22.03, 0.297),
        "57.9, 64.0, 53.3",
    ),
    PublishedVideo(
        "M7",
        "conv2d + joint space-time MHSA",
        "m_joint",
        (),
        "XII",
        "35.8, 1.98M",
        (35.79, 1.977),
        "58.6, 62.5, 52.5",
    ),
    PublishedVideo(
        "M8",
        "TokenLearner, the text's",
        _TOKENS,
        (),
        "XII, XIII",
        "3.4, 0.81M",
        (2.05, 0.857),
        "58.8, 63.4, 53.8",
    ),
    PublishedVideo(
        "M9",
        "… cost-matching",
        _TOKENS,
        _AS_PRINTED,
        "XII, XIII",
        "3.4, 0.81M",
        (3.38, 0.814),
        "the same",
    ),
    PublishedVideo(
        "M10",
        "spatial + TokenLearner, cost-matching",
        _SPATIAL,
        _AS_PRINTED,
        "XIII",
        "6.2, 1.11M",
        (None, None),
        "58.9, –, –",
    ),
    PublishedVideo(
        "M11",
        "conv2d + TokenLearner, cost-matching",
        "m_tl",
        _AS_PRINTED,
        "XII, XIII",
        "17.2, 2.49M",
        (None, None),
        "59.6, 66.3, 53.7",
    ),
)
NETWORKS = (
    PublishedVideo(
        "N1",
        "X(2+1)D-M",
        "m",
        (),
        "XI",
        "532, 27.1M",
        (532.5, None),
        "56.6, 62.7, 48.6",
    ),
    PublishedVideo(
        "N2",
        "three modules M4",
        "m_spatial_temporal_no_conv2d",
        (),
        "XI",
        "493",
        (494.0, None),
        "58.8, –, 50.6",
    ),
    PublishedVideo(
        "N3",
        "three modules M9",
        _TOKENS,
        _AS_PRINTED,
        "XI",
        "487",
        (487.6, None),
        "58.8, 63.4, 53.8",
    ),
    PublishedVideo(
        "N4",
        "three modules of conv2d + TokenLearner, the text's",
        "m_tl",
        (),
        "–",
        "–",
        (None, None),
        "59.6, 66.3, 53.7",
    ),
)


def build_video(published: PublishedVideo, *bindings: str):
    """Builds the network of a model file, for AViD's 887 classes."""
    gin.clear_config()
    config.load(
        [f"gin/models/x2p1d_{published.name}.gin"],
        ["NUM_FRAMES = 64", *published.bindings, *bindings],
    )
    return x2p1d.build_x2p1d(887)


def count_module(published: PublishedVideo) -> cost.Row:
    """Counts what is between the 1x1 convolutions of a block, on [64, 8, 8, 432]."""
    model = build_video(
        published,
        "build_x2p1d.stage_depths = (1, 1, 1, 2)",
        "build_x2p1d.module_blocks = (1,)",
    )
    return count_inside(model.stages["stage_4"][1], [1, 64, 8, 8, 192])


def count_inside(block: conv2plus1d.Conv2Plus1DBlock, shape: Sequence[int]) -> cost.Row:
    """Counts the layers between the 1x1 convolutions of a block, not their norms."""
    inside = {"conv2d", *conv2plus1d.LAYERS}
    rows = [row for row in cost.count(block, shape).at_depth(1) if row.scope in inside]
    return cost.Cost(block.name, tuple(shape), tuple(rows)).total


def count_network(published: PublishedVideo) -> cost.Row:
    """Counts one clip of 64 x 256 x 256."""
    return cost.count(build_video(published), [1, 64, 256, 256, 3]).total


def video_differences(ours: cost.Row, published: PublishedVideo) -> list[float | None]:
    """Of our GFLOPs and parameters from the independent ones, as shares."""
    counts = (ours.flops / 1e9, ours.parameters / 1e6)
    return [
        None if computed is None else count / computed - 1
        for count, computed in zip(counts, published.computed, strict=True)
    ]


def video_line(published: PublishedVideo, ours: cost.Row) -> str:
    """A row of the Markdown table."""
    gflops, parameters = published.computed
    share, _ = video_differences(ours, published)
    cells = [
        published.row,
        published.what,
        f"`x2p1d_{published.name}.gin`",
        published.tables,
        published.printed,
        "–" if gflops is None else f"{gflops:.2f}",
        f"{ours.flops / 1e9:.2f}",
        "–" if share is None else f"{share:+.2%}",
        "–" if parameters is None else f"{parameters:.3f}M",
        f"{ours.parameters / 1e6:.3f}M",
        published.accuracy,
    ]
    return "| " + " | ".join(cells) + " |"


def write(lines: Sequence[str], markers: tuple[str, str]) -> None:
    """Puts lines between two markers in docs/RESULTS.md."""
    before, rest = RESULTS.read_text(encoding="utf-8").split(markers[0])
    _, after = rest.split(markers[1])
    text = "\n".join([before + markers[0], *lines, markers[1] + after])
    RESULTS.write_text(text, encoding="utf-8")


def heading(names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def fill(
    names: Sequence[str],
    counted: Iterable[tuple[str, str, Sequence[float | None]]],
    markers: tuple[str, str],
) -> None:
    """Prints a table row by row, and writes it between its markers.

    Args:
      names: of the columns.
      counted: of each row its name, its line and its differences from other counts.
      markers: in docs/RESULTS.md.

    Raises:
      ValueError: a count is further from the independent one than it may be.
    """
    lines, far = heading(names), []
    print(*lines, sep="\n")
    for row, text, shares in counted:
        lines.append(text)
        print(text, flush=True)
        if any(abs(share or 0) > COMPUTED_WITHIN for share in shares):
            far.append(row)
        gc.collect()  # a model's graphs and weights refer to each other
    if far:
        raise ValueError(f"not within {COMPUTED_WITHIN:.1%}: {', '.join(far)}.")
    write(lines, markers)


def video_table() -> None:
    """Counts Tables XI to XIII."""
    names = ["row", "module or network", "file in gin/models/", "table", "published"]
    names += ["computed GFLOPs", "**ours**", "difference", "computed parameters"]
    names += ["**ours**", "published accuracy: Charades 6 fps, 12 fps, AViD"]

    def counted():
        for rows, count_one in ((MODULES, count_module), (NETWORKS, count_network)):
            for row in rows:
                ours = count_one(row)
                yield row.row, video_line(row, ours), video_differences(ours, row)

    fill(names, counted(), VIDEO_MARKERS)


def vivit_table() -> None:
    """Counts Tables VII to IX."""
    names = ["row", "recipe in gin/", "table", "published", "computed", "**ours**"]
    names += ["difference", "multiply-adds", "views", "**ours**, a video"]
    names += ["published parameters", "**ours**", "published top-1"]

    def counted():
        for row in VIVIT:
            ours = count_vivit(row)
            yield row.row, vivit_line(row, ours), [difference(ours, row)]

    fill(names, counted(), VIVIT_MARKERS)


def image_table() -> None:
    """Counts Tables I to VI."""
    names = ["row", "recipe in gin/", "table", "published", "computed", "**ours**"]
    names += ["difference", "multiply-adds", "profiler", "parameters"]
    names += ["published top-1"]

    def counted():
        for row in PUBLISHED:
            ours = count(row)
            yield row.row, line(row, ours), [difference(ours, row)]

    fill(names, counted(), MARKERS)


TABLES = {"x2p1d": video_table, "vivit": vivit_table, "images": image_table}


def main() -> None:
    """Writes all tables, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES)
    only = parser.parse_args().only
    for name, table in TABLES.items():
        if only in (None, name):
            table()


if __name__ == "__main__":
    main()
