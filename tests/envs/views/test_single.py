"""The single view and the VecEnv view against the batched family and against SB3's own stack."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from metarl.agents.sampling.episodes import split_streams
from metarl.envs.family import Family, Step
from metarl.envs.promises import is_image
from metarl.envs.registry import family_ids, make_family
from metarl.envs.tasks import concatenate_tasks, n_tasks, one_task, take_tasks
from metarl.envs.views.single import SingleEnv, episode_stream
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, TaskError, UnknownNameError
from metarl.streams import seed_sequence, stream


class Walk(Family):
    """A drunkard's walk: starts, steps and ends are random; the task is the drift."""

    def __init__(self) -> None:
        self.id = "Walk-v0"
        self.task_space = Dict({"drift": Box(-1.0, 1.0, (), np.float32)})
        self.observation_space, self.action_space = Box(-99, 99, (1,), np.float32), Box(-1, 1, (1,), np.float32)
        self.horizon = 7

    def reset(self, tasks, rngs, n_envs):
        x = np.stack([rng.normal(size=(n_envs, 1)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        noise = np.stack([rng.normal(size=actions.shape[1:]) for rng in rngs])
        x = state["x"] + np.clip(actions, -1, 1) + noise + tasks["drift"][:, None, None]
        reward = -np.abs(x[..., 0])
        return Step({"x": x}, x.astype(np.float32), reward, reward < -4.0, {"reward_x": reward})


# --------------------------------------------------------------------------------------------------------- single view
@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("id", [id for id in family_ids() if not make_family(id).live])
def test_registered_families_pass_both_checkers(id, oracle):
    if oracle and is_image(make_family(id).observation_space):
        with pytest.raises(ConfigError, match="an oracle needs a vector"):
            make_family(id, oracle=True)
        return
    family = make_family(id, oracle=oracle)
    splits = ["test"] if family.shifted_space is None else ["test", "shifted"]
    tasks = concatenate_tasks([family.tasks(split, 2) for split in splits])
    for index in range(n_tasks(tasks)):
        env = gymnasium.make(id, oracle=oracle, **one_task(tasks, index)).unwrapped
        with warnings.catch_warnings():
            if make_family(id).loss is not None:
                # Actions are predictions, in the units of their targets.
                warnings.filterwarnings("ignore", ".*symmetric and normalized (Box action )?space")
                # They have a network of their own.
                warnings.filterwarnings("ignore", ".*minimal resolution for an image is 36x36")
            if id != "PointMass-v0":
                # Nothing bounds what a simulated robot's joints do.
                warnings.filterwarnings("ignore", ".*A Box observation space m.*imum value is -?infinity")
            check_env(env)
            # Pictures have tests of their own; of robots there are none without OpenGL.
            gymnasium_check_env(env, skip_render_check=id != "PointMass-v0")
        env.close()


def test_views_without_a_task_and_random_families_pass_both_checkers():
    check_env(gymnasium.make("PointMass-v0").unwrapped)
    gymnasium_check_env(gymnasium.make("PointMass-v0").unwrapped)
    check_env(SingleEnv(Walk()))
    gymnasium_check_env(SingleEnv(Walk(), drift=0.5), skip_render_check=True)


@pytest.mark.parametrize("family", [make_family("PointMass-v0", lineage="s4"), Walk()], ids=lambda family: family.id)
def test_single_views_equal_the_batch_to_the_last_bit(family):
    tasks = family.tasks("test", 5)
    seeds = [3, 1, 4, 1, 5]
    rngs = [episode_stream(seed) for seed in seeds]
    envs = [SingleEnv(family, **one_task(tasks, i)) for i in range(5)]
    state, obs = family.reset(tasks, rngs, 1)
    for env, seed, row in zip(envs, seeds, obs, strict=True):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], row[0])
    rng = stream(0, "actions")
    going = np.ones(5, bool)
    for t in range(family.horizon):
        actions = rng.normal(size=(5, 1, *family.action_space.shape)).astype(np.float32)
        step = family.step(tasks, state, actions, rngs)
        for i in np.flatnonzero(going):
            seen, reward, terminated, truncated, info = envs[i].step(actions[i, 0])
            np.testing.assert_array_equal(seen, step.obs[i, 0])
            assert reward == step.reward[i, 0]
            assert terminated == step.terminated[i, 0]
            assert truncated == (not terminated and t + 1 == family.horizon)
            assert info == {name: value[i, 0] for name, value in step.info.items()}
            going[i] = not (terminated or truncated)
        state = step.state
    assert not going.any()


def test_a_view_can_follow_the_stream_of_a_collected_batch():
    family, sequence = Walk(), seed_sequence(0, "support", 2, 1)
    tasks = family.tasks("test", 1)
    _, obs = family.reset(tasks, [split_streams(sequence)[0]], 1)
    env = SingleEnv(family, **one_task(tasks, 0))
    env.use_stream(split_streams(sequence)[0])
    np.testing.assert_array_equal(env.reset()[0], obs[0, 0])
    assert not np.array_equal(env.reset(seed=0)[0], obs[0, 0])


def test_gymnasium_makes_a_task_with_arguments():
    env = gymnasium.make("PointMass-v0", goal=[0.1, 0.2], wrap_actions=False, horizon=3)
    assert isinstance(env.unwrapped, SingleEnv)
    np.testing.assert_array_equal(env.unwrapped.task["goal"], [0.1, 0.2])
    assert env.action_space.high[0] == np.float32(0.1)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"gaol": [0, 0]}, UnknownNameError, "unknown argument or task parameter of PointMass-v0 'gaol': did you mean"),
        ({"wrap_action": False}, UnknownNameError, "did you mean 'wrap_actions'?"),
        ({"goal": [0, 7]}, TaskError, r"goal=[0.0, 7.0] is outside the task space of PointMass-v0: [-0.5, 0.5]"),
        ({"goal": 0.1}, TaskError, "goal has shape [1]: PointMass-v0 takes [task, 2]"),
        ({"goal": "here"}, TaskError, "is not a number"),
        ({"render_mode": "ansi"}, ConfigError, "render_mode='ansi': PointMass-v0 takes 'rgb_array' or None"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_bad_keywords(kwargs, error, message):
    with pytest.raises(error) as caught:
        SingleEnv("PointMass-v0", **kwargs)
    assert message in str(caught.value)
    with pytest.raises(error):
        gymnasium.make("PointMass-v0", **kwargs)


@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_sb3_makes_environments_by_name():
    vec = make_vec_env("PointMass-v0", n_envs=2, env_kwargs={"goal": [0.1, 0.2]})
    assert vec.reset().shape == (2, 2)
    PPO("MlpPolicy", "PointMass-v0", n_steps=8, batch_size=8, n_epochs=1).learn(8)


def test_task_parameters_may_depend_on_arguments():
    env = gymnasium.make("AntDir-v0", directions="any", angle=0.5).unwrapped
    assert env.task == {"angle": 0.5}
    with pytest.raises(UnknownNameError, match="task parameter of AntDir-v0 'direction': did you mean 'directions'"):
        SingleEnv("AntDir-v0", directions="any", direction=1.0)


def test_bad_keyword_of_a_built_family():
    with pytest.raises(UnknownNameError, match="unknown task parameter of Walk-v0 'drft': did you mean 'drift'"):
        SingleEnv(Walk(), drft=0.5)


def test_the_task_sticks_until_it_is_changed():
    env = gymnasium.make("PointMass-v0", goal=[0.1, 0.2]).unwrapped
    rewards = []
    for options in (None, None, {"task": {"goal": [0.5, 0.5]}}, None):
        env.reset(seed=0, options=options)
        rewards.append(env.step(np.zeros(2, np.float32))[1])
    env.set_task({"goal": [-0.5, 0.0]})
    # The running episode keeps its task.
    rewards.append(env.step(np.zeros(2, np.float32))[1])
    env.reset()
    rewards.append(env.step(np.zeros(2, np.float32))[1])
    np.testing.assert_allclose(rewards, -np.sqrt([0.05, 0.05, 0.5, 0.5, 0.5, 0.25]), rtol=1e-12)
    np.testing.assert_array_equal(env.task["goal"], [-0.5, 0.0])


@pytest.mark.parametrize("task", [{"goal": [3.0, 0.0]}, {"gaol": [0.0, 0.0]}, {}, 3])
def test_bad_tasks_leave_the_task_alone(task):
    env = SingleEnv("PointMass-v0", goal=[0.1, 0.2])
    with pytest.raises(TaskError):
        env.set_task(task)
    with pytest.raises(TaskError):
        env.reset(options={"task": task})
    np.testing.assert_array_equal(env.task["goal"], [0.1, 0.2])
    with pytest.raises(UnknownNameError, match="unknown reset option 'tasks'"):
        env.reset(options={"tasks": {"goal": [0.0, 0.0]}})


def test_without_a_task_one_is_drawn_from_the_first_seed():
    env, same, other = (SingleEnv("PointMass-v0") for _ in range(3))
    assert env.task is None
    env.reset(seed=5)
    same.reset(seed=5)
    other.reset(seed=6)
    drawn = env.task["goal"]
    np.testing.assert_array_equal(drawn, same.task["goal"])
    assert not np.array_equal(drawn, other.task["goal"])
    env.reset(seed=6)
    env.reset()
    np.testing.assert_array_equal(env.task["goal"], drawn)
    unseeded = [SingleEnv("PointMass-v0") for _ in range(2)]
    for env in unseeded:
        env.reset()
    assert not np.array_equal(unseeded[0].task["goal"], unseeded[1].task["goal"])


def test_stepping_outside_an_episode_is_an_error():
    env = SingleEnv(Walk(), drift=0.0)
    with pytest.raises(ResetNeeded, match="Walk-v0"):
        env.step(np.zeros(1, np.float32))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"action of shape \[2\]: Walk-v0 takes"):
        env.step(np.zeros(2, np.float32))
    while not any(env.step(np.zeros(1, np.float32))[2:4]):
        pass
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1, np.float32))


# --------------------------------------------------------------------------------------------------------------- VecEnv
def pair(family, n=3, n_envs=2, seed=7):
    """The view under test, and SB3's own stack of single views with the same seeds."""
    tasks = family.tasks("test", n)
    vec = FamilyVecEnv(family, tasks, n_envs=n_envs, seed=seed)
    rows = [one_task(tasks, i // n_envs) for i in range(n_tasks(tasks) * n_envs)]
    plain = DummyVecEnv([lambda row=row: Monitor(SingleEnv(family, **row)) for row in rows])
    plain.seed(seed)
    return vec, plain


@pytest.mark.parametrize("family", [make_family("PointMass-v0", horizon=9), Walk()], ids=lambda family: family.id)
def test_vec_env_equals_sb3_s_stack(family):
    vec, plain = pair(family)
    np.testing.assert_array_equal(vec.reset(), plain.reset())
    rng, ends, reasons = stream(0, "actions"), 0, set()
    for t in range(60):
        if t == 30:
            vec.seed(3), plain.seed(3)
            vec.set_options({}), plain.set_options({})
            np.testing.assert_array_equal(vec.reset(), plain.reset())
        actions = rng.uniform(-1, 1, (vec.num_envs, *family.action_space.shape)).astype(np.float32)
        got, expected = vec.step(actions), plain.step(actions)
        for a, b in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        for i, (info, other) in enumerate(zip(got[3], expected[3], strict=True)):
            assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"]
            for name, value in vec.reward_terms.items():
                assert value[i] == other[name]
            if not expected[2][i]:
                assert set(info) == {"TimeLimit.truncated"}
                continue
            assert set(info) == set(other)
            np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
            assert {name: info["episode"][name] for name in "rl"} == {name: other["episode"][name] for name in "rl"}
            assert info["episode"]["t"] >= 0
            ends += 1
            reasons.add(info["TimeLimit.truncated"])
    assert ends > 20
    assert family.id != "Walk-v0" or reasons == {False, True}


def test_what_the_vec_env_returned_stays_as_it_was():
    vec, _ = pair(Walk())
    first = vec.reset()
    held = first.copy()
    seen = []
    for _ in range(20):
        obs, rewards, dones, infos = vec.step(np.zeros((6, 1), np.float32))
        seen.append((obs, obs.copy(), rewards, rewards.copy(), dones, dones.copy()))
        for info in infos:
            info.clear()
    np.testing.assert_array_equal(first, held)
    for a, b, c, d, e, f in seen:
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, d)
        np.testing.assert_array_equal(e, f)


def test_tasks_of_copies_change_at_their_next_episode():
    family = make_family("PointMass-v0", horizon=2)
    vec = FamilyVecEnv(family, {"goal": [[0.3, 0.4], [0.0, 0.2]]}, n_envs=2, seed=0)
    still = np.zeros((4, 2), np.float32)
    np.testing.assert_allclose(vec.reset(), 0.0)
    np.testing.assert_allclose(vec.step(still)[1], [-0.5, -0.5, -0.2, -0.2])
    assert vec.env_method("set_task", {"goal": [0.0, 0.1]}, indices=[1, 2]) == [None, None]
    np.testing.assert_allclose(
        [task["goal"] for task in vec.get_attr("task")], [[0.3, 0.4], [0, 0.1], [0, 0.1], [0, 0.2]]
    )
    np.testing.assert_allclose(vec.step(still)[1], [-0.5, -0.5, -0.2, -0.2])
    np.testing.assert_allclose(vec.step(still)[1], [-0.5, -0.1, -0.1, -0.2])
    vec.set_options([{"task": {"goal": [0.4, 0.0]}}, {}, {}, {}])
    vec.reset()
    np.testing.assert_allclose(vec.step(still)[1], [-0.4, -0.1, -0.1, -0.2])
    vec.reset()
    np.testing.assert_allclose(vec.step(still)[1], [-0.4, -0.1, -0.1, -0.2])
    vec.set_attr("task", {"goal": [0.0, 0.5]}, indices=3)
    np.testing.assert_array_equal(vec.tasks["goal"][3], [0.0, 0.5])
    vec.reset()
    np.testing.assert_allclose(vec.step(still)[1], [-0.4, -0.1, -0.1, -0.5])
    with pytest.raises(TaskError, match="outside the task space"):
        vec.env_method("set_task", {"goal": [9.0, 0.0]})
    with pytest.raises(UnknownNameError, match="unknown reset option 'goal'"):
        vec.set_options({"goal": [0.0, 0.0]}) or vec.reset()


def test_attributes_of_copies():
    vec = FamilyVecEnv("PointMass-v0", {"goal": [[0.3, 0.4]]}, n_envs=3, seed=0)
    assert vec.num_envs == 3
    assert vec.get_attr("horizon") == [100, 100, 100]
    assert vec.get_attr("render_mode", indices=[0]) == [None]
    assert not vec.has_attr("speed")
    with pytest.raises(AttributeError, match="copies of PointMass-v0 have no attribute 'speed'"):
        vec.get_attr("speed")
    vec.set_attr("speed", 3, indices=[1])
    assert vec.get_attr("speed") == [None, 3, None]
    with pytest.raises(AttributeError, match="'horizon' belongs to all copies of PointMass-v0 and cannot be set"):
        vec.set_attr("horizon", 3)
    with pytest.raises(AttributeError, match="copies of PointMass-v0 have no method 'fly'"):
        vec.env_method("fly")
    assert vec.env_is_wrapped(Monitor) == [True] * 3
    assert vec.env_is_wrapped(TimeLimit, indices=0) == [False]
    assert list(vec.get_images()) == [None] * 3
    vec.close()


def test_seeds():
    family = Walk()
    tasks = family.tasks("test", 2)
    vec = FamilyVecEnv(family, tasks, n_envs=2)
    assert vec.seed(11) == [11, 12, 13, 14]
    seeded = vec.reset()
    np.testing.assert_array_equal(FamilyVecEnv(family, tasks, n_envs=2, seed=11).reset(), seeded)
    assert len(np.unique(seeded)) == 4
    # Streams go on from reset to reset, and differ from view to view unless they are seeded.
    assert not np.array_equal(vec.reset(), seeded)
    assert not np.array_equal(FamilyVecEnv(family, tasks).reset(), FamilyVecEnv(family, tasks).reset())


@pytest.mark.parametrize(
    ("tasks", "n_envs", "error"),
    [
        ({"goal": [[0.0, 9.0]]}, 1, TaskError),
        ({"goal": [0.0, 0.1]}, 1, TaskError),
        ({"goal": [[0.0, 0.1]]}, 0, ConfigError),
    ],
)
def test_bad_vec_env(tasks, n_envs, error):
    with pytest.raises(error):
        FamilyVecEnv("PointMass-v0", tasks, n_envs=n_envs)


def test_sb3_s_wrappers_work_on_it():
    family = Walk()
    vec = FamilyVecEnv(family, take_tasks(family.tasks("test"), slice(0, 4)), n_envs=2, seed=0)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        vec = VecMonitor(vec)
    vec = VecNormalize(vec)
    vec.reset()
    lengths = []
    for _ in range(20):
        obs, _, _, infos = vec.step(np.zeros((8, 1), np.float32))
        assert np.abs(obs).max() <= 10
        lengths += [info["episode"]["l"] for info in infos if "episode" in info]
    assert max(lengths) == family.horizon


def test_plain_ppo_learns_on_it():
    family = make_family("PointMass-v0", horizon=20)
    tasks = {"goal": np.array([[0.4, 0.3]])}
    vec = FamilyVecEnv(family, tasks, n_envs=8, seed=0)
    model = PPO(
        "MlpPolicy", vec, n_steps=64, batch_size=256, n_epochs=5, gamma=0.9, learning_rate=5e-3, seed=0, device="cpu"
    )
    before, _ = evaluate_policy(model, FamilyVecEnv(family, tasks, n_envs=4, seed=1), n_eval_episodes=8)
    model.learn(8_000)
    after, _ = evaluate_policy(model, FamilyVecEnv(family, tasks, n_envs=4, seed=1), n_eval_episodes=8)
    # Standing still returns -10, the best policy -1.
    assert before < -8
    assert after > -4.5
    assert model.ep_info_buffer
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > before
