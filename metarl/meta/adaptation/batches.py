"""What is remembered of the batches that tasks were learnt from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.rollouts import Copies


@dataclass(frozen=True)
class Batch:
    """What is remembered of a batch once it was learnt from: of each task, ``[task]``.

    :param returns: mean return of its episodes, or of those that were measured instead; NaN where there were none.
    :param lengths: the mean length of the same episodes.
    :param env_steps: of the batch; 0 where an earlier one was learnt from again.
    :param n_episodes: likewise.
    :param learning_returns: the returns in the family that is learnt in, where ``returns`` are of another one.
    """

    returns: np.ndarray
    lengths: np.ndarray
    env_steps: np.ndarray
    n_episodes: np.ndarray
    learning_returns: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Batch:
        """Return what is remembered of whole episodes."""
        n_episodes = (episodes.lengths > 0).sum(1)
        returns = episodes.mean_returns
        return cls(returns, episodes.task_steps / n_episodes, episodes.task_steps, n_episodes, returns)

    @classmethod
    def nothing(cls, n_tasks: int) -> Batch:
        """Return what is remembered where nothing was collected."""
        unknown, none = np.full(n_tasks, np.nan), np.zeros(n_tasks, np.int64)
        return cls(unknown, unknown, none, none, unknown)

    @classmethod
    def of_copies(cls, copies: Copies, n_steps: int) -> Batch:
        """Return what is remembered of ``n_steps`` env steps of each task: its score is of the episodes that ended."""
        ended = [np.array(each).reshape(-1, 2) for each in copies.ended()]
        returns, lengths = (
            np.array([float(each[:, column].mean()) if len(each) else np.nan for each in ended]) for column in (0, 1)
        )
        n_episodes = np.array([len(each) for each in ended])
        return cls(returns, lengths, np.full(len(ended), n_steps), n_episodes, returns)

    def measured_on(self, returns: np.ndarray, lengths: np.ndarray) -> Batch:
        """Return the same with the score of other episodes, ``[task]`` means."""
        return replace(self, returns=returns, lengths=lengths, learning_returns=returns)

    def scored_by(self, returns: np.ndarray, lengths: np.ndarray) -> Batch:
        """Return the same with the score of episodes of the evaluation family, ``[task]`` means."""
        return replace(self, returns=returns, lengths=lengths)
