"""One Stable-Baselines3 algorithm that starts over at every task without being rebuilt.

Nothing of SB3 is changed: an algorithm is put back to where its constructor left it, loaded with an initialisation,
seeded, and left to its own ``learn()``. How it is watched meanwhile: :mod:`metarl.agents.stock.path`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from metarl.agents.generators import drawing_from, sb3_alone, sb3_generators
from metarl.agents.learners.watching import Watcher
from metarl.agents.parallel import library_torch
from metarl.agents.stock.path import FlatStorage, Path, held
from metarl.envs.family import Family, scored_in
from metarl.envs.tasks import Task, Tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, DivergedError, NonFiniteError, shorten
from metarl.params import Params

STATISTICS = "statistics/"
"""Begins the names of what is carried with an initialisation, but is moved by no optimiser."""
_TARGET = "_target"
"""Ends the names that SB3 gives to target networks; what comes before it is the name of the online network."""
_BUFFERS = f"{STATISTICS}policy/"
_MOMENTS = ("mean", "var", "count")


# ---------------------------------------------------------------------------------------------- what an algorithm holds
def named_parameters(algorithm: BaseAlgorithm) -> Params:
    """Return the live tensors that an algorithm learns: its policy's without target networks, and ``log_ent_coef``."""
    result: Params = {n: p for n, p in algorithm.policy.named_parameters() if not _of_target(n)}
    known = {id(parameter) for parameter in algorithm.policy.parameters()}
    others = {id(p) for optimizer in find_optimizers(algorithm) for p in held(optimizer)} - known
    result.update({name: value for name, value in vars(algorithm).items() if id(value) in others})
    return result


def find_optimizers(algorithm: BaseAlgorithm) -> list[torch.optim.Optimizer]:
    """Return the optimisers that an algorithm, its policy and the policy's networks have."""
    owners = [algorithm, *algorithm.policy.modules()]
    found = [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.optim.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def read_initialisation(algorithm: BaseAlgorithm) -> Params:
    """Return copies of the parameters and of the statistics that an algorithm holds."""
    result = {name: tensor.detach().clone() for name, tensor in named_parameters(algorithm).items()}
    for name, tensor in _named_buffers(algorithm).items():
        result[f"{_BUFFERS}{name}"] = tensor.detach().clone()
    for name, moments in _named_moments(algorithm).items():
        for field in _MOMENTS:
            result[f"{name}_{field}"] = torch.tensor(np.asarray(getattr(moments, field), dtype=np.float64))
    return result


def name_initialisation(algorithm: BaseAlgorithm, policy: Params, variables: Params) -> Params:
    """Return what SB3 saves of an algorithm as :func:`read_initialisation` names it.

    :param policy: the policy's ``state_dict()``; target networks are left out.
    :param variables: tensors that belong to no module; those that are not learnt are hyperparameters, and left out.
    """
    buffers = {name for name, _ in algorithm.policy.named_buffers()}
    result = {n: tensor for n, tensor in variables.items() if n in named_parameters(algorithm)}
    for name, tensor in policy.items():
        if not _of_target(name):
            result[f"{_BUFFERS}{name}" if name in buffers else name] = tensor
    return result


def require_equal_shapes(params: Params, wanted: Params, kind: str) -> None:
    """Raise :class:`ConfigError` unless tensors have the names and shapes of those that an algorithm holds.

    :param wanted: what :func:`read_initialisation` returns.
    :param kind: the algorithm, for the error message.
    """
    shapes, expected = ({n: list(tensor.shape) for n, tensor in each.items()} for each in (params, wanted))
    if shapes != expected:
        wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[0]
        given, takes = shapes.get(wrong, "missing"), expected.get(wrong, "no tensor of that name")
        raise ConfigError(f"tensor {shorten(wrong)} is {given}: this {kind} takes {takes}")


def load_initialisation(algorithm: BaseAlgorithm, params: Params) -> None:
    """Copy parameters and statistics into any SB3 algorithm; target networks become copies of the online ones.

    :raises ConfigError: a tensor that is missing, unknown or of another shape.
    """
    require_equal_shapes(params, read_initialisation(algorithm), type(algorithm).__name__)
    with torch.no_grad():
        for name, tensor in named_parameters(algorithm).items():
            tensor.copy_(params[name])
        for name, tensor in _named_buffers(algorithm).items():
            tensor.copy_(params[f"{_BUFFERS}{name}"])
    for name, moments in _named_moments(algorithm).items():
        mean, var, count = (params[f"{name}_{field}"] for field in _MOMENTS)
        moments.mean, moments.var, moments.count = mean.numpy().copy(), var.numpy().copy(), float(count)
    for name, module in algorithm.policy.named_children():
        if name.endswith(_TARGET):
            module.load_state_dict(getattr(algorithm.policy, name.removesuffix(_TARGET)).state_dict())


def read_optimizers(algorithm: BaseAlgorithm) -> Params:
    """Return copies of what an algorithm's optimisers remember, as named tensors; none before their first step."""
    names, found = {id(tensor): name for name, tensor in named_parameters(algorithm).items()}, {}
    for number, optimizer in enumerate(find_optimizers(algorithm)):
        for tensor, own in optimizer.state.items():
            for key, value in own.items():
                found[f"{number}/{names[id(tensor)]}/{key}"] = torch.as_tensor(value).detach().clone()
    return found


def load_optimizers(algorithm: BaseAlgorithm, state: Params) -> None:
    """Let an algorithm's optimisers, which have taken no step, go on from what :func:`read_optimizers` returned.

    :raises ConfigError: the state of others.
    """
    optimizers, tensors = find_optimizers(algorithm), named_parameters(algorithm)
    for name, value in state.items():
        number, _, rest = name.partition("/")
        owner, _, key = rest.rpartition("/")
        if owner not in tensors or not number.isdecimal() or int(number) >= len(optimizers):
            raise ConfigError(f"{shorten(name)} is no state of this {type(algorithm).__name__}'s optimisers")
        if value.ndim and value.shape != tensors[owner].shape:
            raise ConfigError(f"{shorten(name)} of an optimiser has shape {list(value.shape)}")
        optimizers[int(number)].state[tensors[owner]][key] = value.clone()


def _named_buffers(algorithm: BaseAlgorithm) -> Params:
    return {name: tensor for name, tensor in algorithm.policy.named_buffers() if not _of_target(name)}


def _named_moments(algorithm: BaseAlgorithm) -> dict[str, RunningMeanStd]:
    normalize = algorithm.get_vec_normalize_env()
    if normalize is None:
        return {}
    result: dict[str, RunningMeanStd] = {f"{STATISTICS}return": normalize.ret_rms}
    if normalize.norm_obs:
        result[f"{STATISTICS}obs"] = normalize.obs_rms  # type: ignore[assignment]  # a dict for Dict observations only
    return result


def _of_target(name: str) -> bool:
    return name.split(".")[0].endswith(_TARGET)


@contextmanager
def require_finite(algorithm: BaseAlgorithm, where: str) -> Iterator[None]:
    """Raise :class:`DivergedError`, in one line, if learning in this context diverges.

    Actions, rewards and observations that come of parameters that are not finite are not what went wrong first: their
    errors give way.

    :param where: ends the message.
    """
    kind = type(algorithm).__name__

    def check(cause: Exception | None) -> None:
        for name, tensor in named_parameters(algorithm).items():
            if not bool(torch.isfinite(tensor).all()):
                raise DivergedError(f"{kind} reached a {name!r} that is not finite, {where}") from cause

    try:
        yield
    except (ValueError, NonFiniteError) as error:
        check(error)
        words = str(error).split()
        if words[:2] == ["Expected", "parameter"]:
            # PyTorch's distributions: finite parameters may be so large that a mean is infinite, or a scale 0.
            message = f"{kind} reached a distribution of actions whose {words[2]} is not valid, {where}"
            raise DivergedError(message) from error
        raise
    check(None)


def merge_statistics(start: Params, reached: Sequence[Params]) -> Params:
    """Return the statistics of an initialisation after several tasks were learnt from it.

    Those of ``VecNormalize`` become those of everything seen so far: by the initialisation, and then by each task.
    Buffers of normalisation layers are averaged over the tasks, and their step counters are the largest.

    :param start: what the tasks started with.
    :param reached: what each of them ended with.
    :return: the entries whose names begin with ``statistics/``; empty where there are none.
    """
    result = {name: tensor for name, tensor in start.items() if name.startswith(STATISTICS)}
    if not reached:
        return result
    for name, tensor in result.items():
        if name.startswith(_BUFFERS):
            stack = torch.stack([params[name] for params in reached])
            result[name] = stack.mean(0) if tensor.is_floating_point() else stack.amax(0)
    # Where tasks observe otherwise, moments of observations are each task's own, but for their count.
    for name in [f"{STATISTICS}{what}" for what in ("obs", "return") if f"{STATISTICS}{what}_mean" in start]:
        before, pooled = _moments_of(start, name), _moments_of(start, name)
        for params in reached:
            after = _moments_of(params, name)
            n = after.count - before.count
            if n > 0:
                mean = (after.mean * after.count - before.mean * before.count) / n
                between = np.square(mean - before.mean) * before.count * n / after.count
                var = np.maximum(after.var * after.count - before.var * before.count - between, 0.0) / n
                pooled.update_from_moments(mean, var, n)
        for field in _MOMENTS:
            result[f"{name}_{field}"] = torch.tensor(np.asarray(getattr(pooled, field), dtype=np.float64))
    return result


def _moments_of(params: Params, name: str) -> RunningMeanStd:
    moments = RunningMeanStd()
    mean, var, count = (params[f"{name}_{field}"] for field in _MOMENTS)
    moments.mean, moments.var, moments.count = mean.numpy(), var.numpy(), float(count)
    return moments


# -------------------------------------------------------------------------------------------------------- constructing
def construct(
    cls: type[BaseAlgorithm], policy: str, env: GymEnv, *, init_seed: int, seed: int | None, **kwargs: Any
) -> BaseAlgorithm:
    """Return ``cls(policy, env, seed=seed, **kwargs)`` without a look at the global generators.

    The tensors are those of the algorithm that SB3 makes right after ``set_random_seed(init_seed)``, and their last
    bits do not depend on the number of threads.

    :param init_seed: of the tensors.
    :param seed: of the environment, of the actions that SB3 draws from the action space, and of the attribute; None
        leaves them alone.
    """
    with library_torch(), drawing_from(init_seed):
        algorithm = cls(policy, env, seed=None, **kwargs)
    if seed is not None:
        # What SB3's set_random_seed() does beside the global generators.
        algorithm.seed = seed
        algorithm.action_space.seed(seed)
        assert algorithm.env is not None
        algorithm.env.seed(seed)
    return algorithm


# ------------------------------------------------------------------------------------------------------ starting over
class ReusableSB3:
    """An SB3 algorithm on copies of one task of a family, or of several, which starts over at every task or batch.

    :param family: the family.
    :param build: makes the algorithm on an environment.
    :param n_envs: copies of each task.
    :param tasks: as many as are learnt together, whose spaces are those of all that are learnt.
    """

    def __init__(self, family: Family, build: Callable[[VecEnv], BaseAlgorithm], n_envs: int, tasks: Tasks) -> None:
        self.family = family
        self._env = FamilyVecEnv(family, tasks, n_envs, seed=0)
        self._n_envs = n_envs
        # SB3 draws random actions from the space itself: the family's own must not be moved by that.
        self._env.action_space = copy.deepcopy(self._env.action_space)
        self.algorithm = build(self._env)
        self.parameters = named_parameters(self.algorithm)
        self._storage = FlatStorage(self.parameters)
        self._optimizers = find_optimizers(self.algorithm)
        plain = (int, float, str, type(None))
        self._attributes = {name: value for name, value in vars(self.algorithm).items() if isinstance(value, plain)}

    def start(self, params: Params, tasks: Sequence[Task], seed: int) -> None:
        """Put everything back to the beginning of learning ``tasks`` from ``params``.

        What is left is what an algorithm would be that was just built, loaded and seeded by ``set_random_seed(seed)``.
        """
        for index, task in enumerate(tasks):
            copies = range(index * self._n_envs, (index + 1) * self._n_envs)
            self._env.env_method("set_task", task, indices=copies)
        algorithm = self.algorithm
        load_initialisation(algorithm, params)
        vars(algorithm).update(self._attributes)
        for optimizer in self._optimizers:
            # Learning rates need no care: SB3 sets them, by their schedule, in each train().
            optimizer.state.clear()
        if isinstance(algorithm, OffPolicyAlgorithm):
            assert algorithm.replay_buffer is not None
            algorithm.replay_buffer.reset()
        # SB3 would make a temporary folder for every learn().
        algorithm.set_logger(Logger(folder=None, output_formats=[]))
        with sb3_alone():  # the caller is, until learning is over
            algorithm.set_random_seed(seed)

    def learn(self, n_timesteps: int, callback: BaseCallback, watcher: Watcher | None = None) -> None:
        """Call the algorithm's own ``learn()``.

        :param callback: comes after the watcher has seen where the parameters are.
        :raises DivergedError: parameters that are not finite.
        :raises NonFiniteError: an observation or a reward of the family that is not.
        """
        callbacks = [callback]
        task = {name: np.asarray(value).tolist() for name, value in self._env.get_attr("task")[0].items()}
        many = self._env.num_envs > self._n_envs
        where = f"on {self._env.num_envs // self._n_envs} tasks together" if many else f"on the task {task}"
        with require_finite(self.algorithm, where), ExitStack() as stack:
            if watcher is not None:
                path = stack.enter_context(Path(self._storage, self._optimizers, watcher))
                callbacks.insert(0, _Moves(path))
            self.algorithm.learn(n_timesteps, callback=callbacks, log_interval=None)  # type: ignore[arg-type]

    def evaluate(self, task: Task, seed: int, n_episodes: int, deterministic: bool) -> tuple[float, float]:
        """Return the mean undiscounted return and length of fresh episodes, in copies of the task apart from those
        learnt on; of the evaluation or the query family, where there is one.

        :param deterministic: take the most likely actions. A policy with gSDE always does: its noise belongs to
            learning.
        """
        tasks = {name: np.asarray(v)[None] for name, v in task.items()}
        env = FamilyVecEnv(scored_in(self.family), tasks, n_episodes, seed)
        normalize = self.algorithm.get_vec_normalize_env()
        episodes: dict[int, tuple[float, int]] = {}
        with sb3_generators():
            torch.manual_seed(seed)
            obs: Any = env.reset()
            while len(episodes) < n_episodes:
                seen = obs if normalize is None else normalize.normalize_obs(obs)
                actions, _ = self.algorithm.policy.predict(seen, deterministic=deterministic or self.algorithm.use_sde)
                obs, _, dones, infos = env.step(actions)
                for index in np.flatnonzero(dones).tolist():
                    episode = infos[index]["episode"]
                    episodes.setdefault(index, (episode["r"], episode["l"]))
        mean_return, mean_length = np.mean([episodes[index] for index in range(n_episodes)], axis=0)
        return float(mean_return), float(mean_length)


class _Moves(BaseCallback):
    """Looks, after each ``train()``, for moves that no optimiser made."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _on_rollout_start(self) -> None:
        self._path.moved()

    def _on_training_end(self) -> None:
        self._path.moved()

    def _on_step(self) -> bool:
        return True
