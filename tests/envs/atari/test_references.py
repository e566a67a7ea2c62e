"""Emulators beside SB3's own Atari wrappers around Gymnasium's environment, and frames beside their definition."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv, FireResetEnv, MaxAndSkipEnv, NoopResetEnv

from metarl.envs.atari.emulators import Emulator, Screen
from metarl.envs.atari.games import ROMS, game_index

WHOLE = Screen(
    height=210,
    width=160,
    grey=False,
    n_stack=1,
    frame_skip=4,
    action_repeat_probability=0.0,
    noop_max=0,
    fire_on_reset=True,
    terminal_on_life_loss=True,
    full_action_set=False,
    max_frames=108_000,
)
"""ALE's own screen: nothing is resized, and every pixel is compared."""


def emulator(game: str, **changes) -> Emulator:
    return Emulator(ROMS[game_index(game)], WHOLE._replace(**changes))


def wrapped(game: str, lives: bool) -> gymnasium.Env:
    """Return what ``make_atari_env`` makes, but for the size and colour of frames, which would need OpenCV."""
    env = MaxAndSkipEnv(gymnasium.make(f"{game}NoFrameskip-v4").unwrapped, 4)
    if lives:
        env = EpisodicLifeEnv(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireResetEnv(env)
    return env


def require_same(game: str, lives: bool, n_steps: int, **changes) -> int:
    """Play both; return how many episodes ended."""
    theirs, ours = wrapped(game, lives), emulator(game, terminal_on_life_loss=lives, **changes)
    obs, _ = theirs.reset(seed=0)
    ours.start(0)
    np.testing.assert_array_equal(ours.picture(), obs)
    n_ended = 0
    for time, action in enumerate(np.random.default_rng(0).integers(ours.n_actions, size=n_steps).tolist()):
        obs, reward, terminated, truncated, _ = theirs.step(action)
        ours.send(action)
        ours.receive()
        assert (ours.score, ours.terminated, ours.truncated) == (reward, terminated, truncated), (game, time)
        if terminated or truncated:
            # What the last frames show is anybody's: both leave out the frames after the end.
            n_ended += 1
            obs, _ = theirs.reset()
            ours.start_next()
        np.testing.assert_array_equal(ours.picture(), obs, err_msg=f"{game}, time step {time}")
    return n_ended


def test_frames_rewards_and_ends_are_sb3_s():
    assert require_same("Breakout", True, 150) >= 6
    assert require_same("SpaceInvaders", False, 100) == 0


@pytest.mark.slow
@pytest.mark.parametrize("lives", [True, False], ids=["lives", "games"])
@pytest.mark.parametrize(
    ("game", "height"),
    [("Breakout", 210), ("SpaceInvaders", 210), ("Pong", 210), ("Qbert", 210), ("Freeway", 210), ("AirRaid", 250)],
)
def test_frames_rewards_and_ends_are_sb3_s_in_several_games(game, height, lives):
    n_ended = require_same(game, lives, 1500, height=height)
    assert n_ended or game == "Freeway"


@pytest.mark.slow
def test_a_game_begins_with_less_than_noop_max_no_ops():
    theirs = NoopResetEnv(gymnasium.make("MsPacmanNoFrameskip-v4").unwrapped)
    # ALE also begins with none, which SB3 does not.
    starts = [theirs.env.reset(seed=0)[0].tobytes()]
    for theirs.override_num_noops in range(1, 10):
        starts.append(theirs.reset(seed=0)[0].tobytes())
    ours = emulator("MsPacman", noop_max=10, fire_on_reset=False)
    found = set()
    for seed in range(60):
        ours.start(seed)
        found.add(ours.picture().tobytes())
    assert found == set(starts)
    assert len(found) > 1


def area(length: int, size: int) -> np.ndarray:
    """Return the weights ``[size, length]`` of a mean over areas."""
    edges = np.arange(size + 1) * length / size
    overlap = np.minimum(edges[1:, None], np.arange(1, length + 1)) - np.maximum(edges[:-1, None], np.arange(length))
    return np.maximum(overlap, 0.0) * size / length


def test_frames_are_means_over_areas_and_grey_is_ale_s():
    whole, grey, small, small_grey = games = [
        emulator("MsPacman"),
        emulator("MsPacman", grey=True),
        emulator("MsPacman", height=84, width=84),
        emulator("MsPacman", height=84, width=84, grey=True),
    ]
    down, across = area(210, 84), area(160, 84)

    def resized(frame):
        return np.stack([down @ channel @ across.T for channel in frame.astype(float).transpose(2, 0, 1)], axis=-1)

    for each in games:
        each.start(0)
    for _ in range(15):
        for each in games:
            each.send(2)
            each.receive()
        assert np.abs(resized(whole.picture()) - small.picture()).max() <= 0.51
        assert np.abs(resized(grey.picture()) - small_grey.picture()).max() <= 0.51
        # SB3 takes the brighter of two frames in each colour and makes that grey, by OpenCV's weights; ALE takes the
        # brighter of two grey frames. So they differ where something flickers, and there SB3's is brighter.
        difference = whole.picture() @ np.array([0.299, 0.587, 0.114]) - grey.picture()[..., 0]
        assert difference.min() >= -1.0
        assert (difference > 1.0).mean() < 0.02
