"""One Stable-Baselines3 algorithm that starts over at every task without being rebuilt, and the path it takes.

Nothing of SB3 is changed: an algorithm is put back to where its constructor left it, loaded with an initialisation,
seeded, and left to its own ``learn()``. Watching hangs on PyTorch's optimiser hooks and on an SB3 callback, reads
parameters and gradients and writes nothing, so it cannot change what is learnt.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from metarl.agents.learner import Watcher
from metarl.agents.policy import Params
from metarl.envs.family import Family, Task
from metarl.envs.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, NonFiniteError
from metarl.streams import stream

STATISTICS = "statistics/"
"""Begins the names of what is carried with an initialisation, but is moved by no optimiser."""
_TARGET = "_target"
"""Ends the names that SB3 gives to target networks; what comes before it is the name of the online network."""
_MOMENTS = ("mean", "var", "count")


@contextmanager
def sb3_generators() -> Iterator[None]:
    """Put the global generators of Python, NumPy and PyTorch, which SB3 draws from, back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (SB3 draws minibatches from it)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class ReusableSB3:
    """An SB3 algorithm on copies of one task of a family.

    :param family: the family.
    :param build: makes the algorithm on an environment.
    :param n_envs: copies of the task.
    :param normalize: arguments of ``VecNormalize``; None: nothing is normalised.
    """

    def __init__(
        self,
        family: Family,
        build: Callable[[VecEnv], BaseAlgorithm],
        n_envs: int,
        normalize: Mapping[str, Any] | None,
    ) -> None:
        self.family = family
        self._view = FamilyVecEnv(family, family.sample_tasks(stream(0, "sb3/env"), 1), n_envs, seed=0)
        # SB3 draws random actions from the space itself: the family's own must not be moved by that.
        self._view.action_space = copy.deepcopy(self._view.action_space)
        self.algorithm = build(self._view if normalize is None else VecNormalize(self._view, **normalize))
        self._fresh = {k: v for k, v in vars(self.algorithm).items() if isinstance(v, (int, float, str, type(None)))}
        self.optimizers = _optimizers(self.algorithm)
        self._groups = [
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        policy = self.algorithm.policy
        self.parameters: Params = {n: p for n, p in policy.named_parameters() if not _of_target(n)}
        held = {id(p) for optimizer in self.optimizers for p in _held(optimizer)} - {id(p) for p in policy.parameters()}
        self.parameters.update({n: p for n, p in vars(self.algorithm).items() if id(p) in held})
        self._buffers: Params = {n: b for n, b in policy.named_buffers() if not _of_target(n)}

    # ---------------------------------------------------------------------------------------------- carrying, resetting
    def read(self) -> Params:
        """Return copies of the parameters and of the statistics."""
        result = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        for name, tensor in self._buffers.items():
            result[f"{STATISTICS}policy/{name}"] = tensor.detach().clone()
        for name, moments in self._moments().items():
            for field in _MOMENTS:
                value = torch.tensor(np.asarray(getattr(moments, field), dtype=np.float64))
                result[f"{STATISTICS}{name}_{field}"] = value
        return result

    def start(self, params: Params, task: Task, seed: int) -> None:
        """Put everything but the environments' episodes back to the beginning of learning ``task`` at ``params``.

        What is left is as in an algorithm that was just built, loaded and seeded by ``set_random_seed(seed)``.
        """
        self._view.env_method("set_task", task)
        self.load(params)
        algorithm = self.algorithm
        vars(algorithm).update(self._fresh)
        for optimizer, groups in zip(self.optimizers, self._groups, strict=True):
            optimizer.state.clear()
            for group, fresh in zip(optimizer.param_groups, groups, strict=True):
                group.update(fresh)
        if isinstance(algorithm, OffPolicyAlgorithm):
            assert algorithm.replay_buffer is not None
            algorithm.replay_buffer.reset()
        # SB3 would make a temporary folder for every learn().
        algorithm.set_logger(Logger(folder=None, output_formats=[]))
        algorithm.set_random_seed(seed)

    def load(self, params: Params) -> None:
        """Copy parameters and statistics into the algorithm; target networks become copies of the online ones.

        :raises ConfigError: a tensor that is missing, unknown or of another shape.
        """
        shapes = {name: list(tensor.shape) for name, tensor in params.items()}
        expected = {name: list(tensor.shape) for name, tensor in self.read().items()}
        if shapes != expected:
            wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[0]
            raise ConfigError(
                f"tensor {wrong!r} has shape {shapes.get(wrong, 'missing')}, "
                f"{type(self.algorithm).__name__} takes {expected.get(wrong, 'none of that name')}"
            )
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(params[name])
            for name, tensor in self._buffers.items():
                tensor.copy_(params[f"{STATISTICS}policy/{name}"])
        for name, moments in self._moments().items():
            mean, var, count = (params[f"{STATISTICS}{name}_{field}"] for field in _MOMENTS)
            moments.mean, moments.var, moments.count = mean.numpy().copy(), var.numpy().copy(), float(count)
        policy = self.algorithm.policy
        for name, module in policy.named_children():
            if name.endswith(_TARGET):
                module.load_state_dict(getattr(policy, name.removesuffix(_TARGET)).state_dict())

    def _moments(self) -> dict[str, RunningMeanStd]:
        normalize = self.algorithm.get_vec_normalize_env()
        if normalize is None:
            return {}
        result: dict[str, RunningMeanStd] = {"return": normalize.ret_rms}
        if normalize.norm_obs:
            result["obs"] = normalize.obs_rms  # type: ignore[assignment]  # a dict for Dict observations only
        return result

    # ---------------------------------------------------------------------------------------------------------- running
    def learn(self, n_timesteps: int, callback: BaseCallback, watcher: Watcher | None = None) -> None:
        """Call the algorithm's own ``learn()``, watched.

        :raises NonFiniteError: parameters that are not finite.
        """
        path = None if watcher is None else Path(self.parameters, self.optimizers, watcher)
        callbacks = [callback] if path is None else [_Moves(path), callback]
        try:
            if path is None:
                self.algorithm.learn(n_timesteps, callback=callbacks, log_interval=None)  # type: ignore[arg-type]
            else:
                with path:
                    self.algorithm.learn(n_timesteps, callback=callbacks, log_interval=None)  # type: ignore[arg-type]
        except ValueError as error:
            # What PyTorch's distributions say of parameters that are NaN.
            self._require_finite(error)
            raise
        self._require_finite(None)

    def _require_finite(self, cause: Exception | None) -> None:
        for name, tensor in self.parameters.items():
            if not bool(torch.isfinite(tensor).all()):
                task = {k: np.asarray(v).tolist() for k, v in self._view.get_attr("task")[0].items()}
                algorithm = type(self.algorithm).__name__
                raise NonFiniteError(f"{algorithm} reached {name!r} that is not finite on task {task}") from cause

    def evaluate(self, task: Task, seed: int, n_episodes: int, deterministic: bool) -> float:
        """Return the mean undiscounted return of fresh episodes, of copies of the task apart from those learnt on.

        :param deterministic: take the most likely action; a policy with gSDE always does, since its noise belongs to
            learning.
        """
        env = FamilyVecEnv(self.family, {name: np.asarray(v)[None] for name, v in task.items()}, n_episodes, seed)
        normalize = self.algorithm.get_vec_normalize_env()
        deterministic = deterministic or self.algorithm.use_sde
        returns: dict[int, float] = {}
        with sb3_generators():
            torch.manual_seed(seed)
            obs: Any = env.reset()
            while len(returns) < n_episodes:
                seen = obs if normalize is None else normalize.normalize_obs(obs)
                actions, _ = self.algorithm.policy.predict(seen, deterministic=deterministic)
                obs, _, dones, infos = env.step(actions)
                for copy_ in np.flatnonzero(dones).tolist():
                    returns.setdefault(copy_, infos[copy_]["episode"]["r"])
        return float(np.mean([returns[copy_] for copy_ in range(n_episodes)]))


def _of_target(name: str) -> bool:
    return name.split(".")[0].endswith(_TARGET)


def _optimizers(algorithm: BaseAlgorithm) -> list[torch.optim.Optimizer]:
    """Return the optimisers that an algorithm, its policy and the policy's networks hold."""
    owners = [algorithm, *algorithm.policy.modules()]
    found = [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.optim.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def _held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def merge_statistics(start: Params, reached: Sequence[Params]) -> Params:
    """Return the statistics of an initialisation after several tasks were learnt from it.

    Those of ``VecNormalize`` become those of everything seen so far: by the initialisation, and then by each task.
    Buffers of normalisation layers are averaged over the tasks, and their step counters are the largest.

    :param start: what the tasks started with.
    :param reached: what each task ended with.
    :return: the entries whose names begin with ``statistics/``.
    """
    result = {name: tensor for name, tensor in start.items() if name.startswith(STATISTICS)}
    if not reached:
        return result
    for name, tensor in result.items():
        if name.startswith(f"{STATISTICS}policy/"):
            stack = torch.stack([params[name] for params in reached])
            result[name] = stack.mean(0) if tensor.is_floating_point() else stack.amax(0)
    for name in [name.removesuffix("_count") for name in result if name.endswith("_count")]:
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


# ------------------------------------------------------------------------------------------------------------- the path
class _Point:
    """Named tensors with a task axis of length 1, as views of one vector."""

    def __init__(self, parameters: Params) -> None:
        self.vector = torch.zeros(sum(tensor.numel() for tensor in parameters.values()))
        parts = torch.split(self.vector, [tensor.numel() for tensor in parameters.values()])
        shapes = [(1, *tensor.shape) for tensor in parameters.values()]
        self.tensors = {n: part.view(s) for n, part, s in zip(parameters, parts, shapes, strict=True)}


class Path:
    """Tells a watcher every step of every optimiser, and every other move of the parameters, as its own segment.

    A context: hooks are on the optimisers while it is open. Memory does not grow with the path.

    :param parameters: whose path it is, by name.
    :param optimizers: what moves them.
    :param watcher: is told; its tensors are used again for the next segment.
    """

    def __init__(self, parameters: Params, optimizers: Sequence[torch.optim.Optimizer], watcher: Watcher) -> None:
        self._parameters = parameters
        self._watcher = watcher
        self._optimizers = optimizers
        self._last, self._next = _Point(parameters), _Point(parameters)
        self._gradients = [_Point(parameters) for _ in optimizers]
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._names = [[names[id(parameter)] for parameter in _held(optimizer)] for optimizer in optimizers]
        self._handles: list[Any] = []

    def __enter__(self) -> Path:
        self._read()
        self._last, self._next = self._next, self._last
        for index, optimizer in enumerate(self._optimizers):
            self._handles.append(optimizer.register_step_pre_hook(lambda *_, index=index: self._before(index)))
            self._handles.append(optimizer.register_step_post_hook(lambda *_, index=index: self._after(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def moved(self) -> None:
        """Report a segment without a gradient if the parameters are not where they were last seen."""
        self._read()
        if not torch.equal(self._next.vector, self._last.vector):
            self._report(None)

    def _before(self, index: int) -> None:
        self.moved()
        # Read here: an optimiser may work on its gradients in place.
        tensors = self._gradients[index].tensors
        for name in self._names[index]:
            gradient = self._parameters[name].grad
            if gradient is None:
                tensors[name].zero_()
            else:
                tensors[name].copy_(gradient)

    def _after(self, index: int) -> None:
        self._read()
        self._report(self._gradients[index].tensors)

    def _read(self) -> None:
        for name, tensor in self._next.tensors.items():
            tensor.copy_(self._parameters[name].detach())

    def _report(self, gradient: Params | None) -> None:
        self._watcher.segment(self._last.tensors, self._next.tensors, gradient, None)
        self._last, self._next = self._next, self._last


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
