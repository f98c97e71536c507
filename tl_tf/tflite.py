"""TensorFlow Lite files, converted and tried in a process of their own.

The converter and the interpreter are large C++ programs, which have crashed on models
before: here a crash is a sentence.
"""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 900.0
LARGEST_DIFFERENCE = 1e-3  # of probabilities; float32 differs by some 1e-7
_ANSWER = "tflite: "  # begins the line of the child that is read


class ConversionError(ValueError):
    """There is no file; the text says why."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a file needs, and how well it does.

    Attributes:
      select_ops: TensorFlow's own operations that it needs besides TFLite's: an
        interpreter must have been linked with them (the Flex delegate).
      difference: of its probabilities from the model's, the largest of one random view.
    """

    select_ops: tuple[str, ...]
    difference: float


def convert(saved_model: Path, path: Path) -> Converted:
    """Writes a SavedModel as a TFLite file, and compares the two.

    Args:
      saved_model: with a `serving_default` of one input, uint8 of a static shape, and
        one output.
      path: of the file.

    Raises:
      ConversionError: it cannot be converted, the child process dies or takes more than
        LIMIT_SECONDS, or the outputs differ by more than LARGEST_DIFFERENCE.
    """
    # Without -P the modules beside this file would stand before TensorFlow's own.
    command = [sys.executable, "-P", __file__, str(saved_model), str(path)]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConversionError(
            f"the converter took more than {LIMIT_SECONDS:.0f} s"
        ) from None
    answers = [
        json.loads(line.removeprefix(_ANSWER))
        for line in child.stdout.splitlines()
        if line.startswith(_ANSWER)
    ]
    if not answers:
        raise ConversionError(f"the converter {_end_of(child)}")
    (answer,) = answers
    if "error" in answer:
        raise ConversionError(answer["error"])
    found = Converted(tuple(answer["select_ops"]), answer["difference"])
    if not found.difference <= LARGEST_DIFFERENCE:  # or it is no number
        path.unlink()
        raise ConversionError(
            f"its probabilities differ from the model's by {found.difference:.2g}"
        )
    return found


def _end_of(child: subprocess.CompletedProcess) -> str:
    if child.returncode < 0:
        return f"crashed ({signal.Signals(-child.returncode).name})"
    lines = child.stderr.strip().splitlines() or [""]
    return f"ended with status {child.returncode}: {lines[-1]:.300}"


def _convert(saved_model: str, path: str) -> dict[str, Any]:
    """What the child does."""
    import tensorflow as tf

    builtin, select = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
    reason = ""
    for ops in ([builtin], [builtin, select]):
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        converter.target_spec.supported_ops = ops
        try:
            content = converter.convert()
            break
        except Exception as error:  # of several kinds, none of them public
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
    else:
        return {"error": f"the converter failed ({reason})"}
    Path(path).write_bytes(content)
    return {
        "select_ops": _select_ops(content),
        "difference": _difference(saved_model, content),
    }


def _select_ops(content: bytes) -> list[str]:
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    names = {code.CustomCode().decode() for code in codes if code.CustomCode()}
    return sorted(name.removeprefix("Flex") for name in names)


def _difference(saved_model: str, content: bytes) -> float:
    import numpy as np
    import tensorflow as tf

    run = tf.saved_model.load(saved_model).signatures["serving_default"]
    ((name, spec),) = run.structured_input_signature[1].items()
    pixels = np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
    (wanted,) = run(**{name: tf.constant(pixels)}).values()
    interpreter = tf.lite.Interpreter(model_content=content)
    (got,) = interpreter.get_signature_runner()(**{name: pixels}).values()
    return float(np.max(np.abs(got - wanted.numpy())))


if __name__ == "__main__":
    print(_ANSWER + json.dumps(_convert(*sys.argv[1:])), flush=True)
