"""Forward passes and training steps: beside other libraries, in memory, as they grow.

  python -m benchmarks.train_step                          all models and rivals
  python -m benchmarks.train_step --models=b16 --what=step --precisions=bfloat16
  python -m benchmarks.train_step --report=gains           TokenLearner's, by cost
  python -m benchmarks.train_step --report=memory          recomputation, accumulation
  python -m benchmarks.train_step --report=estimate        tl_tf/memory.py's, measured
  python -m benchmarks.train_step --report=attention       long sequences
  python -m benchmarks.train_step --report=growth          curves, as pictures

Each contender runs in a process of its own, in turn with the others, on random pixels
in memory: no input pipeline.  Ours is the trainer, as `run.py` runs it, with
train.jit_compile (XLA) and without (graph).
"""

import argparse
import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.rivals import sizes

LIBRARIES = ("flax", "timm", "timm_eager", "keras", "keras_graph")
REPORTS = ("rivals", "gains", "memory", "estimate", "attention", "growth")
ESTIMATE_BATCHES = (2, 6)
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
S32 = sizes.Sizes(
    image_px=384, patch_px=32, hidden_size=384, depth=12, num_heads=6, batch_size=8
)
B16 = sizes.Sizes(
    image_px=384, patch_px=16, hidden_size=768, depth=12, num_heads=12, batch_size=4
)
# Fewer and smaller frames than the paper's 64 of 224 pixels: two cores.
X2P1D = sizes.ClipSizes(num_frames=16, image_px=128, batch_size=2)
MODELS = {
    "s32": S32,
    "s32_tl": dataclasses.replace(S32, insert_before_block=6),
    "b16": B16,
    "b16_tl": dataclasses.replace(B16, insert_before_block=6),
    "x2p1d": X2P1D,
    "x2p1d_tl": dataclasses.replace(X2P1D, module="token_learner"),
}
TINY = sizes.Sizes(
    image_px=24, patch_px=8, hidden_size=12, depth=2, num_heads=2, batch_size=3
)
TINY_MODELS = {
    "tiny": TINY,
    "tiny_tl": dataclasses.replace(TINY, insert_before_block=1, num_tokens=2),
}


def _build_model(size, **options):
    from tl_tf.models import vit, x2p1d

    if isinstance(size, sizes.ClipSizes):
        return x2p1d.build_x2p1d(
            sizes.NUM_CLASSES,
            num_frames=size.num_frames,
            module=size.module,
            **options,
        )
    return vit.build_vit(
        sizes.NUM_CLASSES,
        image_px=size.image_px,
        patch_px=size.patch_px,
        hidden_size=size.hidden_size,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_size=size.mlp_size,
        insert_before_block=size.insert_before_block,
        num_tokens=size.num_tokens,
        **options,
    )


def build_ours(
    size: sizes.Sizes | sizes.ClipSizes,
    what: str,
    precision: str = "float32",
    is_compiled: bool = True,
    accumulation_steps: int = 1,
    **options,
) -> Callable[[], None]:
    """What is timed of ours: `what` is "forward" or "step"."""
    from tl_tf import startup

    startup.quiet_tensorflow()
    import tensorflow as tf

    from tl_tf import losses, optim, runtime, trainer

    strategy = runtime.configure_runtime(None, precision=PRECISIONS[precision])
    with strategy.scope():
        model = _build_model(size, **options)
        optimizer = optim.build_optimizer(sizes.LEARNING_RATE, momentum=sizes.MOMENTUM)
        optimizer.build(model.trainable_variables)
    shape = [size.batch_size, *size.input_shape]
    pixels = tf.random.stateless_uniform(shape, [1, 2], 0, 256, tf.int32)
    if what == "forward":
        images = tf.cast(pixels, model.compute_dtype) / 127.5 - 1.0

        @tf.function(jit_compile=is_compiled)
        def forward(images):
            return model(images, training=False)[0]

        return lambda: forward(images).numpy()
    batch = {
        "pixels": tf.cast(pixels, tf.uint8),
        "labels": tf.one_hot(tf.range(size.batch_size), sizes.NUM_CLASSES),
    }
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("softmax"),
        strategy=strategy,
        iterator=iter(tf.data.Dataset.from_tensors(batch).repeat()),
        seed=0,
        accumulation_steps=accumulation_steps,
        jit_compile=is_compiled,
    )
    one = tf.constant(1)
    return lambda: loop.train(one)


def build_whole(*arguments, **options) -> Callable[[], None]:
    """As `build_ours`, but all scores of an attention are held at once."""
    from tl_tf.layers import attention

    attention.WHOLE_SCORES = sys.maxsize
    return build_ours(*arguments, **options)


def build_rival(library: str, *arguments) -> Callable[[], None]:
    """As `build_ours`, with another library."""
    library, _, form = library.partition("_")
    model = "vit" if isinstance(arguments[0], sizes.Sizes) else "x2p1d"
    module = importlib.import_module(f"benchmarks.rivals.{library}_{model}")
    return module.build(*arguments, is_compiled=not form)


def cost_ratio(base, other) -> float:
    """Of forward passes, in the convention of Tables I to IX."""
    from tl_tf import cost

    counts = [
        cost.count(_build_model(size), [1, *size.input_shape]).total.xla_flops
        for size in (base, other)
    ]
    return counts[0] / counts[1]


def _ours(name: str, *arguments, build=build_ours, **options) -> measure.Contender:
    return measure.Contender(name, functools.partial(build, *arguments, **options))


def _forms(
    by: Sequence[str], size, what: str, precision: str, prefix: str = ""
) -> list[measure.Contender]:
    return [
        _ours(f"{prefix}ours, {form}", size, what, precision, form == "XLA")
        for form in by
    ]


def _rivals_of(size, libraries: Sequence[str]) -> list[str]:
    """The libraries that have the model: timm has no videos, PyTorch's layers do."""
    if isinstance(size, sizes.Sizes):
        return list(libraries)
    if size.module != "conv1d":
        return []
    return [library.replace("timm", "torch") for library in libraries]


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{t:{w}}" for t, w in zip(texts, widths, strict=True)).rstrip()


def _megabytes(result: measure.Result) -> str:
    return f"{result.extra_bytes / 1e6:,.0f}"


def _print_ways(
    labels: Sequence[str],
    results: dict[str, measure.Result],
    widths: Sequence[int],
) -> None:
    """A line for each way of doing the same: memory and speed against the first."""
    first = next(iter(results.values()))
    for way, result in results.items():
        share = result.extra_bytes / first.extra_bytes
        row = [*labels, way, _megabytes(result), f"{share:.2f}"]
        row.append(str(measure.speedup(result, first)))
        print(_line(row, widths), flush=True)


def report_rivals(models, arguments) -> dict:
    """How many times as fast we are, compiled and not, as each library."""
    widths = (10, 8, 9, 12, *[26 for _ in arguments.by], 6)
    print(_line(["model", "what", "dtype", "rival", *arguments.by, "MB"], widths))
    found = {}
    for name, size in models.items():
        for precision in arguments.precisions:
            for what in arguments.what:
                contenders = _forms(arguments.by, size, what, precision)
                contenders += [
                    measure.Contender(
                        library, build_rival, (library, size, what, precision)
                    )
                    for library in _rivals_of(size, arguments.rivals)
                ]
                results = measure.interleave(contenders, rounds=arguments.rounds)
                found[f"{name} {what} {precision}"] = results
                for rival, result in results.items():
                    ratios = [
                        str(measure.speedup(results[f"ours, {form}"], result))
                        for form in arguments.by
                    ]
                    row = [name, what, precision, rival, *ratios, _megabytes(result)]
                    print(_line(row, widths), flush=True)
    return found


def report_gains(models, arguments) -> dict:
    """How much faster TokenLearner makes a model, beside what it saves in cost."""
    widths = (10, 8, 9, 12, 26, 10, 10)
    heads = ["model", "what", "dtype", "by", "gain", "by cost", "of it"]
    print(_line(heads, widths))
    found = {}
    for name in [name for name in models if f"{name}_tl" in models]:
        pair = {"": models[name], "TL ": models[f"{name}_tl"]}
        by_cost = cost_ratio(*pair.values())
        for precision in arguments.precisions:
            for what in arguments.what:
                contenders = [
                    contender
                    for prefix, size in pair.items()
                    for contender in _forms(arguments.by, size, what, precision, prefix)
                ]
                results = measure.interleave(contenders, rounds=arguments.rounds)
                found[f"{name} {what} {precision}"] = results
                for form in [f"ours, {form}" for form in arguments.by]:
                    gain = measure.speedup(results[f"TL {form}"], results[form])
                    row = [name, what, precision, form, str(gain), f"{by_cost:.3f}"]
                    row.append(f"{gain.median / by_cost:.2f}")
                    print(_line(row, widths), flush=True)
    return found


def report_memory(models, arguments) -> dict:
    """Peak memory and speed of a step, with recomputation and with micro-batches."""
    ways = {
        "plain": {},
        "recompute": {"recompute": True},
        "4 micro-batches": {"accumulation_steps": 4},
        "both": {"recompute": True, "accumulation_steps": 4},
    }
    widths = (10, 8, 16, 8, 8, 26)
    print(_line(["model", "by", "way", "MB", "of it", "speed"], widths))
    found = {}
    for name, size in models.items():
        size = dataclasses.replace(size, batch_size=4 * arguments.micro_batch)
        for form in arguments.by:
            contenders = [
                _ours(way, size, "step", "float32", form == "XLA", **options)
                for way, options in ways.items()
            ]
            results = measure.interleave(contenders, rounds=arguments.rounds)
            found[f"{name} {form}"] = results
            _print_ways([name, form], results, widths)
    return found


def report_estimate(models, arguments) -> dict:
    """MB of activations an example: by tl_tf/memory.py, and as memory grows.

    Weights and gradients cancel in the slope between two batches.
    """
    from tl_tf import memory

    widths = (10, 8, 10, 10, 6)
    print(_line(["model", "what", "estimated", "measured", "ratio"], widths))
    found = {}
    for name, size in models.items():
        estimate = memory.estimate(_build_model(size), [1, *size.input_shape])
        by_what = {"forward": estimate.inference_bytes, "step": estimate.training_bytes}
        for what in arguments.what:
            contenders = [
                _ours(
                    str(n),
                    dataclasses.replace(size, batch_size=n),
                    *(what, "float32", False),
                )
                for n in ESTIMATE_BATCHES
            ]
            results = measure.interleave(contenders, rounds=arguments.rounds)
            found[f"{name} {what}"] = results
            low, high = (result.extra_bytes for result in results.values())
            slope = (high - low) / (ESTIMATE_BATCHES[1] - ESTIMATE_BATCHES[0])
            megabytes = [f"{value / 1e6:.1f}" for value in (by_what[what], slope)]
            row = [name, what, *megabytes, f"{slope / by_what[what]:.2f}"]
            print(_line(row, widths), flush=True)
    return found


def report_attention(models, arguments) -> dict:
    """Three blocks over 3136 tokens: scores in chunks of queries, and whole."""
    del models
    long = dataclasses.replace(S32, image_px=448, patch_px=8, depth=3, batch_size=1)
    widths = (8, 8, 8, 8, 8, 26)
    print(_line(["what", "by", "scores", "MB", "of it", "speed"], widths))
    found = {}
    for what in arguments.what:
        for form in arguments.by:
            contenders = [
                _ours(way, long, what, "float32", form == "XLA", build=build)
                for way, build in (("whole", build_whole), ("chunks", build_ours))
            ]
            results = measure.interleave(contenders, rounds=arguments.rounds)
            found[f"{what} {form}"] = results
            _print_ways([what, form], results, widths)
    return found


def growing(kind: str) -> tuple[dict[str, list], str]:
    """What grows.  -> by curve, its points and sizes; what the points are."""
    small = dataclasses.replace(S32, patch_px=16, image_px=256, depth=6, batch_size=2)
    learned = dataclasses.replace(small, insert_before_block=3)

    def points(base, field, values, **also):
        return [(v, dataclasses.replace(base, **{field: v}, **also)) for v in values]

    if kind == "tokens":
        counts = (2, 8, 32, 128)
        return {"TokenLearner": points(learned, "num_tokens", counts)}, "learned tokens"
    if kind == "frames":
        clips = sizes.ClipSizes(num_frames=16, image_px=96, batch_size=1)
        learned = dataclasses.replace(clips, module="token_learner")
        small, field, values = clips, "num_frames", (4, 8, 16, 32)
        label = "frames of a clip, X(2+1)D"
    elif kind == "resolution":
        field, values, label = "image_px", (128, 192, 256, 384), "side of the images"
    else:
        field, values, label = "batch_size", (1, 2, 4, 8), "images at once"
    bases = {"plain": small, "TokenLearner": learned}
    return {name: points(b, field, values) for name, b in bases.items()}, label


def report_growth(models, arguments) -> dict:
    """Draws how a step's time and memory grow, from the smallest point of all."""
    del models
    found = {}
    for kind in arguments.growth:
        by_curve, label = growing(kind)
        contenders = [
            _ours(f"{curve} {value}", size, "step", "float32", False)
            for curve, points in by_curve.items()
            for value, size in points
        ]
        results = measure.interleave(contenders, rounds=arguments.rounds)
        first = next(iter(results.values()))
        curves, smallest = {}, first.extra_bytes
        for curve, points in by_curve.items():
            named = [(value, results[f"{curve} {value}"]) for value, _ in points]
            curves[f"{curve}, time"] = [
                (value, 1 / measure.speedup(result, first).median)
                for value, result in named
            ]
            curves[f"{curve}, memory"] = [
                (value, result.extra_bytes / smallest) for value, result in named
            ]
        for curve, points in curves.items():
            texts = ", ".join(f"{value}: {y:.3g}" for value, y in points)
            print(f"{kind}: {curve}: {texts}", flush=True)
        found[kind] = {"results": results, "curves": curves}
        measure.draw_curves(
            Path(arguments.images_dir) / f"compute_{kind}.png",
            curves,
            title=f"A training step by {label}",
            x_label=label,
            y_label="times the smallest",
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one report, and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    known = ",".join(MODELS)
    parser.add_argument("--report", choices=REPORTS, default="rivals")
    parser.add_argument("--models", type=names, default=known, help=known)
    parser.add_argument("--what", type=names, default="forward,step")
    parser.add_argument("--precisions", type=names, default="float32")
    parser.add_argument("--rivals", type=names, default=",".join(LIBRARIES))
    parser.add_argument(
        "--growth", type=names, default="resolution,tokens,batch,frames"
    )
    parser.add_argument("--micro_batch", type=int, default=4, help="of 4, in a step")
    parser.add_argument(
        "--by", type=names, default="XLA,graph", help="ours, of all but growth"
    )
    parser.add_argument("--batch_size", type=int, help="instead of the models'")
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS)
    parser.add_argument("--images_dir", default="docs/images")
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args(argv)
    all_models = MODELS | TINY_MODELS
    unknown = set(arguments.models) - set(all_models)
    if unknown:
        parser.error(f"--models must be of {list(all_models)}, got {sorted(unknown)}")
    models = {name: all_models[name] for name in arguments.models}
    if arguments.batch_size:
        models = {
            name: dataclasses.replace(size, batch_size=arguments.batch_size)
            for name, size in models.items()
        }
    found = globals()[f"report_{arguments.report}"](models, arguments)
    if arguments.json:
        measure.write_json(arguments.json, found)


if __name__ == "__main__":
    main()
