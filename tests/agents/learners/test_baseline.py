"""Returns, advantages and the linear baseline against plain loops over one episode at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.agents.learners.baseline import (
    LinearFeatureBaseline,
    discounted_returns,
    generalized_advantages,
    standardize,
)
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes

TASKS, ENVS, TIME, OBS = 3, 5, 9, 4


def make_episodes(seed: int = 0, obs_scale: float = 4.0) -> Episodes:
    """Return episodes of all lengths; what the mask hides is garbage."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, TIME + 1, (TASKS, ENVS))
    lengths[0, 0] = TIME
    return Episodes(
        obs=(obs_scale * rng.standard_normal((TASKS, ENVS, TIME, OBS))).astype(np.float32),
        actions=rng.standard_normal((TASKS, ENVS, TIME, 2)).astype(np.float32),
        rewards=rng.standard_normal((TASKS, ENVS, TIME)).astype(np.float32),
        mask=np.arange(TIME) < lengths[..., None],
        terminated=lengths < TIME,
        final_obs=rng.standard_normal((TASKS, ENVS, OBS)).astype(np.float32),
    )


def plain_returns(rewards: np.ndarray, gamma: float) -> list[float]:
    return [sum(gamma ** (j - i) * float(rewards[j]) for j in range(i, len(rewards))) for i in range(len(rewards))]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_equal_a_plain_sum(gamma: float) -> None:
    episodes = make_episodes()
    returns = discounted_returns(episodes.rewards, episodes.mask, gamma)
    assert returns.dtype == np.float64
    for index in np.ndindex(TASKS, ENVS):
        n = int(episodes.mask[index].sum())
        np.testing.assert_allclose(returns[index][:n], plain_returns(episodes.rewards[index][:n], gamma), rtol=1e-12)
        assert not returns[index][n:].any()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantages_equal_a_plain_sum_without_bootstrapping(gae_lambda: float) -> None:
    episodes, gamma = make_episodes(), 0.95
    values = np.random.default_rng(1).standard_normal(episodes.mask.shape)
    advantages = generalized_advantages(episodes.rewards, values, episodes.mask, gamma, gae_lambda)
    for index in np.ndindex(TASKS, ENVS):
        n = int(episodes.mask[index].sum())
        reward, value = episodes.rewards[index].astype(float), [*values[index][:n], 0.0]
        delta = [reward[t] + gamma * value[t + 1] - value[t] for t in range(n)]
        expected = [sum((gamma * gae_lambda) ** (j - t) * delta[j] for j in range(t, n)) for t in range(n)]
        np.testing.assert_allclose(advantages[index][:n], expected, rtol=1e-10, atol=1e-12)
        assert not advantages[index][n:].any()


def test_lambda_one_is_the_return_less_the_value() -> None:
    episodes = make_episodes()
    values = np.random.default_rng(1).standard_normal(episodes.mask.shape)
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.9)
    advantages = generalized_advantages(episodes.rewards, values, episodes.mask, 0.9, 1.0)
    np.testing.assert_allclose(advantages[episodes.mask], (returns - values)[episodes.mask], rtol=1e-10, atol=1e-12)


def test_what_the_mask_hides_is_not_looked_at() -> None:
    episodes = make_episodes()
    hidden = ~episodes.mask
    values = np.random.default_rng(1).standard_normal(episodes.mask.shape)
    spoilt_rewards, spoilt_values = episodes.rewards.copy(), values.copy()
    spoilt_rewards[hidden], spoilt_values[hidden] = np.nan, np.nan
    for gamma, lam in ((0.9, 0.8), (1.0, 1.0)):
        clean = generalized_advantages(episodes.rewards, values, episodes.mask, gamma, lam)
        spoilt = generalized_advantages(spoilt_rewards, spoilt_values, episodes.mask, gamma, lam)
        np.testing.assert_array_equal(clean, spoilt)
        np.testing.assert_array_equal(
            discounted_returns(episodes.rewards, episodes.mask, gamma),
            discounted_returns(spoilt_rewards, episodes.mask, gamma),
        )


def test_standardized_advantages() -> None:
    episodes = make_episodes()
    advantages = 5.0 + 3.0 * np.random.default_rng(2).standard_normal(episodes.mask.shape)
    result = standardize(advantages, episodes.mask)
    for task in range(TASKS):
        given, valid = advantages[task][episodes.mask[task]], result[task][episodes.mask[task]]
        np.testing.assert_allclose(valid, (given - given.mean()) / (given.std() + 1e-8), rtol=1e-12)
        assert not result[task][~episodes.mask[task]].any()
    flat = standardize(np.full(episodes.mask.shape, 3.0), episodes.mask)
    np.testing.assert_allclose(flat, 0.0, atol=1e-6)


def plain_baseline(paths: list[np.ndarray], returns: list[np.ndarray], ridge: float = 1e-5) -> list[np.ndarray]:
    """Fit one task as Duan et al. describe it, with NumPy's least squares."""
    rows = []
    for obs in paths:
        o, t = np.clip(obs.astype(np.float64), -10, 10), np.arange(len(obs)).reshape(-1, 1) / 100.0
        rows.append(np.concatenate([o, o**2, t, t**2, t**3, np.ones_like(t)], axis=1))
    features, targets = np.concatenate(rows), np.concatenate(returns)
    eye = np.identity(features.shape[1])
    weights = np.linalg.lstsq(features.T @ features + ridge * eye, features.T @ targets, rcond=-1)[0]
    return [row @ weights for row in rows]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_fit_equals_least_squares_of_each_task(n_threads: int) -> None:
    episodes = make_episodes()
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.99)
    values = LinearFeatureBaseline(parallel=Parallel(n_threads)).fit_predict(episodes, returns)
    for task in range(TASKS):
        lengths = episodes.lengths[task]
        paths = [episodes.obs[task, env, :n] for env, n in enumerate(lengths)]
        targets = [returns[task, env, :n] for env, n in enumerate(lengths)]
        for env, expected in enumerate(plain_baseline(paths, targets)):
            np.testing.assert_allclose(values[task, env, : lengths[env]], expected, rtol=1e-6, atol=1e-6)
            assert not values[task, env, lengths[env] :].any()


def test_the_fit_does_not_look_at_what_the_mask_hides() -> None:
    episodes = make_episodes()
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.99)
    clean = LinearFeatureBaseline().fit_predict(episodes, returns)
    episodes.obs[~episodes.mask] = np.nan
    returns[~episodes.mask] = np.nan
    np.testing.assert_array_equal(LinearFeatureBaseline().fit_predict(episodes, returns), clean)


def test_features_that_are_always_zero_change_nothing() -> None:
    episodes = make_episodes()
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.99)
    plain = LinearFeatureBaseline().fit_predict(episodes, returns)
    obs = np.concatenate([episodes.obs, np.zeros((*episodes.mask.shape, 3), np.float32)], axis=-1)
    wider = replace(episodes, obs=obs)
    np.testing.assert_allclose(LinearFeatureBaseline().fit_predict(wider, returns), plain, rtol=1e-9, atol=1e-9)


def test_observations_of_several_dimensions_and_extreme_ones() -> None:
    episodes = make_episodes(obs_scale=100.0)
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.99)
    flat = LinearFeatureBaseline().fit_predict(episodes, returns)
    square = episodes.obs.reshape(TASKS, ENVS, TIME, 2, 2)
    shaped = replace(episodes, obs=square)
    np.testing.assert_array_equal(LinearFeatureBaseline().fit_predict(shaped, returns), flat)
    features = LinearFeatureBaseline.features(episodes.obs[0], episodes.mask[0])
    assert float(features[:, :OBS].abs().max()) == 10.0
    assert float(features[:, OBS : 2 * OBS].max()) == 100.0


def test_equal_features_are_no_obstacle() -> None:
    # Doubled columns make the normal equations singular; only the ridge tells them apart.
    episodes = make_episodes()
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.99)
    doubled = np.concatenate([episodes.obs, episodes.obs], axis=-1)
    wider = replace(episodes, obs=doubled)
    plain = LinearFeatureBaseline().fit_predict(episodes, returns)
    np.testing.assert_allclose(LinearFeatureBaseline().fit_predict(wider, returns), plain, rtol=1e-3, atol=1e-3)


def test_where_every_ridge_fails_the_mean_is_taken() -> None:
    baseline = LinearFeatureBaseline(ridge=0.0)
    features = torch.ones(6, 2, dtype=torch.float64)
    targets = torch.arange(6, dtype=torch.float64)
    torch.testing.assert_close(baseline._fitted(features, targets), torch.full((6,), 2.5, dtype=torch.float64))


def test_many_features_are_fitted_by_the_samples_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = make_episodes(obs_scale=1.0)
    returns = discounted_returns(episodes.rewards, episodes.mask, 0.9)
    wide = replace(episodes, obs=np.random.default_rng(5).random((TASKS, ENVS, TIME, 40)).astype(np.float32))
    fits = []
    for many in (1000, 10):
        monkeypatch.setattr("metarl.agents.learners.baseline.MANY_FEATURES", many)
        fits.append(LinearFeatureBaseline(ridge=0.1).fit_predict(wide, returns))
    assert fits[0].any()
    np.testing.assert_allclose(fits[1], fits[0], rtol=1e-9, atol=1e-9)
    # The normal equations of 42,000 features take 14 GB.
    images = np.random.default_rng(5).random((1, ENVS, TIME, 3, 84, 84)).astype(np.float32)
    one = replace(episodes, obs=images, mask=np.ones((1, ENVS, TIME), bool), rewards=episodes.rewards[:1])
    values = LinearFeatureBaseline().fit_predict(one, returns[:1])
    np.testing.assert_allclose(values, returns[:1], atol=1e-3)
