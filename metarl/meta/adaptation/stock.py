"""Adaptation with a stock SB3 algorithm: one task after another, each with one call of ``learn()``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents.generators import drawing_from, sb3_generators
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.one_env import FiniteEnv
from metarl.agents.stock.entries import StockAlgorithm
from metarl.agents.stock.learner import ALGORITHMS, SB3Learner, learning_seed
from metarl.agents.stock.reuse import (
    STATISTICS,
    load_initialisation,
    merge_statistics,
    read_initialisation,
    require_finite,
)
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, one_task, take_tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptation.adapted import AdaptedPolicy, as_observation, predictions
from metarl.meta.adaptation.base import Amount, Outcome, PathWatcher, Request, Told, require_like, units_done
from metarl.meta.progress import Timer
from metarl.params import Params, Rate, group, grouped, take, total
from metarl.streams import seed_sequence


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


class StockAdaptation:
    """Adaptation around a stock algorithm of SB3 or sb3-contrib.

    The inner steps of a task are one ``learn()``, of as many env steps as their batches have. Returns after each inner
    step are those of the episodes that ended in its part of learning; evaluations take fresh episodes instead.

    :param learner: the learner, such as that of ``"sb3_sac"``.
    :param family: whose tasks are learnt.
    :param pair: the spaces of observations and actions that those have.
    :param policy: one of the algorithm's policies.
    :param rates: the learning rate, once for each inner step.
    :param options: arguments of :class:`~metarl.agents.stock.learner.SB3Learner`.
    :param n_together: tasks that are learnt together in training, where they are.
    """

    has_rates: ClassVar[bool] = False
    alone = True
    """Whether every task is a block of its own."""

    def __init__(
        self,
        learner: type[StockAlgorithm],
        family: Family,
        pair: tuple[spaces.Space[Any], spaces.Space[Any]],
        policy: str,
        policy_kwargs: Mapping[str, Any],
        rates: Sequence[float],
        options: Mapping[str, Any],
        n_together: int = 1,
    ) -> None:
        self.name = learner.name
        self.family = family
        self.algorithm = learner.algorithm
        """Its name without what says that it is stock."""
        self._n_together = n_together
        self._arguments = {"policy": policy, "policy_kwargs": policy_kwargs, "pair": pair, **options}
        self._learners: dict[float, SB3Learner] = {}
        self.learner = self.at(rates)
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
            algorithm = self.learner.build(FamilyVecEnv(self.family, self.learner.example, self.learner.n_envs))
            load_initialisation(algorithm, theta)
            self._shown = (theta, AdaptedSB3(algorithm, theta))
        return self._shown[1]

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> StockWalk:
        """Return the walk that learns every task; see :class:`metarl.meta.adaptation.base.Adaptation`.

        :param query: take the gradient of the algorithm's losses on a fresh rollout at the parameters reached.
        :param keep: without effect: the batches are the algorithm's own.
        :param second_order: without effect: so are its steps.
        """
        del keep, second_order
        return StockWalk(self, theta, request, query, watcher)

    def learn_together(self, theta: Params, request: Request) -> Outcome:
        """Learn all tasks at once with one ``learn()``; what comes of it is that of a single task.

        :param request: its first task's stream is the one that is drawn from.
        """
        (seed,) = request.streams.of([0]).tasks(1)
        n_steps = request.n_tasks * self.size(request.amount)
        run, row = self.learner.run_together(theta, request.tasks, seed, n_steps), Row()
        row.add(run.episode_returns, run.env_steps, 1)
        statistics = {name: tensor for name, tensor in run.params.items() if name.startswith(STATISTICS)}
        return Outcome(
            self.stacked([run.params]),
            np.array([row.returns]),
            np.array([row.env_steps]),
            np.array([row.n_episodes]),
            statistics=[statistics] if statistics else [],
        )

    def carried(self, theta: Params, outcomes: Sequence[Outcome]) -> Params:
        """Return the statistics with which the initialisation goes on, after tasks were learnt from it."""
        return merge_statistics(theta, [statistics for outcome in outcomes for statistics in outcome.statistics])

    def n_told(self, request: Request) -> int:
        """Return of how many units of work an evaluation tells: tasks."""
        return request.n_tasks

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        """Learn every task; the return after k inner steps is that of fresh episodes; a unit is a task."""
        n, size, n_steps = request.n_tasks, self.size(request.amount), len(request.rates)
        n_episodes = request.amount["n_episodes"] or -(-size // self.family.horizon)
        if self.family.evaluation_family is not None:
            n_episodes = self.family.evaluation_episodes
        learner, seeds = self.at(request.rates), request.streams.tasks(n)
        reached: list[Params] = []
        returns: list[list[float]] = []
        env_steps: list[list[int]] = []
        lengths: list[list[float]] = []
        for i in range(n):
            task, start = one_task(request.tasks, i), {**theta, **take(request.local, i)}
            if n_steps:
                run = learner.run(
                    start, task, seeds[i], n_steps * size, n_evaluations=n_steps, n_eval_episodes=n_episodes
                )
                reached.append(run.params)
                returns.append(run.eval_returns)
                env_steps.append(np.diff([*run.eval_env_steps, run.env_steps]).tolist())
                lengths.append(run.eval_lengths)
            else:
                mean_return, mean_length = learner.evaluate(start, task, seeds[i], n_episodes)
                reached.append(start)
                returns.append([mean_return])
                env_steps.append([0])
                lengths.append([mean_length])
            if told is not None:
                told(1)
        return Outcome(
            self.stacked(reached),
            np.array(returns),
            np.array(env_steps),
            np.full((n, n_steps + 1), n_episodes),
            eval_lengths=np.array(lengths),
        )

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> AdaptedSB3:
        """Learn one environment, whose task need not be known, from ``theta``.

        There is one copy of it, so a rollout takes as many env steps as all copies have in training.

        :raises DivergedError: learning diverged.
        :raises NonFiniteError: an observation or a reward of the environment is not finite.
        """
        algorithm = self.at(rates).build(DummyVecEnv([lambda: Monitor(FiniteEnv(env))]), **self._sizes(1))
        load_initialisation(algorithm, theta)
        returns = _Returns()
        with sb3_generators():
            algorithm.set_random_seed(learning_seed(seed_sequence(seed, "adapt")))
            if rates:
                with require_finite(algorithm, f"in {env}"):
                    algorithm.learn(len(rates) * self.size(amount), callback=returns, log_interval=None)  # type: ignore[arg-type]
                # The policy remembers its last distribution: one without a graph, which could not be copied.
                algorithm.policy.predict(algorithm._last_obs, deterministic=True)  # type: ignore[arg-type]
        return AdaptedSB3(algorithm, read_initialisation(algorithm), algorithm.num_timesteps, returns.values, seed)

    @property
    def normalize(self) -> dict[str, Any] | None:
        """The arguments of ``VecNormalize``; None where nothing is normalised."""
        return self.learner.normalize

    def stock_arguments(self, n_envs: int) -> dict[str, Any]:
        """Return the keyword arguments with which the stock class learns as in training, in ``n_envs`` copies."""
        return {**self.learner.kwargs, **self._sizes(n_envs, self._n_together)}

    def _sizes(self, n_envs: int, n_tasks: int = 1) -> dict[str, int]:
        """Return the arguments that are counted for each copy, such that ``n_envs`` take as many env steps together.

        :param n_tasks: as the copies of so many tasks do in training.
        """
        off_policy = issubclass(ALGORITHMS[self.algorithm], OffPolicyAlgorithm)
        name = "train_freq" if off_policy else "n_steps"
        size = self.option(name)
        return {name: -(-size * self.learner.n_envs * n_tasks // n_envs)} if isinstance(size, int) else {}

    def stacked(self, reached: Sequence[Params]) -> Params:
        """Return the parameters of several tasks as a stack, without statistics."""
        return {name: torch.stack([params[name] for params in reached]) for name in self.learner.parameters}

    def at(self, rates: Sequence[Rate]) -> SB3Learner:
        """Return the learner with a learning rate; without one, that of training."""
        if not rates:
            return self.learner
        rate = rates[0]
        if isinstance(rate, Mapping) or any(isinstance(other, Mapping) or other != rate for other in rates):
            raise ConfigError(f"inner_lr={shorten(list(rates))}: {self.name!r} learns a task with one learning rate")
        if rate not in self._learners:
            own = {**self._arguments, "learning_rate": rate, "n_together": self._n_together}
            self._learners[rate] = SB3Learner(self.family, self.algorithm, **own)
        return self._learners[rate]

    def size(self, amount: Amount) -> int:
        """Return the env steps of an inner step."""
        return amount["n_transitions"] or (amount["n_episodes"] or 1) * self.family.horizon


class StockWalk:
    """Learns one task after another; a unit is a task, which an algorithm's ``learn()`` does not stop in the middle of.

    :param adaptation: around what they are learnt.
    :param theta: the initialisation, with its statistics.
    :param request: what is asked.
    :param query: take the gradient of the algorithm's losses on a fresh rollout at the parameters reached.
    :param watcher: is told every segment.
    """

    def __init__(
        self, adaptation: StockAdaptation, theta: Params, request: Request, query: bool, watcher: PathWatcher | None
    ) -> None:
        self._adaptation = adaptation
        self._theta = theta
        self._request = request
        self._query = query
        self._watcher = watcher
        self._reached: list[Params] = []
        self._rows: list[Row] = []
        self._gradients: list[Params] = []
        self.n_units = request.n_tasks
        """Tasks."""
        self.n_done = 0

    @property
    def tasks(self) -> Tasks:
        """The task that is learnt next."""
        at = min(self.n_done, self.n_units - 1)
        return take_tasks(self._request.tasks, slice(at, at + 1))

    @property
    def env_steps(self) -> int:
        """Env steps of the tasks that are done."""
        return round(sum(sum(row.env_steps) for row in self._rows))

    def work(self, timer: Timer) -> bool:
        """Learn the next task; return whether there is another one."""
        request, size, i = self._request, self._adaptation.size(self._request.amount), self.n_done
        task, row, n_steps = one_task(request.tasks, i), Row(), len(request.rates)
        phi = theta = {**self._theta, **take(request.local, i)}
        streams = request.streams.of([i])
        if n_steps:
            with timer("inner"):
                (seed,) = streams.tasks(1)
                learner = self._adaptation.at(request.rates)
                run = learner.run(theta, task, seed, n_steps * size, watcher=self._watcher)
            if self._watcher is not None:
                self._watcher.close()
            phi = run.params
            row.add(run.episode_returns, run.env_steps, n_steps)
        if self._query:
            self._look(phi, row, i, timer)
        self._reached.append(phi)
        self._rows.append(row)
        self.n_done += 1
        return self.n_done < self.n_units

    def _look(self, phi: Params, row: Row, i: int, timer: Timer) -> None:
        """Take the gradient at the parameters that the ``i``-th task reached."""
        request = self._request
        with timer("outer"):
            (seed,) = request.streams.of([i]).tasks(1, part="/query")
            learner, size = self._adaptation.learner, self._adaptation.size(request.amount)
            result = learner.query_gradient(phi, one_task(request.tasks, i), seed, size)
        row.add(result.episode_returns, result.env_steps, 1)
        self._gradients.append(result.gradient)

    def outcome(self) -> Outcome:
        """Return what came of it."""
        statistics = [
            {name: tensor for name, tensor in phi.items() if name.startswith(STATISTICS)} for phi in self._reached
        ]
        return Outcome(
            self._adaptation.stacked(self._reached),
            np.array([row.returns for row in self._rows]),
            np.array([row.env_steps for row in self._rows]),
            np.array([row.n_episodes for row in self._rows]),
            gradient=total(self._gradients) if self._query else None,
            statistics=statistics if any(statistics) else [],
        )

    # ------------------------------------------------------------------------------------------------ stopping half-way
    def state(self) -> Params:
        """Return what the tasks that are done came to, and the watcher's sums, as named tensors."""
        found: Params = {"n_done": torch.tensor(self.n_done)}
        for i, (phi, row) in enumerate(zip(self._reached, self._rows, strict=True)):
            found |= grouped(phi, f"reached/{i}/") | grouped(row.state(), f"row/{i}/")
        for i, gradient in enumerate(self._gradients):
            found |= grouped(gradient, f"gradient/{i}/")
        if self._watcher is not None:
            found |= grouped(self._watcher.state(), "watcher/")
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        known = dict(state)
        self.n_done = units_done(known, self.n_units)
        self._load_tasks(known, self.n_done)

    def _load_tasks(self, known: Params, n_tasks: int) -> None:
        """Take what tasks that are done came to, and the watcher's sums."""
        done = range(n_tasks)
        expected = {**self._theta, **take(self._request.local, 0)}
        for i in done:
            require_like(group(known, f"reached/{i}/"), expected)
        self._reached = [group(known, f"reached/{i}/") for i in done]
        self._rows = [Row.of(group(known, f"row/{i}/")) for i in done]
        self._gradients = [group(known, f"gradient/{i}/") for i in done] if self._query else []
        if self._watcher is not None:
            self._watcher.load_state(group(known, "watcher/"))


class Row:
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

    def state(self) -> Params:
        """Return the batches as tensors."""
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in vars(self).items()}

    @classmethod
    def of(cls, state: Params) -> Row:
        """Return the batches that :meth:`state` returned."""
        row = cls()
        row.returns, row.env_steps = state["returns"].tolist(), state["env_steps"].tolist()
        row.n_episodes = [int(n) for n in state["n_episodes"].tolist()]
        return row


class _Returns(BaseCallback):
    """Collects the returns of episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        self.values += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True
