"""What steps report is collected where it is asked for, and deterministic policies draw nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.samples import pack
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError
from tests.agents.toys import Staircase, make_policy, make_seeds, make_stack, make_tasks

TASKS = make_tasks([1.0, -0.5, 2.0], [0, 2, 5])


class Telling(Staircase):
    """A staircase that reports its clock, twice and as a whole number; of copies that ended it reports NaN too."""

    id = "Telling-v0"

    def step(self, tasks: Any, state: Any, actions: Any, rngs: Any, active: Any = None) -> Any:
        step = super().step(tasks, state, actions, rngs, active)
        clock = step.state["t"] + tasks["gain"][:, None]
        twice = np.stack([clock, 2 * clock], axis=-1)
        if active is not None:
            twice = np.where(active[..., None], twice, np.nan)
        return step._replace(info={**step.info, "twice": twice, "whole": step.state["t"].astype(np.int32)})


class Side(Telling):
    """The same, collected in blocks."""

    concurrent = True


@pytest.mark.parametrize("amount", [{"n_episodes": 6}, {"n_transitions": 40}])
@pytest.mark.parametrize("make", [Telling, Side])
def test_terms_belong_to_their_step(make: type[Telling], amount: dict[str, Any]) -> None:
    family = make(random=True)
    policy = make_policy(family)
    params = make_stack(policy, 3)
    asked = ("twice", "whole", "reward")
    episodes = collect(family, policy, params, TASKS, make_seeds(3), info=asked, parallel=Parallel(2), **amount)
    assert list(episodes.info) == list(asked)
    mask = episodes.mask
    time = np.broadcast_to(np.arange(mask.shape[2]) + 1, mask.shape)
    clock = time + TASKS["gain"][:, None, None]
    np.testing.assert_array_equal(episodes.info["twice"][mask], np.stack([clock, 2 * clock], -1)[mask])
    np.testing.assert_array_equal(episodes.info["whole"][mask], time[mask])
    np.testing.assert_array_equal(episodes.info["reward"][mask], episodes.rewards[mask])
    assert [episodes.info[name].dtype for name in asked] == [np.float32, np.int64, np.float32]
    plain = collect(family, policy, params, TASKS, make_seeds(3), **amount)
    assert plain.info == {}
    np.testing.assert_array_equal(plain.obs, episodes.obs)
    np.testing.assert_array_equal(plain.actions, episodes.actions)


def test_targets_are_packed_with_their_samples() -> None:
    family = Telling()
    policy = make_policy(family)
    episodes = collect(family, policy, make_stack(policy, 3), TASKS, make_seeds(3), n_episodes=4, info=("twice",))
    samples = pack(episodes, episodes.rewards, episodes.info["twice"])
    assert samples.target is not None
    for task, count in enumerate(samples.counts):
        mask = episodes.mask[task]
        np.testing.assert_array_equal(samples.target[task, :count], episodes.info["twice"][task][mask])
        assert not samples.target[task, count:].any()
    one = samples.tasks(slice(1, 2))
    assert one.target is not None
    assert one.target.shape == (1, samples.counts[1], 2)
    assert pack(episodes, episodes.rewards).target is None


def test_what_is_not_reported_is_refused_by_name() -> None:
    family = Telling()
    policy = make_policy(family)
    with pytest.raises(ConfigError, match=r"^info of Telling-v0 has no 'target': it has reward, twice, whole$"):
        collect(family, policy, make_stack(policy, 3), TASKS, make_seeds(3), n_episodes=1, info=("target",))
    env = SingleEnv(family, gain=1.0, offset=3)
    with pytest.raises(ConfigError, match=r"has no 'target': it has reward, twice, whole$"):
        collect_env(env, policy, policy.init(0), make_seeds(1)[0], n_episodes=1, info=("target",))


@pytest.mark.parametrize("discrete", [False, True])
def test_deterministic_actions_are_the_modes(discrete: bool) -> None:
    family = Telling(random=True, discrete=discrete, start=2 if discrete else 0)
    policy = make_policy(family)
    params = make_stack(policy, 3)
    episodes = collect(family, policy, params, TASKS, make_seeds(3), n_episodes=5, deterministic=True)
    with torch.inference_mode():
        flat = torch.from_numpy(episodes.obs).flatten(1, 2)
        modes = policy.distribution(params, flat).mode().numpy().reshape(episodes.actions.shape)
    np.testing.assert_allclose(episodes.actions[episodes.mask], modes[episodes.mask], rtol=1e-5, atol=1e-6)
    sampled = collect(family, policy, params, TASKS, make_seeds(3), n_episodes=5)
    # The environment's draws are the same.
    np.testing.assert_array_equal(sampled.obs[:, :, 0], episodes.obs[:, :, 0])
    np.testing.assert_array_equal(sampled.mask, episodes.mask)
    assert (sampled.actions != episodes.actions).any()


def test_a_single_environment_reports_and_is_deterministic_too() -> None:
    family = Telling()
    policy = make_policy(family)
    env = SingleEnv(family, gain=2.0, offset=5)
    seed = make_seeds(1)[0]
    episodes = collect_env(env, policy, policy.init(0), seed, n_episodes=3, info=("twice", "whole"), deterministic=True)
    mask = episodes.mask
    time = np.broadcast_to(np.arange(mask.shape[2]) + 1, mask.shape)
    np.testing.assert_array_equal(episodes.info["whole"][mask], time[mask])
    np.testing.assert_array_equal(episodes.info["twice"][mask][:, 1], 2 * (time[mask] + 2.0))
    assert episodes.info["twice"].shape == (*mask.shape, 2)
    modes = policy.distribution(policy.init(0), torch.from_numpy(episodes.obs[0, 0])).mode()
    np.testing.assert_allclose(episodes.actions[0, 0], modes.detach().numpy(), rtol=1e-5, atol=1e-6)
