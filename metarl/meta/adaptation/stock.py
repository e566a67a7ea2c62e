"""The inner loop around a stock SB3 algorithm: one task after another, each with one call of ``learn()``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents.generators import drawing_from, sb3_generators
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.one_env import finite_array, finite_reward
from metarl.agents.stock.entries import PREFIX
from metarl.agents.stock.learner import ALGORITHMS, SB3Learner, learning_seed
from metarl.agents.stock.reuse import (
    load_initialisation,
    merge_statistics,
    read_initialisation,
    require_finite,
)
from metarl.envs.family import Family, draw_tasks
from metarl.envs.tasks import Tasks, one_task
from metarl.envs.tasks import n_tasks as count_tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptation.adapted import AdaptedPolicy, as_observation, predictions
from metarl.meta.adaptation.batched import Amount, Learnt, PathWatcher, Streams
from metarl.meta.progress import Progress, Timer
from metarl.params import Params
from metarl.streams import seed_sequence, stream


class AdaptedSB3(AdaptedPolicy):
    """A stock algorithm with the parameters that adaptation reached.

    :param algorithm: the algorithm; it can go on learning.
    :param params: parameters and statistics.
    :param env_steps: env steps that adaptation took.
    :param returns: undiscounted returns of the episodes that ended in it.
    :param seed: of the actions that :meth:`predict` draws; None takes fresh entropy.
    """

    def __init__(
        self,
        algorithm: BaseAlgorithm,
        params: Params,
        env_steps: int = 0,
        returns: Sequence[float] = (),
        seed: int | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.params = params
        self.env_steps = env_steps
        self.returns = list(returns)
        self._predictions = predictions(seed)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions without the algorithm's exploration; see ``AdaptedPolicy.predict``.

        Observations are normalised where learning normalises them.
        """
        normalize = self.algorithm.get_vec_normalize_env()
        array = as_observation(observation)
        shape = self.algorithm.observation_space.shape
        if shape not in (array.shape, array.shape[1:]):
            raise ConfigError(f"observation has shape {array.shape}: the policy takes {shape} or [n, *{shape}]")
        seen: Any = array if normalize is None else normalize.normalize_obs(array)
        seed = int((rng or self._predictions).integers(2**31))
        with library_torch(), drawing_from(seed):
            return self.algorithm.policy.predict(seen, state, episode_start, deterministic)


class SB3Loop:
    """The inner loop around a stock algorithm of SB3 or sb3-contrib.

    The inner steps of a task are one ``learn()``, of as many env steps as their batches have. Returns after each inner
    step are those of the episodes that ended in its part of learning; evaluations take fresh episodes instead.

    :param name: the learner's name, such as ``"sb3_sac"``.
    :param family: tasks of equal spaces.
    :param policy: one of the algorithm's policies.
    :param rates: the learning rate, once for each inner step.
    :param options: arguments of :class:`~metarl.agents.stock.learner.SB3Learner`.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        policy: str,
        policy_kwargs: Mapping[str, Any],
        rates: Sequence[float],
        options: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.family = family
        self.algorithm = name.removeprefix(PREFIX)
        """Its name without what says that it is stock."""
        self._arguments = {"policy": policy, "policy_kwargs": policy_kwargs, **options}
        self._learners: dict[float, SB3Learner] = {}
        self.learner = self._at(*rates)
        """Learns in training."""
        self._shown: tuple[Params, AdaptedSB3] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shown": None}

    def init(self, seed: int) -> Params:
        """Return a fresh initialisation, with fresh statistics."""
        return self.learner.init(seed)

    def option(self, name: str) -> Any:
        """Return the value of one of the algorithm's arguments; None where it has no such argument."""
        known = inspect.signature(ALGORITHMS[self.algorithm].__init__).parameters
        return self._arguments.get(name, known[name].default) if name in known else None

    def policy_at(self, theta: Params) -> AdaptedSB3:
        """Return the policy with the parameters ``theta``."""
        if self._shown is None or any(tensor is not self._shown[0].get(name) for name, tensor in theta.items()):
            tasks = draw_tasks(self.family, stream(0, "sb3/env"), 1)
            algorithm = self.learner.build(FamilyVecEnv(self.family, tasks, self.learner.n_envs))
            load_initialisation(algorithm, theta)
            self._shown = (theta, AdaptedSB3(algorithm, theta))
        return self._shown[1]

    def learn(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        timer: Timer,
        *,
        query: bool = False,
        keep: bool = False,
        watcher: PathWatcher | None = None,
    ) -> Learnt:
        """Learn every task from ``theta``.

        :param query: take the gradient of the algorithm's losses on a fresh rollout at the parameters reached.
        :param keep: without effect: the batches are the algorithm's own.
        :param watcher: is told every segment.
        """
        n, size = count_tasks(tasks), self._size(amount)
        seeds, query_seeds = streams.tasks(n), streams.tasks(n, part="/query")
        reached: list[Params] = []
        rows: list[_Row] = []
        gradients: list[Params] = []
        for i in range(n):
            task, phi, row = one_task(tasks, i), theta, _Row()
            if rates:
                with timer("inner"):
                    run = self._at(*rates).run(theta, task, seeds[i], len(rates) * size, watcher=watcher)
                if watcher is not None:
                    watcher.close()
                phi = run.params
                row.add(run.episode_returns, run.env_steps, len(rates))
            if query:
                with timer("outer"):
                    result = self.learner.query_gradient(phi, task, query_seeds[i], size)
                row.add(result.episode_returns, result.env_steps, 1)
                gradients.append(result.gradient)
            reached.append(phi)
            rows.append(row)
        return Learnt(
            self._stack(reached),
            np.array([row.returns for row in rows]),
            np.array([row.env_steps for row in rows]),
            np.array([row.n_episodes for row in rows]),
            gradient=_mean(gradients) if query else None,
            statistics=merge_statistics(theta, reached),
        )

    def evaluate(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        progress: Progress | None = None,
    ) -> Learnt:
        """Learn every task from ``theta``; the return after k inner steps is that of fresh episodes.

        :param progress: called with (tasks done, tasks in all).
        """
        n, size = count_tasks(tasks), self._size(amount)
        n_episodes = amount["n_episodes"] or -(-size // self.family.horizon)
        learner, seeds = self._at(*rates), streams.tasks(n)
        reached: list[Params] = []
        returns: list[list[float]] = []
        env_steps: list[list[int]] = []
        lengths: list[list[float]] = []
        for i in range(n):
            task = one_task(tasks, i)
            if rates:
                run = learner.run(
                    theta, task, seeds[i], len(rates) * size, n_evaluations=len(rates), n_eval_episodes=n_episodes
                )
                reached.append(run.params)
                returns.append(run.eval_returns)
                env_steps.append(np.diff([*run.eval_env_steps, run.env_steps]).tolist())
                lengths.append(run.eval_lengths)
            else:
                mean_return, mean_length = learner.evaluate(theta, task, seeds[i], n_episodes)
                reached.append(theta)
                returns.append([mean_return])
                env_steps.append([0])
                lengths.append([mean_length])
            if progress is not None:
                progress(i + 1, n)
        return Learnt(
            self._stack(reached),
            np.array(returns),
            np.array(env_steps),
            np.full((n, len(rates) + 1), n_episodes),
            eval_lengths=np.array(lengths),
        )

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[float], seed: int, amount: Amount
    ) -> AdaptedSB3:
        """Learn one environment, whose task need not be known, from ``theta``.

        There is one copy of it, so a rollout takes as many env steps as all copies have in training.

        :raises DivergedError: learning diverged.
        :raises NonFiniteError: an observation or a reward of the environment is not finite.
        """
        algorithm = self._at(*rates).build(DummyVecEnv([lambda: Monitor(_Finite(env))]), **self._sizes(1))
        load_initialisation(algorithm, theta)
        returns = _Returns()
        with sb3_generators():
            algorithm.set_random_seed(learning_seed(seed_sequence(seed, "adapt")))
            if rates:
                with require_finite(algorithm, f"in {env}"):
                    algorithm.learn(len(rates) * self._size(amount), callback=returns, log_interval=None)  # type: ignore[arg-type]
                # The policy remembers its last distribution: one without a graph, which could not be copied.
                algorithm.policy.predict(algorithm._last_obs, deterministic=True)  # type: ignore[arg-type]
        return AdaptedSB3(algorithm, read_initialisation(algorithm), algorithm.num_timesteps, returns.values, seed)

    @property
    def normalize(self) -> dict[str, Any] | None:
        """The arguments of ``VecNormalize``; None where nothing is normalised."""
        return self.learner.normalize

    def stock_arguments(self, n_envs: int) -> dict[str, Any]:
        """Return the keyword arguments with which the stock class learns as in training, in ``n_envs`` copies."""
        return {**self.learner.kwargs, **self._sizes(n_envs)}

    def _sizes(self, n_envs: int) -> dict[str, int]:
        """Return the arguments that are counted for each copy, such that ``n_envs`` take as many env steps together."""
        off_policy = issubclass(ALGORITHMS[self.algorithm], OffPolicyAlgorithm)
        name = "train_freq" if off_policy else "n_steps"
        size = self.option(name)
        return {name: -(-size * self.learner.n_envs // n_envs)} if isinstance(size, int) else {}

    def _stack(self, reached: Sequence[Params]) -> Params:
        return {name: torch.stack([params[name] for params in reached]) for name in self.learner.parameters}

    def _at(self, *rates: float) -> SB3Learner:
        """Return the learner with a learning rate; without one, that of training."""
        if not rates:
            return self.learner
        if len(set(rates)) > 1:
            raise ConfigError(f"inner_lr={shorten(list(rates))}: {self.name!r} learns a task with one learning rate")
        if rates[0] not in self._learners:
            self._learners[rates[0]] = SB3Learner(
                self.family, self.algorithm, learning_rate=rates[0], **self._arguments
            )
        return self._learners[rates[0]]

    def _size(self, amount: Amount) -> int:
        """Return the env steps of an inner step."""
        return amount["n_transitions"] or (amount["n_episodes"] or 1) * self.family.horizon


class _Row:
    """The batches of one task."""

    def __init__(self) -> None:
        self.returns: list[float] = []
        self.env_steps: list[float] = []
        self.n_episodes: list[int] = []

    def add(self, returns: Sequence[float], env_steps: int, n_batches: int) -> None:
        """Add episodes, in the order they ended, as batches of equal length."""
        for part in np.array_split(np.array(returns), n_batches):
            self.returns.append(float(part.mean()) if len(part) else np.nan)
            self.env_steps.append(env_steps / n_batches)
            self.n_episodes.append(len(part))


class _Finite(gym.Wrapper[Any, Any, Any, Any]):
    """Raises :class:`~metarl.errors.NonFiniteError` for observations and rewards as our own collector does: in one line
    with the time step, which SB3's ``VecCheckNan`` does not say.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._time = 0
        obs, info = self.env.reset(**kwargs)
        finite_array("observation", obs, self.env, self._time)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        finite_reward(reward, self.env, self._time)
        self._time += 1
        finite_array("observation", obs, self.env, self._time)
        return obs, reward, terminated, truncated, info


class _Returns(BaseCallback):
    """Collects the returns of episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        self.values += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True


def _mean(params: Sequence[Params]) -> Params:
    """Return the mean, added up in order."""
    total = {name: tensor.clone() for name, tensor in params[0].items()}
    for part in params[1:]:
        for name, tensor in part.items():
            total[name] += tensor
    return {name: tensor / len(params) for name, tensor in total.items()}
