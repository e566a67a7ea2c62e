"""The kinds of families that a wrapper and a learner may meet, one tiny family of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs import from_gym
from metarl.envs.family import Family, State, Step
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.maze.maze import Maze
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.supervised.random_steps import RandomSteps
from metarl.envs.supervised.vision.multi_cv import MultiCV
from metarl.envs.supervised.vision.omniglot import make_omniglot
from metarl.envs.tasks import Tasks
from metarl.envs.two_levels import TwoLevels
from tests.envs.families import Doors
from tests.meta.aim import Aim
from tests.meta.walk import Walk


class Shades(Family):
    """Images: a picture is dark or bright, and the task says which of two buttons pays more on the bright ones."""

    def __init__(self) -> None:
        self.id = "Shades-v0"
        self.task_space = spaces.Dict({"bright": spaces.Box(0.0, 1.0, (), np.float64)})
        self.observation_space = spaces.Box(0.0, 1.0, (1, 36, 36), np.float32)
        self.action_space = spaces.Discrete(2)
        self.horizon = 2

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        return self._draw(rngs, n_envs)

    def _draw(self, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        is_bright = np.stack([rng.integers(2, size=n_envs) for rng in rngs])
        shade = np.where(is_bright == 1, 0.9, 0.1).astype(np.float32)
        return {"is_bright": is_bright}, np.tile(shade[..., None, None, None], self.observation_space.shape)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        pay = np.where(state["is_bright"] == 1, tasks["bright"][:, None], 1.0 - tasks["bright"][:, None])
        reward = np.where(actions == 1, pay, 1.0 - pay)
        after, obs = self._draw(rngs, actions.shape[1])
        return Step(after, obs, reward, np.zeros(reward.shape, bool), {"reward_pay": reward})


class Slope(OneStep):
    """Supervised: a line through the origin, whose slope is the task."""

    def __init__(self) -> None:
        self.id = "Slope-v0"
        self.task_space = spaces.Dict({"slope": spaces.Box(0.5, 1.5, (), np.float64)})
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-4.0, 4.0, (1,), np.float32)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([rng.uniform(-1.0, 1.0, (n, 1)) for rng in rngs]).astype(np.float32)
        return x, tasks["slope"][:, None, None] * x


class Slants(TwoLevels, Slope):
    """Supervised, in families of lines whose slopes are near each other."""

    def __init__(self) -> None:
        super().__init__()
        self.id = "Slants-v0"
        self.family_space = spaces.Dict({"near": spaces.Box(0.7, 1.3, (), np.float64)})

    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        return {"slope": families["near"] + rng.uniform(-0.2, 0.2, len(families["near"]))}


class Bend(Slope):
    """What is seen of the tasks of :class:`Bent`: a parabola in two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.id = "Bend-v0"
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([rng.uniform(-1.0, 1.0, (n, 2)) for rng in rngs]).astype(np.float32)
        return x, tasks["slope"][:, None, None] * np.square(x).sum(-1, keepdims=True)


class Bent(Slope):
    """Supervised, with another family in which tasks are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.id = "Bent-v0"
        self.support_family = Bend()


class SeenWalk(Walk):
    """Nobody says what to do, and what a random policy meets is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.id = "SeenWalk-v0"
        self.support_family = RandomSteps("SeenWalk-v0/support", self, "reward")


class WalkHome(Imitation):
    """Imitation of one who walks to the task's side, and stays there."""

    discrete = False

    def __init__(self) -> None:
        super().__init__(n_tasks=3, n_demonstrations=2, n_eval_episodes=2)
        self.id = "WalkHome-v0"

    def make_real(self, real_kwargs: Mapping[str, Any]) -> Family:
        return Walk(discrete=self.discrete)

    def make_expert(self, real: Family) -> Expert:
        return Homewards(self.discrete)


class WalkHomeDiscrete(WalkHome):
    """The same in steps of one length."""

    discrete = True


class Homewards(Expert):
    """Walks to where the task's side is."""

    fingerprint = "homewards"

    def __init__(self, discrete: bool) -> None:
        self.discrete = discrete

    def act(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        move = np.clip(tasks["side"][:, None] - obs[..., 0], -1.0, 1.0)
        return np.sign(move).astype(np.int64) + 1 if self.discrete else move[..., None]


@dataclass(frozen=True)
class Kind:
    """A kind of family.

    :param make: returns a family of that kind.
    :param policy: takes its observations.
    :param policy_kwargs: make it tiny.
    """

    make: Callable[[], Family]
    policy: str = "MlpPolicy"
    policy_kwargs: Mapping[str, Any] = field(default_factory=lambda: {"net_arch": [4]})


KINDS: dict[str, Kind] = {
    "continuous": Kind(Walk),
    "discrete": Kind(lambda: Walk(discrete=True)),
    "unequal spaces": Kind(Doors),
    "images": Kind(
        Shades,
        "CnnPolicy",
        {"net_arch": [4], "features_extractor_kwargs": {"features_dim": 4}, "normalize_images": False},
    ),
    "supervised": Kind(Slope),
    "families of tasks": Kind(Slants),
    "images of classes": Kind(
        lambda: make_omniglot(ways=2, n_alphabets=2, augment=False),
        "FewShotCnnPolicy",
        {"features_extractor_kwargs": {"n_filters": 2}},
    ),
    "data sets": Kind(
        lambda: MultiCV(datasets=["omniglot/Greek", "omniglot/Braille", "omniglot/Hebrew"]),
        "FewShotCnnPolicy",
        {"features_extractor_kwargs": {"n_filters": 2, "strided": True}},
    ),
    "seen elsewhere": Kind(Bent),
    "seen at random": Kind(SeenWalk),
    "from gym": Kind(lambda: from_gym("Pendulum-v1", {"g": (5.0, 15.0), "m": (0.5, 2.0)}, horizon=3)),
    "mazes": Kind(lambda: Maze(4)),
    "imitation": Kind(WalkHome),
    "imitation of choices": Kind(WalkHomeDiscrete),
}
TOYS: dict[str, Kind] = {"one shot": Kind(Aim), "one shot of three": Kind(lambda: Aim(discrete=True))}
"""Families whose known answer any learner finds within a few meta-iterations."""
