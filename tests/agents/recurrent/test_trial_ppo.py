"""PPO on whole trials: advantages over episodes, masks, the loss and its gradient, sb3-contrib's RecurrentPPO."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.agents.networks.distributions import from_heads
from metarl.agents.parallel import Parallel
from metarl.agents.recurrent.policy import RecurrentPolicy
from metarl.agents.recurrent.trial_ppo import TrialPPO, TrialSamples
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.envs import Trials, make_family
from metarl.errors import ConfigError
from metarl.params import Params, expand

SMALL = {"lstm_hidden_size": 4, "net_arch": [4]}


def _collected(n_episodes: int = 3, horizon: int = 6) -> tuple[RecurrentPolicy, Params, Episodes]:
    """Trials in which episodes end early, and at different times."""
    family = Trials(make_family("PointMass-v0", horizon=horizon, goal_radius=0.35), n_episodes)
    policy = RecurrentPolicy("MlpLstmPolicy", family.observation_space, family.action_space, SMALL)
    params, seeds = policy.init(seed=1), np.random.SeedSequence(4).spawn(3)
    trials = collect(family, policy, expand(params, 3), family.tasks("test", 3), seeds, n_episodes=5)
    assert len(set(trials.lengths.ravel().tolist())) > 3
    assert 0 < trials.terminated.sum() < trials.terminated.size
    return policy, params, trials


def test_advantages_run_over_the_ends_of_episodes_and_stop_at_the_trials() -> None:
    policy, params, trials = _collected()
    gamma, lam = 0.9, 0.8
    samples = TrialPPO(policy, gamma=gamma, gae_lambda=lam).process(trials, params)
    for row, (task, env) in enumerate(np.ndindex(*trials.lengths.shape)):
        n = int(trials.lengths[task, env])
        seen = np.concatenate([trials.obs[task, env, :n], trials.final_obs[task, env][None]])
        heads, values = policy.outputs(params, torch.from_numpy(seen)[None])
        values = values[0].detach().double().numpy()
        log_prob = from_heads((heads[0][0, :n], *heads[1:])).log_prob(torch.from_numpy(trials.actions[task, env, :n]))
        last = 0.0 if trials.terminated[task, env] else values[n]
        following, running = last, 0.0
        for t in range(n - 1, -1, -1):
            running = trials.rewards[task, env, t] + gamma * following - values[t] + gamma * lam * running
            following = values[t]
            assert float(samples.advantages[row, t]) == pytest.approx(running, abs=1e-4)
            assert float(samples.returns[row, t]) == pytest.approx(running + values[t], abs=1e-4)
        torch.testing.assert_close(samples.log_prob[row, :n], log_prob.detach(), atol=1e-5, rtol=1e-4)
        assert not samples.mask[row, n:].any()
        assert samples.mask[row, :n].all()


def _double(samples: TrialSamples) -> TrialSamples:
    return samples.map(lambda _, each: each.double() if each.is_floating_point() else each)


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
def test_the_loss_of_a_minibatch_is_ppos_mean_over_all_steps(clip_range_vf: float | None) -> None:
    policy, params, trials = _collected()
    learner = TrialPPO(policy, ent_coef=0.1, vf_coef=0.7, clip_range=0.1, clip_range_vf=clip_range_vf)
    samples = _double(learner.process(trials, params))
    moved = {name: t.double() + 0.05 * torch.randn(t.shape).double() for name, t in params.items()}
    found = learner.differentiate(moved, samples)
    parts, n_steps, kl = [], 0, 0.0
    for row in range(len(samples)):
        n = int(samples.mask[row].sum())
        heads, values = policy.outputs(moved, samples.obs[row, :n][None])
        distribution = from_heads((heads[0][0], *heads[1:]))
        log_ratio = distribution.log_prob(samples.actions[row, :n]) - samples.log_prob[row, :n]
        advantages, old = samples.advantages[row, :n], samples.values[row, :n]
        ratio = log_ratio.exp()
        actor = -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages)
        said = values[0] if clip_range_vf is None else old + (values[0] - old).clamp(-clip_range_vf, clip_range_vf)
        critic = (samples.returns[row, :n] - said).square()
        parts.append((actor + 0.7 * critic - 0.1 * distribution.entropy()).sum())
        n_steps, kl = n_steps + n, kl + float((ratio - 1.0 - log_ratio).sum())
    assert found.loss == pytest.approx(float(sum(parts)) / n_steps, rel=1e-9)
    assert found.approx_kl == pytest.approx(kl / n_steps, rel=1e-9)
    assert 0.0 < found.clip_fraction < 1.0


def test_its_gradient_equals_finite_differences() -> None:
    policy, params, trials = _collected()
    learner = TrialPPO(policy, ent_coef=0.1)
    (samples, *_) = learner.minibatches(_double(learner.process(trials, params)), np.random.default_rng(0))
    moved = {name: t.double() + 0.02 * torch.randn(t.shape).double() for name, t in params.items()}
    gradient, rng, eps = learner.differentiate(moved, samples).gradient, np.random.default_rng(1), 1e-6
    for name, tensor in moved.items():
        index = tuple(int(rng.integers(size)) for size in tensor.shape)
        sides = []
        for sign in (1.0, -1.0):
            other = tensor.clone()
            other[index] += sign * eps
            sides.append(learner.differentiate({**moved, name: other}, samples).loss)
        assert float(gradient[name][index]) == pytest.approx((sides[0] - sides[1]) / (2 * eps), rel=1e-4, abs=1e-7)


def test_what_lies_behind_a_trials_end_changes_nothing() -> None:
    policy, params, trials = _collected()
    learner = TrialPPO(policy)
    obs, rewards = trials.obs.copy(), trials.rewards.copy()
    obs[~trials.mask], rewards[~trials.mask] = np.nan, np.nan
    for ours, theirs in zip(
        learner.process(trials, params).present().values(),
        learner.process(replace(trials, obs=obs, rewards=rewards), params).present().values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_every_trial_is_in_one_minibatch_of_an_epoch_and_advantages_are_standardised_over_steps() -> None:
    policy, params, trials = _collected()
    samples = TrialPPO(policy).process(trials, params)
    batches = list(TrialPPO(policy, n_epochs=2, batch_size=4).minibatches(samples, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3] * 2
    sums = sorted(float(row.sum()) for row in samples.returns)
    for epoch in (batches[:4], batches[4:]):
        assert sorted(float(row.sum()) for batch in epoch for row in batch.returns) == pytest.approx(sums, abs=1e-4)
    for batch in batches:
        advantages = batch.advantages[batch.mask]
        assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(advantages.std()) == pytest.approx(1.0, abs=1e-4)
        assert not batch.advantages[~batch.mask].any()


def test_the_first_step_finds_a_ratio_of_one_and_threads_change_no_bit() -> None:
    policy, params, trials = _collected()
    learners = [TrialPPO(policy, batch_size=15, parallel=Parallel(n)) for n in (1, 2)]
    both = []
    for learner in learners:
        samples = learner.process(trials, params)
        whole = samples.map(lambda _, each: torch.cat([each] * 3))
        found = learner.differentiate(params, whole)
        assert found.approx_kl == pytest.approx(0.0, abs=1e-7)
        assert found.clip_fraction == 0.0
        both.append(found.gradient)
    assert all(torch.equal(both[0][name], both[1][name]) for name in params)


def test_bad_arguments_are_refused() -> None:
    policy, _, _ = _collected()
    for name, value in (("batch_size", 0), ("n_epochs", 0), ("clip_range", 0.0), ("gamma", 1.5), ("ent_coef", -1.0)):
        with pytest.raises(ConfigError, match=name):
            TrialPPO(policy, **{name: value})  # type: ignore[arg-type]
