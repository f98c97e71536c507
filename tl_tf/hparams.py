"""A recipe's bindings as TensorBoard's HParams tab takes them, so that runs compare."""

import copy

import gin

# Gin's own are read as in config.unused: it has no public view of its tables.


def bound() -> dict[str, bool | int | float | str]:
    """The bindings that calls have used so far, as {"train.batch_size": 16}.

    Macros stand for their values, functions for their names, and sequences are written
    out; what is None is left out.
    """
    found = {}
    for (scope, selector), parameters in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        function = selector.split(".")[-1]
        prefix = f"{scope}/{function}" if scope else function
        for name, value in parameters.items():
            if not _is_used(scope, selector, name):
                continue
            shown = _shown(copy.deepcopy(value))  # which looks up macros
            if shown is not None:
                found[f"{prefix}.{name}"] = shown
    return found


def _is_used(scope: str, selector: str, parameter: str) -> bool:
    return any(
        used == selector
        and (not scope or where == scope or where.startswith(f"{scope}/"))
        and parameter in parameters
        for (where, used), parameters in gin.config._OPERATIVE_CONFIG.items()
    )


def _shown(value) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))
