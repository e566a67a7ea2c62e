"""Running statistics of batch norm in the inner loop, against PyTorch's own batch norm in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.learners.supervised import Supervised
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples, mean_weights
from metarl.envs.family import Step
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from metarl.meta import FOMAML, MAML, Reptile
from metarl.meta.adaptation.base import Streams, finish
from metarl.meta.adaptation.gradient import GradientPath
from metarl.meta.progress import Timer
from metarl.params import Params, expand
from tests.agents.pictures import Patterns, Pictures

RUNNING = {"features_extractor_kwargs": {"n_filters": 3, "batch_statistics": "running"}}
STATISTICS = "statistics/"


def statistics(params: Params, task: int) -> Params:
    return {name.removeprefix(STATISTICS): t[task] for name, t in params.items() if name.startswith(STATISTICS)}


def batch(counts: list[int], seed: int) -> Samples:
    rng, n = np.random.default_rng(seed), max(counts)
    obs = torch.from_numpy(rng.normal(size=(len(counts), n, 1, 16, 16)) * 60.0 + 90.0)
    target = torch.from_numpy(rng.integers(3, size=(len(counts), n)))
    sizes = np.array(counts)
    return Samples(obs, target, None, mean_weights(sizes, n, torch.float64), sizes, sizes[:, None], target=target)


def test_inner_steps_move_them_as_pytorch_does() -> None:
    family, counts = Patterns(), [6, 4]
    policy = FunctionalPolicy("FewShotCnnPolicy", family.observation_space, family.action_space, RUNNING)
    params = {name: tensor.double() for name, tensor in expand(policy.init(1), 2).items()}
    batches = [batch(counts, seed) for seed in range(2)]
    path = GradientPath(Supervised(policy), params, batches, [0.1, 0.1], second_order=True)
    starts = [params, path.steps[0].end]
    for task, count in enumerate(counts):
        module = policy.build(0).double().train()
        own = dict(module.named_parameters())
        for start, each, step in zip(starts, batches, path.steps, strict=True):
            with torch.no_grad():
                for name in policy.network.names:
                    own[name].copy_(start[name][task])
                # Padding of shorter tasks does not count.
                module.features_extractor(each.obs[task, :count] / 255.0)
            expected = {
                name: tensor for name, tensor in module.named_buffers() if name.startswith("features_extractor.")
            }
            for name, tensor in statistics(step.end, task).items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
                assert not torch.equal(tensor, start[STATISTICS + name][task])


@pytest.mark.parametrize("learner", ["supervised", "ppo"])
@pytest.mark.parametrize("cls", [MAML, FOMAML, Reptile])
def test_walks_move_them_and_the_initialisation_goes_on_with_their_mean(cls: Any, learner: str) -> None:
    model = cls(
        "FewShotCnnPolicy",
        Patterns(),
        learner=learner,
        policy_kwargs=RUNNING,
        n_inner_steps=2,
        inner_lr=0.01,
        outer="adam",
        meta_batch_size=3,
        n_episodes=4,
        seed=0,
        n_threads=1,
    )
    (block,) = model._blocks(
        model._sample_tasks(), model.rates, Streams(model.seed, "train", 0), model._amount(None, None)
    )
    outcome = finish(block.adaptation.walk(model.theta, block.request), Timer())
    before = dict(model.params)
    model.train()
    moved = [name for name in before if name.startswith(STATISTICS)]
    assert moved
    for name in moved:
        assert not torch.equal(outcome.params[name][0], outcome.params[name][1])
        assert not torch.equal(model.params[name], before[name])
        torch.testing.assert_close(model.params[name], outcome.params[name].mean(0))
    adapted = model.adapt(SingleEnv(Patterns()), n_inner_steps=1, n_episodes=2)
    assert not any(torch.equal(adapted.params[name], model.params[name]) for name in moved)


class Short(Pictures):
    """Pictures whose first copy of a task ends at once."""

    def step(self, tasks: Any, state: Any, actions: Any, rngs: Any, active: Any = None) -> Step:
        step = super().step(tasks, state, actions, rngs, active)
        return step._replace(terminated=np.arange(step.reward.shape[1]) + np.zeros_like(step.reward) < 1)


@pytest.mark.parametrize("kind", ["batch", "running"])
def test_batches_that_are_normalised_by_themselves_are_of_equal_episodes(kind: str) -> None:
    kwargs = {"features_extractor_kwargs": {"n_filters": 2, "batch_statistics": kind}}
    model = FOMAML("FewShotCnnPolicy", Short(), policy_kwargs=kwargs, meta_batch_size=2, n_episodes=2, outer="adam")
    if kind == "running":
        assert np.isfinite(model.evaluate("test", n_tasks=2, n_inner_steps=1).returns).all()
        return
    for work in (model.train, lambda: model.evaluate("test", n_tasks=2, n_inner_steps=0)):
        with pytest.raises(ConfigError, match="normalises by each batch") as caught:
            work()
        assert "\n" not in str(caught.value)
