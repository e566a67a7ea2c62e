"""A live family for tests: copies are objects, each a number that is moved."""

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.envs.family import Family, Step
from metarl.envs.live import Pool, next_state, runs_in, start_state
from metarl.processes import ProcessLocal


class Puppet:
    """A number on a line, with a stream of its own; counts how many there are."""

    alive = 0

    def __init__(self) -> None:
        Puppet.alive += 1
        self.x, self.rng = 0.0, np.random.default_rng(0)

    def reset(self, seed, drift):
        self.rng, self.drift = np.random.default_rng(seed), drift
        self.x = self.rng.normal()

    def step(self, push):
        self.x += push + self.drift + 0.1 * self.rng.normal()

    def close(self):
        Puppet.alive -= 1


class Puppets(Family):
    """Keep a drifting number near nought; it is lost beyond 3, and cut beyond 2 on the other side."""

    live = True

    def __init__(self, horizon: int = 12) -> None:
        self.id = "Puppets-v0"
        self.task_space = Dict({"drift": Box(-0.5, 0.5, (), np.float64)})
        self.observation_space, self.action_space = Box(-99, 99, (1,), np.float32), Box(-1, 1, (1,), np.float32)
        self.horizon = horizon
        self.pool = ProcessLocal(self.make_pool)

    @staticmethod
    def make_pool():
        return Pool(Puppet.close)

    def begin(self, run, seed, tasks, row):
        run.instance.reset(seed, tasks["drift"][row])

    def reset(self, tasks, rngs, n_envs):
        pool = self.pool.get()
        runs = [[pool.run((), Puppet) for _ in range(n_envs)] for _ in rngs]
        for row, (copies, rng) in enumerate(zip(runs, rngs, strict=True)):
            for run, seed in zip(copies, rng.integers(2**31, size=n_envs), strict=True):
                self.begin(run, seed, tasks, row)
        x = np.array([[run.instance.x for run in copies] for copies in runs])
        return start_state(runs), x[..., None].astype(np.float32)

    def push(self, action):
        return float(np.clip(action[0], -1, 1))

    def step(self, tasks, state, actions, rngs, active=None):
        x = np.zeros(actions.shape[:2])
        for row, env, run in runs_in(self, state, active):
            run.instance.step(self.push(actions[row, env]))
            x[row, env] = run.instance.x
            run.stepped(over=x[row, env] > 3 or x[row, env] < -2 or run.time + 1 == self.horizon)
        obs = x[..., None].astype(np.float32)
        return Step(next_state(state), obs, -np.abs(x), x > 3, {"reward_near": -np.abs(x)}, x < -2)

    def close(self):
        pool = self.pool.take()
        if pool is not None:
            pool.close()
