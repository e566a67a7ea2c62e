"""The linear feature baseline of Duan et al. (2016), fitted for every task at once."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes


def discounted_returns(rewards: np.ndarray, mask: np.ndarray, gamma: float) -> np.ndarray:
    """Return the discounted return to go of every step; nothing is added after the last one, even at a time-out.

    :param rewards: ``[task, env, time]``.
    :param mask: ``[task, env, time]``, True where a step was taken.
    """
    result = np.zeros(rewards.shape, dtype=np.float64)
    running = np.zeros(rewards.shape[:-1], dtype=np.float64)
    for t in range(rewards.shape[-1] - 1, -1, -1):
        running = np.where(mask[..., t], rewards[..., t] + gamma * running, 0.0)
        result[..., t] = running
    return result


def generalized_advantages(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Return generalised advantage estimates (Schulman et al., 2016), with value 0 after the last step.

    All arrays are ``[task, env, time]``.
    """
    advantages = np.zeros(rewards.shape, dtype=np.float64)
    running = np.zeros(rewards.shape[:-1], dtype=np.float64)
    following = np.zeros(rewards.shape[:-1], dtype=np.float64)
    for t in range(rewards.shape[-1] - 1, -1, -1):
        value = values[..., t]
        delta = rewards[..., t] + gamma * following - value
        running = np.where(mask[..., t], delta + gamma * gae_lambda * running, 0.0)
        following = np.where(mask[..., t], value, 0.0)
        advantages[..., t] = running
    return advantages


def rollout_advantages(
    rewards: np.ndarray, values: np.ndarray, ended: np.ndarray, last: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Return the same of rollouts in which episodes end anywhere: A_t = δ_t + γλ (1 − d_t) A_{t+1}, with
    δ_t = r_t + γ (1 − d_t) V_{t+1} − V_t, where d_t is 1 if the episode ended with step t.

    :param ended: ``[task, env, time]``.
    :param last: ``[task, env]``, the value after the last step.
    """
    advantages = np.zeros(rewards.shape, dtype=np.float64)
    running, following = np.zeros(last.shape), last.astype(np.float64)
    for t in range(rewards.shape[-1] - 1, -1, -1):
        goes_on, value = ~ended[..., t], values[..., t].astype(np.float64)
        running = rewards[..., t] + goes_on * gamma * (following + gae_lambda * running) - value
        following = value
        advantages[..., t] = running
    return advantages


def standardize(
    advantages: np.ndarray, mask: np.ndarray, eps: float = 1e-8, nothing: np.ndarray | None = None
) -> np.ndarray:
    """Return advantages with mean 0 and standard deviation 1 over the valid steps of each task.

    :param nothing: ``[task]``, whose advantages are noise of a size that does not matter: they become 0, instead of
        noise of unit size.
    """
    count = mask.sum((1, 2), keepdims=True)
    mean = (advantages * mask).sum((1, 2), keepdims=True) / count
    centred = (advantages - mean) * mask
    std = np.sqrt(np.square(centred).sum((1, 2), keepdims=True) / count)
    result: np.ndarray = centred / (std + eps)
    if nothing is not None:
        result[nothing] = 0.0
    return result


MANY_FEATURES = 1000
"""With more features than this, as images have, and fewer samples, what is solved has the size of the samples."""


class LinearFeatureBaseline:
    """Ridge regression of the return to go on [clip(o, ±10), its square, t, t², t³, 1], with t in hundreds of steps.

    As in the reference implementation it is fitted for each task on the very batch it is then used on. Of images
    it takes the time alone: with a feature for each pixel there are more of them than steps.

    :param ridge: added to the diagonal of the normal equations; multiplied by 10, up to 5 times, where they are
        singular.
    :param parallel: the threads to fit tasks on.
    """

    def __init__(self, ridge: float = 1e-5, parallel: Parallel | None = None) -> None:
        self.ridge = ridge
        self._parallel = parallel or Parallel(1)

    def fit_predict(self, episodes: Episodes, returns: np.ndarray) -> np.ndarray:
        """Return the fitted value of every step, ``[task, env, time]``, float64.

        :param returns: discounted returns to go, ``[task, env, time]``.
        """
        values = np.zeros(episodes.mask.shape, dtype=np.float64)

        def fit(task: int) -> None:
            mask = episodes.mask[task]
            features = self.features(episodes.obs[task], mask)
            values[task][mask] = self._fitted(features, torch.from_numpy(returns[task][mask])).numpy()

        self._parallel.map(fit, range(len(values)))
        return values

    @staticmethod
    def features(obs: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        """Return the features of the valid steps of one task, ``[n, feature]``, float64.

        :param obs: ``[env, time, *observation]``.
        :param mask: ``[env, time]``.
        """
        if obs.dtype == np.uint8:
            obs = obs[..., :0, :0, :0]
        clipped = np.clip(obs.reshape(*mask.shape, prod(obs.shape[2:]))[mask], -10.0, 10.0)
        time = np.broadcast_to(np.arange(mask.shape[1]) / 100.0, mask.shape)[mask]
        size = clipped.shape[1]
        features = np.empty((len(clipped), 2 * size + 4), dtype=np.float64)
        features[:, :size] = clipped
        np.square(features[:, :size], out=features[:, size : 2 * size])
        features[:, -4], features[:, -3], features[:, -2], features[:, -1] = time, time**2, time**3, 1.0
        return torch.from_numpy(features)

    def _fitted(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # A feature that is zero throughout (the forces on bodies that touch nothing) gets a zero weight anyway.
        features = features[:, features.any(0)]
        if features.shape[1] > max(MANY_FEATURES, len(features)):
            # The same fit: X (XᵀX + r)⁻¹ Xᵀ y = X Xᵀ (X Xᵀ + r)⁻¹ y.
            gram = fitted = features @ features.T
            moment = targets
        else:
            gram, moment, fitted = features.T @ features, features.T @ targets, features
        ridge = self.ridge
        for _ in range(6):
            factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
            if not failed:
                weights = torch.cholesky_solve(moment[:, None], factor)[:, 0]
                if bool(torch.isfinite(weights).all()):
                    return fitted @ weights
            ridge *= 10.0
        # Every ridge failed: the mean return keeps the gradient right and only loses variance reduction.
        return targets.mean().expand(len(targets))
