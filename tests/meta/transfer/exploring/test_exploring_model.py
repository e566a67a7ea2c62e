"""A support of episodes: who collects them is what is learnt, z is its policy gradient, and all doors take it."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import metarl
from metarl.agents.sampling.collect import collect
from metarl.envs.maze.maze import Maze
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.transfer.exploring.model import first_steps
from metarl.meta.transfer.exploring.surrogates import SURROGATES
from metarl.params import expand, group
from metarl.streams import seed_sequence
from tests.meta.algorithms.test_meta_transfer import GRADIENTS, batches, build, gradient
from tests.meta.walk import Walk


class Nameless(gym.Env):
    """An environment whose task is not known."""

    def __init__(self, env):
        self.inner, self.observation_space, self.action_space = env, env.observation_space, env.action_space

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(action)


def explore(encoder="linear", env=None, surrogate="dice", **kwargs):
    return build(encoder, env=env or Walk(), support_surrogate=surrogate, **kwargs)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("encoder", GRADIENTS)
def test_the_learner_itself_collects_and_z_is_its_policy_gradient(encoder, discrete):
    model = explore(encoder, Walk(discrete), exploration_std=0.5)
    meta, support, _ = batches(model)
    inner, z = model.adaptation.model, {}
    params = inner.exploring(meta)
    policy, samples = inner.explorer, support[0]
    # What acted is f: its likelihood is that of the samples.
    stacked = {name: tensor.contiguous() for name, tensor in expand(params, 3).items()}
    old = policy.distribution(stacked, samples.obs).log_prob(samples.actions)
    valid = samples.weights > 0
    torch.testing.assert_close(old[valid], samples.log_prob[valid], rtol=1e-5, atol=1e-5)

    places = {"learner.0": "mlp_extractor.policy_net.0", "learner.1": "mlp_extractor.policy_net.2"}
    places["learner.2"] = "action_net"

    def loss(leaves, task):
        layers = inner.encoder.learnt(group({**meta, **leaves}, "encoder/"))
        named = {f"{places[name[:9]]}{name[9:]}": tensor for name, tensor in layers.items()}
        log_prob = policy.distribution({**params, **named}, samples.obs[task]).log_prob(samples.actions[task])
        return -(samples.weights[task] * samples.advantages[task] * log_prob).sum()

    is_linear = encoder == "linear"
    names = [f"encoder/{name}" for name in inner.encoder.learner.shapes] if is_linear else ["encoder/z"]
    for task in range(3):
        leaves = {name: meta[name].clone().requires_grad_() for name in names}
        slope = torch.autograd.grad(loss(leaves, task), list(leaves.values()))
        vector = torch.cat([each.ravel() for each in slope])
        z[task] = meta["encoder/V"] @ vector if is_linear else vector
    for surrogate in SURROGATES:
        inner.encoder.sizes = inner.encoder.sizes._replace(loss=surrogate)
        exact = [_with_old(each, policy, stacked) for each in support]
        found = inner.latent(meta, inner.seen(exact))
        torch.testing.assert_close(found, torch.stack(list(z.values())), rtol=1e-8, atol=1e-10)


def _with_old(samples, policy, stacked):
    """Return samples with the likelihood in float64: at it all surrogates have one gradient."""
    return replace(samples, log_prob=policy.distribution(stacked, samples.obs).log_prob(samples.actions))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("encoder", GRADIENTS)
def test_the_meta_gradient_is_that_of_finite_differences(encoder, surrogate):
    model = explore(encoder, surrogate=surrogate, env=Walk(discrete=encoder == "linear"))
    meta, *data = batches(model)
    found = gradient(model, meta, *data)
    generator = torch.Generator().manual_seed(0)
    way = {name: torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in meta.items()}
    h = 1e-5
    ahead, behind = ({name: t + sign * h * way[name] for name, t in meta.items()} for sign in (1, -1))
    # The ratio of the query is 1 where its gradient is taken, so that its loss is no function of its own: z stands in.
    inner = model.adaptation.model
    seen = inner.seen(data[0])
    generator = torch.Generator().manual_seed(1)
    shape = inner.latent(meta, seen).shape
    by = torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = float(((inner.latent(ahead, seen) - inner.latent(behind, seen)) * by).sum().detach()) / (2 * h)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    slope = torch.autograd.grad((inner.latent(leaves, seen) * by).sum(), list(leaves.values()), materialize_grads=True)
    total = sum(float((each * way[name]).sum()) for name, each in zip(leaves, slope, strict=True))
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert float(found["encoder/learner.0.weight" if encoder != "nonlinear" else "encoder/z"].abs().max()) > 0.0


def test_surrogates_differ_in_what_reaches_the_learner_alone():
    found = []
    for surrogate in SURROGATES:
        model = explore(surrogate=surrogate)
        meta, *data = batches(model)
        found.append(gradient(model, meta, *data))
    for other in found[1:]:
        torch.testing.assert_close(
            found[0]["decoder/psi.0.weight"], other["decoder/psi.0.weight"], rtol=1e-4, atol=1e-7
        )
        assert not torch.allclose(found[0]["encoder/learner.0.weight"], other["encoder/learner.0.weight"], rtol=1e-2)


def test_steps_know_where_their_episode_began():
    model = explore(env=Maze(4))
    inner = model.adaptation.model
    tasks = model.family.tasks("test", 2)
    params = {name: t.contiguous() for name, t in expand(inner.exploring(model.params), 2).items()}
    seeds = [seed_sequence(0, "test", task) for task in range(2)]
    episodes = collect(model.family, inner.explorer, params, tasks, seeds, n_episodes=3)
    samples = inner.draw(model.params, tasks, seeds, 3)
    firsts = first_steps(samples)
    for task in range(2):
        expected, start = [], 0
        for length in episodes.lengths[task]:
            expected += [start] * int(length)
            start += int(length)
        assert firsts[task, : len(expected)].tolist() == expected


def test_it_trains_goes_on_evaluates_adapts_and_is_exported(tmp_path):
    model = explore("context", env=Maze(4)).learn(1)
    again = metarl.load(model.save(tmp_path / "model"), env=model.family)
    report = again.evaluate("test", 2, n_tasks=2)
    np.testing.assert_array_equal(report.returns, model.evaluate("test", 2, n_tasks=2).returns)
    assert report.env_steps[1] > 4
    env = SingleEnv(model.family, **{name: value[0] for name, value in model.family.tasks("test", 1).items()})
    adapted = model.adapt(env, n_episodes=3)
    assert adapted.env_steps >= 3
    model.to_sb3(value_tasks=0)
    nameless = model.adapt(Nameless(env), n_episodes=2)
    assert nameless.env_steps >= 2
    assert nameless.params["action_net.bias"].shape == (4,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: explore(surrogate="dise"), "support_surrogate='dise'"),
        (lambda: explore("mean"), "support_surrogate='dice' with encoder='mean': it takes no gradient"),
        (lambda: explore(exploration_std=0.0), "exploration_std=0"),
        (lambda: explore().adapt(support=(np.zeros((4, 2)), np.zeros((4, 1)))), "pass an environment"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call, words):
    with pytest.raises(MetaRLError, match=words) as caught:
        call()
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)
