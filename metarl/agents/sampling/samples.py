"""What a learner's loss takes: collected episodes packed into tensors, without padding between transitions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from metarl.agents.sampling.collect import Episodes


@dataclass(frozen=True)
class Samples:
    """What a learner's loss takes: packed transitions of a stack of tasks, valid ones first.

    :param obs: ``[task, n, *observation]``.
    :param actions: ``[task, n, *action]``.
    :param advantages: ``[task, n]``.
    :param weights: ``[task, n]``: 1/count on valid samples, 0 on padding, so that a weighted sum is the mean.
    :param counts: ``[task]``, valid samples of each task.
    :param episode_ends: ``[task, env]``, cumulative count of samples after each episode.
    :param log_prob: ``[task, n]``, log-probability of the actions at the parameters that collected them; only for
        surrogates with a likelihood ratio.
    """

    obs: torch.Tensor
    actions: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    counts: np.ndarray
    episode_ends: np.ndarray
    log_prob: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def tasks(self, chunk: slice) -> Samples:
        """Return the samples of some tasks, cut to the longest of them."""
        counts = self.counts[chunk]
        n = int(counts.max())
        return Samples(
            obs=self.obs[chunk, :n],
            actions=self.actions[chunk, :n],
            advantages=self.advantages[chunk, :n],
            weights=self.weights[chunk, :n],
            counts=counts,
            episode_ends=self.episode_ends[chunk],
            log_prob=None if self.log_prob is None else self.log_prob[chunk, :n],
        )

    def episodes(self, fraction: float) -> Samples:
        """Return the first ``fraction`` (rounded up) of each task's whole episodes, reweighted to a mean."""
        n_episodes = (self.episode_ends < self.counts[:, None]).sum(1) + 1
        last = np.ceil(np.round(fraction * n_episodes, 9)).astype(np.int64).clip(min=1) - 1
        counts = np.take_along_axis(self.episode_ends, last[:, None], axis=1)[:, 0]
        n = int(counts.max())
        return Samples(
            obs=self.obs[:, :n],
            actions=self.actions[:, :n],
            advantages=self.advantages[:, :n],
            weights=mean_weights(counts, n, self.weights.dtype),
            counts=counts,
            episode_ends=np.minimum(self.episode_ends, counts[:, None]),
            log_prob=None if self.log_prob is None else self.log_prob[:, :n],
        )

    def to(self, dtype: torch.dtype) -> Samples:
        """Return a copy with floating tensors of another dtype."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return replace(
            self,
            obs=cast(self.obs),
            actions=cast(self.actions),
            advantages=cast(self.advantages),
            weights=cast(self.weights),
            log_prob=None if self.log_prob is None else cast(self.log_prob),
        )


def mean_weights(counts: np.ndarray, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return ``[task, n]`` weights: 1/count on the first ``count`` samples of each task, 0 on the rest."""
    valid = np.arange(n) < counts[:, None]
    return torch.from_numpy(valid / np.maximum(counts, 1)[:, None]).to(dtype)


def pack(episodes: Episodes, advantages: np.ndarray) -> Samples:
    """Pack the valid steps of each task to the front, in the order (env, time).

    :param advantages: ``[task, env, time]``.
    """
    n_task, n_env, n_time = episodes.mask.shape
    counts = episodes.task_steps
    n = int(counts.max())

    if n == n_env * n_time and counts.min() == n:

        def gather(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array).reshape(n_task, n, *array.shape[3:]))

    else:
        flat = episodes.mask.reshape(n_task, -1)
        env_time = np.argsort(~flat, axis=1, kind="stable")[:, :n]
        rows, envs, times = np.arange(n_task)[:, None], env_time // n_time, env_time % n_time
        padding = np.arange(n) >= counts[:, None]

        def gather(array: np.ndarray) -> torch.Tensor:
            picked = array[rows, envs, times]
            picked[padding] = 0
            return torch.from_numpy(picked)

    return Samples(
        obs=gather(episodes.obs),
        actions=gather(episodes.actions),
        advantages=gather(advantages.astype(np.float32, copy=False)),
        weights=mean_weights(counts, n),
        counts=counts,
        episode_ends=np.cumsum(episodes.lengths, axis=1),
    )
