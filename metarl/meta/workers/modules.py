"""The modules that another process imports before it loads a model: those that register what is somebody's own."""

from __future__ import annotations

from collections.abc import Iterable

from metarl.envs.family import Family
from metarl.envs.registry import registering_module
from metarl.envs.views.around import Around
from metarl.errors import ConfigError


def modules_of(family: Family, classes: Iterable[type]) -> list[str]:
    """Return the modules that register a family and some classes, without ours, which register themselves.

    :raises ConfigError: one of them is the program that runs, which another process cannot import.
    """
    layers = [family]
    while isinstance(layers[-1], Around):
        layers.append(layers[-1].family)
    found = {registering_module(family.id), *(type(layer).__module__ for layer in layers)}
    found |= {cls.__module__ for cls in classes}
    own = {name for name in found if name is not None and name.partition(".")[0] != "metarl"}
    if "__main__" in own:
        raise ConfigError(
            f"worker processes cannot import the program that runs, in which {family.id}, its algorithm or its learner "
            "is defined: put that into a module of its own, or take n_workers=1"
        )
    return sorted(own)
