"""Trains and evaluates a recipe, and puts what it has learnt to use.

  python run.py --gin_file=gin/quickstart.gin
  python run.py --gin_file=gin/charades_x21d_tl.gin --tpu=NAME --data_dir=DIR
  python run.py --gin_file=gin/charades_x21d_tl.gin --mode=inspect
  python run.py --gin_file=gin/quickstart.gin --mode=predict --input=video.mp4
  python run.py --gin_file=gin/quickstart.gin --mode=visualize --input=video.mp4
  python run.py --gin_file=gin/quickstart.gin --mode=export
  python run.py --gin_file=gin/quickstart.gin --mode=demo
  python run.py --mode=predict --saved_model=DIR --input=FOLDER

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
    "find_lr",
    "predict",
    "visualize",
    "export",
    "demo",
)

_MODE = flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")
_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A recipe, as gin/quickstart.gin; may be repeated."
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
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Trains one step, says what training will need, keeps nothing."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "For modes that do not train: newest, best, or as ckpt-100."
)
_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "For predict and visualize: a video, an image, a folder, a pattern, or - for a"
    " stream from standard input; may be repeated.",
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "For predict, visualize and export. [default: a folder in --model_dir, or beside"
    " --saved_model]",
)
_RENDER = flags.DEFINE_bool(
    "render", False, "For predict: draws labels and token maps into videos."
)
_SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "For predict: an exported model's folder, instead of a recipe."
)


def main(argv: list[str]) -> None:
    """Checks what can be checked quickly, then hands over to tl_tf.experiment."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags begin with --.")
    _check_flags()
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
                _MODEL_DIR.value
                or (_SAVED_MODEL.value and Path(_SAVED_MODEL.value).parent)
                or Path("runs") / Path(_GIN_FILE.value[0]).stem
            ),
            data_dir=Path(_DATA_DIR.value),
            tpu=_TPU.value,
            data_service=_DATA_SERVICE.value,
            dry_run=_DRY_RUN.value,
            checkpoint=_CHECKPOINT.value,
            inputs=tuple(_INPUT.value),
            output_dir=_OUTPUT_DIR.value and Path(_OUTPUT_DIR.value),
            render=_RENDER.value,
            saved_model=_SAVED_MODEL.value and Path(_SAVED_MODEL.value),
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
        goes_on = _MODE.value in ("train", "train_and_eval")
        then = " The same command goes on where it was." if goes_on else ""
        print(f"\nrun.py: interrupted.{then}")
        sys.exit(130)  # as after Ctrl-C in training: 128 + SIGINT


def _check_flags() -> None:
    """Refuses flags that the mode makes no use of, and asks for those it needs.

    Raises:
      app.UsageError: naming them.
    """
    mode = _MODE.value
    uses = {
        "dry_run": ("train", "train_and_eval"),
        "input": ("predict", "visualize"),
        "output_dir": ("predict", "visualize", "export"),
        "render": ("predict",),
        "saved_model": ("predict",),
    }
    for name, modes in uses.items():
        if flags.FLAGS[name].present and mode not in modes:
            raise app.UsageError(
                f"--{name} is for --mode={', '.join(modes)}; not {mode}."
            )
    if mode in uses["input"] and not _INPUT.value:
        raise app.UsageError(
            f"--mode={mode} wants --input=FILE, or a folder, a pattern, or -."
        )
    if bool(_GIN_FILE.value) == bool(_SAVED_MODEL.value):
        raise app.UsageError(
            "wanted --gin_file=RECIPE (as gin/quickstart.gin), or in --mode=predict"
            " --saved_model=DIR instead of it."
        )


def _is_ours(error: BaseException) -> bool:
    """Whether this project raised the error, about a user's mistake: not a bug."""
    *_, innermost = traceback.extract_tb(error.__traceback__)
    ours = (
        Path(config.__file__).resolve().parent,
        Path(__file__).resolve().parent / "data",
    )
    return any(folder in Path(innermost.filename).parents for folder in ours)


if __name__ == "__main__":
    app.run(main)
