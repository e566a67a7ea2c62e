"""Atari: each task is a game of the Arcade Learning Environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checks import COUNT, COUNT_OR_ZERO, FRACTION, NOT_NEGATIVE, choice
from metarl.envs.atari.games import (
    FULL,
    GAMES,
    N_ACTIONS,
    ROMS,
    TABLE6,
    TEST,
    TRAINING,
    VALIDATION,
    game_index,
    game_indices,
)
from metarl.envs.family import Family, State, Step
from metarl.envs.lineage import choose_constants
from metarl.envs.live import Pool, Run, next_state, runs_in, start_state
from metarl.envs.registry import register_family
from metarl.envs.tasks import Task, Tasks
from metarl.errors import ConfigError, shorten
from metarl.processes import NATIVE_WORK, ProcessLocal

if TYPE_CHECKING:
    # Loading ALE takes time, and most commands play no game.
    from metarl.envs.atari.emulators import Emulator


@dataclass(frozen=True, kw_only=True)
class AtariConstants:
    """The arguments of :class:`Atari`, with SB3's names; the values here are Leap's, where it is silent SB3's."""

    observation: str = "rgb"
    """``"rgb"``: frames in colours; ``"grey"``: in grey."""
    n_stack: int = 1
    """How many frames are observed at once, the newest last."""
    screen_size: int = 84
    """Height and width of a frame, pixels."""
    frame_skip: int = 4
    """Frames that an action lasts; what is seen is the brighter of the last two, pixel by pixel."""
    action_repeat_probability: float = 0.0
    """Sticky actions: how probable it is in each frame that the last frame's action goes on."""
    noop_max: int = 30
    """A game begins with fewer no-ops than this, each a frame long."""
    fire_on_reset: bool = True
    """Whether an episode begins with the actions 1 and 2 in games that have the fire button."""
    terminal_on_life_loss: bool = True
    """Whether an episode ends with a life; the next one goes on in the same game."""
    reward_clip: float = 5.0
    """An env step's reward is cut to ± this; 0: it is the game's own."""
    max_frames: int = 108_000
    """A game is cut after so many frames: half an hour."""
    full_action_set: bool = False
    """Whether all games have the same 18 actions; otherwise each has those that do something in it."""


_LEAP = AtariConstants()
_SB3 = replace(_LEAP, observation="grey", n_stack=4, reward_clip=1.0)
LINEAGES: dict[str, AtariConstants] = {
    "leap": _LEAP,
    "sb3": _SB3,
    "machado": replace(
        _SB3,
        frame_skip=5,
        action_repeat_probability=0.25,
        noop_max=0,
        fire_on_reset=False,
        terminal_on_life_loss=False,
        reward_clip=0.0,
        max_frames=18_000,
        full_action_set=True,
    ),
}
"""Constants by the paper or code base they come from."""

PICTURE = (420, 320)
"""Height and width of a picture, pixels: those of ALE's screen, twice."""
_SMALLEST = 36
"""Pixels that the three convolutions of a ``CnnPolicy`` need."""


class Atari(Family):
    """Atari 2600 games, one for each task, that share what is observed and differ in actions.

    **Task.** ``game``, its index in ``metarl.envs.atari.games.GAMES``; names are taken too, as Gymnasium writes them
    (``"SpaceInvaders"``) or ALE (``"space_invaders"``).

    **Splits.** Training: the 25 of the 62 classic games that have at most 10 actions, without Breakout and
    SpaceInvaders; ``games`` names others. Validation: 8 games of at most 10 actions that ALE got later. Test:
    Breakout, SpaceInvaders, Asteroids, Alien, Gravitar and RoadRunner, of which the last four have more actions than
    any that is trained on. ``tasks("table6")``: the nine games that Leap reports, three of which are trained on.

    **Observation.** uint8, ``[channel, height, width]``, as networks take it: frames in colours (3 channels each) or in
    grey, ``n_stack`` of them, the newest last. Those from before the episode are black.

    **Action.** Discrete: what does something in the game, 3 to 18 of ALE's 18. Action 0 does nothing.

    **Reward.** The game's, cut to ± ``reward_clip``. ``info`` has the ``score`` before that and the ``lives``.

    **Episode.** As SB3's ``make_atari_env`` plays it: no-ops, the fire button, the frames of an action, and the end. It
    ends with a life where ``terminal_on_life_loss``; a copy's next one (:meth:`restart`) then goes on in the same
    game. What differs from SB3: 0 to ``noop_max`` - 1 no-ops, there 1 to ``noop_max``; grey is ALE's, of which the
    brighter of two frames is taken, where SB3 takes that in each colour first; frames of the start do not count for
    ``max_frames``; and returns that SB3's ``Monitor`` notes are of whole games, unclipped.

    ::

        family = make_family("Atari-v0", max_frames=400)
        tasks = family.validate_tasks({"game": ["Pong", "SpaceInvaders"]})
        state, obs = family.reset(tasks, [np.random.default_rng(task) for task in range(2)], n_envs=1)
        assert obs.shape == (2, 1, 3, 84, 84)
        step = family.step(tasks, state, np.zeros((2, 1), np.int64), [])

    **Lineages.** ``Atari("sb3")`` takes other constants, keywords replace single ones.

    ===========  ========================================================================================
    ``lineage``  is
    ===========  ========================================================================================
    ``leap``     the default: Leap's 84 x 84 x 3 colours and rewards within ±5; the rest is SB3's
    ``sb3``      ``make_atari_env`` and a stack of 4: grey frames, rewards within ±1
    ``machado``  Machado et al. (2018): sticky actions of 0.25, 5 frames an action, all 18 actions, whole games of at
                 most 5 minutes, rewards as they are; a stack of 4 grey frames
    ===========  ========================================================================================

    :param lineage: one of ``LINEAGES``.
    :param games: names of the training games, a list or one text with commas; default: see above.
    :param horizon: the longest episode in env steps, in place of ``max_frames``; default: ``max_frames`` over
        ``frame_skip``, rounded up.
    :param changes: other values for fields of :class:`AtariConstants`.
    :raises UnknownNameError: a game that there is not.
    :raises ConfigError: a game of another split.
    """

    id = "Atari-v0"
    live = True
    concurrent = True
    observes_task = True
    max_copies = 512
    render_fps = 15

    def __init__(
        self,
        lineage: str = "leap",
        *,
        games: str | Sequence[str] = TRAINING,
        horizon: int | None = None,
        **changes: Any,
    ) -> None:
        c = choose_constants(LINEAGES, lineage, changes, "Atari")
        choice("rgb", "grey")("observation", c.observation)
        for name in ("n_stack", "frame_skip", "max_frames"):
            COUNT(name, getattr(c, name))
        if horizon is not None:
            if "max_frames" in changes:
                raise ConfigError(f"horizon={shorten(horizon)} and max_frames={c.max_frames}: give one of them")
            c = replace(c, max_frames=COUNT("horizon", horizon) * c.frame_skip)
        self.constants = c
        if c.screen_size < _SMALLEST:
            raise ConfigError(f"screen_size={c.screen_size}: at least {_SMALLEST} pixels, for the network's kernels")
        FRACTION("action_repeat_probability", c.action_repeat_probability)
        COUNT_OR_ZERO("noop_max", c.noop_max)
        NOT_NEGATIVE("reward_clip", c.reward_clip)
        self._splits = {
            "train": game_indices("games", games),
            "validation": tuple(map(game_index, VALIDATION)),
            "test": tuple(map(game_index, TEST)),
        }
        for split in ("validation", "test"):
            for index in self._splits["train"]:
                if index in self._splits[split]:
                    raise ConfigError(f"games: {GAMES[index]} belongs to the {split} split and is not trained on")
        self.observed = {name: getattr(c, name) for name in ("observation", "n_stack", "screen_size")}
        self.horizon = -(-c.max_frames // c.frame_skip)
        self.task_space = Dict({"game": Discrete(len(GAMES))})
        channels = c.n_stack * (3 if c.observation == "rgb" else 1)
        self.observation_space = Box(0, 255, (channels, c.screen_size, c.screen_size), np.uint8)
        self.action_space = Discrete(self._n_actions(self._splits["train"][0]))
        self._pool: ProcessLocal[Pool] = ProcessLocal(Pool)

    # ----------------------------------------------------------------------------------------------------------- tasks
    def finite_tasks(self) -> Tasks:
        return {"game": np.arange(len(GAMES))}

    def finite_split(self, split: str) -> np.ndarray:
        return np.array(self._splits[split])

    def tasks(self, split: str, n: int = 40) -> Tasks:
        """Return the first ``n`` games of a split.

        :param split: ``"validation"``, ``"test"``, or ``"table6"`` for the games that Leap reports.
        :param n: at most that many.
        """
        if split == "table6":
            return {"game": np.array([game_index(game) for game in TABLE6[: COUNT("n", n)]])}
        return super().tasks(split, n)

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return games as a batch of tasks.

        :raises UnknownNameError: a name that no game has.
        :raises TaskError: something else that is no game.
        """
        games = tasks.get("game") if isinstance(tasks, Mapping) else None
        if isinstance(games, list | tuple | np.ndarray):
            known = [game_index(game) if isinstance(game, str) else game for game in games]
            tasks = {**tasks, "game": known}
        return super().validate_tasks(tasks)

    def describe(self, task: Task) -> str:
        return GAMES[int(task["game"])]

    def spaces(self, task: Task) -> tuple[Box, Discrete]:
        return self.observation_space, Discrete(self._n_actions(int(task["game"])))

    def _n_actions(self, game: int) -> int:
        return FULL if self.constants.full_action_set else N_ACTIONS[game]

    # -------------------------------------------------------------------------------------------------------- dynamics
    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        games, seeds = np.repeat(tasks["game"], n_envs), [rng.integers(2**31, size=n_envs) for rng in rngs]
        # ALE takes a tenth of a second to begin with a seed, mostly for a table of colours: in threads.
        with NATIVE_WORK, ThreadPoolExecutor(min(len(games), os.cpu_count() or 1)) as threads:
            runs = list(threads.map(self._start, games.tolist(), np.concatenate(seeds).tolist()))
        rows = [runs[first : first + n_envs] for first in range(0, len(runs), n_envs)]
        return start_state(rows), self._observe(rows)

    def _start(self, game: int, seed: int) -> Run:
        run = self._pool.get().run(game, lambda: self._make(game))
        run.instance.start(seed)
        return run

    def restart(
        self, tasks: Tasks, state: State, rngs: Sequence[np.random.Generator], n_envs: int
    ) -> tuple[State, np.ndarray]:
        runs = []
        with NATIVE_WORK:
            for game, ended, rng in zip(tasks["game"].tolist(), state["run"], rngs, strict=True):
                runs.append([self._start_next(game, run, rng) for run in ended])
        return start_state(runs), self._observe(runs)

    def _start_next(self, game: int, ended: Run, rng: np.random.Generator) -> Run:
        if ended.key != game:
            return self._start(game, int(rng.integers(2**31)))
        run = ended.next_episode()
        run.instance.start_next()
        return run

    def _make(self, game: int) -> Emulator:
        from metarl.envs.atari.emulators import Emulator, Screen

        c = self.constants
        screen = Screen(
            height=c.screen_size,
            width=c.screen_size,
            grey=c.observation == "grey",
            n_stack=c.n_stack,
            frame_skip=c.frame_skip,
            action_repeat_probability=c.action_repeat_probability,
            noop_max=c.noop_max,
            fire_on_reset=c.fire_on_reset,
            terminal_on_life_loss=c.terminal_on_life_loss,
            full_action_set=c.full_action_set,
            max_frames=c.max_frames,
        )
        emulator = Emulator(ROMS[game], screen)
        if emulator.n_actions != self._n_actions(game):  # ALE would wait for ever on one that it does not have
            raise ConfigError(
                f"the installed ale-py has {emulator.n_actions} actions in {GAMES[game]}, where metarl knows of "
                f"{self._n_actions(game)}: ale-py 0.12 has as many"
            )
        return emulator

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        n_actions = self._n_actions(int(tasks["game"][0]))
        if actions.min() < 0 or actions.max() >= n_actions:
            raise ConfigError(f"{self.id}: actions from {actions.min()} to {actions.max()}, not 0 to {n_actions - 1}")
        chosen = actions.tolist()
        runs: list[tuple[int, int, Run, Emulator]] = [
            (row, env, run, run.instance) for row, env, run in runs_in(self, state, active)
        ]
        batch = state["run"].shape
        with NATIVE_WORK:
            for row, env, run, emulator in runs:
                emulator.send(chosen[row][env])
                run.stepped(over=False)
            # All that can be made while they play is. Copies that are not stepped show nothing.
            then = next_state(state)
            room = np.empty if len(runs) == state["run"].size else np.zeros
            obs: np.ndarray = room((*batch, *self.observation_space.shape), np.uint8)
            score, lives = np.zeros(batch), np.zeros(batch, np.int64)
            terminated, truncated = np.zeros(batch, bool), np.zeros(batch, bool)
            # Whoever asks too early waits on a core that emulators could use, 50 µs each time: one of the last is asked
            # first, and most others are ready then.
            first = 3 * len(runs) // 4
            for row, env, _, emulator in (*runs[first : first + 1], *runs[:first], *runs[first + 1 :]):
                emulator.receive()
                emulator.write(obs[row, env])
                score[row, env], lives[row, env] = emulator.score, emulator.lives
                terminated[row, env], truncated[row, env] = emulator.terminated, emulator.truncated
        clip = self.constants.reward_clip
        reward = np.clip(score, -clip, clip) if clip else score
        info = {"reward_game": reward, "score": score, "lives": lives}
        return Step(then, obs, reward, terminated, info, truncated)

    def _observe(self, runs: Sequence[Sequence[Run]]) -> np.ndarray:
        obs = np.zeros((len(runs), len(runs[0]), *self.observation_space.shape), np.uint8)
        for row, copies in enumerate(runs):
            for env, run in enumerate(copies):
                run.instance.write(obs[row, env])
        return obs

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return the last frame as it is observed, as large as a television would show it."""
        frame: np.ndarray = trail[-1]["run"][task, env].instance.picture()
        rows, columns = (np.arange(size) * frame.shape[axis] // size for axis, size in enumerate(PICTURE))
        return np.ascontiguousarray(frame[rows[:, None], columns])

    def close(self) -> None:
        pool = self._pool.take()
        if pool is not None:
            pool.close()


register_family(Atari.id, Atari)
