"""The arguments of a meta-algorithm: set once, saved as plain values, and changed by building another model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_system_info

from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.checks import SWITCH, plain_tree
from metarl.envs.family import Family
from metarl.errors import ConfigError, MetaRLError, shorten, unknown_name
from metarl.files.schema import constructor_hints, convert
from metarl.frozen import SetOnce
from metarl.meta.adaptation.learners import merge_arguments
from metarl.meta.documents import NOT_SAVED


class KeepsArguments(SetOnce):
    """The part of a meta-algorithm that knows its arguments."""

    family: Family
    _family_as_built: dict[str, Any]

    def _refusal(self, name: str) -> str:
        if name == "seed":
            return f"seed of a {type(self).__name__} is set when it is built: set_random_seed(…) gives it another one"
        if name == "family":
            return (
                f"family of a {type(self).__name__} is set when it is built: metarl.load(path, env=…) has another one"
            )
        source = {"rates": "inner_lr", "excluded": "exclude"}.get(name, name)
        if source in self.argument_names():
            follows = "" if source == name else f" from {source}"
            return (
                f"{name} of a {type(self).__name__} is set when it is built{follows}: save it, and "
                f"metarl.load(path, {source}=…) has another value"
            )
        return f"{name} of a {type(self).__name__} follows from its arguments: build another one"

    @classmethod
    def _unknown_argument(cls, name: str) -> MetaRLError:
        """Return the error for an argument that the constructor does not take."""
        if name in cls.argument_names():
            return ConfigError(
                f"{cls.__name__} hands {name} on to the classes that it inherits from, and none of them takes it: "
                "leave it out of super().__init__(…)"
            )
        return unknown_name(f"argument of {cls.__name__}:", name, cls.argument_names())

    def _require_family_as_built(self) -> None:
        """Raise :class:`ConfigError` for a family that was changed since: a checkpoint holds its arguments only."""
        for name, value in family_traits(self.family).items():
            if value != self._family_as_built[name]:
                raise ConfigError(
                    f"{name} of the family {self.family.id} was changed since the {type(self).__name__} was built: "
                    f"give it in env_kwargs, or build another family"
                )

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON values, from which :meth:`load` builds the same algorithm."""
        return {name: plain_tree(getattr(self, name)) for name in self.argument_names() if name not in NOT_SAVED}

    @classmethod
    def argument_names(cls) -> list[str]:
        """Return what the constructor takes, with what it passes on to the classes it inherits from."""
        return list(constructor_hints(cls))

    def _require_plain_arguments(self) -> None:
        # Before the first meta-iteration, not when hours of work are to be saved.
        for name, value in self.arguments().items():
            if (found := unwritable(name, value)) is not None:
                raise ConfigError(
                    f"{found[0]}={shorten(found[1])} cannot be saved: files of ours hold numbers, text, lists and "
                    "mappings; the stock model that to_sb3() returns takes it"
                )

    @classmethod
    def _merged(cls, saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return saved arguments with overrides on top, as the command line merges and converts them."""
        hints = constructor_hints(cls)
        for name in (*saved, *overrides):
            if name.split(".")[0] not in hints:
                raise cls._unknown_argument(name)
        merged = merge_arguments(saved, plain_tree(overrides))
        changed = {name.split(".")[0] for name in overrides}
        return {name: convert(name, value, hints[name]) if name in changed else value for name, value in merged.items()}


def unwritable(name: str, value: Any) -> tuple[str, Any] | None:
    """Return the first part of a value that JSON does not hold, with its dotted name; None where there is none."""
    parts = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
    for key, part in parts.items() if isinstance(parts, Mapping) else ():
        if (found := unwritable(f"{name}.{key}", part)) is not None:
            return found
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return name, value
    return None


def without_sb3s_own(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides without those arguments of SB3's ``load`` that are no constructor arguments."""
    left = dict(overrides)
    if left.pop("custom_objects", None):
        raise ConfigError("custom_objects are for what SB3 cannot unpickle: nothing is pickled here, so give arguments")
    SWITCH("force_reset", left.pop("force_reset", True))
    if SWITCH("print_system_info", left.pop("print_system_info", False)):
        get_system_info()
    return left


def policy_name(known: Mapping[str, type[BasePolicy]], policy: Any) -> str:
    """Return the name of a policy that was given as a class of SB3's; a name as it is."""
    return next((name for name, cls in known.items() if cls is policy), policy)


def family_traits(family: Family) -> dict[str, Any]:
    """Return what a family's arguments decide and training depends on."""
    names = ("horizon", "task_space", "shifted_space", "observation_space", "action_space", "constants")
    return {name: getattr(family, name, None) for name in names}


def named_activation(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``policy_kwargs`` with the activation function by name, as a checkpoint holds it."""
    names = {function: name for name, function in ACTIVATIONS.items()}
    return {
        key: names[value] if key == "activation_fn" and isinstance(value, type) and value in names else value
        for key, value in policy_kwargs.items()
    }
