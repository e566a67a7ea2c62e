"""Adaptation by memory: a policy that remembers plays episodes of a task, and its parameters stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from metarl.agents.parallel import Parallel, library_torch, single_threaded_torch
from metarl.agents.recurrent.policy import Memory, RecurrentPolicy
from metarl.agents.recurrent.trial_ppo import TrialPPO
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes, env_stream
from metarl.agents.sampling.one_env import finite_array, finite_reward
from metarl.envs.tasks import Tasks
from metarl.envs.views.trials import Trials, n_before
from metarl.errors import CheckpointError, ConfigError, shorten
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Amount, Outcome, PathWatcher, Request, Told, units_done
from metarl.meta.progress import Timer
from metarl.params import Params, Rate, expand
from metarl.streams import seed_sequence, stream

LONGEST = 1_000_000
"""Env steps of an episode that is adapted in, at most: an environment that never ends is an error."""


class MemoryPolicy(AdaptedPolicy):
    """A policy that acts on, with what it remembers of a task.

    It takes what is seen in trials (:class:`~metarl.envs.views.trials.TrialEnv` shows that of any environment), and
    its :meth:`predict` is that of Stable-Baselines3's recurrent policies: what it returns as ``state`` is given to the
    next call. An episode begins with what adaptation left in the memory, as the next one of a trial does.

    :param policy: the recurrent policy.
    :param params: its tensors.
    :param memory: after adaptation, ``[layer, 1, unit]`` each; None: empty.
    :param before: what was seen of adaptation's last step, which the first observation of an episode says nothing of.

    The others are those of :class:`~metarl.meta.adaptation.adapted.AdaptedPolicy`.
    """

    def __init__(
        self,
        policy: RecurrentPolicy,
        params: Params,
        env_steps: int = 0,
        returns: Sequence[float] = (),
        seed: int | None = None,
        *,
        memory: Memory | None = None,
        before: np.ndarray | None = None,
    ) -> None:
        super().__init__(policy, params, env_steps, returns, seed)  # type: ignore[arg-type]  # predict is another
        self._recurrent = policy
        self.memory = policy.empty_memory(1) if memory is None else memory
        self._before = before

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions for one observation or a batch, clipped to the action space, and the memory after them.

        :param observation: ``[entry]`` or ``[n, entry]``, as trials show it.
        :param state: what the last call returned; None where episodes begin.
        :param episode_start: ``[n]``, where an episode begins although there is a state.
        :param deterministic: take the most likely action.
        :param rng: draws the action otherwise; None goes on with the stream that the seed began.
        :raises ConfigError: an observation or a state of another shape or kind.
        """
        batch, single = self._batch(observation, ", of trials")
        begins = np.ones(len(batch), bool)
        if state is not None:
            begins[:] = False if episode_start is None else np.asarray(episode_start, bool)
        memory = self._at(state, begins)
        if self._before is not None:
            n = n_before(self.policy.action_space)
            begins &= ~batch[:, -n:].any(1)
            batch = np.array(batch)
            batch[begins, -n:] = self._before
        with single_threaded_torch(), torch.inference_mode():
            distribution, after = self._recurrent.step(self.params, torch.from_numpy(batch), memory)
            actions = self._choose(distribution, len(batch), deterministic, rng)
        return (actions[0] if single else actions), tuple(part.numpy() for part in after)

    def _at(self, state: tuple[np.ndarray, ...] | None, begins: np.ndarray) -> Memory:
        """Return the memory of each row: that of its state, or adaptation's where its episode begins."""
        n_layers, size = self._recurrent.memory_shape
        wanted, found = (n_layers, len(begins), size), []
        for k, own in enumerate(self.memory):
            start = own.expand(wanted)
            if state is None:
                found.append(start)
                continue
            part = np.asarray(state[k], np.float32) if len(state) == 2 else None
            if part is None or part.shape != wanted:
                given = shorten([np.shape(part) for part in state], quote=False)
                raise ConfigError(f"state has the shapes {given}: two of {wanted}, as the last call returned them")
            found.append(torch.where(torch.from_numpy(begins)[:, None], start, torch.from_numpy(part)))
        return found[0], found[1]


class MemoryAdaptation:
    """Adaptation is inference: the memory of a policy that plays a trial.

    An inner step is an episode, so after K of them the return is that of the trial's episode K + 1. Its rate is 0.

    :param family: the trials that are learnt on.
    :param learner: how the policy that acts in them is learnt.
    :param parallel: the threads to collect on.
    """

    has_rates: ClassVar[bool] = False
    alone = False
    """Whether every task is a block of its own."""

    def __init__(self, family: Trials, learner: TrialPPO, parallel: Parallel) -> None:
        self.family = family
        self.learner_on_trials = learner
        self.policy = learner.policy
        self._parallel = parallel

    def init(self, seed: int) -> Params:
        """Return a fresh initialisation."""
        return self.policy.init(seed)

    def option(self, name: str) -> Any:
        """Return None: there is no learner in it."""
        del name

    def policy_at(self, theta: Params) -> MemoryPolicy:
        """Return the policy with an empty memory."""
        return MemoryPolicy(self.policy, theta)

    def walk(
        self,
        theta: Params,
        request: Request,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> MemoryWalk:
        """Return the walk that plays trials of every task; see :class:`metarl.meta.adaptation.base.Adaptation`.

        Its ``trials`` are what was collected.
        """
        del query, keep, second_order, watcher
        return MemoryWalk(self, theta, request)

    def carried(self, theta: Params, outcomes: Sequence[Outcome]) -> Params:
        """Return nothing: there are no statistics."""
        del theta, outcomes
        return {}

    def n_told(self, request: Request) -> int:
        """Return 1: all trials are one unit of work."""
        del request
        return 1

    def evaluate(self, theta: Params, request: Request, told: Told | None = None) -> Outcome:
        """Play trials of every task; the return after k inner steps is that of their episodes k + 1.

        Env steps are those of one trial, a mean over the trials of a task: each of them adapts by itself.
        """
        found = outcome_of(self.play(theta, request), theta, len(request.rates) + 1, as_one=True)
        if told is not None:
            told(1)
        return found

    def play(self, theta: Params, request: Request) -> Episodes:
        """Collect trials of every task: of one episode more than there are inner steps."""
        n_episodes = len(request.rates) + 1
        family = self.family if self.family.n_episodes == n_episodes else Trials(self.family.family, n_episodes)
        return collect(
            family,
            self.policy,
            expand({**theta, **request.local}, request.n_tasks),
            request.tasks,
            request.streams.tasks(request.n_tasks, 0),
            n_episodes=request.amount["n_episodes"],
            parallel=self._parallel,
        )

    def adapt(
        self, env: gym.Env[Any, Any], theta: Params, rates: Sequence[Rate], seed: int, amount: Amount
    ) -> MemoryPolicy:
        """Play episodes of one environment that shows trials, whose task need not be known.

        :param rates: one for each inner step.
        :param amount: ``n_episodes`` of an inner step.
        """
        n_episodes = len(rates) * (amount["n_episodes"] or 1)
        returns: list[float] = []
        env_steps, total, begins = 0, 0.0, True
        rng, actions = env_stream(seed_sequence(seed, "adapt", 0)), stream(seed, "adapt/actions")
        state: tuple[np.ndarray, ...] | None = None
        before: np.ndarray | None = None
        policy, n = MemoryPolicy(self.policy, theta, seed=seed), n_before(self.policy.action_space)
        with library_torch():
            while len(returns) < n_episodes:
                if begins:
                    obs = self._seen(env.reset(seed=int(rng.integers(2**31)))[0], env, env_steps)
                    if before is not None:
                        obs[-n:] = before
                    begins, started = False, env_steps
                if env_steps - started > LONGEST:
                    raise ConfigError(f"an episode of {env} did not end within {LONGEST:,} env steps")
                action, state = policy.predict(obs, state, rng=actions)
                seen, reward, terminated, truncated, _ = env.step(action)
                total += finite_reward(reward, env, env_steps)
                env_steps += 1
                obs = self._seen(seen, env, env_steps)
                begins = bool(terminated or truncated)
                if begins or obs[-1] == 1.0:
                    returns.append(total)
                    total, started = 0.0, env_steps
                    before = obs[-n:].copy()
        memory = None if state is None else (torch.from_numpy(state[0]), torch.from_numpy(state[1]))
        return MemoryPolicy(self.policy, theta, env_steps, returns, seed, memory=memory, before=before)

    def _seen(self, obs: Any, env: gym.Env[Any, Any], time: int) -> np.ndarray:
        array = np.array(finite_array("observation", obs, env, time), np.float32)
        shape = self.policy.observation_space.shape
        if array.shape != shape:
            raise ConfigError(
                f"observation of shape {list(array.shape)} from {env}: its space says {list(shape or ())}"
            )
        return array


class MemoryWalk:
    """Plays trials of a stack of tasks, which is one unit of work.

    :param adaptation: how they are played.
    :param theta: the parameters.
    :param request: what is asked.
    """

    n_units = 1

    def __init__(self, adaptation: MemoryAdaptation, theta: Params, request: Request) -> None:
        self._adaptation, self._theta, self._request = adaptation, theta, request
        self._trials: Episodes | None = None
        self.n_done = 0

    @property
    def tasks(self) -> Tasks:
        """All tasks of the stack."""
        return self._request.tasks

    @property
    def trials(self) -> Episodes:
        """What was played, an episode of which is a trial."""
        assert self._trials is not None
        return self._trials

    @property
    def env_steps(self) -> int:
        """Env steps of the units done."""
        return 0 if self._trials is None else self._trials.n_steps

    def work(self, timer: Timer) -> bool:
        """Play the trials; return that this was all."""
        with timer("sampling"):
            self._trials = self._adaptation.play(self._theta, self._request)
        self.n_done = 1
        return False

    def outcome(self) -> Outcome:
        """Return what came of it, by the episodes of trials."""
        return outcome_of(self.trials, self._theta, len(self._request.rates) + 1)

    def state(self) -> Params:
        """Return the trials, where they are played, as named tensors."""
        found: Params = {"n_done": torch.tensor(self.n_done)}
        if self._trials is not None:
            arrays = {name: value for name, value in self._trials.present().items() if name != "info"}
            found |= {f"trials/{name}": torch.from_numpy(np.ascontiguousarray(each)) for name, each in arrays.items()}
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned.

        :raises CheckpointError: the state of another walk.
        """
        self.n_done = units_done(dict(state), self.n_units)
        if not self.n_done:
            return
        names = [each.name for each in fields(Episodes) if each.name != "info"]
        arrays = {name: state[f"trials/{name}"].numpy() for name in names}
        shape = arrays["mask"].shape
        wanted = (self._request.n_tasks, self._request.amount["n_episodes"])
        seen = self._adaptation.policy.observation_space.shape or ()
        if len(shape) != 3 or shape[:2] != wanted or arrays["obs"].shape != (*shape, *seen):
            raise CheckpointError("trials of a walk are of other tasks")
        self._trials = Episodes(**arrays)  # type: ignore[arg-type]  # info, a mapping, is left out


def outcome_of(trials: Episodes, theta: Params, n_episodes: int, as_one: bool = False) -> Outcome:
    """Return the returns and env steps of the episodes of trials.

    :param trials: an episode of which is a trial.
    :param n_episodes: episodes of a trial.
    :param as_one: env steps are those of one trial, a mean over a task's, instead of all of them.
    """
    returns, lengths = by_episode(trials, n_episodes)
    n_trials = returns.shape[1]
    return Outcome(
        expand(theta, len(returns)),
        returns.mean(1),
        lengths.mean(1) if as_one else lengths.sum(1),
        np.full((len(returns), n_episodes), n_trials),
        eval_lengths=lengths.mean(1),
    )


def by_episode(trials: Episodes, n_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the undiscounted return and the length of each episode of trials, ``[task, env, episode]``."""
    begins = trials.obs[..., -1] == 1.0  # the step before ended an episode
    number = np.cumsum(begins & trials.mask, axis=-1)
    own = [(number == k) & trials.mask for k in range(n_episodes)]
    returns = [np.where(each, trials.rewards, 0.0).sum(-1, dtype=np.float64) for each in own]
    return np.stack(returns, axis=-1), np.stack([each.sum(-1) for each in own], axis=-1)
