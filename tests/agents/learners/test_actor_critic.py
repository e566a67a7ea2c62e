"""What A2C and PPO share: samples, losses that MAML differentiates, arguments, and that they learn."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch

from metarl.agents import A2C, PPO, FunctionalPolicy, collect
from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples, standardized
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import mean_weights
from metarl.envs.registry import make_family
from metarl.errors import ConfigError, MetaRLError
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream
from tests.agents.toys import Staircase, make_seeds, make_stack, make_tasks
from tests.meta import problems

LEARNERS: dict[str, type[ActorCritic]] = {"a2c": A2C, "ppo": PPO}
SB3 = {"a2c": stable_baselines3.A2C, "ppo": stable_baselines3.PPO}


def make_policy(family: Any, **kwargs: Any) -> FunctionalPolicy:
    kwargs = {"net_arch": [8, 6], **kwargs}
    return FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs, critic=True)


# ------------------------------------------------------------------------------------------------------------- samples
def staircase(discrete: bool = False) -> tuple[FunctionalPolicy, Params, Any]:
    family = Staircase(random=True, discrete=discrete)
    policy = make_policy(family)
    params = make_stack(policy, 3)
    params["value_net.bias"] += torch.tensor([[1.0], [2.0], [3.0]])
    tasks = make_tasks([1.0, -0.5, 2.0], [0, 2, 5])
    return policy, params, collect(family, policy, params, tasks, make_seeds(3), n_episodes=6)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("gae_lambda", [1.0, 0.8, 0.0])
def test_advantages_are_those_of_a_plain_loop(name: str, gae_lambda: float) -> None:
    policy, params, episodes = staircase()
    learner = LEARNERS[name](policy, gamma=0.9, gae_lambda=gae_lambda, normalize_advantage=False)
    samples = learner.process(episodes, params)
    assert episodes.terminated.any()
    assert not episodes.terminated.all()
    for task in range(3):
        own = {key: tensor[task] for key, tensor in params.items()}
        begin = 0
        for env, length in enumerate(episodes.lengths[task]):
            final = episodes.final_obs[task, env]
            obs = np.concatenate([episodes.obs[task, env, :length], final[None]])
            values = policy.values(own, torch.from_numpy(obs)).double().numpy()
            values[length] *= not episodes.terminated[task, env]
            deltas = episodes.rewards[task, env, :length] + 0.9 * values[1:] - values[:-1]
            expected = [sum((0.9 * gae_lambda) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]
            part = slice(begin, begin + length)
            np.testing.assert_allclose(samples.advantages[task, part], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(samples.values[task, part], values[:-1], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(samples.returns[task, part], expected + values[:-1], rtol=1e-4, atol=1e-5)
            begin += length
        assert begin == samples.counts[task]
        assert not samples.advantages[task, begin:].any()


@pytest.mark.parametrize("name", LEARNERS)
def test_one_episode_of_one_step_counts_as_a_whole(name: str) -> None:
    """Its only step is the last one, cut at the horizon, and the mean over all steps is that step."""
    family = Staircase()
    family.horizon = 1
    policy = make_policy(family)
    params, tasks = make_stack(policy, 2), make_tasks([1.0, -0.5], [2, 3])
    episodes = collect(family, policy, params, tasks, make_seeds(2), n_episodes=1)
    samples = LEARNERS[name](policy, gamma=0.5, normalize_advantage=False).process(episodes, params)
    assert samples.weights.tolist() == [[1.0], [1.0]]
    for task, gain in enumerate((1.0, -0.5)):
        own = {key: tensor[task] for key, tensor in params.items()}
        seen = (torch.from_numpy(obs[task, 0].reshape(1, -1)) for obs in (episodes.obs, episodes.final_obs))
        before, after = (float(policy.values(own, obs)) for obs in seen)
        expected = gain + 0.5 * after - before
        assert float(samples.advantages[task, 0]) == pytest.approx(expected, rel=1e-5)


def test_advantages_do_not_depend_on_threads_or_on_what_padding_holds() -> None:
    policy, params, episodes = staircase()
    expected = PPO(policy).process(episodes, params)
    dirty = replace(
        episodes,
        obs=np.where(episodes.mask[..., None], episodes.obs, np.nan),
        rewards=np.where(episodes.mask, episodes.rewards, np.nan),
        final_obs=np.where(episodes.terminated[..., None], np.nan, episodes.final_obs),
    )
    found = PPO(policy, parallel=Parallel(2)).process(dirty, params)
    for name in ("obs", "advantages", "values", "returns", "log_prob"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_parts_of_samples_keep_values_and_returns() -> None:
    policy, params, episodes = staircase()
    samples = A2C(policy).process(episodes, params)
    part = samples.tasks(slice(1, 3))
    n = int(samples.counts[1:].max())
    assert part.values.shape == part.returns.shape == part.weights.shape == (2, n)
    assert torch.equal(part.returns, samples.returns[1:, :n])
    half = samples.episodes(0.5)
    assert half.values.shape == half.returns.shape == half.obs.shape[:2]
    assert torch.equal(half.values, samples.values[:, : half.obs.shape[1]])
    double = samples.to(torch.float64)
    assert {double.values.dtype, double.returns.dtype, double.advantages.dtype} == {torch.float64}


def test_standardized() -> None:
    counts = np.array([5, 2, 1])
    advantages = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))
    found = standardized(advantages, mean_weights(counts, 5, torch.float64))
    for row, task, count in zip(found, advantages, counts, strict=True):
        own = task[:count]
        expected = (own - own.mean()) / (own.std() + 1e-8) if count > 1 else own
        torch.testing.assert_close(row[:count], expected)


# ---------------------------------------------------------------------------------------------------------- derivatives
def with_critic(policy: FunctionalPolicy, near: Params) -> ActorCriticSamples:
    """Return samples whose probability ratios are near 1 at ``near``, some of them outside the clip range."""
    samples = problems.make_samples(policy, 1)
    generator = torch.Generator().manual_seed(0)
    values, returns, noise = torch.randn(3, *samples.obs.shape[:2], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        log_prob = policy.distribution(near, samples.obs).log_prob(samples.actions) + 0.2 * noise
        values = policy.values(near, samples.obs) + 0.2 * values
    return ActorCriticSamples.of(replace(samples, log_prob=log_prob), values, returns)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", LEARNERS)
def test_maml_around_it_has_exact_derivatives(kind: str, name: str) -> None:
    actor = problems.make_policy(kind)
    kwargs = {"net_arch": {"pi": [5, 4], "vf": [6]}, "activation_fn": "tanh"}
    policy = FunctionalPolicy("MlpPolicy", actor.observation_space, actor.action_space, kwargs, critic=True)
    options = {"clip_range_vf": 0.2} if name == "ppo" else {}
    learner = LEARNERS[name](policy, ent_coef=0.1, **options)
    params = expand(problems.make_params(policy), problems.TASKS)
    samples = with_critic(policy, params)
    found = policy.differentiate(params, samples.obs, lambda d, v: learner.head_loss(d, samples, v), True)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
    losses = learner.loss(leaves, samples)
    gradient = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=True)
    generator = torch.Generator().manual_seed(1)
    vector = {key: torch.randn(t.shape, generator=generator, dtype=torch.float64) for key, t in params.items()}
    product = torch.autograd.grad(gradient, list(leaves.values()), list(vector.values()))
    torch.testing.assert_close(found.losses, losses.detach(), rtol=1e-12, atol=1e-12)
    ours = found.product(vector)
    for key, g, p in zip(params, gradient, product, strict=True):
        assert g.any()
        torch.testing.assert_close(found.gradient[key], g.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours[key], p, rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ arguments
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a2c", {"gamma": 1.5}),
        ("a2c", {"gae_lambda": "1"}),
        ("a2c", {"ent_coef": -0.1}),
        ("a2c", {"vf_coef": float("nan")}),
        ("a2c", {"ent_coef": float("inf")}),
        ("ppo", {"max_grad_norm": 0.0}),
        ("ppo", {"n_epochs": 0}),
        ("ppo", {"n_epochs": 2.5}),
        ("ppo", {"batch_size": 1}),
        ("ppo", {"batch_size": True}),
        ("ppo", {"clip_range": 0}),
        ("ppo", {"clip_range_vf": -1.0}),
        ("ppo", {"clip_range_vf": 0.0}),
        ("ppo", {"target_kl": 0.0}),
        ("ppo", {"target_kl": "0.1"}),
    ],
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    ((key, value),) = arguments.items()
    with pytest.raises(ConfigError, match=f"^{key}={value!r} is not "):
        LEARNERS[name](make_policy(Staircase()), **arguments)


@pytest.mark.parametrize("name", LEARNERS)
def test_optimizer_and_critic_are_checked(name: str) -> None:
    with pytest.raises(MetaRLError, match="unknown optimizer 'adamw': did you mean 'adam'"):
        LEARNERS[name](make_policy(Staircase()), optimizer="adamw")
    family = Staircase()
    with pytest.raises(ConfigError, match=f"{LEARNERS[name].__name__} needs a policy with a critic"):
        LEARNERS[name](FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space))


def test_minibatches_of_two_are_allowed() -> None:
    assert PPO(make_policy(Staircase()), batch_size=2).batch_size == 2


@pytest.mark.parametrize("name", LEARNERS)
def test_defaults_are_sb3s(name: str) -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (LEARNERS[name], SB3[name]))
    # Without n_steps a batch is whole episodes, which SB3 has not.
    shared = [key for key in ours if key in theirs and key not in ("self", "policy", "n_steps")]
    assert len(shared) >= 6
    assert {key: ours[key].default for key in shared} == {key: theirs[key].default for key in shared}


def test_minibatches_of_one_are_allowed_without_normalizing() -> None:
    assert PPO(make_policy(Staircase()), batch_size=1, normalize_advantage=False).batch_size == 1


# ------------------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize(("name", "rate", "updates"), [("a2c", 0.01, 40), ("ppo", 0.003, 10)])
def test_it_learns(name: str, rate: float, updates: int) -> None:
    family = make_family("PointMass-v0")
    policy = make_policy(family, net_arch=[32, 32])
    options = {"normalize_advantage": True, "gae_lambda": 0.95} if name == "a2c" else {"n_epochs": 5}
    learner = LEARNERS[name](policy, gamma=0.95, **options)
    n_tasks = 4
    tasks = family.sample_tasks(stream(0, "tasks"), n_tasks)
    state = learner.start(make_stack(policy, n_tasks))
    returns = []
    for turn in range(updates):
        streams = [[seed_sequence(0, what, turn, task) for task in range(n_tasks)] for what in ("collect", "order")]
        episodes = collect(family, policy, state.params, tasks, streams[0], n_episodes=10)
        returns.append(episodes.mean_returns)
        state = learner.update(state, learner.process(episodes, state.params), rate, streams[1])
    assert (returns[0] < -50.0).all()
    assert (returns[-1] > 0.4 * returns[0]).all()
