"""Writing experts: the actor of a policy that sees the task, as :class:`~metarl.envs.imitation.network.NetworkExpert`
reads it.

The policy is that of a run of ``oracle``, or of a stock PPO, A2C or TRPO that learnt in the oracle view, from SB3's
zip: PyTorch's reader for weights opens its tensors, and nothing is unpickled.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize

from metarl.envs.family import Family
from metarl.envs.imitation.demonstrations import Demonstrations, Show
from metarl.envs.imitation.network import ACTIVATIONS, EXPERT, VERSION, Card, NetworkExpert, Normalization
from metarl.envs.views.oracle import Oracle
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.files.checkpoint import save_checkpoint
from metarl.files.untrusted import read_bytes
from metarl.meta.adaptation.stock import StockAdaptation
from metarl.meta.documents import versions
from metarl.meta.export.sidecar import read_tensors
from metarl.meta.model import Model
from metarl.params import STATISTICS, Params

N_TASKS = 40
"""Test tasks on a card."""
N_EPISODES = 5
"""Episodes that the return of each is the mean over."""
_ACTOR = "mlp_extractor.policy_net."


def expert_from_model(model: Model, path: str | Path) -> Card:
    """Write the policy of a run that observes the task.

    :param model: a meta-algorithm in the oracle view, around a learner of ours or a stock PPO, A2C or TRPO.
    :param path: the file.
    :return: its card.
    :raises ConfigError: the model does not observe the task, or is no multi-layer perceptron of ours.
    :raises CheckpointError: the file cannot be written.
    """
    if not isinstance(model.family, Oracle):
        raise ConfigError(
            f"{model.name} on {model.family.id} does not observe the task: an expert is a run of 'oracle'"
        )
    stock = getattr(model, "adaptation", None)
    if model.policy_name != "MlpPolicy" or not (hasattr(model, "policy") or isinstance(stock, StockAdaptation)):
        raise ConfigError(f"the policy of {model.name} is {model.policy_name}, no 'MlpPolicy': no expert is one")
    tensors = {name: tensor.detach() for name, tensor in model.theta.items()}
    normalize = None
    if isinstance(stock, StockAdaptation):
        normalize = _normalization(stock.normalize, tensors)
    else:
        tensors = model.policy.fold(tensors)
    activation = model.policy_kwargs.get("activation_fn", "tanh")
    source = {"algo": model.name, "learner": getattr(model, "learner", None), "seed": model.seed}
    source |= {"num_timesteps": model.num_timesteps, "versions": versions()}
    # The view itself is no argument of the family.
    arguments = dict(model.env_kwargs)
    arguments.pop("oracle", None)
    return write_expert(path, model.family.family, arguments, tensors, activation, normalize=normalize, source=source)


def _normalization(arguments: Mapping[str, Any] | None, theta: Params) -> dict[str, Any] | None:
    """Return how a stock algorithm's ``VecNormalize`` normalises observations; None where it does not.

    :param arguments: of ``VecNormalize``; None where there is none.
    :param theta: parameters and statistics.
    """
    if arguments is None:
        return None
    known = inspect.signature(VecNormalize.__init__).parameters
    norm_obs, epsilon, clip_obs = (
        arguments.get(name, known[name].default) for name in ("norm_obs", "epsilon", "clip_obs")
    )
    if not norm_obs:
        return None
    mean, var = (theta[f"{STATISTICS}obs_{name}"] for name in ("mean", "var"))
    return {"mean": mean, "var": var, "epsilon": epsilon, "clip_obs": clip_obs}


def expert_from_sb3(
    zip_path: str | Path,
    family: Family,
    path: str | Path,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    activation: str = "tanh",
    normalize: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Card:
    """Write the actor of a stock PPO, A2C or TRPO that learnt in the oracle view of a family.

    :param zip_path: what SB3's ``save`` wrote.
    :param family: the family, without the view.
    :param path: the file.
    :param env_kwargs: the arguments of the family, for the card.
    :param activation: the function between layers, which a zip holds as pickle only; SB3's default.
    :param normalize: of a ``VecNormalize`` that it learnt in: its ``mean``, ``var``, ``epsilon`` and ``clip_obs``.
    :param source: what else is worth knowing, for the card.
    :return: its card.
    :raises CheckpointError: the zip is damaged or no such model, or a file cannot be written.
    :raises ConfigError: the network is not that of the family's oracle view.
    """
    tensors, _ = read_tensors(read_bytes(zip_path), str(zip_path))
    return write_expert(
        path, family, env_kwargs or {}, tensors, activation, normalize=normalize, source={**(source or {})}
    )


def write_expert(
    path: str | Path,
    family: Family,
    env_kwargs: Mapping[str, Any],
    policy: Params,
    activation: str,
    *,
    normalize: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Card:
    """Write an expert, once it has acted in test tasks; parameters as of :func:`expert_from_sb3`.

    :param policy: the tensors of an SB3 actor-critic policy, by SB3's names.
    """
    if activation not in ACTIVATIONS:
        raise unknown_name("activation function of an expert:", str(activation), ACTIVATIONS)
    layers = _actor(policy)
    how = None
    if normalize is not None:
        layers |= {f"obs.{name}": torch.as_tensor(normalize[name], dtype=torch.float64) for name in ("mean", "var")}
        how = Normalization(float(normalize["epsilon"]), float(normalize["clip_obs"]))
    tasks = family.tasks("test", N_TASKS)
    listed = {name: value.tolist() for name, value in tasks.items()}
    card = Card(EXPERT, VERSION, family.id, dict(env_kwargs), activation, "test", listed, [], dict(source or {}), how)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "expert.safetensors"
        save_checkpoint(trial, layers, card.document())
        expert = NetworkExpert(trial, family)  # it fits, or says why not
    shown = Demonstrations(family, expert, Show(N_EPISODES, 1, 0.0), None, None).of(tasks)
    returns = np.array([pairs.expert_return for pairs in shown])
    card = Card(**{**vars(card), "returns": returns.tolist()})
    save_checkpoint(path, layers, card.document())
    return card


def _actor(policy: Params) -> Params:
    """Return the linear layers of an actor, by the names of an expert."""
    hidden = sorted({int(name.removeprefix(_ACTOR).split(".")[0]) for name in policy if name.startswith(_ACTOR)})
    places = [f"{_ACTOR}{i}" for i in hidden] + ["action_net"]
    found: Params = {}
    for i, place in enumerate(places):
        for part in ("weight", "bias"):
            if f"{place}.{part}" not in policy:
                raise ConfigError(
                    f"the policy has no {shorten(f'{place}.{part}')}: an expert is a PPO, A2C or TRPO with an MlpPolicy"
                )
            found[f"layers.{i}.{part}"] = policy[f"{place}.{part}"].float()
    return found
