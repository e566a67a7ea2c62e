"""Emulators: copies of games that run in ``ale_py``'s C++ vector environment, each in a thread of its own there.

A vector environment of ALE steps all of its copies. But copies that have ended are not to be stepped, and after a lost
life one goes on while the others wait. So each copy here is a vector environment of one: whoever steps many sends all
actions first and receives afterwards, and the threads work side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ale_py import Action, ALEInterface, ALEVectorInterface, LoggerMode, roms

from metarl.errors import ConfigError

ALEInterface.setLoggerMode(LoggerMode.Error)  # it greets whoever loads a game

_FIRST = np.zeros(1, dtype=np.int64)
_UNSEEDED = -1
_STRENGTH = np.ones(1, dtype=np.float32)
_ACTIONS = [np.array([action]) for action in range(18)]
_NOOP, _FIRE, _THIRD = 0, 1, 2


def _played(actions: Sequence[Action]) -> list[np.ndarray]:
    """Return what is sent for each action of the full set.

    ALE's set for a game without a button has the nine directions only, and a vector environment would wait for ever on
    any other action. With the button pressed such a game plays as without.
    """
    names = [action.name for action in actions]
    wanted = [Action(index).name for index in range(len(_ACTIONS))]
    return [_ACTIONS[names.index(name if name in names else name.replace("FIRE", "") or "NOOP")] for name in wanted]


def _rom_path(rom: str) -> Path:
    path = roms.get_rom_path(rom)
    if path is None:
        raise ConfigError(f"the installed ale-py has no game {rom}")
    return path


class Screen(NamedTuple):
    """How a game is played and seen; emulators of one game and equal screens stand in for each other."""

    height: int
    width: int
    grey: bool
    n_stack: int
    frame_skip: int
    action_repeat_probability: float
    noop_max: int
    fire_on_reset: bool
    terminal_on_life_loss: bool
    full_action_set: bool
    max_frames: int


class Emulator:
    """One copy of a game. It starts episodes, acts and ends them as SB3's ``AtariWrapper`` does.

    What ALE has of that itself is another thing, and so is left off: it presses the fire button for one frame and
    before the no-ops, it starts the game over after a lost life, and it clips rewards to 1 and nothing else.

    :param rom: ALE's name of the game.
    :param screen: how it is played and seen.

    :ivar score: what the last env step earned in the game.
    :ivar lives: how many are left; 0 in games without lives.
    :ivar terminated: whether the last env step ended the episode: the game, or a life where that counts.
    :ivar truncated: whether the game was cut because it has lasted too long.
    """

    def __init__(self, rom: str, screen: Screen) -> None:
        self._screen, self._grey = screen, screen.grey
        self._lives_count = screen.terminal_on_life_loss
        self._ale = ALEVectorInterface(
            rom_path=_rom_path(rom),
            num_envs=1,
            frame_skip=screen.frame_skip,
            stack_num=screen.n_stack,
            img_height=screen.height,
            img_width=screen.width,
            grayscale=screen.grey,
            maxpool=screen.frame_skip > 1,
            noop_max=screen.noop_max,
            use_fire_reset=False,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            max_episode_steps=screen.max_frames,
            repeat_action_probability=screen.action_repeat_probability,
            full_action_space=screen.full_action_set,
            batch_size=1,
            num_threads=1,
            thread_affinity_offset=-1,
            autoreset_mode="NextStep",
        )
        actions = self._ale.get_action_set()
        self._sent = _played(list(actions)) if screen.full_action_set else _ACTIONS[: len(actions)]
        self.n_actions = len(self._sent)
        self._fires = screen.fire_on_reset and self.n_actions > _THIRD and actions[_FIRE] == Action.FIRE
        self._waits = False
        self._game_over = True
        self._age = 0
        self._frames = np.zeros((screen.n_stack, screen.height, screen.width), np.uint8)
        self.score, self.lives = 0.0, 0
        self.terminated = self.truncated = False

    # -------------------------------------------------------------------------------------------------------- episodes
    def start(self, seed: int) -> None:
        """Start the game anew. ``seed`` decides all that is random from here on, through further episodes too."""
        if self._waits:  # an interrupt came between an action and what it led to
            self.receive()
        self._new_game(seed)
        self._begin()

    def start_next(self) -> None:
        """Start the next episode: of the same game if that goes on after a lost life, of a new one otherwise."""
        self._go_on()
        self._begin()

    def _new_game(self, seed: int = _UNSEEDED) -> None:
        # A seed makes ALE load the game again, which takes 20 times as long as a new game without one.
        obs, told = self._ale.reset(_FIRST, np.array([seed]))
        self._frames, self.lives = obs[0], int(told["lives"][0])
        self._game_over = False

    def _go_on(self) -> None:
        if not self._game_over and self._screen.terminal_on_life_loss:
            self._play(_NOOP)
        if self._game_over or not self._screen.terminal_on_life_loss:
            self._new_game()

    def _begin(self) -> None:
        """Press the buttons that start some games; what is observed begins with the last frame."""
        for action in (_FIRE, _THIRD) if self._fires else ():
            self._play(action)
            if self.terminated or self.truncated:
                self._go_on()
        self._age = 0
        self.terminated = self.truncated = False

    def _play(self, action: int) -> None:
        self.send(action)
        self.receive()

    # ----------------------------------------------------------------------------------------------------------- steps
    def send(self, action: int) -> None:
        """Begin an env step; one of the actions 0 to ``n_actions`` - 1, since ALE would wait for ever on another."""
        self._ale.send(self._sent[action], _STRENGTH)
        self._waits = True

    def receive(self) -> None:
        """Wait for the env step to end."""
        obs, reward, terminated, truncated, told = self._ale.recv()
        self._waits = False
        lives = int(told["lives"][0])
        ended, self.truncated = bool(terminated[0]), bool(truncated[0])
        # As SB3 has it: some games show no lives for a few frames before they are over.
        lost = self._lives_count and 0 < lives < self.lives
        self._frames, self.score, self.lives = obs[0], float(reward[0]), lives
        self._game_over = ended or self.truncated
        self.terminated = ended or lost
        self.truncated &= not self.terminated
        self._age += 1

    # -------------------------------------------------------------------------------------------------------- pictures
    def write(self, obs: np.ndarray) -> None:
        """Write what is observed, the frames of this episode, into ``obs``, ``[channel, height, width]``."""
        if self._grey:
            obs[:] = self._frames
        else:
            # As two axes NumPy turns them twice as fast as as four.
            for own, frame in zip(obs.reshape(-1, 3, obs[0].size), self._frames, strict=True):
                own[:] = frame.reshape(-1, 3).T
        missing = self._screen.n_stack - 1 - self._age
        if missing > 0:
            obs[: missing * (len(obs) // self._screen.n_stack)] = 0

    def picture(self) -> np.ndarray:
        """Return the last frame, ``[height, width, 3]``."""
        frame = self._frames[-1]
        return np.repeat(frame[..., None], 3, axis=-1) if self._screen.grey else frame.copy()
