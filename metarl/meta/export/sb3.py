"""Export to plain Stable-Baselines3: a stock model that starts at the meta-learnt initialisation.

The zip holds nothing of ours, so ``PPO.load`` opens it where metarl is not installed, and the optimiser is empty.

An initialisation that was learnt around a stock algorithm (``"sb3_sac"``) is exported to that algorithm, with all its
parameters and hyperparameters. Statistics of ``VecNormalize`` lie beside the zip, in SB3's own format. One learnt
around our A2C or PPO is exported to SB3's by default, critic and hyperparameters included. One learnt around vanilla
policy gradients becomes a PPO: the actor is copied, and the value network, which a linear baseline stands in for, is
fitted to the returns of training tasks, since the first updates with a random one destroy what was learnt. A policy
that learnt by imitation is exported in the same way, for the environment that the expert acted in: Adam's PPO goes on
there, since none of its steps is one of the inner loop.

For the latter, and for MAML around A2C and PPO, ``optimizer="sgd"`` (the default but for TRPO) makes one update of the
model the same mathematics as one inner step: plain gradient descent at the inner rate, one pass over one batch of the
inner step's size, no gradient clipping, and entropy and value terms only where the learner has them. Given equal
advantages the two agree to float tolerance. What still differs in practice, around vanilla policy gradients:

- advantages: SB3 subtracts the value network (generalised advantages), we a linear baseline fitted for each batch;
- time limits: SB3 adds γ·V(last observation) where an episode is cut at the horizon (the value network is fitted to
  that), we add nothing, as the reference;
- normalisation: SB3's standard deviation divides by n − 1, ours by n: a factor √((n − 1)/n) on the step;
- episodes: SB3 collects a number of steps, which may cut the last episode; we collect whole episodes;
- the rate is constant: that of the first inner step. Others are in the sidecar only;
- ``log_std`` below log(1e-6), where we clip it, is exported as log(1e-6);
- a value network that was fitted stays so: an inner rate of 0.1 is far too large for squared errors of returns.

``optimizer="adam"`` is meant for plain fine-tuning on a budget of thousands of steps: SB3's own defaults but for the
discount factor, with a value network that goes on learning. TRPO moves its actor by a trust region of its own, so its
update is never an inner step, and it takes ``"adam"`` (for its critic) only.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from metarl.agents.generators import sb3_alone
from metarl.agents.networks.arguments import ACTIVATIONS, require_network_size
from metarl.agents.networks.distributions import MIN_LOG_STD
from metarl.agents.parallel import library_torch
from metarl.agents.stock.reuse import (
    STATISTICS,
    construct,
    load_initialisation,
    name_initialisation,
    read_initialisation,
    require_equal_shapes,
)
from metarl.checks import COUNT, COUNT_OR_ZERO, NONE, SEED, check_arguments, plain_tree
from metarl.envs.family import Family
from metarl.envs.registry import make_family
from metarl.envs.views.around import Around
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.files.writing import readable_json, write_all_atomic
from metarl.meta.documents import require_finite_tensors, versions
from metarl.meta.environments import AnyEnv, as_any_env
from metarl.meta.export.settings import EXPORTED, KINDS, OPTIMIZERS, Settings, choose
from metarl.meta.export.sidecar import FORMAT, VERSION, read_export, read_moments, read_settings, read_tensors
from metarl.meta.export.spaces import SPACES, require_equal_spaces, space_to_json, spaces_of
from metarl.meta.export.value_fit import Actors, ValueFit, fit_value
from metarl.meta.kept import unwritable
from metarl.meta.model import Model
from metarl.params import Params
from metarl.streams import stream

MOMENTS = (f"{STATISTICS}obs_", f"{STATISTICS}return_")
"""Begin the names of the statistics of ``VecNormalize``."""
__all__ = ["KINDS", "Exported", "export_sb3", "load_sb3", "save_sb3", "to_sb3"]


@dataclass(frozen=True)
class Exported:
    """An export: what it takes to build the stock model on any environment of equal spaces.

    :param settings: the algorithm and its hyperparameters.
    :param tensors: every parameter, by SB3's names, and the statistics that go with them; but those of each task's own,
        such as the last layers of games with other actions, which every model starts where SB3 starts them.
    :param value_fit: how well the value network was fitted; None where it was not.
    :param document: the sidecar: algorithm, network, spaces, hyperparameters and where the export comes from. It gets
        the zip's SHA-256 when it is saved, and a space in which tasks differ.
    :param n_envs: environments that step together, which the hyperparameters were chosen for.
    :param family: gives an environment where none is given.
    :param has_local: whether tasks have tensors of their own.
    """

    settings: Settings
    tensors: Params
    value_fit: ValueFit | None
    document: dict[str, Any]
    n_envs: int
    family: Family
    has_local: bool = False

    @library_torch()
    def on(self, env: AnyEnv | None = None, seed: int | None = None) -> BaseAlgorithm:
        """Return a fresh stock model on ``env`` that starts at the export.

        :param env: any environment of equal spaces; None takes training tasks of the family. It is wrapped in
            ``VecNormalize`` where the learner normalised.
        :param seed: as in SB3: seeds the global generators that SB3 draws from, and first the tensors that are each
            task's own.
        :raises ConfigError: spaces that are not equal, bounds included, or another number of environments.
        """
        seed = (SEED | NONE)("seed", seed)
        model = self._build(env, seed or 0)
        load_initialisation(model, {**read_initialisation(model), **self.tensors} if self.has_local else self.tensors)
        if seed is not None:
            with sb3_alone():  # not in the middle of what another thread learns
                model.set_random_seed(seed)
        return model

    def acting_as(self, model: Model, params: Params) -> Exported:
        """Return the export with the actor that adaptation reached; a critic that was fitted stays as it is.

        :param model: what was exported.
        :param params: tensors of one task, such as ``adapted.params``.
        """
        return replace(self, tensors={**self.tensors, **_as_stock(model, params, self.tensors)})

    @library_torch()
    def scratch(self, env: AnyEnv | None = None, seed: int = 0) -> BaseAlgorithm:
        """Return a stock model with equal hyperparameters that starts where SB3 starts, the baseline of an export.

        :param seed: of the initialisation.
        """
        return self._build(env, SEED("seed", seed))

    def _build(self, env: AnyEnv | None, seed: int) -> BaseAlgorithm:
        if env is None:
            tasks = self.family.sample_tasks(stream(self.document["source"]["seed"], "export/env"), 1)
            env = FamilyVecEnv(self.family, tasks, n_envs=self.n_envs, seed=seed)
        env = as_any_env(env, self.family)
        _refuse_normalized(env)
        require_equal_spaces(env, self.document)
        n_envs = env.num_envs if isinstance(env, VecEnv) else 1
        if n_envs != self.n_envs:
            raise ConfigError(f"{shorten(n_envs)} environments step together: the export is for n_envs={self.n_envs}")
        return _build(self.settings, env, seed)


@library_torch()
def export_sb3(
    model: Model,
    kind: str | None = None,
    *,
    optimizer: str | None = None,
    n_envs: int = 1,
    value_tasks: int = 40,
    value_episodes: int = 5,
    params: Params | None = None,
    value_actors: Actors | None = None,
    **kwargs: Any,
) -> Exported:
    """Prepare an export: choose hyperparameters, copy the parameters, fit the value network where there is none.

    :param model: a meta-algorithm.
    :param kind: None: the algorithm that the initialisation was learnt for, PPO around vanilla policy gradients.
        Around learners of ours, ``"ppo"``, ``"a2c"`` or ``"trpo"``.
    :param optimizer: ``"sgd"`` or ``"adam"``, see the module. None takes what the learner learns with; where the kind
        is not the learner's, Adam.
    :param n_envs: environments that will step together; what SB3 counts for each of them is chosen accordingly.
    :param value_tasks: training tasks that a value network is fitted on; 0 leaves it random.
    :param value_episodes: episodes of each.
    :param params: tensors of a policy that adaptation reached (``adapted.params``), instead of the initialisation's.
    :param value_actors: returns the tensors ``[task, …]`` that act in the tasks which the value network is fitted on,
        such as :meth:`~metarl.meta.evaluating.Evaluates.reached`; None: those of the export act in all of them.
    :param kwargs: hyperparameters of the stock class that overrule the chosen ones.
    :raises ConfigError: an unknown kind, optimiser or hyperparameter; gSDE; an action space that SB3 cannot step.
    """
    n_envs, value_tasks = COUNT("n_envs", n_envs), COUNT_OR_ZERO("value_tasks", value_tasks)
    has_local = bool(getattr(getattr(model, "adaptations", None), "has_local", False))
    settings = choose(model, kind, optimizer, n_envs)
    kwargs = plain_tree(kwargs)
    if kwargs.get("use_sde"):
        raise ConfigError("use_sde=True is not supported: a meta-learnt actor has no state-dependent noise")
    for name in ("policy", "env", "policy_kwargs", "_init_setup_model", "rollout_buffer_class"):
        if name in kwargs:
            raise ConfigError(f"{name} cannot be changed by an export")
    cls = EXPORTED[settings.kind]
    check_arguments(cls.__init__, kwargs, f"argument of {cls.__name__}:")
    action_space = model.action_space
    if isinstance(action_space, spaces.Discrete) and action_space.start != 0:
        raise ConfigError(f"{action_space} starts at {action_space.start}: SB3 sends actions from 0")
    settings.arguments.update(kwargs)
    value_fit = None
    if settings.is_stock:
        if params is not None:
            raise ConfigError(f"params with learner {settings.kind!r}: an adapted stock algorithm is stock already")
        tensors = {name.removeprefix("policy/"): tensor.detach().clone() for name, tensor in model.params.items()}
    else:
        # Without the layers that are each task's own there is nothing to fit values to.
        start = model.initial_policy if params is None else params
        n_fitted = 0 if has_local else value_tasks
        tensors, value_fit = _actor_and_critic(model, start, n_fitted, value_episodes, value_actors)
    if has_local:
        shared = {name.removeprefix("policy/") for name in model.params}
        tensors = {name: tensor for name, tensor in tensors.items() if name in shared}
    document = _document(model, settings, tensors, value_fit)
    return Exported(settings, tensors, value_fit, document, n_envs, model.family.acts_in, has_local)


def _actor_and_critic(
    model: Model, start: Params, value_tasks: int, value_episodes: int, value_actors: Actors | None
) -> tuple[Params, ValueFit | None]:
    """Return every parameter of a stock policy that acts as one of ours with the tensors ``start``, the value network's
    fitted where the learner has none.
    """
    module = model.policy.build(int(stream(model.seed, "export/policy").integers(2**31)))
    tensors = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    tensors |= _as_stock(model, start, tensors)
    module.load_state_dict({name: t for name, t in tensors.items() if name.startswith("features_")}, strict=False)
    if model.policy.has_critic or value_tasks == 0:
        return tensors, None
    value_fit, fitted = fit_value(model, start, module, value_tasks, value_episodes, value_actors)
    return {**tensors, **fitted}, value_fit


def _as_stock(model: Model, params: Params, names: Iterable[str]) -> Params:
    """Return the tensors of one of our policies that a stock one has too, as that has them."""
    learnt = model.policy.fold({name: tensor.detach() for name, tensor in params.items()})
    found = {name: learnt[name].float() for name in names if name in learnt}
    return {name: tensor.clamp(min=MIN_LOG_STD) if name == "log_std" else tensor for name, tensor in found.items()}


def to_sb3(
    model: Model,
    kind: str | None = None,
    env: str | Family | AnyEnv | None = None,
    *,
    seed: int | None = None,
    **kwargs: Any,
) -> BaseAlgorithm:
    """Return a stock model that starts at the meta-learnt initialisation.

    :param model: a meta-algorithm.
    :param kind: see :func:`export_sb3`.
    :param env: any environment of equal spaces, whose task need not be known, or a registered name; None takes a
        training task of the family.
    :param seed: as in SB3: seeds the global generators that SB3 draws from.
    :param kwargs: see :func:`export_sb3`.
    :raises ConfigError: spaces that are not equal, bounds included, and whatever :func:`export_sb3` raises.
    """
    made = None if env is None else as_any_env(env, model.family.acts_in)
    n_envs = made.num_envs if isinstance(made, VecEnv) else 1
    if made is not None:
        # before anything is collected
        _refuse_normalized(made)
        require_equal_spaces(made, spaces_of(model))
    return export_sb3(model, kind, n_envs=n_envs, **kwargs).on(made, seed)


# --------------------------------------------------------------------------------------------------------- building
def _build(settings: Settings, env: AnyEnv, seed: int = 0) -> BaseAlgorithm:
    """Return a stock model; the tensors come from ``seed`` and the global generators are left alone."""
    if settings.normalize is not None:
        vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([partial(Monitor, env)])
        env = VecNormalize(vec_env, **settings.normalize)
    arguments = dict(settings.arguments)
    own = arguments.pop("seed", None)
    with warnings.catch_warnings():
        # The last minibatch of an epoch is smaller in the learner, too.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        init_seed = seed if own is None else own
        return construct(EXPORTED[settings.kind], settings.policy, env, init_seed=init_seed, seed=own, **arguments)


def _refuse_normalized(env: AnyEnv) -> None:
    """Raise :class:`ConfigError` for an environment in ``VecNormalize``: what it shows is not what was learnt with."""
    if isinstance(env, VecEnv) and unwrap_vec_normalize(env) is not None:
        raise ConfigError(
            "the environment is wrapped in VecNormalize, whose statistics the initialisation has not seen: pass the "
            "one inside (env.venv); an export that was learnt with VecNormalize brings its own"
        )


def _document(model: Model, settings: Settings, tensors: Params, value_fit: ValueFit | None) -> dict[str, Any]:
    kwargs = dict(settings.arguments["policy_kwargs"])
    for key, table in (("activation_fn", ACTIVATIONS), ("optimizer_class", OPTIMIZERS)):
        if key in kwargs:
            names = [name for name, cls in table.items() if cls is kwargs[key]]
            if not names:
                raise ConfigError(
                    f"{key}={shorten(kwargs[key])} cannot be written to a sidecar: known: {', '.join(table)}"
                )
            kwargs[key] = names[0]
    normalize = None
    if settings.normalize is not None:
        moments = {name: tensor for name, tensor in tensors.items() if name.startswith(MOMENTS)}
        normalize = {
            "arguments": settings.normalize,
            "statistics": {name: tensor.tolist() for name, tensor in moments.items()},
        }
    hyperparameters = {k: v for k, v in settings.arguments.items() if k not in ("policy_kwargs", "device")}
    for name, value in hyperparameters.items():
        if (found := unwritable(name, value)) is not None:
            raise ConfigError(
                f"{found[0]}={shorten(found[1])} cannot be written beside an export, whose description is JSON: export "
                f"without it, and give it to SB3's load, with custom_objects={{'{name}': …}}"
            )
    document = {
        "format": FORMAT,
        "version": VERSION,
        "algo": settings.kind,
        "policy": settings.policy,
        "policy_kwargs": kwargs,
        "hyperparameters": hyperparameters,
        "vec_normalize": normalize,
        **spaces_of(model),
        "source": {
            "algo": model.name,
            "learner": getattr(model, "learner", None),
            "env": model.family.id,
            "env_kwargs": {**model.env_kwargs, **_view_of(model.family)},
            "seed": model.seed,
            "n_iterations": model.n_iterations,
            "num_timesteps": model.num_timesteps,
            "inner_lr": getattr(model, "rates", None),
        },
        "value_fit": None if value_fit is None else value_fit._asdict(),
        "versions": versions(),
    }
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the export cannot be described in JSON: {error}") from None
    return document


def _view_of(family: Family) -> Mapping[str, Any]:
    """Return by which argument the view is made that a model learnt on, which an export is for."""
    return family.made_by if isinstance(family, Around) else {}


# ---------------------------------------------------------------------------------------------------- saving, loading
def save_sb3(exported: Exported, path: str | Path, force: bool = False, env: AnyEnv | None = None) -> Path:
    """Write the zip and, beside it, a JSON sidecar with its SHA-256; each is whole or as it was before.

    Where the learner normalised, the statistics lie beside it as well, in ``<name>_vecnormalize.pkl``: what
    ``VecNormalize.load`` opens. We never read that file: the sidecar has the same numbers.

    :param path: ``.zip`` is appended where it is missing; the sidecar has the same name with ``.json``.
    :param force: overwrite existing files.
    :param env: what the model is built on; it is not saved. None takes a training task.
    :return: the zip.
    :raises CheckpointError: a file exists and ``force`` is not given, or cannot be written.
    """
    contents = sb3_files(exported, path, env)
    for file in contents:
        if file.exists() and not force:
            raise CheckpointError(f"{file} exists: force=True overwrites it")
    write_all_atomic(contents)
    return export_files(path)[0]


def sb3_files(exported: Exported, path: str | Path, env: AnyEnv | None = None) -> dict[Path, bytes]:
    """Return what :func:`save_sb3` writes: the zip, its sidecar and, where the learner normalised, the statistics."""
    path, sidecar, normalization = export_files(path)
    buffer = io.BytesIO()
    model = exported.on(env)
    model.save(buffer)
    data = buffer.getvalue()
    described = {what: space_to_json(getattr(model, what)) for what in SPACES if what not in exported.document}
    document = {**exported.document, **described, "sha256": hashlib.sha256(data).hexdigest()}
    contents = {path: data, sidecar: readable_json(document).encode()}
    if exported.settings.normalize is not None:
        contents[normalization] = _saved(model.get_vec_normalize_env())
    return contents


def _saved(normalize: VecNormalize | None) -> bytes:
    """Return what SB3 writes to remember a normalisation."""
    assert normalize is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vecnormalize.pkl"
        normalize.save(str(file))
        return file.read_bytes()  # our own file of a moment ago


@library_torch()
def load_sb3(path: str | Path, env: AnyEnv | None = None, kind: str | None = None) -> BaseAlgorithm:
    """Open an export without unpickling anything: the model is built from the sidecar, and only tensors are read.

    :param path: the zip; its sidecar must lie beside it.
    :param env: an environment of equal spaces; None takes the family that the export names. It is wrapped in
        ``VecNormalize`` where the learner normalised.
    :param kind: refuse any other kind of model. SB3 itself loads a PPO zip into A2C without complaint.
    :raises CheckpointError: a file that is missing, damaged or not ours, a zip that is not the sidecar's, or parameters
        that are NaN.
    :raises ConfigError: another kind than asked for, or spaces that are not equal.
    """
    path, sidecar, _ = export_files(path)
    data, card, document = read_export(path, sidecar)
    found = card.algo
    if found not in EXPORTED or (kind is not None and kind != found):
        known = kind or "one of " + ", ".join(EXPORTED)
        raise ConfigError(f"{path} is a {shorten(found, quote=False)} model: it cannot be loaded as {known}")
    settings, moments = read_settings(card, str(sidecar)), read_moments(card, str(sidecar))
    parameters, variables = read_tensors(data, str(path))
    if env is None:
        family = make_family(card.source.env, **card.source.env_kwargs).acts_in
        env = FamilyVecEnv(family, family.sample_tasks(stream(card.source.seed, "export/env"), 1), n_envs=1)
    env = as_any_env(env)
    _refuse_normalized(env)
    require_equal_spaces(env, document)
    require_network_size(settings.arguments["policy_kwargs"].get("net_arch"), env.observation_space)
    try:
        model = _build(settings, env)
    except MetaRLError:
        raise
    except Exception as error:  # of any kind: what SB3 does not check fails wherever it is used
        reason = shorten(str(error) or type(error).__name__, quote=False, limit=200)
        raise CheckpointError(f"{sidecar} is damaged: {settings.kind}: {reason}") from None
    own = name_initialisation(model, parameters, variables) | moments
    wanted = read_initialisation(model)
    for name, tensor in own.items():
        if name in wanted and tensor.dtype != wanted[name].dtype:
            raise CheckpointError(
                f"{path} does not fit its sidecar: tensor {shorten(name)} is {tensor.dtype}, not {wanted[name].dtype}"
            )
    try:
        require_equal_shapes(own, wanted, type(model).__name__)
    except ConfigError as error:
        raise CheckpointError(f"{path} does not fit its sidecar: {error}") from None
    # Last: what has the right name and shape is of a size that can be looked at.
    require_finite_tensors(own, str(path))
    load_initialisation(model, own)
    return model


def export_files(path: str | Path) -> tuple[Path, Path, Path]:
    """Return the zip, its sidecar, and where a normalisation is saved."""
    path = Path(path)
    if not path.name:
        raise CheckpointError(f"{str(path)!r} is no name of a file")
    if path.suffix != ".zip":
        path = path.with_name(path.name + ".zip")
    return path, path.with_suffix(".json"), path.with_name(f"{path.stem}_vecnormalize.pkl")
