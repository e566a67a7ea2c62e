"""Groups of tasks with equal spaces."""

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.envs.atari.family import Atari
from metarl.envs.checker.family import check_family
from metarl.envs.groups import group_tasks, has_equal_spaces
from metarl.envs.plane.point_mass import PointMass
from metarl.envs.registry import make_family
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import TaskError
from metarl.params import expand
from metarl.streams import seed_sequence, stream
from tests.envs.families import Doors


def tasks(*doors, red=0, green=1):
    """Return a batch of tasks of the doors."""
    each = np.ones(len(doors), np.int64)
    return {"doors": np.array(doors), "red": red * each, "green": green * each, "pay": 1.0 * each}


def test_groups_keep_the_order_and_cover_the_batch():
    batch = {**tasks(4, 2, 4, 3, 2, 4), "red": np.array([3, 1, 2, 0, 0, 1])}
    four, two, three = group_tasks(Doors(), batch)
    np.testing.assert_array_equal(four.indices, [0, 2, 5])
    np.testing.assert_array_equal(two.indices, [1, 4])
    np.testing.assert_array_equal(three.indices, [3])
    assert [group.action_space for group in (four, two, three)] == [Discrete(4), Discrete(2), Discrete(3)]
    assert four.observation_space == two.observation_space == three.observation_space == Doors().observation_space
    np.testing.assert_array_equal(four.tasks["red"], [3, 2, 1])
    np.testing.assert_array_equal(two.tasks["doors"], [2, 2])


def test_equal_spaces_make_one_group():
    family = make_family("PointMass-v0")
    (group,) = group_tasks(family, family.tasks("test", 7))
    np.testing.assert_array_equal(group.indices, np.arange(7))


def test_families_with_different_spaces_pass_the_checks():
    check_family(Doors(), n=6)


def test_every_split_has_every_pair_of_spaces():
    for batch in (Doors().tasks("validation"), Doors().tasks("test"), Doors().sample_tasks(stream(0, "t"), 30)):
        assert {len(np.unique(group.tasks["doors"])) for group in group_tasks(Doors(), batch)} == {1}
        assert set(batch["doors"]) == {2, 3, 4}


def test_a_single_view_has_its_task_s_spaces():
    env = SingleEnv(Doors(), doors=3, red=1, green=2, pay=1.0)
    assert env.action_space == Discrete(3)
    with pytest.raises(TaskError, match="has other spaces: make an environment for it"):
        env.set_task({"doors": 2, "red": 1, "green": 0, "pay": 1.0})
    assert env.task == {"doors": 3, "red": 1, "green": 2, "pay": 1.0}


def test_a_view_without_a_task_draws_one_of_its_spaces():
    for seed in range(8):
        env = SingleEnv(Doors())
        env.reset(seed=seed)
        assert env.task["doors"] == 2


def test_a_vec_env_takes_one_group():
    batch = tasks(3, 2, 3, red=2, green=2)
    with pytest.raises(TaskError, match="these tasks of Doors-v0 have 2 different pairs of spaces: group them"):
        FamilyVecEnv(Doors(), batch)
    three, _ = group_tasks(Doors(), batch)
    env = FamilyVecEnv(Doors(), three.tasks, n_envs=2)
    assert env.action_space == Discrete(3)
    env.reset()
    _, rewards, _, _ = env.step(np.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(rewards, [1, 0, 0, 1])


def test_each_group_is_collected_with_a_policy_of_its_own():
    for group in group_tasks(Doors(), Doors().tasks("test")):
        policy = FunctionalPolicy("MlpPolicy", group.observation_space, group.action_space, {"net_arch": [12]})
        n = len(group.indices)
        params = expand(policy.init(0), n)
        seeds = [seed_sequence(0, "doors", task) for task in range(n)]
        episodes = collect(Doors(), policy, params, group.tasks, seeds, n_episodes=60)
        assert episodes.actions.max() == group.action_space.n - 1
        # Fresh policies choose at random.
        shares = episodes.mean_returns / group.tasks["pay"]
        assert shares.mean() == pytest.approx(8 / group.action_space.n, abs=0.4)


def test_an_oracle_has_equal_spaces_where_its_family_has() -> None:
    assert has_equal_spaces(Oracle(make_family("PointMass-v0")))
    assert not has_equal_spaces(Oracle(Doors()))


def test_a_finite_family_whose_tasks_all_have_its_spaces_has_equal_ones():
    assert has_equal_spaces(Atari(full_action_set=True))
    assert not has_equal_spaces(Atari())
    assert has_equal_spaces(PointMass())
