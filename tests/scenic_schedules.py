"""Learning rates of the authors' configurations, as our schedules.

Scenic multiplies factors that it names in a string, as "constant * linear_warmup *
cosine_decay".  A decay starts where the warm-up ends, and the warm-up is a factor of
its own: without it the rate is whole until the decay starts.
"""

from tl_tf import optim

FACTORS = ("constant", "linear_warmup", "cosine_decay", "linear_decay", "rsqrt_decay")
_ENDLESS = 2**31  # for a configuration that does not say how long it trains


def schedule_of(lr_configs: dict) -> optim.Schedule:
    """The schedule of Scenic's `lr_configs`, up to the last step of its first cycle.

    Args:
      lr_configs: the dictionary of that name in a configuration.

    Raises:
      ValueError: for a factor that is unknown or comes twice, for two decays, and for
        cycles that start again within the training.
    """
    kind = lr_configs.get("learning_rate_schedule")
    if kind is None:
        return optim.build_schedule(
            lr_configs["base_learning_rate"], _ENDLESS, decay="constant"
        )
    if kind != "compound":
        raise ValueError(f"schedule_of: wanted a 'compound' schedule, got {kind!r}.")
    factors = [name.strip() for name in lr_configs["factors"].split("*")]
    _check(factors)
    for key, plain in (("warmup_alpha", 0), ("t_mul", 1), ("m_mul", 1)):
        if lr_configs.get(key, plain) != plain:
            raise ValueError(f"schedule_of: {key}={lr_configs[key]} is not supported.")

    warmup_steps = lr_configs.get("warmup_steps", 0)
    learning_rate, end, decay = 1.0, 0.0, "constant"
    start, total_steps = warmup_steps, lr_configs.get("total_steps", _ENDLESS)
    options = {}
    for name in factors:
        if name == "constant":
            learning_rate *= lr_configs["base_learning_rate"]
            end *= lr_configs["base_learning_rate"]  # of a linear decay before it
        elif name == "cosine_decay":
            decay = "cosine"
            start += lr_configs.get("start_decay_step", 0)
            total_steps = start + _cycle_steps(lr_configs, warmup_steps)
        elif name == "linear_decay":
            decay, end = "linear", lr_configs.get("end_learning_rate", 0.0)
            total_steps = lr_configs["total_steps"]
        elif name == "rsqrt_decay":
            decay = "rsqrt"
            options["timescale_steps"] = lr_configs.get("timescale", 10_000)
    if decay == "cosine":  # its end is a share of whatever else is multiplied
        end = lr_configs.get("alpha", 0.0) * learning_rate
    return optim.build_schedule(
        learning_rate,
        total_steps,
        decay=decay,
        warmup_steps=warmup_steps if "linear_warmup" in factors else 0,
        decay_start_step=start,
        end_learning_rate=end,
        **options,
    )


def _check(factors: list[str]) -> None:
    for name in factors:
        if name not in FACTORS:
            raise ValueError(
                f"schedule_of: unknown factor {name!r}. Known: {', '.join(FACTORS)}."
            )
        if factors.count(name) > 1:
            raise ValueError(f"schedule_of: the factor {name!r} comes more than once.")
    decays = [name for name in factors if name.endswith("_decay")]
    if len(decays) > 1:
        raise ValueError(f"schedule_of: wanted one decay at most, got {decays}.")


def _cycle_steps(lr_configs: dict, warmup_steps: int) -> int:
    """Steps of a cosine's first cycle: the warm-up's share of them is cut off."""
    steps = lr_configs["steps_per_cycle"]
    total_steps = lr_configs.get("total_steps", steps)
    cycle = steps - int(warmup_steps / (total_steps / steps))
    if warmup_steps + lr_configs.get("start_decay_step", 0) + cycle < total_steps:
        raise ValueError(
            f"schedule_of: cosine cycles of steps_per_cycle={steps} start again before"
            f" total_steps={total_steps}; ours has one cycle."
        )
    return cycle
