"""Families for tests of the check: sound ones to break, and known environments written as batched families."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.family import Family, Step


class Sound(Family):
    """Random starts, random steps, a task in dynamics and reward; keeps every promise. Each test breaks one."""

    def __init__(self) -> None:
        self.id = "Sound-v0"
        self.task_space = Dict({"drift": Box(-1.0, 1.0, (2,), np.float64), "price": Box(0.0, 1.0, (), np.float64)})
        self.shifted_space = Dict({"drift": Box(-1.0, 1.0, (2,), np.float64), "price": Box(1.0, 2.0, (), np.float64)})
        self.observation_space, self.action_space = Box(-99, 99, (2,), np.float32), Box(-1, 1, (2,), np.float32)
        self.horizon = 30

    def reset(self, tasks, rngs, n_envs):
        x = np.stack([rng.normal(size=(n_envs, 2)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        noise = 0.1 * np.stack([rng.normal(size=actions.shape[1:]) for rng in rngs])
        x = state["x"] + 0.1 * np.clip(actions, -1, 1) + noise + tasks["drift"][:, None]
        reward = -np.abs(x).sum(-1) - tasks["price"][:, None]
        return Step({"x": x}, x.astype(np.float32), reward, np.abs(x[..., 0]) > 40, {"reward_x": reward})


class Finite(Sound):
    """Sound with a list of tasks."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.shifted_space = None
        self.task_space, self.size = Dict({"drift": Discrete(size)}), size

    def finite_tasks(self):
        return {"drift": np.arange(self.size)}

    def step(self, tasks, state, actions, rngs, active=None):
        wide = {"drift": tasks["drift"][:, None] / 10, "price": np.zeros(len(tasks["drift"]))}
        return super().step(wide, state, actions, rngs, active)


def paying(step, reward):
    """Return a step with another reward."""
    return step._replace(reward=reward, info={"reward_x": reward})


class Reach(Family):
    """Walk to a hidden place on a line: nothing is random and the task is in the reward alone."""

    def __init__(self, horizon: int = 30) -> None:
        self.id = "Reach-v0"
        self.task_space = Dict({"goal": Box(-1.0, 1.0, (), np.float64)})
        self.observation_space, self.action_space = Box(-20, 20, (1,), np.float32), Box(-1, 1, (1,), np.float32)
        self.horizon = horizon

    def reset(self, tasks, rngs, n_envs):
        x = np.zeros((len(rngs), n_envs))
        return {"x": x, "t": np.zeros(x.shape, np.int64)}, self.observe(x)

    def observe(self, x):
        return x[..., None].astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        x = state["x"] + 0.2 * np.clip(actions[..., 0], -1, 1)
        reward = -np.abs(x - tasks["goal"][:, None])
        after = {"x": x, "t": state["t"] + 1}
        return Step(after, self.observe(x), reward, np.zeros(x.shape, bool), {"reward_distance": reward})


class CartPole(Family):
    """Gymnasium's CartPole-v1 with poles of other lengths and carts of other strength; its spaces are CartPole-v1's.

    Copies that have ended fall on, out of the observation space: nothing is promised of them.
    """

    def __init__(self, horizon: int = 500) -> None:
        self.id = "BatchedCartPole-v0"
        self.task_space = Dict({"length": Box(0.25, 1.0, (), np.float64), "force": Box(5.0, 15.0, (), np.float64)})
        with gymnasium.make("CartPole-v1") as env:
            self.observation_space, self.action_space = env.observation_space, env.action_space
        self.horizon = horizon

    def reset(self, tasks, rngs, n_envs):
        x = np.stack([rng.uniform(-0.05, 0.05, (n_envs, 4)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        length, force = tasks["length"][:, None], tasks["force"][:, None] * np.where(actions == 1, 1.0, -1.0)
        x, speed, angle, turn = np.moveaxis(state["x"], -1, 0)
        cos, sin = np.cos(angle), np.sin(angle)
        push = (force + 0.1 * length * turn**2 * sin) / 1.1
        spin = (9.8 * sin - cos * push) / (length * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
        pull = push - 0.1 * length * spin * cos / 1.1
        after = np.stack([x + 0.02 * speed, speed + 0.02 * pull, angle + 0.02 * turn, turn + 0.02 * spin], axis=-1)
        terminated = (np.abs(after[..., 0]) > 2.4) | (np.abs(after[..., 2]) > 12 * np.pi / 180)
        reward = np.ones(terminated.shape)
        return Step({"x": after}, after.astype(np.float32), reward, terminated, {"reward_upright": reward})


class Pendulum(Family):
    """Gymnasium's Pendulum-v1 with other gravity; as there, the reward looks at the angle before the step."""

    def __init__(self) -> None:
        self.id = "BatchedPendulum-v0"
        self.task_space = Dict({"gravity": Box(5.0, 15.0, (), np.float64)})
        with gymnasium.make("Pendulum-v1") as env:
            self.observation_space, self.action_space = env.observation_space, env.action_space
        self.horizon = 200

    def reset(self, tasks, rngs, n_envs):
        high = np.array([np.pi, 1.0])
        x = np.stack([rng.uniform(-high, high, (n_envs, 2)) for rng in rngs])
        return {"x": x}, self.observe(x)

    @staticmethod
    def observe(x):
        return np.stack([np.cos(x[..., 0]), np.sin(x[..., 0]), x[..., 1]], axis=-1).astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        angle, speed = np.moveaxis(state["x"], -1, 0)
        torque = np.clip(actions[..., 0].astype(np.float64), -2.0, 2.0)
        cost = (((angle + np.pi) % (2 * np.pi)) - np.pi) ** 2 + 0.1 * speed**2
        terms = {"reward_state": -cost, "reward_torque": -0.001 * torque**2}
        speed = speed + (1.5 * tasks["gravity"][:, None] * np.sin(angle) + 3.0 * torque) * 0.05
        speed = np.clip(speed, -8.0, 8.0)
        x = np.stack([angle + 0.05 * speed, speed], axis=-1)
        return Step({"x": x}, self.observe(x), sum(terms.values()), np.zeros(cost.shape, bool), terms)


class Maze(Family):
    """A slippery grid with a hidden exit that ends the episode: discrete, random, sparse; nothing reported in info.

    Draws are made where they are needed only: how many depends on the copies.
    """

    def __init__(self, horizon: int = 40) -> None:
        self.id = "Maze-v0"
        self.task_space = Dict({"row": Discrete(4), "column": Discrete(4)})
        self.observation_space, self.action_space = Box(0.0, 3.0, (2,), np.float32), Discrete(4)
        self.horizon = horizon

    def finite_tasks(self):
        row, column = np.divmod(np.arange(1, 16), 4)
        return {"row": row, "column": column}

    def reset(self, tasks, rngs, n_envs):
        place = np.zeros((len(rngs), n_envs, 2), np.int64)
        return {"place": place}, place.astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        moves = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])[actions]
        going = np.ones(actions.shape, bool) if active is None else active
        for row, rng in enumerate(rngs):
            for env in np.flatnonzero(going[row]):
                if rng.random() < 0.2:
                    moves[row, env] = rng.permutation([1, -1]) * rng.integers(2, size=2)
        place = np.clip(state["place"] + moves, 0, 3)
        exits = np.stack([tasks["row"], tasks["column"]], axis=-1)[:, None]
        terminated = (place == exits).all(-1)
        return Step({"place": place}, place.astype(np.float32), terminated.astype(np.float64), terminated, {})


class Spring(Family):
    """A mass on a spring of hidden stiffness, by explicit steps: an action reaches the place, and so the reward, late.

    :param late: how many env steps later an action is carried out.
    """

    def __init__(self, late: int = 0) -> None:
        self.id = "Spring-v0"
        self.task_space = Dict({"stiffness": Box(0.5, 2.0, (), np.float32)})
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-3, 3, (1,), np.float64)
        self.horizon, self.late = 25, late

    def reset(self, tasks, rngs, n_envs):
        x = np.stack([rng.normal(size=n_envs) for rng in rngs])
        queue = np.zeros((*x.shape, self.late))
        return {"x": x, "v": np.zeros_like(x), "queue": queue}, np.stack([x, 0 * x], -1).astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        queue = np.concatenate([state["queue"], np.clip(actions, -3, 3)], axis=-1)
        x = state["x"] + 0.1 * state["v"]
        v = state["v"] + 0.1 * (queue[..., 0] - tasks["stiffness"][:, None] * state["x"])
        after = {"x": x, "v": v, "queue": queue[..., 1:]}
        reward = -(x**2)
        return Step(after, np.stack([x, v], -1).astype(np.float32), reward, x > 50, {"distance": x, "speed": v})


class Bandit(Family):
    """Arms of hidden worth; what the last one paid is observed, and nothing else happens."""

    def __init__(self, n_arms: int = 5) -> None:
        self.id = "Bandit-v0"
        self.task_space = Dict({"worth": Box(0.0, 1.0, (n_arms,), np.float64)})
        self.observation_space, self.action_space = Box(0.0, 1.0, (1,), np.float32), Discrete(n_arms)
        self.horizon = 10

    def reset(self, tasks, rngs, n_envs):
        shape = len(rngs), n_envs
        return {"t": np.zeros(shape, np.int64)}, np.zeros((*shape, 1), np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        chance = np.take_along_axis(tasks["worth"], actions, axis=1)
        reward = (np.stack([rng.random(actions.shape[1]) for rng in rngs]) < chance).astype(np.float64)
        after = {"t": state["t"] + 1}
        return Step(
            after, reward[..., None].astype(np.float32), reward, np.zeros(reward.shape, bool), {"reward": reward}
        )


class Doors(Family):
    """A lamp of two colours, drawn anew at each step, says which door pays; tasks have two, three or four doors.

    All tasks have the same observation, the lamp as one of two numbers, and each the actions of its doors: a policy
    shares its trunk with the tasks of other spaces, and its head with those of its own. The best return is 8 times the
    pay; without looking at the lamp it is half of that, unless both colours mean the same door.

    Numbers beyond the doors are counted round: with two doors, 5 is door 1.
    """

    def __init__(self) -> None:
        self.id = "Doors-v0"
        pay = Box(0.5, 1.5, (), np.float64)
        self.task_space = Dict({"doors": Discrete(3, start=2), "red": Discrete(12), "green": Discrete(12), "pay": pay})
        self.observation_space, self.action_space = Box(0.0, 1.0, (2,), np.float32), Discrete(2)
        self.horizon = 8

    def spaces(self, task):
        return self.observation_space, Discrete(int(task["doors"]))

    def reset(self, tasks, rngs, n_envs):
        return self.draw(rngs, n_envs)

    @staticmethod
    def draw(rngs, n_envs):
        lamp = np.stack([rng.integers(2, size=n_envs) for rng in rngs])
        return {"lamp": lamp}, np.stack([lamp, 1 - lamp], axis=-1).astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        door = np.where(state["lamp"] == 1, tasks["red"][:, None], tasks["green"][:, None])
        reward = (actions == door % tasks["doors"][:, None]) * tasks["pay"][:, None]
        after, obs = self.draw(rngs, actions.shape[1])
        return Step(after, obs, reward, np.zeros(reward.shape, bool), {"reward_door": reward})
