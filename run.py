"""Trains, evaluates, inspects and profiles a recipe.

  python run.py --gin_file=gin/quickstart.gin
  python run.py --gin_file=gin/charades_x21d_tl.gin --tpu=NAME --data_dir=DIR
  python run.py --gin_file=gin/charades_x21d_tl.gin --mode=inspect
  python run.py --gin_file=gin/charades_x21d_tl.gin --mode=profile --data_dir=DIR

Mistakes in flags, gin files and addresses are answered before TensorFlow is imported.
"""

import sys
import traceback
from pathlib import Path

from absl import app, flags

from tl_tf import config, startup

MODES = (
    "train",
    "eval",
    "train_and_eval",
    "fewshot",
    "save_npz",
    "inspect",
    "profile",
)

_MODE = flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")
_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", None, "A recipe, as gin/quickstart.gin; may be repeated.", required=True
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "One binding, as 'TOTAL_STEPS = 100'; may be repeated."
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Checkpoints, logs and results. [default: runs/RECIPE]"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "datasets", "Holds a folder per data set, as data.build makes them."
)
_TPU = flags.DEFINE_string(
    "tpu", None, "A TPU's name, local, or grpc://host:port. [default: GPUs, else CPU]"
)

_DATA_SERVICE = flags.DEFINE_string(
    "data_service",
    None,
    "grpc://host:port of a tf.data service (python -m tl_tf.data_service) that reads"
    " training's input: each example at most once an epoch, no exact resume.",
)


def main(argv: list[str]) -> None:
    """Checks what can be checked quickly, then hands over to tl_tf.experiment."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags begin with --.")
    try:
        config.check(_GIN_FILE.value, _GIN_BINDINGS.value)
        if _TPU.value is not None:
            startup.probe_tpu(_TPU.value)
        if _DATA_SERVICE.value is not None:
            startup.check_data_service(_DATA_SERVICE.value, _MODE.value)
        with startup.quick_imports(finds_tpu=_TPU.value is not None):
            from tl_tf import experiment  # only now: it takes seconds

            config.load(_GIN_FILE.value, _GIN_BINDINGS.value)
        experiment.run(
            _MODE.value,
            model_dir=Path(
                _MODEL_DIR.value or Path("runs") / Path(_GIN_FILE.value[0]).stem
            ),
            data_dir=Path(_DATA_DIR.value),
            tpu=_TPU.value,
            data_service=_DATA_SERVICE.value,
        )
    except ValueError as error:
        if not _is_ours(error):
            raise
        # Gin adds the calls that led to an error, a line each.
        sys.exit("run.py: " + str(error).split("\n  In call to configurable")[0])
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        reason = str(error).split("\n  In call to configurable")[0]
        sys.exit(
            f"run.py: {reason}: the disk is full. Checkpoints saved before are whole;"
            " free space, and the same command goes on from the newest."
        )
    except KeyboardInterrupt:
        print("\nrun.py: interrupted. The same command goes on where it was.")
        sys.exit(130)  # as after Ctrl-C in training: 128 + SIGINT


def _is_ours(error: BaseException) -> bool:
    """Whether this project raised the error, about a user's mistake: not a bug."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).resolve().parent
    return any(root / d in Path(innermost.filename).parents for d in ("tl_tf", "data"))


if __name__ == "__main__":
    app.run(main)
