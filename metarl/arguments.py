"""Arguments of meta-algorithms as one mapping: what constructors take, and what becomes of some when others change.

The command line, its YAML files and :func:`metarl.load` share this, so that an argument means the same in all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_LEARNER = ("inner_lr", "gae_lambda", "normalize_advantage", "surrogate", "learner_kwargs")
"""Hyperparameters that mean something else to another learner."""


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overrides`` on top; dotted keys reach into mappings, other values replace.

    Another outer optimiser does not inherit the arguments of the one in ``base``, and another learner neither the rates
    and arguments of the one there nor a trust region.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    if overrides.get("learner", base.get("learner")) != base.get("learner"):
        trust_region = ("outer", "outer_kwargs") if base.get("outer") == "trpo" else ()
        for key in (*OF_LEARNER, *trust_region):
            result.pop(key, None)
    if overrides.get("outer", base.get("outer")) != base.get("outer"):
        result.pop("outer_kwargs", None)
    for key, value in overrides.items():
        place, *path = key.split(".")
        if not path:
            result[place] = value
            continue
        target = result.get(place)
        inner = dict(target) if isinstance(target, Mapping) else {}
        result[place] = merge(inner, {".".join(path): value})
    return result
