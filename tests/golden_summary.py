"""Golden summaries: every variable of a model, and what it costs, in tests/golden.

`python -m tests.golden_summary` rewrites them; a renamed layer then shows in review.
"""

import json
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from tl_tf import cost  # noqa: E402
from tl_tf.models import vit, vivit, x2p1d  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMAND = "python -m tests.golden_summary"

# Model file in gin/models: builder, classes, the input for which its cost is stated,
# and what a recipe's other files bind.
_VIDEO = (x2p1d.build_x2p1d, 887, [1, 64, 256, 256, 3], "NUM_FRAMES = 64")  # AViD
_IMAGE = (vit.build_vit, 1000, [1, 384, 384, 3], "IMAGE_PX = 384")  # ImageNet, Table I
_CLIP = (  # Section 5.1, with Kinetics-400
    vivit.build_vivit,
    400,
    [1, 32, 224, 224, 3],
    "NUM_FRAMES = 32\nTRAIN_CROP_PX = 224",
)
MODELS = {
    "x2p1d_m": _VIDEO,
    "x2p1d_m_tl": _VIDEO,
    "vit_b16": _IMAGE,
    "vit_b16_tl8_6": _IMAGE,
    "vit_b16_tl8_6_fuser": _IMAGE,
    "vivit_b16_tl8_6": _CLIP,
}


def golden_path(name: str) -> Path:
    """Names the file of a summary."""
    return ROOT / "tests" / "golden" / f"{name}.json"


def summary(name: str) -> dict:
    """Builds the model of gin/models/<name>.gin and lists what it is made of."""
    build, num_classes, input_shape, binding = MODELS[name]
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_file(f"gin/models/{name}.gin")
    gin.parse_config(binding)
    model = build(num_classes)
    total = cost.count(model, input_shape).total
    return {
        "input_shape": input_shape,
        "gflops": round(total.flops / 1e9, 3),
        "giga_multiply_adds": round(total.multiply_adds / 1e9, 3),
        "xla_gflops_halved": round(total.xla_flops / 2e9, 3),
        "parameters": total.parameters,
        "variables": [
            f"{weight.name.removesuffix(':0')} {list(weight.shape)} {weight.dtype.name}"
            for weight in model.weights
        ],
    }


def main() -> None:
    """Rewrites all summaries."""
    for name in MODELS:
        golden_path(name).write_text(json.dumps(summary(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
