"""Golden summaries: every variable of a model, and what it costs, in tests/golden.

`python -m tests.golden_summary` rewrites them; a renamed layer then shows in review.
"""

import json
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from tl_tf import cost  # noqa: E402
from tl_tf.models import x2p1d  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMAND = "python -m tests.golden_summary"

# Model file in gin/models: builder, and the input for which its cost is stated.
MODELS = {
    "x2p1d_m": (x2p1d.build_x2p1d, [1, 64, 256, 256, 3]),
    "x2p1d_m_tl": (x2p1d.build_x2p1d, [1, 64, 256, 256, 3]),
}
NUM_CLASSES = 887  # AViD, for which the paper states costs


def golden_path(name: str) -> Path:
    """Names the file of a summary."""
    return ROOT / "tests" / "golden" / f"{name}.json"


def summary(name: str) -> dict:
    """Builds the model of gin/models/<name>.gin and lists what it is made of."""
    build, input_shape = MODELS[name]
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_file(f"gin/models/{name}.gin")
    gin.parse_config(f"NUM_FRAMES = {input_shape[1]}")  # a data set's file does
    model = build(NUM_CLASSES)
    total = cost.count(model, input_shape).total
    return {
        "input_shape": input_shape,
        "gflops": round(total.flops / 1e9, 3),
        "giga_multiply_adds": round(total.multiply_adds / 1e9, 3),
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
