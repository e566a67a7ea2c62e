"""Atari games: splits, spaces, episodes, streams, views, instances; beside SB3's own wrappers in test_references.py."""

import os
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env

from metarl.envs import Atari, check_family, group_tasks, make_family
from metarl.envs.atari.games import GAMES, N_ACTIONS, ROMS, TABLE6, TEST, TRAINING, VALIDATION, game_index
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, TaskError, UnknownNameError


def names(tasks):
    return [GAMES[game] for game in tasks["game"]]


def short(**changes):
    """Return a family whose games last 25 env steps."""
    return Atari(**{"max_frames": 100, **changes})


def streams(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


# ---------------------------------------------------------------------------------------------------- games and splits
def test_the_horizon_is_in_env_steps_and_takes_the_place_of_frames():
    family = Atari(horizon=7)
    assert (family.horizon, family.constants.max_frames) == (7, 28)
    with pytest.raises(ConfigError, match=r"horizon=7 and max_frames=100: give one of them"):
        short(horizon=7)


def test_the_splits_are_leap_s():
    family = make_family("Atari-v0")
    assert names(family.tasks("test")) == list(TEST)
    assert names(family.tasks("test", 2)) == ["Breakout", "SpaceInvaders"]
    assert names(family.tasks("validation")) == list(VALIDATION)
    assert names(family.tasks("table6")) == list(TABLE6)
    # As the paper's table says them.
    assert [N_ACTIONS[game_index(game)] for game in TABLE6] == [6, 6, 10, 4, 6, 14, 18, 18, 18]
    drawn = set(names(family.sample_tasks(np.random.default_rng(0), 500)))
    assert drawn == set(TRAINING)
    assert not drawn & {*TEST, *VALIDATION}
    assert len(TRAINING) == 25
    with pytest.raises(TaskError, match="no shifted split"):
        family.tasks("shifted")


def test_the_training_games_are_the_classic_ones_of_at_most_ten_actions():
    pytest.importorskip("ale_py")
    # Gymnasium has the classic 62 under their old names too.
    classic = [id.removesuffix("NoFrameskip-v4") for id in gymnasium.registry if id.endswith("NoFrameskip-v4")]
    assert len(classic) == 62
    few = {game for game in classic if N_ACTIONS[game_index(game)] <= 10}
    assert len(few) == 27
    assert few - {"Breakout", "SpaceInvaders"} == set(TRAINING)
    assert not set(VALIDATION) & set(classic)
    assert all(N_ACTIONS[game_index(game)] <= 10 for game in VALIDATION)


@pytest.mark.slow
def test_the_table_of_actions_is_ale_s():
    from ale_py import ALEInterface, roms

    two_players = {"combat", "joust", "maze_craze", "warlords"}
    assert set(ROMS) == set(roms.get_all_rom_ids()) - two_players
    for rom, n_actions in zip(ROMS, N_ACTIONS, strict=True):
        ale = ALEInterface()
        ale.loadROM(roms.get_rom_path(rom))
        assert len(ale.getMinimalActionSet()) == n_actions, rom


@pytest.mark.slow
def test_every_game_takes_all_actions_of_the_full_set():
    family = Atari("machado", max_frames=160)
    for game in range(len(GAMES)):
        tasks = family.validate_tasks({"game": [game]})
        state, _ = family.reset(tasks, streams(0), 18)
        family.step(tasks, state, np.arange(18)[None], streams(1))
        family.close()


def test_a_game_without_a_button_plays_as_if_it_was_not_pressed():
    """ALE's full set has 9 actions in Skiing and LostLuggage, and ALE waits for ever on any other."""
    family = Atari("machado", max_frames=160, action_repeat_probability=0.0)
    tasks = family.validate_tasks({"game": ["Skiing"]})
    right, right_and_fire, left = 3, 11, 4  # of ALE's 18
    played = []
    for action in (right, right_and_fire, left):
        state, _ = family.reset(tasks, streams(0), 1)
        for _ in range(15):
            step = family.step(tasks, state, np.array([[action]]), streams(1))
            state = step.state
        played.append(step.obs)
    np.testing.assert_array_equal(played[0], played[1])
    assert (played[0] != played[2]).any()
    family.close()


def test_an_ale_with_other_actions_is_refused(monkeypatch):
    monkeypatch.setattr("metarl.envs.atari.family.N_ACTIONS", tuple(n + 1 for n in N_ACTIONS))
    with pytest.raises(ConfigError, match="has 4 actions in Breakout, where metarl knows of 5"):
        short().reset({"game": np.array([GAMES.index("Breakout")])}, streams(0), 1)


def test_games_have_gymnasium_s_names_and_ale_s():
    family = short()
    same = family.validate_tasks({"game": ["SpaceInvaders", "space_invaders", "ALE/SpaceInvaders-v5"]})
    assert names(same) == ["SpaceInvaders"] * 3
    np.testing.assert_array_equal(family.validate_tasks(same)["game"], same["game"])
    assert names(family.validate_tasks({"game": np.array(["Pong"])})) == ["Pong"]


@pytest.mark.parametrize(
    ("game", "error", "says"),
    [
        ("Breakot", UnknownNameError, "unknown game 'Breakot': did you mean 'Breakout'?"),
        ("spaceinvader", UnknownNameError, "did you mean 'SpaceInvaders'?"),
        ("Combat", UnknownNameError, "unknown game 'Combat'"),
        (104, TaskError, "game=104 is outside the task space of Atari-v0: 0 to 103"),
        (1.5, TaskError, "not whole"),
        (None, TaskError, "not a number"),
    ],
)
def test_other_games_are_refused(game, error, says):
    with pytest.raises(error) as caught:
        SingleEnv("Atari-v0", game=game)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"games": "Pong,Breakout"}, "games: Breakout belongs to the test split and is not trained on"),
        ({"games": ["Kaboom"]}, "games: Kaboom belongs to the validation split"),
        ({"games": ["Pang"]}, "unknown game 'Pang': did you mean 'Pong'?"),
        ({"games": []}, "at least one game"),
        ({"games": "Pong,pong"}, "each of them once"),
        ({"games": 3}, "names of games"),
        ({"observation": "gray"}, "observation='gray' is not one of 'rgb', 'grey'"),
        ({"screen_size": 35}, "at least 36 pixels"),
        ({"n_stack": 0}, "n_stack=0"),
        ({"frame_skip": -1}, "frame_skip=-1"),
        ({"action_repeat_probability": 1.5}, "action_repeat_probability=1.5"),
        ({"reward_clip": -1.0}, "reward_clip=-1"),
        ({"noop_max": -1}, "noop_max=-1"),
        ({"n_stak": 4}, "did you mean 'n_stack'?"),
        ({"lineage": "sb4"}, "did you mean 'sb3'?"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, says):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        make_family("Atari-v0", **arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_training_games():
    family = Atari(games="Pong, seaquest")
    assert set(names(family.sample_tasks(np.random.default_rng(0), 20))) == {"Pong", "Seaquest"}
    assert family.action_space == Discrete(6)


def test_spaces_differ_in_actions_only():
    family = make_family("Atari-v0")
    tasks = family.validate_tasks({"game": ["Freeway", "Pong", "Breakout", "Qbert", "Alien"]})
    groups = group_tasks(family, tasks)
    assert [(group.action_space.n, group.indices.tolist()) for group in groups] == [
        (3, [0]),
        (6, [1, 3]),
        (4, [2]),
        (18, [4]),
    ]
    assert all(group.observation_space == Box(0, 255, (3, 84, 84), np.uint8) for group in groups)
    full = Atari("machado")
    assert [group.action_space for group in group_tasks(full, tasks)] == [Discrete(18)]
    assert full.observation_space.shape == (4, 84, 84)
    assert full.horizon == 3600
    assert Atari(n_stack=2, screen_size=40).observation_space.shape == (6, 40, 40)


# ------------------------------------------------------------------------------------------------------------- episodes
@pytest.fixture(scope="module")
def family():
    """Share the instances: each takes a tenth of a second to be made."""
    made = short()
    yield made
    made.close()


def test_a_batch_of_two_games(family):
    tasks = family.validate_tasks({"game": ["Pong", "SpaceInvaders"]})
    state, obs = family.reset(tasks, streams(0, 1), 2)
    assert obs.shape == (2, 2, 3, 84, 84)
    assert obs.dtype == np.uint8
    actions = np.random.default_rng(0).integers(6, size=(30, 2, 2))
    for time in range(25):
        step = family.step(tasks, state, actions[time], [])
        assert step.obs.dtype == np.uint8
        state = step.state
        assert (state["time"] == time + 1).all()
        if step.ended.any():
            break
    # FIRE and the third action came before: the games are cut as ALE counts.
    assert step.truncated.all()
    assert not step.terminated.any()
    assert time == 22
    assert set(step.info) == {"reward_game", "score", "lives"}
    np.testing.assert_array_equal(step.info["lives"], [[0, 0], [3, 3]])
    # The same streams and actions, whatever ran in the instances before.
    state, again = family.reset(tasks, streams(0, 1), 2)
    np.testing.assert_array_equal(again, obs)
    for time in range(23):
        last = family.step(tasks, state, actions[time], [])
        state = last.state
    np.testing.assert_array_equal(last.obs, step.obs)
    with pytest.raises(ConfigError, match="actions from 0 to 6, not 0 to 5"):
        family.step(tasks, state, np.array([[0, 0], [6, 0]]), [])


def test_rewards_are_cut_and_the_score_is_not():
    scores = {}
    for clip in (1.0, 5.0, 0.0):
        family = short(reward_clip=clip, max_frames=1200)
        tasks = family.validate_tasks({"game": ["DemonAttack"]})
        state, _ = family.reset(tasks, streams(3), 1)
        found = []
        for action in np.random.default_rng(1).integers(6, size=120):
            step = family.step(tasks, state, np.array([[action]]), [])
            state = step.state
            found.append((step.info["score"][0, 0], step.reward[0, 0]))
            if step.ended.any():
                break
        score, reward = np.array(found).T
        scores[clip] = score
        np.testing.assert_array_equal(reward, np.clip(score, -clip, clip) if clip else score)
    assert scores[1.0].max() >= 10
    np.testing.assert_array_equal(scores[1.0], scores[5.0])
    np.testing.assert_array_equal(scores[1.0], scores[0.0])


def test_a_copy_goes_on_in_its_game_after_a_lost_life_and_in_a_new_one_after_the_last():
    family = Atari(games="Pong", max_frames=4000)
    tasks = family.validate_tasks({"game": ["Breakout"]})
    env = FamilyVecEnv(family, tasks, n_envs=1, seed=5)
    single = SingleEnv(family, **{name: value[0] for name, value in tasks.items()})
    first, seen = env.reset(), []
    np.testing.assert_array_equal(first[0], single.reset(seed=5)[0])
    for action in np.random.default_rng(0).integers(4, size=140):
        obs, rewards, dones, infos = env.step([action])
        beside = single.step(action)
        assert (rewards[0], dones[0]) == (np.float32(beside[1]), beside[2])
        if dones[0]:
            seen.append(infos[0]["lives"])
            np.testing.assert_array_equal(infos[0]["terminal_observation"], beside[0])
            np.testing.assert_array_equal(obs[0], single.reset()[0])
        else:
            np.testing.assert_array_equal(obs[0], beside[0])
    assert seen[:6] == [4, 3, 2, 1, 0, 4]
    # One instance each has played all of it.
    assert family._pool.get().n_instances == 2
    # Another game takes an instance of its own.
    env.set_attr("task", {"game": "Atlantis"})
    single.set_task({"game": "Atlantis"})
    assert single.reset()[0].shape == (3, 84, 84)
    family.close()


def test_what_a_view_has_shown_is_the_caller_s():
    family = short(screen_size=36)
    views = [FamilyVecEnv(family, family.validate_tasks({"game": ["Pong"]}), n_envs=2, seed=3) for _ in range(2)]
    shown = [view.reset() for view in views]
    for _ in range(30):
        kept = shown[0].copy()
        shown[1][:] = 7  # whoever gets it may write into it
        after = [view.step(np.array([2, 3]))[0] for view in views]
        np.testing.assert_array_equal(shown[0], kept)
        np.testing.assert_array_equal(*after)
        shown = after
    family.close()


def test_whole_games_where_lives_do_not_count(family):
    whole = Atari("machado", games="Pong", max_frames=2000, action_repeat_probability=0.0)
    tasks = whole.validate_tasks({"game": ["Breakout"]})
    state, obs = whole.reset(tasks, streams(0), 1)
    # Only the newest of four frames is of this episode.
    assert not obs[0, 0, :3].any()
    assert obs[0, 0, 3].any()
    lives = []
    for action in np.random.default_rng(0).integers(18, size=200):
        step = whole.step(tasks, state, np.array([[action]]), [])
        state = step.state
        lives.append(step.info["lives"][0, 0])
        if step.terminated.any():
            break
    assert lives[-1] == 0
    assert sorted(set(lives)) == [0, 1, 2, 3, 4, 5]
    assert step.obs[0, 0].any((1, 2)).all()


def test_sticky_actions_come_from_the_seed():
    family = Atari(games="Pong", max_frames=200, action_repeat_probability=0.5)
    tasks = family.validate_tasks({"game": ["Pong"] * 2})
    ways = []
    for seeds in ((0, 1), (0, 2)):
        state, _ = family.reset(tasks, streams(*seeds), 1)
        for action in np.random.default_rng(0).integers(6, size=30):
            step = family.step(tasks, state, np.full((2, 1), action), [])
            state = step.state
        ways.append(step.obs)
    np.testing.assert_array_equal(ways[0][0], ways[1][0])
    assert (ways[0][1] != ways[1][1]).any()
    assert (ways[0][0] != ways[0][1]).any()


def test_pictures_are_the_last_frame_twice_as_large_as_ale_s(family):
    env = SingleEnv(family, render_mode="rgb_array", game="SpaceInvaders")
    env.reset(seed=0)
    obs, *_ = env.step(1)
    picture = env.render()
    assert picture.shape == (420, 320, 3)
    np.testing.assert_array_equal(picture[::5, ::4][:84, :80], obs.transpose(1, 2, 0)[:, np.arange(80) * 4 * 84 // 320])
    # Colours: the ground is green, the score too.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert not np.array_equal(picture[..., 0], picture[..., 1])


def test_instances_stay_in_their_process_and_are_closed(family):
    tasks = family.validate_tasks({"game": ["Pong"]})
    state, _ = family.reset(tasks, streams(0), 2)
    copied = pickle.loads(pickle.dumps(family))
    with pytest.raises(ResetNeeded):
        copied.step(tasks, pickle.loads(pickle.dumps(state)), np.zeros((1, 2), np.int64), [])
    read, write = os.pipe()
    pid = os.fork()
    if not pid:  # pragma: no cover
        try:
            with pytest.raises(ResetNeeded):
                family.step(tasks, state, np.zeros((1, 2), np.int64), [])
            del state
            family.close()
            os.write(write, family.reset(tasks, streams(0), 1)[1].tobytes()[-8:])
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 8) == family.reset(tasks, streams(0), 1)[1].tobytes()[-8:]
    os.close(read)
    os.waitpid(pid, 0)
    step = family.step(tasks, state, np.zeros((1, 2), np.int64), [])
    family.close()
    # Those that run are closed when they come back.
    family.step(tasks, step.state, np.zeros((1, 2), np.int64), [])
    assert family.reset(tasks, streams(0), 1)[1].any()


def test_ale_is_not_loaded_until_a_game_is_played():
    code = "import sys; from metarl.envs import Atari; Atari(); assert 'metarl.envs.atari.emulators' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ----------------------------------------------------------------------------------------------------------- all of it
@pytest.mark.slow
@pytest.mark.parametrize("lineage", ["leap", "sb3", "machado"])
def test_the_family_keeps_its_promises(lineage):
    check_family(Atari(lineage, max_frames=160))


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Breakout", "Freeway", "Alien"])
def test_both_checkers_take_the_single_view(game):
    env = gymnasium.make("Atari-v0", game=game, max_frames=400).unwrapped
    check_env(env)
    gymnasium_check_env(env)
