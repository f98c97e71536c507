"""Vector attention in training: its share of a step, its loss curve, real q and k.

  python -m benchmarks.vector_attention_training [--json=FILE] [--images_dir=DIR]

The share is that of X(2+1)D-M with TokenLearner, 64 frames of 224 pixels: 512 learned
tokens of 432 channels in each of three blocks.  The loss curves are of the quickstart's
recipe with 128 learned tokens, trained from the same seed by each implementation; on
the queries and keys of the trained model, `fast` is compared with float64.
"""

import argparse
import dataclasses
import functools
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measure, train_step, vector_attention
from benchmarks.rivals import sizes

PAPER = sizes.ClipSizes(
    num_frames=64, image_px=224, batch_size=1, module="token_learner"
)
NUM_BLOCKS, NUM_TOKENS, NUM_CHANNELS = 3, 512, 432  # of PAPER's vector attentions
RECIPE = "gin/quickstart.gin"
BINDINGS = (
    "NUM_FRAMES = 16",  # 16 x 8 learned tokens
    "build_x2p1d.num_tokens = 8",
    "build_schedule.warmup_steps = 10",
    "train.steps_per_loop = 10",
)
TRAINED = ("naive", "chunked", "fast")


def _bind(implementation: str) -> None:
    """Makes `auto` choose it, whatever the number of tokens."""
    from tl_tf import startup

    startup.quiet_tensorflow()
    from tl_tf.layers import vector_attention as layer

    layer.vector_attention = functools.partial(
        _without_choice, layer.vector_attention, implementation
    )


def _without_choice(attend, chosen, q, k, *, v, implementation):
    return attend(q, k, v=v, implementation=chosen)


def build_step(implementation: str):
    """A training step of PAPER."""
    _bind(implementation)
    return train_step.build_ours(PAPER, "step", is_compiled=False)


def share_of_a_step(rounds: int) -> dict:
    """What the vector attentions take of a step, and a step with `chunked` instead."""
    shape = (NUM_TOKENS, NUM_CHANNELS)
    results = measure.interleave(
        [
            measure.Contender("step", build_step, ("fast",)),
            measure.Contender("step, chunked", build_step, ("chunked",)),
            measure.Contender("alone", vector_attention.build_ours, ("fast", *shape)),
        ],
        rounds=rounds,
        warm_up=1,
    )
    of_step = measure.speedup(results["step"], results["alone"])
    share = dataclasses.replace(
        of_step,
        **{k: NUM_BLOCKS * v for k, v in dataclasses.asdict(of_step).items()},
    )
    print(f"{NUM_BLOCKS} vector attentions, fast: {share} of a training step")
    faster = measure.speedup(results["step"], results["step, chunked"])
    print(f"the step with fast is {faster} times as fast as with chunked")
    return {"share": share, "faster_than_chunked": faster}


def train(implementation: str, work_dir: Path, steps: int) -> list[tuple[int, float]]:
    """Trains RECIPE in this process.  -> (step, mean loss since the last)"""
    experiment = _start(implementation, [f"TOTAL_STEPS = {steps}"])
    model_dir = work_dir / implementation
    experiment.run("train", model_dir=model_dir, data_dir=work_dir / "data", tpu=None)
    return _losses(model_dir / "tensorboard")


def _start(implementation: str, bindings):
    """Loads the recipe.  -> tl_tf.experiment"""
    _bind(implementation)
    from tl_tf import config, experiment

    config.load([RECIPE], [*BINDINGS, *bindings])
    return experiment


def _losses(folder: Path) -> list[tuple[int, float]]:
    import tensorflow as tf

    found = {}
    for path in sorted(folder.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag == "train/loss":
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return sorted(found.items())


def errors_of_trained(work_dir: Path, steps: int) -> dict:
    """What `fast` makes of the queries and keys of the model trained with `chunked`."""
    _start("chunked", [f"TOTAL_STEPS = {steps}"])
    import tensorflow as tf

    from tl_tf import runtime, session
    from tl_tf.layers import exponential_kernel
    from tl_tf.layers import vector_attention as layer
    from tl_tf.models import x2p1d

    strategy = runtime.configure_runtime(None)
    found = session.Session("eval", work_dir / "chunked", work_dir / "data", strategy)
    model, _ = session.restore_any(found, x2p1d.build_x2p1d)
    data = session.open_split(found, is_training=False)
    pixels = next(iter(data.batches))["pixels"][:, 0]  # [B, T, H, W, 3]
    seen = []
    attend = layer.vector_attention

    def record(q, k, *, v, implementation):
        seen.append((q, k, v))
        return attend(q, k, v=v, implementation=implementation)

    layer.vector_attention = record
    model(tf.cast(pixels, tf.float32) / 127.5 - 1.0, training=False)
    q, k, v = seen[0]
    orders = exponential_kernel.ORDERS[tf.float64]
    choice = int(exponential_kernel.choose_order(q, k, orders))
    dy = tf.random.stateless_normal(v.shape, [0, 0])
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        y = attend.args[0](q, k, v=v, implementation="fast")
    got = (y, *tape.gradient(y, [q, k, v], dy))
    want = [
        np.stack(x)
        for x in zip(
            *(vector_attention.exact(*clip) for clip in zip(q, k, v, dy, strict=True)),
            strict=True,
        )
    ]
    error = {
        name: float(np.abs(x - right).max() / np.abs(right).max())
        for name, x, right in zip(("y", "dq", "dk", "dv"), got, want, strict=True)
    }
    largest = float(np.abs(q[:, :, None] * k[:, None]).max())
    order = orders[choice].order if choice < len(orders) else None
    print(f"largest logit {largest:.3g}, order {order}, largest errors {error}")
    return {"largest_logit": largest, "order": order, "error": error}


def main(argv: list[str]) -> None:
    """Prints all three, writes JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--images_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--parts", nargs="+", default=("share", "training"))
    arguments = parser.parse_args(argv)
    content = {}
    if "share" in arguments.parts:
        content["share"] = share_of_a_step(arguments.rounds)
    if "training" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            work_dir, spawn = Path(folder), multiprocessing.get_context("spawn")
            curves = {}
            for name in TRAINED:
                with spawn.Pool(1) as pool:
                    curves[name] = pool.apply(train, (name, work_dir, arguments.steps))
            content["loss"] = curves
            content["apart"] = {
                name: max(
                    abs(loss - exact) / exact
                    for (_, loss), (_, exact) in zip(
                        curves[name], curves["chunked"], strict=True
                    )
                )
                for name in ("naive", "fast")
            }
            print(f"largest distance of the losses from chunked's: {content['apart']}")
            with spawn.Pool(1) as pool:
                content["trained"] = pool.apply(
                    errors_of_trained, (work_dir, arguments.steps)
                )
        if arguments.images_dir:
            measure.draw_curves(
                arguments.images_dir / "vector_attention_loss.png",
                curves,
                title="Training loss by implementation, same seed",
                x_label="step",
                y_label="loss, mean of 10 steps",
                is_log=False,
            )
    if arguments.json:
        measure.write_json(arguments.json, content)


if __name__ == "__main__":
    main(sys.argv[1:])
