"""The estimate of tl_tf/memory.py beside the peak of the resident set.

`python -m benchmarks.activation_memory` runs a small model on the CPU, each batch in a
process of its own, and compares megabytes an example: the slope between two batches, in
which libraries, weights and gradients cancel.
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
BATCHES = (4, 20)


def build() -> vit.ViT:
    """Builds ViT S/32 with 8 learned tokens from block 6 on."""
    return vit.build_vit(
        1000,
        variant="S",
        patch_px=32,
        image_px=IMAGE_PX,
        insert_before_block=6,
        tokenizer="v1.0",
    )


def run(mode: str, batch: int) -> int:
    """Runs three steps.  -> the process' peak resident set, in bytes."""
    model = build()
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


def measure(mode: str, batch: int) -> int:
    """`run` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.activation_memory"]
    command += [f"--mode={mode}", f"--batch={batch}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Prints estimate, measurement and their ratio, for inference and training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["inference", "training"])
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    if arguments.mode:
        print(run(arguments.mode, arguments.batch))
        return
    estimate = memory.estimate(build(), [1, IMAGE_PX, IMAGE_PX, 3])
    estimates = {
        "inference": estimate.inference_bytes,
        "training": estimate.training_bytes,
    }
    for mode, estimated in estimates.items():
        low, high = (measure(mode, batch) for batch in BATCHES)
        measured = (high - low) / (BATCHES[1] - BATCHES[0])
        print(
            f"{mode}: estimated {estimated / 1e6:.1f} MB an example, measured"
            f" {measured / 1e6:.1f}, ratio {measured / estimated:.2f}"
        )


if __name__ == "__main__":
    main()
