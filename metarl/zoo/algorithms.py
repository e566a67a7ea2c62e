"""The bridge between names on the command line and :mod:`metarl.meta`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import metarl
from metarl.agents.networks.context import CONTEXT
from metarl.envs.registry import family_ids, make_family, require_family
from metarl.errors import (
    CheckpointError,
    ConfigError,
    MetaRLError,
    UnknownNameError,
    UnregisteredFamilyError,
    shorten,
)
from metarl.meta.base import MetaAlgorithm
from metarl.params import RATES, group, meta_name
from metarl.zoo.config import merge
from metarl.zoo.runs.folder import open_run


def algorithm(name: str) -> type[MetaAlgorithm]:
    """Return an algorithm's class.

    :raises UnknownNameError: no such algorithm; the message has the nearest name.
    """
    found: type[MetaAlgorithm] = metarl.ALGORITHMS.find(name)
    return found


def check_env(env_id: str, run: Path | None = None) -> None:
    """Raise :class:`~metarl.errors.UnknownNameError` unless a family of that name is registered.

    :param run: the folder of a run on it.
    """
    try:
        require_family(env_id)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} ({registering(run)})", env_id, family_ids()) from None


def registering(run: Path | None, what: str = "families") -> str:
    """Return what to type for a family, or an algorithm, that is not registered.

    What a run's records name is said, and not imported: a run folder may be a stranger's.

    :param run: a run folder.
    :param what: what is not registered.
    """
    names: Any = []
    if run is not None:
        try:
            names = open_run(run).args().get("gym_packages", [])
        except MetaRLError:
            names = []
    if names and all(part.isidentifier() for name in names for part in name.split(".")):
        return f"the run was trained with --gym-packages {shorten(' '.join(names), quote=False)}: add that"
    return f"{what} of your own need --gym-packages MODULE, the module that registers them"


def load_model(
    path: str | Path,
    n_threads: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    n_workers: int = 1,
) -> MetaAlgorithm:
    """Load a saved model of any algorithm.

    :param env_kwargs: arguments of the family that overrule the saved ones.
    """
    try:
        model = metarl.load(path, n_threads=n_threads, n_workers=n_workers)
    except UnregisteredFamilyError as error:
        how = registering(Path(path).parent)
        raise CheckpointError(f"{path} was learnt on {shorten(error.family)}, which is not registered: {how}") from None
    return with_env_kwargs(model, env_kwargs, n_threads) if env_kwargs else model


def with_env_kwargs(model: MetaAlgorithm, env_kwargs: Mapping[str, Any], n_threads: int | None) -> MetaAlgorithm:
    """Return a copy of a model on another configuration of its family.

    :raises ConfigError: the policy does not fit that configuration.
    """
    arguments = {**model.arguments(), "env_kwargs": merge(model.env_kwargs, env_kwargs), "n_threads": n_threads}
    for name, value in make_family(model.family.id, **arguments["env_kwargs"]).observed.items():
        learnt = model.family.observed[name]
        if value != learnt:
            raise ConfigError(f"{name}={shorten(value)}: the policy was trained with {name}={shorten(learnt)}")
    copy = type(model)(model.policy_name, model.family.id, **arguments)
    model.check_env(copy.family)  # type: ignore[arg-type]  # it looks at the two spaces only
    copy.params = model.params
    copy.num_timesteps, copy.n_iterations = model.num_timesteps, model.n_iterations
    return copy


def copy_parameters(source: MetaAlgorithm, target: MetaAlgorithm, name: str) -> None:
    """Start ``target`` from the policy of ``source``.

    A context that ``target`` has not is folded into biases; rates that ``source`` has not begin as they would anyway.

    :param name: where ``source`` is from, for error messages.
    :raises ConfigError: the policies differ in shape.
    """
    given, wanted = dict(source.params), dict(target.params)
    if CONTEXT in given and CONTEXT not in wanted:
        given = {meta_name(key): tensor for key, tensor in source.policy.fold(source.theta).items()}
    if not group(given, RATES):
        wanted = {key: tensor for key, tensor in wanted.items() if not key.startswith(RATES)}
    ours, theirs = ({key: tuple(each.shape) for key, each in params.items()} for params in (wanted, given))
    for key, shape in ours.items():
        if theirs.get(key) != shape:
            raise ConfigError(f"{name} does not fit: {key} is {theirs.get(key, 'missing')} there and {shape} here")
    if source.family.observation_space.shape != target.family.observation_space.shape:
        raise CheckpointError(f"{name} was learnt on {source.family.id}, whose observations differ")
    target.params = {**target.params, **{key: given[key].clone() for key in ours}}
