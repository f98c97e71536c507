"""The estimate of tl_tf/memory.py beside the peak of the resident set.

`python -m benchmarks.activation_memory` runs two small models on the CPU, each batch in
a process of its own, and compares megabytes an example: the slope between two batches,
in which libraries, weights and gradients cancel.
"""

import argparse
import resource
import subprocess
import sys

from tl_tf import startup

startup.quiet_tensorflow()

import tensorflow as tf  # noqa: E402

from tl_tf import memory  # noqa: E402
from tl_tf.models import vit  # noqa: E402

IMAGE_PX = 384
BATCHES = (2, 12)
TOKENS = {"tokenizer": "v1.0", "num_tokens": 8}
MODELS = {
    "S32": {"variant": "S", "patch_px": 32, "insert_before_block": 6, **TOKENS},
    "B16": {"variant": "B", "depth": 4, "insert_before_block": 2, **TOKENS},
}


def build(name: str) -> vit.ViT:
    """Builds ViT S/32 with 8 learned tokens from block 6 on, or four blocks of B/16."""
    return vit.build_vit(1000, image_px=IMAGE_PX, **MODELS[name])


def run(name: str, mode: str, batch: int) -> int:
    """Runs three steps.  -> the process' peak resident set, in bytes."""
    model = build(name)
    weights = model.trainable_variables

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        if mode == "inference":
            return [model(images, training=False)[0]]
        with tf.GradientTape() as tape:
            logits = model(images, training=True)[0]
        return tape.gradient(logits, weights)

    for _ in range(3):
        step(tf.zeros([batch, IMAGE_PX, IMAGE_PX, 3]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, mode: str, batch: int) -> int:
    """`run` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.activation_memory"]
    command += [f"--model={name}", f"--mode={mode}", f"--batch={batch}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def compare(name: str) -> None:
    """Prints estimate, measurement and their ratio, for inference and training."""
    estimate = memory.estimate(build(name), [1, IMAGE_PX, IMAGE_PX, 3])
    estimates = {
        "inference": estimate.inference_bytes,
        "training": estimate.training_bytes,
    }
    for mode, estimated in estimates.items():
        low, high = (measure(name, mode, batch) for batch in BATCHES)
        measured = (high - low) / (BATCHES[1] - BATCHES[0])
        print(
            f"{name} {mode}: estimated {estimated / 1e6:.1f} MB an example, measured"
            f" {measured / 1e6:.1f}, ratio {measured / estimated:.2f}",
            flush=True,
        )


def main() -> None:
    """Compares all models, or is the process of one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--mode", choices=["inference", "training"])
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    if arguments.model:
        print(run(arguments.model, arguments.mode, arguments.batch))
        return
    for name in MODELS:
        compare(name)


if __name__ == "__main__":
    main()
