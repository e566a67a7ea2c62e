"""Tiny trainings whose every number is kept: what the golden traces are traces of.

Only what users import is used, so that the traces outlive any rebuilding of the inside. This file, run as a script,
prints a hash of each case's bits, of whichever metarl is on the path; :mod:`tests.golden.bits` compares them.

Sizes are such that rounding stays rounding: networks of 12 units, episodes of 4 to 10 env steps, outer steps with few
and well-conditioned curvature products, optimisers whose steps do not divide by numbers near 0.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3.common.logger import KVWriter, Logger

import metarl
from metarl.envs import Family, Step

N_ITERATIONS = 3
Trace = dict[str, np.ndarray]
"""A case's numbers: ``theta/<name>`` and ``log/<key>``, ``[iteration, …]``, and ``test/returns``, ``[task, step]``."""


class Corridor(Family):
    """Walk left, right or stay, on a line with a hidden door; an episode ends at either end."""

    def __init__(self, horizon: int = 8) -> None:
        self.id = "Corridor-v0"
        self.task_space = Dict({"door": Box(-1.0, 1.0, (), np.float64)})
        self.observation_space, self.action_space = Box(-9.0, 9.0, (2,), np.float32), Discrete(3)
        self.horizon = horizon

    def reset(self, tasks, rngs, n_envs):
        place = np.stack([rng.uniform(-0.5, 0.5, n_envs) for rng in rngs])
        return self._at(place, np.zeros(place.shape))

    def step(self, tasks, state, actions, rngs, active=None):
        state, obs = self._at(state["place"] + 0.4 * (actions - 1.0), state["time"] + 1.0)
        reward = -((state["place"] - tasks["door"][:, None]) ** 2) - 0.1 * (actions == 1)
        return Step(state, obs, reward, np.abs(state["place"]) > 1.3, {"reward_door": reward})

    @staticmethod
    def _at(place, time):
        return {"place": place, "time": time}, np.stack([place, 0.1 * time], axis=-1).astype(np.float32)


FAMILIES: dict[str, dict[str, Any]] = {
    "PointMass-v0": {"env": "PointMass-v0", "env_kwargs": {"horizon": 10}},
    "HalfCheetahVel-v0": {"env": "HalfCheetahVel-v0", "env_kwargs": {"horizon": 6, "lineage": "promp"}},
    "Corridor-v0": {},
}
WRAPPERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fomaml": (metarl.FOMAML, {"n_inner_steps": 1}),
    "maml-1": (metarl.MAML, {"n_inner_steps": 1}),
    "maml-3": (metarl.MAML, {"n_inner_steps": 3}),
    "reptile": (metarl.Reptile, {"n_inner_steps": 2}),
    "leap": (metarl.Leap, {"n_inner_steps": 2}),
    "pretrain": (metarl.Pretrain, {"n_inner_steps": 1}),
    "oracle": (metarl.Oracle, {"n_inner_steps": 1}),
}
LEARNERS: dict[str, dict[str, Any]] = {
    "vpg": {"inner_lr": 0.1, "gae_lambda": 0.97},
    "a2c": {"inner_lr": 0.0007, "learner_kwargs": {"ent_coef": 0.01}},
    "ppo": {"inner_lr": 0.01, "learner_kwargs": {"ent_coef": 0.01, "clip_range": 0.1, "n_epochs": 2, "batch_size": 8}},
    "sb3_ppo": {"inner_lr": 0.01, "learner_kwargs": {"n_epochs": 2, "batch_size": 4, "clip_range": 0.1}},
}
PLAIN_STEPS: dict[str, dict[str, Any]] = {
    "vpg": LEARNERS["vpg"],
    "a2c": {"inner_lr": 0.05, "learner_kwargs": {"ent_coef": 0.01}},
    "ppo": {"inner_lr": 0.05, "learner_kwargs": {"ent_coef": 0.01, "clip_range": 0.1}},
}
"""The learners where MAML differentiates their loss and leaves out their optimiser."""
TRUST_REGION = {"max_kl": 0.02, "cg_steps": 3, "cg_damping": 0.1}
SINGLE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "oracle": ("oracle", "vpg", "PointMass-v0", {"outer_kwargs": {**TRUST_REGION, "cg_damping": 0.5}}),
    "fomaml-vpg-adam": ("fomaml", "vpg", "PointMass-v0", {"outer": "adam", "outer_kwargs": {"learning_rate": 0.05}}),
    "maml-likelihood_ratio": ("maml-1", "vpg", "PointMass-v0", {"surrogate": "likelihood_ratio"}),
    "maml-rates": ("maml-3", "vpg", "PointMass-v0", {"inner_lr": [0.2, 0.1, 0.05], "chunk_size": 1}),
    "maml-fisher": ("maml-1", "vpg", "PointMass-v0", {"fisher_fraction": 0.5, "kl_direction": "new_old"}),
    "reptile-serial": ("reptile", "ppo", "PointMass-v0", {"serial": True, "inner_lr": 0.003}),
    "reptile-exclude": ("reptile", "ppo", "Corridor-v0", {"exclude": ["value_net", "mlp_extractor.value_net"]}),
    "leap-energy": ("leap", "ppo", "PointMass-v0", {"metric": "energy", "stabilizer": False, "drop_last": True}),
    "leap-parameters": ("leap", "ppo", "PointMass-v0", {"loss": False}),
    "leap-sb3_a2c": ("leap", "sb3_a2c", "PointMass-v0", {"inner_lr": 0.01, "learner_kwargs": {"n_steps": 5}}),
}
"""Settings that the product of the tables above leaves out: wrapper, learner, family, arguments."""


def names() -> list[str]:
    """Return the names of all cases."""
    product = [
        f"{wrapper}-{learner}-{family.removesuffix('-v0')}"
        for wrapper in WRAPPERS
        for learner in LEARNERS
        for family in FAMILIES
        if wrapper != "oracle" and (learner != "sb3_ppo" or wrapper in ("fomaml", "reptile", "leap"))
    ]
    return product + list(SINGLE)


def make(name: str) -> Any:
    """Return a case's meta-algorithm."""
    own: dict[str, Any] = {}
    if name in SINGLE:
        wrapper, learner, family, own = SINGLE[name]
    else:
        wrapper, learner, family = name.rsplit("-", 2)
        family += "-v0"
    cls, arguments = WRAPPERS[wrapper]
    network = {"net_arch": [12], "log_std_init": -0.3, "ortho_init": learner == "vpg"}
    sizes = {"meta_batch_size": 3, "n_episodes": 2, "policy_kwargs": network, "n_threads": 1, "seed": 7}
    where = FAMILIES[family] or {"env": Corridor()}
    around = (PLAIN_STEPS if wrapper.startswith("maml") else LEARNERS).get(learner, {})
    return cls(
        "MlpPolicy", **{**sizes, **where, **arguments, **around, **_outer(wrapper, learner), **own}, learner=learner
    )


def _outer(wrapper: str, learner: str) -> dict[str, Any]:
    if wrapper == "reptile":
        return {"outer": "sgd", "outer_kwargs": {"learning_rate": 1.0, "final_learning_rate": 0.5}}
    if wrapper == "leap":
        return {"outer": "sgd", "outer_kwargs": {"learning_rate": 0.02, "max_grad_norm": 5.0}}
    if learner == "vpg":
        return {"outer": "trpo", "outer_kwargs": TRUST_REGION, "fisher_fraction": 1.0}
    if learner == "a2c":
        return {"outer": "sgd", "outer_kwargs": {"learning_rate": 0.1, "max_grad_norm": 1.0}}
    return {"outer": "adam", "outer_kwargs": {"learning_rate": 0.02, "eps": 1e-2}}


class Rows(KVWriter):
    """A logger's output that keeps every row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, key_values, key_excluded, step=0):
        del key_excluded
        self.rows.append({**key_values, "step": step})

    def close(self):
        pass


def run(name: str) -> Trace:
    """Return a case's trace: three meta-iterations, then what adaptation to two held-out tasks returns."""
    model, rows, thetas = make(name), Rows(), []
    model.set_logger(Logger(None, [rows]))

    def after(local, _):
        thetas.append({key: tensor.clone() for key, tensor in model.params.items()})
        return len(thetas) < N_ITERATIONS

    model.learn(N_ITERATIONS * model.steps_per_iteration, callback=after)
    logged = sorted({key for row in rows.rows for key in row if _repeats(key)})
    report = model.evaluate("test", n_inner_steps=2, n_tasks=2)
    return {
        **{f"theta/{key}": torch.stack([theta[key] for theta in thetas]).numpy() for key in thetas[0]},
        **{f"log/{key}": np.array([float(row.get(key, np.nan)) for row in rows.rows]) for key in logged},
        "test/returns": report.returns[0],
    }


def _repeats(key: str) -> bool:
    """Whether a logged number is the same in every run: those of the clock are not."""
    return not key.startswith("time/") or key in ("time/iterations", "time/total_timesteps")


def digest(trace: Trace) -> dict[str, Any]:
    """Return what is stored of a trace: of larger tensors the norm, a weighted sum and five entries.

    :return: lists of numbers; of tensors and logged numbers, one entry for each meta-iteration.
    """
    return {
        key: [_digest(each) for each in values] if key.startswith("theta/") else values.tolist()
        for key, values in trace.items()
    }


def _digest(tensor: np.ndarray) -> list[float]:
    flat = tensor.astype(np.float64).ravel()
    if flat.size <= 7:
        return flat.tolist()
    entries = flat[np.linspace(0, flat.size - 1, 5).astype(int)]
    return [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(flat.size))), *entries.tolist()]


def bits(trace: Trace) -> str:
    """Return the SHA-256 of all bits of a trace."""
    found = hashlib.sha256()
    for key in sorted(trace):
        found.update(f"{key}\n".encode())
        found.update(trace[key].tobytes())
    return found.hexdigest()


def traces() -> Iterator[tuple[str, Trace]]:
    """Yield every case's name and trace."""
    for name in names():
        yield name, run(name)


def versions() -> dict[str, str]:
    """Return what the numbers were computed with."""
    return {
        "metarl": metarl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: bits(trace) for name, trace in traces()}, indent=1))
