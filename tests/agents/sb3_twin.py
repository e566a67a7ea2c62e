"""Stock SB3 learning beside ours: the same episodes, the same order of minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.watching import LearnerState
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.episodes import Episodes
from metarl.params import Params
from metarl.streams import seed_sequence

OBS = spaces.Box(-10.0, 10.0, (3,), np.float32)
ACTIONS = {"gaussian": spaces.Box(-1.0, 1.0, (2,), np.float32), "categorical": spaces.Discrete(3)}
KWARGS: dict[str, Any] = {"net_arch": {"pi": [8, 7], "vf": [6]}, "activation_fn": "tanh"}


class Scripted(gym.Env[np.ndarray, Any]):
    """Episodes of given lengths; every second one is truncated, the others terminate. Remembers what it said."""

    def __init__(self, kind: str, lengths: Sequence[int], seed: int) -> None:
        self.observation_space, self.action_space = OBS, ACTIONS[kind]
        self._rng = np.random.default_rng(seed)
        self._lengths = cycle(enumerate(lengths))
        self._weights = self._rng.standard_normal(3).astype(np.float32)
        self.rows: list[tuple[list[np.ndarray], list[float], bool]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        index, self._left = next(self._lengths)
        self._x = self._rng.standard_normal(3).astype(np.float32)
        self.rows.append(([self._x], [], index % 2 == 0))
        return self._x, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        push = float(np.sum(action))
        self._x = (0.9 * self._x + 0.3 * push + 0.1 * self._rng.standard_normal(3)).astype(np.float32)
        self._left -= 1
        reward = float(self._weights @ self._x) + 0.5 * push
        obs, rewards, terminates = self.rows[-1]
        obs.append(self._x)
        rewards.append(reward)
        ended = self._left == 0
        return self._x, reward, ended and terminates, ended and not terminates, {}


def make_policy(kind: str) -> FunctionalPolicy:
    """Return the functional policy of a twin."""
    return FunctionalPolicy("MlpPolicy", OBS, ACTIONS[kind], KWARGS, critic=True)


class Twin:
    """One task's stock SB3 model.

    :param algorithm: its class.
    :param lengths: of the episodes in one rollout.
    :param options: the class's.
    """

    def __init__(
        self, algorithm: type[OnPolicyAlgorithm], kind: str, lengths: Sequence[int], seed: int, **options: Any
    ) -> None:
        self._env = Scripted(kind, lengths, seed)
        self._n_episodes, self._n_steps = len(lengths), sum(lengths)
        kwargs = {**KWARGS, "activation_fn": torch.nn.Tanh}
        fixed: dict[str, Any] = {"n_steps": self._n_steps, "policy_kwargs": kwargs, "seed": seed, "device": "cpu"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            self.model = algorithm("MlpPolicy", self._env, **fixed, **options)

    @property
    def params(self) -> Params:
        """The model's parameters."""
        return {name: tensor.detach().clone() for name, tensor in self.model.policy.named_parameters()}

    def learn(self, monkeypatch: pytest.MonkeyPatch, stream: np.random.SeedSequence) -> Episodes:
        """Collect one rollout and train on it; return its episodes."""
        order = np.random.Generator(np.random.PCG64(stream))
        before = len(self._env.rows)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "permutation", order.permutation)
            self.model.learn(self._n_steps, reset_num_timesteps=before == 0)
        # The environment is reset once more at the end of a rollout.
        first = max(0, before - 1)
        return self._episodes(self._env.rows[first : first + self._n_episodes])

    def _episodes(self, rows: Sequence[tuple[list[np.ndarray], list[float], bool]]) -> Episodes:
        actions = self.model.rollout_buffer.actions
        lengths = [len(rewards) for _, rewards, _ in rows]
        if isinstance(self.model.action_space, spaces.Discrete):
            actions = actions[:, 0].astype(np.int64)
        parts = np.split(actions, np.cumsum(lengths)[:-1])

        def table(columns: Sequence[np.ndarray]) -> np.ndarray:
            out = np.zeros((1, len(rows), max(lengths), *columns[0].shape[1:]), dtype=columns[0].dtype)
            for i, column in enumerate(columns):
                out[0, i, : len(column)] = column
            return out

        return Episodes(
            obs=table([np.array(obs[:-1]) for obs, _, _ in rows]),
            actions=table(parts),
            rewards=table([np.array(rewards, dtype=np.float32) for _, rewards, _ in rows]),
            mask=(np.arange(max(lengths)) < np.array(lengths)[:, None])[None],
            terminated=np.array([[terminates for _, _, terminates in rows]]),
            final_obs=np.array([[obs[-1] for obs, _, _ in rows]]),
        )


def join(parts: Sequence[Episodes]) -> Episodes:
    """Stack the episodes of several tasks; rows and steps that are missing hold garbage."""
    shape = [max(part.mask.shape[axis] for part in parts) for axis in (1, 2)]

    def pad(array: np.ndarray, axes: int, value: Any) -> np.ndarray:
        width = [(0, 0), *((0, size - array.shape[1 + i]) for i, size in enumerate(shape[:axes]))]
        return np.pad(array, width + [(0, 0)] * (array.ndim - 1 - axes), constant_values=value)

    return Episodes(
        obs=np.concatenate([pad(part.obs, 2, np.nan) for part in parts]),
        actions=np.concatenate([pad(part.actions, 2, 0) for part in parts]),
        rewards=np.concatenate([pad(part.rewards, 2, np.nan) for part in parts]),
        mask=np.concatenate([pad(part.mask, 2, False) for part in parts]),
        terminated=np.concatenate([pad(part.terminated, 1, False) for part in parts]),
        final_obs=np.concatenate([pad(part.final_obs, 1, np.nan) for part in parts]),
    )


def stack(parts: Sequence[Params]) -> Params:
    """Stack tasks' parameters."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def learn_beside(
    learner: ActorCritic, twins: Sequence[Twin], rate: float, monkeypatch: pytest.MonkeyPatch, moment: str
) -> LearnerState:
    """Learn two batches on both sides and require equal samples, parameters and optimisers; return our state.

    :param moment: the optimiser's mean square, as torch names it; whatever else both keep is compared, too.
    """
    state = learner.start(stack([twin.params for twin in twins]))
    for turn in range(2):
        streams = [seed_sequence(0, "order", turn, task) for task in range(len(twins))]
        episodes = join([twin.learn(monkeypatch, stream) for twin, stream in zip(twins, streams, strict=True)])
        samples = learner.process(episodes, state.params)
        before = [{name: tensor.clone() for name, tensor in part.items()} for part in (state.params, state.optimizer)]
        after = learner.update(state, samples, rate, streams)
        for part, kept in zip((state.params, state.optimizer), before, strict=True):
            assert all(torch.equal(part[name], tensor) for name, tensor in kept.items())
        state = after
        layout = Layout(state.params)
        moments = {what: layout.views(flat) for what, flat in state.optimizer.items() if what != "step"}
        assert moment in moments
        for task, twin in enumerate(twins):
            _require_equal_samples(samples, task, twin, learner.normalize_advantage)
            for name, parameter in twin.model.policy.named_parameters():
                own = twin.model.policy.optimizer.state[parameter]
                torch.testing.assert_close(state.params[name][task], parameter.detach(), rtol=1e-5, atol=1e-5)
                assert own.keys() - {"step"} == moments.keys()
                for what, views in moments.items():
                    scale = float(own[what].abs().max())
                    torch.testing.assert_close(views[name][task], own[what], rtol=0.0, atol=5e-5 * scale)
                if "step" in state.optimizer:
                    assert int(own["step"]) == state.optimizer["step"][task]
    return state


def _require_equal_samples(samples: ActorCriticSamples, task: int, twin: Twin, normalized: bool) -> None:
    buffer, n = twin.model.rollout_buffer, int(samples.counts[task])
    pairs = {
        "values": buffer.values,
        "returns": buffer.returns,
        "log_prob": buffer.log_probs,
        "obs": buffer.observations,
    }
    if not normalized:
        pairs["advantages"] = buffer.advantages
    for name, expected in pairs.items():
        ours = getattr(samples, name)[task, :n]
        np.testing.assert_allclose(ours, expected.reshape(ours.shape), rtol=1e-5, atol=1e-5)
    assert not samples.weights[task, n:].any()
