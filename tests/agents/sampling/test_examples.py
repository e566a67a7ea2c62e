"""Examples that are drawn without acting are those that a policy that acts would see, and cost what it would cost."""

import numpy as np
import pytest
import torch

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.examples import Examples
from metarl.envs.registry import make_family
from metarl.errors import ConfigError, DivergedError
from metarl.params import stack
from metarl.streams import TaskSeeds
from tests.contract.kinds import Bent, WalkHomeDiscrete

N_TASKS, N = 3, 6


def setting(family):
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, {"net_arch": [5]})
    params = stack([policy.init(seed=seed) for seed in range(N_TASKS)])
    return policy, params, family.tasks("validation", N_TASKS), TaskSeeds(0, "examples", 0, range(N_TASKS), 1)


@pytest.mark.parametrize("make", [Bent, WalkHomeDiscrete, lambda: make_family("Sinusoid-v0")])
def test_they_are_what_a_policy_that_acts_sees_and_gets(make):
    family = make()
    policy, params, tasks, seeds = setting(family)
    how = {"info": ("target",)}
    acted = collect(family, policy, params, tasks, seeds, n_episodes=N, deterministic=True, **how)
    examples = Examples(family, policy, tasks, seeds, N, **how)
    with torch.no_grad():
        predictions = policy.distribution(params, torch.from_numpy(examples.obs)).mode()
    # Judged twice: the first time changes nothing.
    for _ in range(2):
        found = examples.episodes(predictions)
    for name, expected in acted.present().items():
        if name == "info":
            expected, value = expected["target"], found.info["target"]
        else:
            value = getattr(found, name)
        np.testing.assert_array_equal(value, expected, err_msg=name)
        assert value.dtype == expected.dtype, name
    assert isinstance(found, Episodes)


def test_other_spaces_and_predictions_that_are_no_numbers_are_refused():
    family = Bent()
    policy, _, tasks, seeds = setting(family)
    with pytest.raises(ConfigError, match="the policy observes"):
        Examples(make_family("PointMassImitation-v0"), policy, tasks, seeds, N)
    examples = Examples(family, policy, tasks, seeds, N)
    with pytest.raises(DivergedError, match=r"non-finite action in .* task 0"):
        examples.episodes(torch.full((N_TASKS, N, 1), torch.nan))
