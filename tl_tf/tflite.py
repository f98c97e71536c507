"""TensorFlow Lite files, converted and tried in a process of their own.

The converter and the interpreter are large C++ programs, which have crashed on models
before: here a crash is a sentence.
"""

import json
import re
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


def convert(saved_model: Path, path: Path) -> float:
    """Writes a SavedModel as a TFLite file, and compares the two.

    Of TFLite's own operations alone: TensorFlow's among them ("Flex") would want an
    interpreter that is linked with them, which that of TensorFlow 2.20 is not.

    Args:
      saved_model: with a `serving_default` of one input, uint8 of a static shape, and
        one output.
      path: of the file.

    Returns:
      The largest difference of the two, on one random input.

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
    difference = answer["difference"]
    if not difference <= LARGEST_DIFFERENCE:  # or it is no number
        path.unlink()
        raise ConversionError(
            f"its probabilities differ from the model's by {difference:.2g}"
        )
    return difference


def _end_of(child: subprocess.CompletedProcess) -> str:
    if child.returncode < 0:
        return f"crashed ({signal.Signals(-child.returncode).name})"
    lines = child.stderr.strip().splitlines() or [""]
    return f"ended with status {child.returncode}: {lines[-1]:.300}"


def _convert(saved_model: str, path: str) -> dict[str, Any]:
    """What the child does."""
    import tensorflow as tf

    try:
        content = tf.lite.TFLiteConverter.from_saved_model(saved_model).convert()
    except Exception as error:  # of several kinds, none of them public
        return {"error": _reason(error)}
    difference = _difference(saved_model, content)
    Path(path).write_bytes(content)
    return {"difference": difference}


def _reason(error: Exception) -> str:
    missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
    if missing:
        return f"TFLite has no operation for TensorFlow's {', '.join(missing)}"
    text = " ".join(str(error).split())
    return f"the converter failed ({type(error).__name__}: {text:.300})"


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
