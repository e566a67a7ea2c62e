"""Live families: runs and instances, what collectors and views make of them, and what the check finds."""

import copy
import multiprocessing
import pickle

import gymnasium
import numpy as np
import pytest
import torch

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.envs.checker.family import FamilyCheckError, check_family
from metarl.envs.live import Pool
from metarl.envs.tasks import one_task, take_tasks
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.single import SingleEnv, episode_stream
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError
from metarl.streams import seed_sequence, stream
from tests.envs.live import Puppet, Puppets


@pytest.fixture
def family():
    Puppet.alive = 0
    return Puppets()


def gathered(family, n_tasks=4, n_episodes=3, n_threads=1, **how):
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, {"net_arch": [12]})
    params = {name: torch.stack([tensor] * n_tasks) for name, tensor in policy.init(0).items()}
    tasks = family.tasks("test", n_tasks)
    seeds = [seed_sequence(0, "live", row) for row in range(n_tasks)]
    how = how or {"n_episodes": n_episodes}
    return collect(family, policy, params, tasks, seeds, parallel=Parallel(n_threads), **how)


def same(a, b):
    for name in ("obs", "actions", "rewards", "mask", "terminated", "final_obs"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# --------------------------------------------------------------------------------------------------- runs and instances
def test_a_pool_lends_an_instance_again_and_keeps_no_more_than_ran_at_once():
    closed = []
    pool = Pool(closed.append)
    first, second = (pool.run("a", lambda name=name: name) for name in ("one", "two"))
    assert (first.instance, second.instance, pool.n_instances) == ("one", "two", 2)
    second.stepped(over=True)
    assert second.instance == "two", "the last picture is of it"
    third = pool.run("a", lambda: "never made")
    assert third.instance == "two"
    with pytest.raises(gymnasium.error.ResetNeeded):
        second.instance  # noqa: B018  (it raises)
    del third  # whoever forgets an episode gives its instance back
    other = pool.run("b", lambda: "three")
    assert (other.instance, pool.n_instances, closed) == ("three", 2, ["two"])
    del other
    pool.close()
    assert closed == ["two", "three"]
    first.stepped(over=True)
    assert closed == ["two", "three", "one"]


def test_an_instance_that_cannot_be_made_is_not_counted():
    pool = Pool()
    with pytest.raises(ZeroDivisionError):
        pool.run((), lambda: 1 / 0)
    assert pool.n_instances == 0


def test_a_state_is_stepped_from_once(family):
    tasks, rngs = family.tasks("test", 2), [stream(0, "x", row) for row in range(2)]
    state, _ = family.reset(tasks, rngs, 2)
    family.step(tasks, state, np.zeros((2, 2, 1)), rngs)
    with pytest.raises(ConfigError, match="an episode at time step 1 cannot be stepped from time step 0"):
        family.step(tasks, state, np.zeros((2, 2, 1)), rngs)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_of_a_view_needs_a_reset(family, through):
    env = SingleEnv(family, drift=0.1)
    env.reset(seed=0)
    twin = through(env)
    with pytest.raises(gymnasium.error.ResetNeeded):
        twin.step(np.zeros(1))
    assert env.step(np.zeros(1))[1] != 0
    np.testing.assert_array_equal(twin.reset(seed=3)[0], env.reset(seed=3)[0])


def test_a_forked_process_begins_its_own_episodes(family):
    env = SingleEnv(family, drift=0.1)
    first, _ = env.reset(seed=0)

    def child(queue):
        try:
            env.step(np.zeros(1))
        except gymnasium.error.ResetNeeded:
            queue.put("reset needed")
        queue.put(env.reset(seed=0)[0])
        family.close()

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=30) == "reset needed"
    np.testing.assert_array_equal(queue.get(timeout=30), first)
    process.join(30)
    env.step(np.zeros(1))


# ------------------------------------------------------------------------------------------------ collectors and views
def test_collecting_gives_the_same_bits_with_any_threads_blocks_and_instances(family):
    episodes = gathered(family)
    assert Puppet.alive == 12
    same(episodes, gathered(family))
    same(episodes, gathered(family, n_threads=3))
    assert Puppet.alive == 12, "instances are used again"
    bounded = Puppets()
    bounded.max_copies = 7  # two tasks of three copies at a time
    Puppet.alive = 0
    same(episodes, gathered(bounded))
    assert Puppet.alive == 6
    bounded.max_copies = 1  # a task's copies run at once all the same
    bounded.close()
    same(episodes, gathered(bounded))
    assert Puppet.alive == 3
    bounded.close()
    assert Puppet.alive == 0


def test_waves_of_episodes_need_no_more_instances_than_one_wave(family):
    episodes = gathered(family, n_transitions=40)
    assert (episodes.task_steps >= 40).all()
    assert Puppet.alive == 4 * -(-40 // family.horizon)


def test_what_is_cut_is_not_terminated(family):
    """Pushed down, copies are cut below -2 before the horizon; pushed up, they terminate above 3."""
    episodes = gathered(family, n_tasks=8, n_episodes=8)
    last = np.take_along_axis(episodes.final_obs[..., 0], np.zeros((8, 1), int), axis=1)
    assert last.shape == (8, 1)
    ends = episodes.final_obs[..., 0]
    np.testing.assert_array_equal(episodes.terminated, ends > 3)
    early = episodes.lengths < family.horizon
    assert (early & (ends < -2)).any()
    assert (early & (ends > 3)).any()
    assert (~early).any()
    assert ((ends > 3) | (ends < -2) | ~early).all()


def test_views_say_what_is_cut(family):
    env = SingleEnv(family, drift=-0.5)
    twin = FamilyVecEnv(family, {"drift": [-0.5, 0.5]}, seed=0)
    env.reset(seed=0)
    twin.reset()
    while True:
        obs, _, terminated, truncated, _ = env.step(-np.ones(1))
        seen, _, dones, infos = twin.step(np.array([[-1.0], [0.0]]))
        if terminated or truncated:
            break
        np.testing.assert_array_equal(obs, seen[0])
    assert truncated
    assert not terminated
    assert env._elapsed < family.horizon
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"]
    np.testing.assert_array_equal(infos[0]["terminal_observation"], obs)
    assert obs[0] < -2 < seen[0, 0]


def test_the_vector_view_keeps_as_many_instances_as_it_has_copies(family):
    env = FamilyVecEnv(family, family.tasks("test", 3), n_envs=2, seed=0)
    env.reset()
    ends = 0
    for _ in range(40):
        ends += env.step(np.ones((6, 1)))[2].sum()
    env.reset()
    assert ends > 12
    assert Puppet.alive == 6


def test_the_oracle_of_a_live_family_is_live(family):
    oracle = Oracle(family)
    assert oracle.live
    assert oracle.max_copies is None
    check_family(oracle, n=2)
    env = SingleEnv(oracle, drift=0.25)
    obs, _ = env.reset(seed=1)
    tasks = {"drift": np.array([0.25])}
    np.testing.assert_array_equal(obs[:1], family.reset(tasks, [episode_stream(1)], 1)[1][0, 0])
    assert obs[1] == 0.25


# ------------------------------------------------------------------------------------------------------------ the check
class Forgetful(Puppets):
    """Does not seed the instance at reset."""

    def begin(self, run, seed, tasks, row):
        run.instance.drift = tasks["drift"][row]
        run.instance.x = run.instance.rng.normal()


class Unclipped(Puppets):
    def push(self, action):
        return float(action[0])


class SameSeeds(Puppets):
    """Gives every copy of a task one seed."""

    def begin(self, run, seed, tasks, row):
        run.instance.reset(self.first.setdefault(row, seed), tasks["drift"][row])

    def reset(self, tasks, rngs, n_envs):
        self.first = {}
        return super().reset(tasks, rngs, n_envs)


class TellsAtOnce(Puppets):
    def begin(self, run, seed, tasks, row):
        super().begin(run, seed, tasks, row)
        run.instance.x += tasks["drift"][row]


class TaskOnce(Puppets):
    """Tells an instance its task when that is made, and never again."""

    def begin(self, run, seed, tasks, row):
        drift = getattr(run.instance, "drift", tasks["drift"][row])
        run.instance.reset(seed, drift)


class Shared(Puppets):
    """What one copy does moves all others."""

    def begin(self, run, seed, tasks, row):
        super().begin(run, seed, tasks, row)
        self.all = [*getattr(self, "all", []), run.instance][-50:]

    def push(self, action):
        push = super().push(action)
        for puppet in self.all:
            puppet.x += 0.01 * push
        return push


class TellsLater(Puppets):
    """Observes the task from the first step on, and nothing else."""

    def step(self, tasks, state, actions, rngs, active=None):
        step = super().step(tasks, state, actions, rngs, active)
        return step._replace(obs=np.broadcast_to(tasks["drift"][:, None, None], step.obs.shape).astype(np.float32))

    def reset(self, tasks, rngs, n_envs):
        state, obs = super().reset(tasks, rngs, n_envs)
        return state, 0 * obs


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Forgetful, "the same tasks and streams start differently"),
        (Unclipped, "actions outside the action space are not clipped"),
        (SameSeeds, "all copies of a task alike though another stream makes a difference"),
        (TellsAtOnce, "the first observation tells tasks apart"),
        (TaskOnce, "two different episodes|depend"),
        (Shared, "two different episodes"),
        (TellsLater, "tells tasks apart whatever happens"),
    ],
)
def test_the_check_finds_what_an_instance_must_not_do(family, words):
    with pytest.raises(FamilyCheckError, match=words):
        check_family(family(), n_envs=4)


def test_objects_in_a_state_are_for_live_families():
    family = Puppets()
    family.live = False
    with pytest.raises(FamilyCheckError, match=r"state 'run' is .*object, not numbers"):
        check_family(family)


def test_declarations():
    for name, value, words in (("live", "yes", "live='yes': a bool"), ("max_copies", 0, "max_copies=0: None, or at")):
        family = Puppets()
        setattr(family, name, value)
        with pytest.raises(FamilyCheckError, match=words):
            check_family(family)


def test_truncated_is_an_array_of_bools():
    class Odd(Puppets):
        def step(self, *args):
            return super().step(*args)._replace(truncated=True)

    with pytest.raises(FamilyCheckError, match=r"truncated is a bool, not \[4, 2\] bool"):
        check_family(Odd())


def test_tasks_of_other_instances(family):
    """A task's episode does not depend on which instance, with which past, it gets."""
    tasks = family.tasks("test", 3)
    alone = [gathered_by(family, take_tasks(tasks, [row])) for row in range(3)]
    for row in (2, 0, 1):
        np.testing.assert_array_equal(gathered_by(family, take_tasks(tasks, [row])), alone[row])
    assert one_task(tasks, 0) != one_task(tasks, 1)


def gathered_by(family, tasks):
    rngs = [stream(7, "one")]
    state, obs = family.reset(tasks, rngs, 1)
    seen = [obs]
    for _ in range(5):
        step = family.step(tasks, state, np.full((1, 1, 1), 0.1), rngs)
        state = step.state
        seen.append(step.obs)
    return np.concatenate(seen)
