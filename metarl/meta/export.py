"""Export to plain Stable-Baselines3: a stock model that starts at the meta-learnt initialisation.

The zip holds nothing of ours, so ``PPO.load`` opens it where metarl is not installed. The actor is copied; the value
network, which a policy gradient with a linear baseline does not learn, is fitted to the returns of training tasks,
since the first updates with a random one destroy what was learnt; the optimiser is empty.

``optimizer="sgd"`` (the default for PPO and A2C) makes one update of the model the same mathematics as one inner step:
plain gradient descent at the inner rate, one pass over one batch of the inner step's size, no entropy or value term and
no gradient clipping. Given equal advantages the two agree to float tolerance. What still differs in practice:

- advantages: SB3 subtracts the value network (generalised advantages), we a linear baseline fitted for each batch;
- time limits: SB3 adds γ·V(last observation) where an episode is cut at the horizon (the value network is fitted to
  that), we add nothing, as the reference;
- normalisation: SB3's standard deviation divides by n − 1, ours by n: a factor √((n − 1)/n) on the step;
- episodes: SB3 collects a number of steps, which may cut the last episode; we collect whole episodes;
- the rate is constant: that of the first inner step. Others are in the sidecar only;
- ``log_std`` below log(1e-6), where we clip it, is exported as log(1e-6);
- the value network stays as it was fitted: an inner rate of 0.1 is far too large for squared errors of returns.

``optimizer="adam"`` is meant for plain fine-tuning on a budget of thousands of steps: SB3's own defaults but for the
discount factor, with a value network that goes on learning. TRPO moves its actor by a trust region of its own, so its
update is never an inner step, and it takes ``"adam"`` (for its critic) only.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from metarl.agents.distributions import MIN_LOG_STD
from metarl.agents.policy import ACTIVATIONS, Params
from metarl.checkpoint import write_bytes_atomic, write_text_atomic
from metarl.envs.family import Family, check_arguments, make_family
from metarl.envs.vec_env import FamilyVecEnv
from metarl.errors import CheckpointError, ConfigError, unknown_name
from metarl.meta.value_fit import ValueFit, fit_value
from metarl.streams import stream

if TYPE_CHECKING:
    from metarl.meta.base import MetaAlgorithm

KINDS: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
FORMAT = "metarl-sb3-export"
VERSION = 1
SPACES = ("observation_space", "action_space")
NO_CLIPPING = 1e9
"""``max_grad_norm`` that never clips; infinity would not be strict JSON."""

AnyEnv = gym.Env[Any, Any] | VecEnv


@dataclass(frozen=True)
class Exported:
    """An export: what it takes to build the stock model on any environment of equal spaces.

    :param kind: ``"ppo"``, ``"a2c"`` or ``"trpo"``.
    :param arguments: keyword arguments of the stock class.
    :param tensors: every parameter of the policy, by SB3's names.
    :param value_fit: how well the value network was fitted; None where that was not asked for.
    :param document: the sidecar: algorithm, network, spaces, hyperparameters and where the export comes from. It gets
        the zip's SHA-256 when it is saved.
    :param n_envs: environments that step together, which ``n_steps`` was chosen for.
    :param family: gives an environment where none is given.
    """

    kind: str
    arguments: dict[str, Any]
    tensors: Params
    value_fit: ValueFit | None
    document: dict[str, Any]
    n_envs: int
    family: Family

    def on(self, env: AnyEnv | None = None, seed: int | None = None) -> OnPolicyAlgorithm:
        """Return a fresh stock model on ``env`` that starts at the export.

        :param env: any environment of equal spaces; None takes training tasks of the family.
        :param seed: as in SB3: seeds the global generators that SB3 draws from.
        :raises ConfigError: spaces that are not equal, bounds included, or another number of environments.
        """
        model = self._build(env, 0)
        tensors = dict(model.policy.named_parameters())
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensors[name].copy_(tensor)
        if seed is not None:
            model.set_random_seed(seed)
        return model

    def scratch(self, env: AnyEnv | None = None, seed: int = 0) -> OnPolicyAlgorithm:
        """Return a stock model with equal hyperparameters that starts where SB3 starts, the baseline of an export.

        :param seed: of the initialisation.
        """
        return self._build(env, seed)

    def _build(self, env: AnyEnv | None, seed: int) -> OnPolicyAlgorithm:
        if env is None:
            tasks = self.family.sample_tasks(stream(self.document["source"]["seed"], "export/env"), 1)
            env = FamilyVecEnv(self.family, tasks, n_envs=self.n_envs, seed=seed)
        require_equal_spaces(env, self.document)
        n_envs = env.num_envs if isinstance(env, VecEnv) else 1
        if n_envs != self.n_envs:
            raise ConfigError(f"{n_envs} environments step together: the export is for n_envs={self.n_envs}")
        return _build(self.kind, env, self.arguments, seed)


def export_sb3(
    model: MetaAlgorithm,
    kind: str = "ppo",
    *,
    optimizer: str | None = None,
    n_envs: int = 1,
    value_tasks: int = 40,
    value_episodes: int = 5,
    **kwargs: Any,
) -> Exported:
    """Prepare an export: choose hyperparameters, copy the actor, fit the value network.

    :param model: a meta-algorithm.
    :param kind: ``"ppo"``, ``"a2c"`` or ``"trpo"``.
    :param optimizer: ``"sgd"`` or ``"adam"``, see the module; None takes SGD for PPO and A2C, Adam for TRPO.
    :param n_envs: environments that will step together; SB3's ``n_steps`` counts for each of them.
    :param value_tasks: training tasks that the value network is fitted on; 0 leaves it random.
    :param value_episodes: episodes of each.
    :param kwargs: hyperparameters of the stock class that overrule the chosen ones.
    :raises ConfigError: an unknown kind, optimiser or hyperparameter; gSDE; an action space that SB3 cannot step.
    """
    if kind not in KINDS:
        raise unknown_name("kind of SB3 model", kind, KINDS)
    chosen = optimizer or ("adam" if kind == "trpo" else "sgd")
    if chosen not in OPTIMIZERS:
        raise unknown_name("optimizer", chosen, OPTIMIZERS)
    if kind == "trpo" and chosen == "sgd":
        raise ConfigError("optimizer='sgd' is for ppo and a2c: TRPO's actor takes no gradient steps")
    if kwargs.get("use_sde"):
        raise ConfigError("use_sde=True is not supported: a meta-learnt actor has no state-dependent noise")
    for name in ("policy", "env", "policy_kwargs", "_init_setup_model", "rollout_buffer_class"):
        if name in kwargs:
            raise ConfigError(f"{name} cannot be changed by an export")
    check_arguments(KINDS[kind].__init__, kwargs, f"argument of {KINDS[kind].__name__}:")
    action_space = model.action_space
    if isinstance(action_space, spaces.Discrete) and action_space.start != 0:
        raise ConfigError(f"{action_space} starts at {action_space.start}: SB3 sends actions from 0")
    arguments = {**_hyperparameters(model, kind, chosen, n_envs), **kwargs}
    arguments["policy_kwargs"] = {**model.policy.policy_kwargs, "optimizer_class": OPTIMIZERS[chosen]}
    arguments["device"] = "cpu"
    module = model.policy.build(int(stream(model.seed, "export/policy").integers(2**31)))
    tensors = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    for name, tensor in model.policy_params.items():
        tensors[name] = tensor.detach().float().clamp(min=MIN_LOG_STD) if name == "log_std" else tensor.detach().float()
    value_fit = None
    if value_tasks > 0:
        value_fit, fitted = fit_value(model, module, value_tasks, value_episodes)
        tensors.update(fitted)
    document = _document(model, kind, arguments, value_fit)
    return Exported(kind, arguments, tensors, value_fit, document, n_envs, model.family)


def to_sb3(
    model: MetaAlgorithm, kind: str = "ppo", env: AnyEnv | None = None, *, seed: int | None = None, **kwargs: Any
) -> OnPolicyAlgorithm:
    """Return a stock PPO, A2C or TRPO that starts at the meta-learnt initialisation.

    :param model: a meta-algorithm.
    :param kind: ``"ppo"``, ``"a2c"`` or ``"trpo"``.
    :param env: any environment of equal spaces, whose task need not be known; None takes a training task of the family.
    :param seed: as in SB3: seeds the global generators that SB3 draws from.
    :param kwargs: see :func:`export_sb3`.
    :raises ConfigError: spaces that are not equal, bounds included, and whatever :func:`export_sb3` raises.
    """
    n_envs = env.num_envs if isinstance(env, VecEnv) else 1
    if env is not None:
        # before anything is collected
        require_equal_spaces(env, {what: space_to_json(getattr(model, what)) for what in SPACES})
    return export_sb3(model, kind, n_envs=n_envs, **kwargs).on(env, seed)


# --------------------------------------------------------------------------------------------------------- building
def _hyperparameters(model: MetaAlgorithm, kind: str, optimizer: str, n_envs: int) -> dict[str, Any]:
    """Return what one update needs to be one inner step, or SB3's defaults but for the discount factor."""
    gamma = getattr(model, "gamma", 0.99)
    if optimizer == "adam":
        return {"gamma": gamma, **({"use_rms_prop": False} if kind == "a2c" else {})}
    rates = getattr(model, "rates", None)
    if not rates:
        raise ConfigError(f"{model.name} has no inner rate to export: use optimizer='adam'")
    batch = getattr(model, "n_transitions", None) or getattr(model, "n_episodes", 1) * model.family.horizon
    n_steps = max(1, -(-batch // n_envs))
    result: dict[str, Any] = {
        "learning_rate": rates[0],
        "n_steps": n_steps,
        "gamma": gamma,
        "gae_lambda": getattr(model, "gae_lambda", 1.0),
        "ent_coef": 0.0,
        "vf_coef": 0.0,
        "max_grad_norm": NO_CLIPPING,
        "normalize_advantage": getattr(model, "normalize_advantage", True),
    }
    if kind == "ppo":
        return {**result, "batch_size": n_steps * n_envs, "n_epochs": 1}
    return {**result, "use_rms_prop": False}


def _build(kind: str, env: AnyEnv, arguments: Mapping[str, Any], seed: int = 0) -> OnPolicyAlgorithm:
    """Return a stock model; the tensors come from ``seed`` and the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind]("MlpPolicy", env, **arguments)


def _document(
    model: MetaAlgorithm, kind: str, arguments: Mapping[str, Any], value_fit: ValueFit | None
) -> dict[str, Any]:
    from metarl.meta.base import versions

    kwargs = dict(arguments["policy_kwargs"])
    for key, table in (("activation_fn", ACTIVATIONS), ("optimizer_class", OPTIMIZERS)):
        if key in kwargs:
            names = [name for name, cls in table.items() if cls is kwargs[key]]
            if not names:
                raise ConfigError(f"{key}={kwargs[key]!r} cannot be written to a sidecar: known: {', '.join(table)}")
            kwargs[key] = names[0]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "algo": kind,
        "policy": "MlpPolicy",
        "policy_kwargs": kwargs,
        "hyperparameters": {k: v for k, v in arguments.items() if k not in ("policy_kwargs", "device")},
        **{what: space_to_json(getattr(model, what)) for what in SPACES},
        "source": {
            "algo": model.name,
            "env": model.family.id,
            "env_kwargs": model.env_kwargs,
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


# ----------------------------------------------------------------------------------------------------------- spaces
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

    Numbers of either precision are equal where they agree in float32, as policies see them.
    """
    for what in SPACES:
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


# ---------------------------------------------------------------------------------------------------- saving, loading
def save_sb3(exported: Exported, path: str | Path, force: bool = False, env: AnyEnv | None = None) -> Path:
    """Write the zip and, beside it, a JSON sidecar with its SHA-256; each is whole or as it was before.

    :param path: ``.zip`` is appended where it is missing; the sidecar has the same name with ``.json``.
    :param force: overwrite existing files.
    :param env: what the model is built on; it is not saved. None takes a training task.
    :return: the zip.
    :raises CheckpointError: a file exists and ``force`` is not given, or cannot be written.
    """
    path, sidecar = _paths(path)
    for file in (path, sidecar):
        if file.exists() and not force:
            raise CheckpointError(f"{file} exists: force=True overwrites it")
    buffer = io.BytesIO()
    exported.on(env).save(buffer)
    data = buffer.getvalue()
    document = {**exported.document, "sha256": hashlib.sha256(data).hexdigest()}
    write_bytes_atomic(path, data)
    write_text_atomic(sidecar, json.dumps(document, allow_nan=False, indent=1) + "\n")
    return path


def load_sb3(path: str | Path, env: AnyEnv | None = None, kind: str | None = None) -> OnPolicyAlgorithm:
    """Open an export without unpickling anything: the model is built from the sidecar, and only tensors are read.

    :param path: the zip; its sidecar must lie beside it.
    :param env: an environment of equal spaces; None takes the family that the export names.
    :param kind: refuse any other kind of model. SB3 itself loads a PPO zip into A2C without complaint.
    :raises CheckpointError: a file that is missing, damaged or not ours, or a zip that is not the sidecar's.
    :raises ConfigError: another kind than asked for, or spaces that are not equal.
    """
    path, sidecar = _paths(path)
    try:
        data = path.read_bytes()
        document = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {error.filename}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {sidecar}: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise CheckpointError(f"{sidecar} is not the sidecar of a metarl export of format {VERSION}")
    if document.get("sha256") != hashlib.sha256(data).hexdigest():
        raise CheckpointError(f"{path} is not the file that {sidecar.name} describes: its SHA-256 differs")
    found = document.get("algo")
    if found not in KINDS or (kind is not None and kind != found):
        raise ConfigError(f"{path} is a {found} model: it cannot be loaded as {kind or 'one of ' + ', '.join(KINDS)}")
    try:
        kwargs = dict(document["policy_kwargs"])
        if "activation_fn" in kwargs:
            kwargs["activation_fn"] = ACTIVATIONS[kwargs["activation_fn"]]
        kwargs["optimizer_class"] = OPTIMIZERS[kwargs["optimizer_class"]]
        arguments = {**document["hyperparameters"], "policy_kwargs": kwargs, "device": "cpu"}
        check_arguments(KINDS[found].__init__, arguments, f"argument of {found}:")
        if env is None:
            source = document["source"]
            family = make_family(source["env"], **source["env_kwargs"])
            env = FamilyVecEnv(family, family.sample_tasks(stream(source["seed"], "export/env"), 1), n_envs=1)
        require_equal_spaces(env, document)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{sidecar} is damaged: {' '.join(str(error).split())}") from None
    model = _build(found, env, arguments)
    model.set_parameters(io.BytesIO(data), device="cpu")  # type: ignore[arg-type]  # SB3 reads files too
    return model


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    if path.suffix != ".zip":
        path = path.with_name(path.name + ".zip")
    return path, path.with_suffix(".json")
