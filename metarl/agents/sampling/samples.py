"""What a learner's loss takes: collected episodes packed into tensors, without padding between transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.fields import PER_EPISODE, PER_SAMPLE, PER_STEP, PER_TASK, Fields
from metarl.errors import ConfigError

Self = TypeVar("Self", bound="Samples")


@dataclass(frozen=True)
class Samples(Fields):
    """What a learner's loss takes: packed transitions of a stack of tasks, valid ones first.

    :param obs: ``[task, n, *observation]``.
    :param actions: ``[task, n, *action]``.
    :param advantages: ``[task, n]``; only for policy gradients.
    :param weights: ``[task, n]``: 1/count on valid samples, 0 on padding, so that a weighted sum is the mean.
    :param counts: ``[task]``, valid samples of each task.
    :param episode_ends: ``[task, env]``, cumulative count of samples after each episode.
    :param log_prob: ``[task, n]``, log-probability of the actions at the parameters that collected them; only for
        surrogates with a likelihood ratio.
    :param target: ``[task, n, *action]``, what each action was to predict; only for supervised losses.
    :param kept: ``[task, n, …]``, what the network kept of ``obs`` at the parameters that collected them; only for an
        update at the same ones.
    """

    obs: torch.Tensor = field(metadata=PER_SAMPLE)
    actions: torch.Tensor = field(metadata=PER_SAMPLE)
    advantages: torch.Tensor | None = field(metadata=PER_SAMPLE)
    weights: torch.Tensor = field(metadata=PER_SAMPLE)
    counts: np.ndarray = field(metadata=PER_TASK)
    episode_ends: np.ndarray = field(metadata=PER_EPISODE)
    log_prob: torch.Tensor | None = field(default=None, metadata=PER_SAMPLE)
    target: torch.Tensor | None = field(default=None, metadata=PER_SAMPLE)
    kept: Mapping[str, torch.Tensor] | None = field(default=None, metadata=PER_SAMPLE)

    def __len__(self) -> int:
        return len(self.counts)

    def tasks(self: Self, chunk: slice) -> Self:
        """Return the samples of some tasks, cut to the longest of them."""
        n = int(self.counts[chunk].max())
        return self.map(lambda axes, each: each[chunk, :n] if "sample" in axes else each[chunk])

    def part(self: Self, samples: slice) -> Self:
        """Return some samples of every task, with the weights that they have among all."""
        return self.map(lambda axes, each: each[:, samples] if "sample" in axes else each)

    def episodes(self: Self, fraction: float) -> Self:
        """Return the first ``fraction`` (rounded up) of each task's whole episodes, reweighted to a mean."""
        n_episodes = (self.episode_ends < self.counts[:, None]).sum(1) + 1
        last = np.ceil(np.round(fraction * n_episodes, 9)).astype(np.int64).clip(min=1) - 1
        counts = np.take_along_axis(self.episode_ends, last[:, None], axis=1)[:, 0]
        n = int(counts.max())
        return replace(
            self.map(lambda axes, each: each[:, :n] if "sample" in axes else each),
            weights=mean_weights(counts, n, self.weights.dtype),
            counts=counts,
            episode_ends=np.minimum(self.episode_ends, counts[:, None]),
        )

    def to(self: Self, dtype: torch.dtype) -> Self:
        """Return a copy with floating tensors of another dtype."""

        def cast(axes: tuple[str, ...], each: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
            return each.to(dtype) if isinstance(each, torch.Tensor) and each.is_floating_point() else each

        return self.map(cast)


def mean_weights(counts: np.ndarray, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return ``[task, n]`` weights: 1/count on the first ``count`` samples of each task, 0 on the rest."""
    valid = np.arange(n) < counts[:, None]
    return torch.from_numpy(valid / np.maximum(counts, 1)[:, None]).to(dtype)


def pack(episodes: Episodes, advantages: np.ndarray | None, target: np.ndarray | None = None) -> Samples:
    """Pack the valid steps of each task to the front, in the order (env, time).

    Every field that episodes have for each step and samples under the same name for each sample is packed.

    :param advantages: ``[task, env, time]``; None where nothing asks for them.
    :param target: ``[task, env, time, *action]``.
    :raises ConfigError: either is of other episodes.
    """
    n_task, n_env, n_time = episodes.mask.shape
    for name, given in (("advantages", advantages), ("target", target)):
        if given is not None and np.shape(given)[:3] != episodes.mask.shape:
            raise ConfigError(
                f"{name} of shape {list(np.shape(given))}: one for each task, env and time, {list(episodes.mask.shape)}"
            )
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

    names = [each.name for each in fields(Samples)]
    shared: dict[str, Any] = {
        name: gather(array) for name, array in episodes.present(PER_STEP).items() if name in names
    }
    return Samples(
        **shared,
        advantages=None if advantages is None else gather(advantages.astype(np.float32, copy=False)),
        weights=mean_weights(counts, n),
        counts=counts,
        episode_ends=np.cumsum(episodes.lengths, axis=1),
        target=None if target is None else gather(target),
    )
