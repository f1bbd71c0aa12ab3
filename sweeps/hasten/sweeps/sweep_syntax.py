"""Parameters as Weights & Biases writes them, in our words, where they can mean only one thing."""

from __future__ import annotations

from typing import Any, Final

# Their name -> ours, for distributions that have the ends `min` and `max`.
_RANGES: Final = {
    "uniform": "uniform",
    "int_uniform": "int_uniform",
    "log_uniform_values": "log_uniform",
}
_OTHER_ENDS: Final = {
    "log_uniform": "means exponents as ends there; write log_uniform: [low, high], or log_uniform_values",
}


def translated(raw: dict[str, Any]) -> dict[str, Any]:
    """``values``, ``value`` and ``min``/``max`` with or without a ``distribution`` as one of ours.

    ``min`` and ``max`` alone are integers when both are whole, as they are there.

    Raises:
        ValueError: a distribution that we do not have, or keys that contradict each other.
    """
    rest = dict(raw)
    named = rest.pop("distribution", None)
    if named is not None and (named in _OTHER_ENDS or named not in (*_RANGES, "categorical", "constant")):
        known = ", ".join((*_RANGES, "categorical", "constant"))
        raise ValueError(f"distribution: {named} {_OTHER_ENDS.get(named, f'must be one of {known}')}")
    if "value" in rest:
        return {"choice": [rest.pop("value")], **rest}
    if "values" in rest:
        return {"choice": rest.pop("values"), **rest}
    if "min" not in rest and "max" not in rest:
        if named is not None:
            raise ValueError(f"distribution: {named} must come with value, values, or min and max")
        return rest
    if "min" not in rest or "max" not in rest:
        raise ValueError("must have both min and max")
    ends = [rest.pop("min"), rest.pop("max")]
    alone = "int_uniform" if all(isinstance(end, int) for end in ends) else "uniform"
    if named in ("categorical", "constant"):
        raise ValueError(f"distribution: {named} must not have min and max")
    return {alone if named is None else _RANGES[named]: ends, **rest}
