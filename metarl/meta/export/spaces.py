"""The spaces of an export, as its sidecar describes them, and whether an environment has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.errors import ConfigError
from metarl.meta.environments import AnyEnv
from metarl.meta.model import Model

SPACES = ("observation_space", "action_space")


def spaces_of(model: Model) -> dict[str, dict[str, Any]]:
    """Return the spaces that all tasks have, as JSON."""
    adaptations = getattr(model, "adaptations", None)
    pairs = [(model.observation_space, model.action_space), *([] if adaptations is None else adaptations.pairs)]
    columns = dict(zip(SPACES, zip(*pairs, strict=True), strict=True))
    return {what: space_to_json(found[0]) for what, found in columns.items() if all(one == found[0] for one in found)}


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a Box or Discrete space as strict JSON; equal spaces give equal values, bounds and dtype included."""
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        bounds = {side: [_finite(v) for v in getattr(space, side).ravel().tolist()] for side in ("low", "high")}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    return {"type": type(space).__name__, "text": " ".join(str(space).split())}


def _finite(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def require_equal_spaces(env: AnyEnv, document: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless an environment has the spaces that a sidecar describes, bounds included.

    A space in which tasks differ is not described. Numbers of either precision are equal where they agree in float32,
    as policies see them.
    """
    for what in (space for space in SPACES if space in document):
        ours, theirs = document[what], space_to_json(getattr(env, what))
        if _in_float32(ours) != _in_float32(theirs):
            raise ConfigError(
                f"{what} {_brief(theirs)} of the environment differs from {_brief(ours)}, which was learnt on"
            )


def _in_float32(space: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a Box of floats with its dtype and bounds as float32."""
    if space["type"] != "Box" or space["dtype"] not in ("float32", "float64"):
        return space
    with np.errstate(over="ignore"):
        bounds = {
            side: np.array([float(v) for v in space[side]]).astype(np.float32).tolist() for side in ("low", "high")
        }
    return {**space, **bounds, "dtype": "float32"}


def _brief(space: Mapping[str, Any]) -> str:
    """Return a space in a few words."""
    if space["type"] != "Box":
        return " ".join(str(value) for value in space.values())
    low, high = (sorted(set(map(str, space[side]))) for side in ("low", "high"))
    return f"Box of shape {space['shape']}, {space['dtype']}, low {','.join(low[:3])}, high {','.join(high[:3])}"
