"""Vector attention, forward and backward: ours against naive, chunked and PyTorch.

  python -m benchmarks.vector_attention [--json=FILE] [--shapes 512x432 4096x432]
  python -m benchmarks.vector_attention --images_dir=DIR      curves, as pictures

Prints, for each shape, how many times as fast `fast` is as each rival, how many times
less memory it takes, and its largest error against float64, relative to each tensor's
largest value.  The curves are of the speed over the tokens, and of the error over the
order of the polynomials.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import measure

RIVALS = ("naive", "chunked", "PyTorch")
MAX_NAIVE_TOKENS = 512  # above, N x N x C does not fit
ERROR_CHANNELS = 8  # compared with float64: N x N each
CURVE_TOKENS, CURVE_CHANNELS = (32, 64, 128, 256, 512, 1024), 432
CURVE_ORDERS = (4, 6, 8, 11, 15, 19, 23, 27, 35, 43, 51, 59, 71)
CURVE_LIMITS = {1: 24.0, 6: 24.0, 13: 24.0, 22: 24.0, 50: None, 100: None}


def _tensors(n: int, c: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal([1, n, c]).astype(np.float32) for _ in range(4)]


def build_ours(implementation: str, n: int, c: int):
    """Outputs and gradients of one clip; `fast` compiles what is its own."""
    from tl_tf import startup

    startup.quiet_tensorflow()
    import tensorflow as tf

    from tl_tf.layers import vector_attention

    q, k, v, dy = (tf.constant(x) for x in _tensors(n, c))
    # Whoever trains has the pages of XLA's own program in memory: they are not counted.
    tf.function(lambda x: tf.exp(x @ x), jit_compile=True)(tf.zeros([8, 8]))

    @tf.function(jit_compile=implementation == "chunked", autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            y = vector_attention.vector_attention(
                q, k, v=v, implementation=implementation
            )
        return y, *tape.gradient(y, [q, k, v], dy)

    return lambda: [x.numpy() for x in step()]


def build_torch(n: int, c: int):
    """PyTorch's fused attention with one head for each channel."""
    import torch

    tensors = [torch.tensor(x.transpose(0, 2, 1)[..., None]) for x in _tensors(n, c)]
    inputs = [x.contiguous().requires_grad_() for x in tensors[:3]]

    def step():
        attend = torch.nn.functional.scaled_dot_product_attention
        y = attend(*inputs, scale=1.0)
        return y, *torch.autograd.grad(y, inputs, tensors[3])

    return step


def exact(q, k, v, dy) -> list[np.ndarray]:
    """y, dq, dk and dv of [N, C] in float64, by the definition."""
    outputs = []
    for one in zip(*(np.asarray(x, np.float64).T for x in (q, k, v, dy)), strict=True):
        q, k, v, dy = one
        logits = np.outer(q, k)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        y = p @ v
        slopes = p * (v - y[:, None]) * dy[:, None]
        outputs.append((y, slopes @ k, slopes.T @ q, p.T @ dy))
    return [np.stack(x, axis=1) for x in zip(*outputs, strict=True)]


def errors(implementation: str, n: int) -> dict[str, float]:
    """Largest errors of a few channels, relative to the largest value."""
    got = build_ours(implementation, n, ERROR_CHANNELS)()
    want = exact(*(x[0] for x in _tensors(n, ERROR_CHANNELS)))
    return {
        name: float(np.abs(x[0] - right).max() / np.abs(right).max())
        for name, x, right in zip(("y", "dq", "dk", "dv"), got, want, strict=True)
    }


def compare(n: int, c: int, *, rounds: int, rivals=RIVALS) -> dict:
    """One shape's figures."""
    contenders = [measure.Contender("fast", build_ours, ("fast", n, c))]
    for rival in rivals:
        if rival == "PyTorch":
            contenders.append(measure.Contender(rival, build_torch, (n, c)))
        elif rival != "naive" or n <= MAX_NAIVE_TOKENS:
            contenders.append(measure.Contender(rival, build_ours, (rival, n, c)))
    results = measure.interleave(contenders, rounds=rounds, warm_up=1)
    own = results.pop("fast")
    error = errors("fast", n)
    return {
        "shape": [1, n, c],
        "speedup": {name: measure.speedup(own, r) for name, r in results.items()},
        "memory_ratio": {
            name: r.extra_bytes / own.extra_bytes for name, r in results.items()
        },
        "error": error,
        "max_error": max(error.values()),
    }


def draw_speed(path: Path, rounds: int) -> list[dict]:
    """`fast` against chunked and PyTorch over the number of tokens."""
    rows, curves = [], {}
    for n in CURVE_TOKENS:
        rivals = ("chunked", "PyTorch")
        row = compare(n, CURVE_CHANNELS, rounds=rounds, rivals=rivals)
        rows.append(row)
        for name, ratio in row["speedup"].items():
            print(f"N = {n}: {ratio} times as fast as {name}", flush=True)
            curves.setdefault(f"as {name}", []).append((n, ratio.median))
    measure.draw_curves(
        path,
        curves,
        title=f"How many times as fast `fast` is, {CURVE_CHANNELS} channels",
        x_label="tokens",
        y_label="times as fast, forward and gradient",
    )
    return rows


def draw_errors(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Largest error of outputs and gradients over the order, by the logits' size."""
    import tensorflow as tf

    from tl_tf.layers import exponential_kernel
    from tl_tf.layers import vector_attention as layer

    q, k, v, dy = _tensors(MAX_NAIVE_TOKENS, 2)
    k -= k.mean(axis=1, keepdims=True)  # as the layer centres them
    v -= v.mean(axis=1, keepdims=True)
    curves = {}
    for z, smoothing in CURVE_LIMITS.items():
        half_range = (k.max(axis=1) - k.min(axis=1)) / 2  # [1, C]
        scaled = q * (z / (np.abs(q).max(axis=1) * half_range))[:, None]
        scaled = scaled.astype(np.float32)
        want = exact(*(x[0] for x in (scaled, k, v, dy)))
        for number in CURVE_ORDERS:
            options = {
                "order": exponential_kernel.Order(z, number, smoothing),
                "dtype": tf.float64,
            }
            y, slope, total = layer._attend_by_order(scaled, k, v, **options)
            gradients = layer._gradients_by_order(scaled, k, v, y, total, dy, **options)
            error = max(
                float(np.abs(x[0] - right).max() / np.abs(right).max())
                for x, right in zip((y, dy * slope, *gradients), want, strict=True)
            )
            curves.setdefault(f"Z = {z}", []).append((number, error))
    measure.draw_curves(
        path,
        curves,
        title="Largest error of outputs and gradients, normal queries and keys",
        x_label="polynomials in q and in k",
        y_label="relative to each tensor's largest value",
    )
    return curves


def main(argv: list[str]) -> None:
    """Prints a table, and writes what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--shapes", nargs="+", default=["512x432", "4096x432"])
    parser.add_argument("--rivals", nargs="*", default=RIVALS, choices=RIVALS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images_dir", type=Path, help="draws the curves alone")
    arguments = parser.parse_args(argv)
    rows = []
    if arguments.images_dir:
        draw_errors(arguments.images_dir / "vector_attention_orders.png")
        rows = draw_speed(
            arguments.images_dir / "vector_attention_tokens.png", arguments.rounds
        )
        arguments.shapes = []
    for shape in arguments.shapes:
        n, c = (int(size) for size in shape.split("x"))
        row = compare(n, c, rounds=arguments.rounds, rivals=arguments.rivals)
        rows.append(row)
        error = ", ".join(f"{name} {value:.1e}" for name, value in row["error"].items())
        print(f"N = {n}, C = {c}: largest error {row['max_error']:.1e} ({error})")
        for name, ratio in row["speedup"].items():
            memory = row["memory_ratio"][name]
            print(f"  {ratio} times as fast as {name}, {memory:.3g} times less memory")
        sys.stdout.flush()
    if arguments.json:
        measure.write_json(arguments.json, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
