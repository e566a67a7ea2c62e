"""Deliberate mistakes of dynamics: each is refused in one line that names promise, time step, task and value."""

import copy
import random
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.check import FamilyCheckError, check_family
from tests.envs.families import CartPole, Finite, Maze, Pendulum, Reach, Sound, Spring, paying


def wrong(base, **methods):
    """Return a family of which some methods are wrong; ``reset`` and ``step`` may call ``self.right``."""

    def right(self):
        return SimpleNamespace(**{name: getattr(super(cls, self), name) for name in methods})

    cls = type(base.__name__, (base,), {**methods, "right": property(right)})
    return cls


def step_with(base, change):
    """Return a family whose step is ``change(right step, tasks, state, actions, self)``."""

    def step(self, tasks, state, actions, rngs, active=None):
        return change(self.right.step(tasks, state, actions, rngs, active), tasks, state, actions, self)

    return wrong(base, step=step)


def reset_with(base, change):
    """Return a family whose reset is ``change(state, obs, tasks, rngs)``."""

    def reset(self, tasks, rngs, n_envs):
        return change(*self.right.reset(tasks, rngs, n_envs), tasks, rngs)

    return wrong(base, reset=reset)


def declared(base, **attributes):
    """Return a family that declares something else."""

    def make():
        family = base()
        for name, value in attributes.items():
            setattr(family, name, value)
        return family

    return make


def at(state, t):
    """Return which copies of Reach are past step ``t``."""
    return state["t"] >= t


# ----------------------------------------------------------------------------------------------------------- the action
def unclipped(self, tasks, state, actions, rngs, active=None):
    x = state["x"] + 0.2 * actions[..., 0].astype(np.float64)
    reward = -np.abs(x - tasks["goal"][:, None])
    return self.right.step(tasks, state, actions, rngs)._replace(
        state={"x": x, "t": state["t"] + 1}, obs=self.observe(np.clip(x, -20, 20)), reward=reward, info={}
    )


def pays_for_unclipped(step, tasks, state, actions, self):
    return paying(step, step.reward - 0.01 * np.square(actions.astype(np.float64)).sum(-1))


def wraps(self, tasks, state, actions, rngs, active=None):
    return self.right.step(tasks, state, (actions + 1) % 2 - 1, rngs, active)


def one_hot(self, tasks, state, actions, rngs, active=None):
    return self.right.step(tasks, state, np.eye(3)[actions][..., :1], rngs, active)


ACTIONS = {
    "does not clip": (
        wrong(Reach, step=unclipped),
        r"actions outside the action space are not clipped to it at time step 1, copy 0 of task 0 {'goal': .*}: "
        r"action \[-6.0\] gives reward -\d.\d+, clipped to \[-1.0\] it gives -0.\d+",
    ),
    "pays for more than it clips": (step_with(Sound, pays_for_unclipped), "are not clipped to it .* gives reward -"),
    "folds instead of clipping": (wrong(Reach, step=wraps), "are not clipped to it .* gives reward -"),
    "Pendulum's torque as it comes": (
        wrong(
            Pendulum, step=lambda self, tasks, state, actions, rngs, active=None: loose_pendulum(tasks, state, actions)
        ),
        "are not clipped to it",
    ),
    "actions from 1 taken for actions from 0": (
        declared(wrong(Reach, step=one_hot), action_space=Discrete(3, start=1)),
        r"one_hot raises IndexError: index 3 is out of bounds .* at time step \d",
    ),
}


def loose_pendulum(tasks, state, actions):
    step = Pendulum().step(tasks, state, actions, [])
    extra = 0.15 * (actions[..., 0] - np.clip(actions[..., 0], -2, 2))
    x = step.state["x"] + np.stack([0.05 * extra, extra], axis=-1)
    x[..., 1] = np.clip(x[..., 1], -8, 8)
    return step._replace(state={"x": x}, obs=Pendulum.observe(x))


# ----------------------------------------------------------------------------------------------------------- the copies
def first_copy_for_all(self, tasks, state, actions, rngs, active=None):
    shared = {name: np.broadcast_to(value[:, :1], value.shape) for name, value in state.items()}
    return self.right.step(tasks, shared, actions, rngs, active)


def drawn_together(step, tasks, state, actions, self):
    """A crowd: copies move towards each other."""
    x = step.state["x"] + 0.1 * (step.state["x"].mean(1, keepdims=True) - step.state["x"])
    return step._replace(state={**step.state, "x": x}, obs=self.observe(x), reward=-np.abs(x), info={})


def one_start(state, obs, tasks, rngs):
    x = np.broadcast_to(state["x"][:, :1], state["x"].shape).copy()
    return {"x": x}, x.astype(np.float32)


def one_noise(self, tasks, state, actions, rngs, active=None):
    step = self.right.step(tasks, state, np.zeros_like(actions), [np.random.default_rng(0)] * len(rngs), active)
    noise = np.stack([rng.normal(size=2) for rng in rngs])[:, None]
    x = state["x"] + 0.1 * np.clip(actions, -1, 1) + noise
    return paying(step._replace(state={"x": x}, obs=x.astype(np.float32)), -np.abs(x).sum(-1) - tasks["price"][:, None])


def shared_out(step, tasks, state, actions, self):
    return paying(step, step.reward / step.reward.shape[1])


def first_copy_favoured(step, tasks, state, actions, self):
    return paying(step, step.reward + (np.arange(step.reward.shape[1]) == 0))


def late_crosstalk(step, tasks, state, actions, self):
    mean = step.reward.mean(0, keepdims=True)
    return paying(step, np.where(at(state, 15), step.reward + mean, step.reward))


def undoes_the_mask(self, tasks, state, actions, rngs, active=None):
    if active is not None:
        active[:] = True
    return self.right.step(tasks, state, actions, rngs, active)


def needs_everyone(self, tasks, state, actions, rngs, active=None):
    if active is not None and not active.all():
        raise ValueError("step all copies")
    return self.right.step(tasks, state, actions, rngs, active)


COPIES = {
    "one state for all copies": (
        wrong(Sound, step=first_copy_for_all),
        r"a copy depends on the other copies of its task, at time step \d, copy \d of task 0 {.*}: obs \[.*\] and",
    ),
    "copies move together": (step_with(Reach, drawn_together), r"a copy depends on the other copies .*: obs \["),
    "one start for all copies": (
        reset_with(Sound, one_start),
        "reset starts all copies of a task alike though another stream makes a difference: .* at reset",
    ),
    "one noise for all copies": (wrong(Sound, step=one_noise), "step moves all copies of a task alike though .*: obs"),
    "a reward shared out": (
        step_with(Reach, shared_out),
        r"a copy depends on how many copies its task has, 2 and 1: reward -0.\d+ and -0.\d+ at time step 1, copy 0 of",
    ),
    "the first copy favoured, where steps are random": (
        step_with(Sound, first_copy_favoured),
        r"copy 0 of task 0 is paid otherwise than the others, by 0.7\d+ on average, from the same states",
    ),
    "the first copy favoured": (
        step_with(Reach, first_copy_favoured),
        "step moves copies differently though the generators make no difference, at time step 1, task 0 .*: reward",
    ),
    "tasks add up, later on": (
        step_with(Reach, late_crosstalk),
        r"depends? on the (other|order of the) tasks in the batch, at time step (1[6-9]|2\d), copy",
    ),
    "changes the mask": (
        wrong(Reach, step=undoes_the_mask),
        "step modifies the mask of active copies it is given at time step 1",
    ),
    "takes no mask": (
        wrong(Reach, step=needs_everyone),
        r"needs_everyone raises ValueError: step all copies \(.*, line \d+\) at time step 1",
    ),
}


# ----------------------------------------------------------------------------------------------------------- generators
def global_after_20(step, tasks, state, actions, self):
    noise = np.where(at(state, 20), np.random.random(state["x"].shape), 0.0)  # noqa: NPY002
    return paying(step, step.reward - noise)


def seeds_everything(self, tasks, rngs, n_envs):
    np.random.seed(0)  # noqa: NPY002
    return self.right.reset(tasks, rngs, n_envs)


def python_s_random(step, tasks, state, actions, self):
    return paying(step, step.reward - random.random())


def fixed_seed(self, tasks, rngs, n_envs):
    return self.right.reset(tasks, [np.random.default_rng(index) for index in range(len(rngs))], n_envs)


def one_seed(self, tasks, rngs, n_envs):
    return self.right.reset(tasks, [np.random.default_rng(0) for _ in rngs], n_envs)


def one_seed_a_step(self, tasks, state, actions, rngs, active=None):
    return self.right.step(tasks, state, actions, [np.random.default_rng(0) for _ in rngs], active)


def noise_by_the_clock(step, tasks, state, actions, self):
    noise = np.random.default_rng(int(state["t"].max())).random(state["x"].shape[1])
    return paying(step, step.reward - noise)


def neighbour_s_stream(self, tasks, state, actions, rngs, active=None):
    return self.right.step(tasks, state, actions, [*rngs[1:], rngs[0]], active)


def last_one_s_stream(self, tasks, state, actions, rngs, active=None):
    return self.right.step(tasks, state, actions, [rngs[-1]] * len(rngs), active)


def own_generator(base):
    def __init__(self):
        base.__init__(self)
        self.rng = np.random.default_rng(0)

    def step(self, tasks, state, actions, rngs, active=None):
        step = self.right.step(tasks, state, actions, rngs, active)
        return paying(step, step.reward + np.where(at(state, 25), self.rng.random(step.reward.shape), 0.0))

    return wrong(base, __init__=__init__, step=step)


GENERATORS = {
    "the global generator, after 20 steps": (
        step_with(Reach, global_after_20),
        r"the same state, actions and streams give two different steps at time step 21, copy 0 of task 0 .*: reward -",
    ),
    "a generator of its own, after 25 steps": (
        own_generator(Reach),
        "two different steps at time step 26, .*: reward -",
    ),
    "Python's random module": (step_with(Reach, python_s_random), "two different steps at time step 1, .*: reward -"),
    "seeds the global generator": (
        wrong(Sound, reset=seeds_everything),
        "NumPy's global generator has moved: families draw from the generators they are given",
    ),
    "seeds by the row": (wrong(Sound, reset=fixed_seed), "the start of task 1 depends on the other tasks in the batch"),
    "a seed of its own": (
        wrong(Sound, reset=one_seed),
        r"reset starts copies differently though the generators make no difference, at reset, task 0 .*: obs \[",
    ),
    "a seed of its own at every step": (
        wrong(Maze, step=one_seed_a_step),
        r"step moves copies differently though the generators make no difference, at time step \d+, task 0 .*: obs \[",
    ),
    "noise by the clock": (
        step_with(Reach, noise_by_the_clock),
        "step moves copies differently though the generators make no difference, at time step 1",
    ),
    "the next task's stream": (
        wrong(Sound, step=neighbour_s_stream),
        "the trajectory of task 1 depends on the other tasks in the batch",
    ),
    "the last task's stream": (
        wrong(Sound, step=last_one_s_stream),
        "of task 1 depends on the other tasks in the batch",
    ),
}


# ------------------------------------------------------------------------------------------------ what the family keeps
def keeps_its_tasks(base):
    def reset(self, tasks, rngs, n_envs):
        self.kept = tasks
        return self.right.reset(tasks, rngs, n_envs)

    def step(self, tasks, state, actions, rngs, active=None):
        return self.right.step(self.kept, state, actions, rngs, active)

    return wrong(base, reset=reset, step=step)


def keeps_a_clock(base):
    def reset(self, tasks, rngs, n_envs):
        self.t = 0
        return self.right.reset(tasks, rngs, n_envs)

    def step(self, tasks, state, actions, rngs, active=None):
        self.t += 1
        step = self.right.step(tasks, state, actions, rngs, active)
        return paying(step, step.reward / self.t)

    return wrong(base, reset=reset, step=step)


def counts_resets(base):
    def reset(self, tasks, rngs, n_envs):
        self.count = getattr(self, "count", 0) + 1
        state, _ = self.right.reset(tasks, rngs, n_envs)
        x = state["x"] + self.count
        return {**state, "x": x}, self.observe(x)

    return wrong(base, reset=reset)


def one_buffer(base):
    def step(self, tasks, state, actions, rngs, active=None):
        step = self.right.step(tasks, state, actions, rngs, active)
        self.buffers = getattr(self, "buffers", {})
        buffer = self.buffers.setdefault(step.obs.shape, np.empty_like(step.obs))
        buffer[:] = step.obs
        return step._replace(obs=buffer)

    return wrong(base, step=step)


def one_thread_only(base):
    def step(self, tasks, state, actions, rngs, active=None):
        self.work = tasks
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.002)
        return self.right.step(self.work, state, actions, rngs, active)

    return declared(wrong(base, step=step), concurrent=True, horizon=3)


def closes_for_good(base):
    def close(self):
        self.observe = None

    return wrong(base, close=close)


KEPT = {
    "its tasks": (
        keeps_its_tasks(Reach),
        r"a step depends on what the family did for another batch in between, at time step 1, copy 0 .*: reward -",
    ),
    "a clock": (keeps_a_clock(Reach), "two different steps at time step 1, copy 0 of task 0 .*: reward -"),
    "how often it was reset": (
        counts_resets(Reach),
        r"the same tasks and streams start differently at reset, .*: obs \[",
    ),
    "one buffer": (one_buffer(Reach), "step modifies the observations returned before at time step 1"),
    "what another thread needs": (
        one_thread_only(Reach),
        r"two threads that step the family at once get other numbers at time step \d, .*: reward -",
    ),
    "nothing after close": (closes_for_good(Reach), "raises TypeError: 'NoneType' object is not callable"),
}


# -------------------------------------------------------------------------------------------------------------- numbers
def log_of_price(step, tasks, state, actions, self):
    return paying(step, step.reward + np.log(tasks["price"])[:, None])


def pole_in_shifted(step, tasks, state, actions, self):
    return paying(step, step.reward + 1 / (2 - tasks["price"])[:, None])


def direction(step, tasks, state, actions, self):
    return paying(
        step, step.reward + (tasks["drift"] / np.linalg.norm(tasks["drift"], axis=-1, keepdims=True)).sum(-1)[:, None]
    )


def edge_index(step, tasks, state, actions, self):
    cell = np.floor((tasks["goal"] + 1) * 5).astype(int)
    return paying(step, step.reward + np.arange(10.0)[cell][:, None])


def out_of_float32(step, tasks, state, actions, self):
    return paying(step, step.reward * np.where(at(state, 22), 1e39, 1.0))


def infinite_obs(step, tasks, state, actions, self):
    return step._replace(obs=np.where(at(state, 9)[..., None], np.inf, step.obs).astype(np.float32))


def overflowing_obs(step, tasks, state, actions, self):
    return step._replace(obs=(step.obs.astype(np.float64) * 1e39).astype(np.float32))


def half_the_terms(step, tasks, state, actions, self):
    return step._replace(info={"reward_distance": step.reward / 2, "steps": state["t"]})


NUMBERS = {
    "minus infinity at the edge": (
        step_with(Sound, log_of_price),
        r"the reward is -inf at time step 1, copy 0 of task \d+ {.*'price': 0.0}: rewards are finite in float32",
    ),
    "infinity at the shifted edge": (
        step_with(Sound, pole_in_shifted),
        r"the reward is inf .*'price': 2.0}: rewards are",
    ),
    "NaN in the middle": (step_with(Sound, direction), r"the reward is nan .* {'drift': \[0.0, 0.0\]"),
    "an index past the edge": (
        step_with(Reach, edge_index),
        r"step raises IndexError: index 10 is out of bounds .* \(test_check_mistakes.py, line \d+\) at time step 1",
    ),
    "a reward that overflows float32, later": (
        step_with(Reach, out_of_float32),
        r"the reward is -\d.\d+e\+3\d at time step 23, copy 0 of task 0 {'goal': .*}: rewards are finite in float32",
    ),
    "an infinite observation in an endless space": (
        declared(step_with(Reach, infinite_obs), observation_space=Box(-np.inf, np.inf, (1,), np.float32)),
        r"step observes inf \(entry 0\) at time step 10, copy 0 of task 0 .*: observations are finite",
    ),
    "an observation that overflows float32": (
        declared(step_with(Reach, overflowing_obs), observation_space=Box(-np.inf, np.inf, (1,), np.float32)),
        r"step observes -?inf \(entry 0\) at time step \d, copy",
    ),
    "out of its space when pushed long enough": (
        declared(Reach, observation_space=Box(-2, 2, (1,), np.float32)),
        r"step observes 2.2 \(entry 0\) outside Box\(-2.0, 2.0, \(1,\), float32\) at time step 11, copy 0 of task 0",
    ),
    "out of its space at the end of an episode": (
        declared(CartPole, observation_space=Box(-0.21, 0.21, (4,), np.float32), action_space=Discrete(2)),
        r"step observes -?0.\d+ \(entry \d\) outside Box\(-0.21, 0.21, \(4,\), float32\) at time step",
    ),
    "terms that do not add up": (
        step_with(Reach, half_the_terms),
        r"the terms of the reward in info do not add up to it at time step 1, copy 0 of task 0 {.*}: reward_distance "
        r"make -0.\d+, the reward is -",
    ),
}


# ----------------------------------------------------------------------------------------------------- before and after
def reward_before(step, tasks, state, actions, self):
    return paying(step, -np.abs(state["x"] - tasks["goal"][:, None]))


def noisy_reward_before(step, tasks, state, actions, self):
    return paying(step, -np.abs(state["x"]).sum(-1) - tasks["price"][:, None])


def obs_before(step, tasks, state, actions, self):
    return step._replace(obs=self.observe(state["x"]))


def reward_long_before(self, tasks, state, actions, rngs, active=None):
    step = self.right.step(tasks, state, actions, rngs, active)
    return step._replace(reward=-(state["x"] ** 2))


def reward_of_the_last_step(base):
    def reset(self, tasks, rngs, n_envs):
        state, obs = self.right.reset(tasks, rngs, n_envs)
        return {**state, "last": np.zeros(obs.shape[:2])}, obs

    def step(self, tasks, state, actions, rngs, active=None):
        step = self.right.step(tasks, state, actions, rngs, active)
        return paying(step._replace(state={**step.state, "last": step.reward}), state["last"])

    return wrong(base, reset=reset, step=step)


def reward_before_with_memory(base):
    def reset(self, tasks, rngs, n_envs):
        state, obs = self.right.reset(tasks, rngs, n_envs)
        return {**state, "before": state["x"]}, obs

    def step(self, tasks, state, actions, rngs, active=None):
        step = self.right.step(tasks, state, actions, rngs, active)
        reward = -np.abs(state["x"] - tasks["goal"][:, None])
        return paying(step._replace(state={**step.state, "before": state["x"].copy()}), reward)

    return wrong(base, reset=reset, step=step)


def cart_before(step, tasks, state, actions, self):
    return step._replace(obs=state["x"].astype(np.float32))


def maze_before(step, tasks, state, actions, self):
    exits = np.stack([tasks["row"], tasks["column"]], axis=-1)[:, None]
    return step._replace(reward=-np.abs(state["place"] - exits).sum(-1).astype(np.float64))


LATE = {
    "the observation of the state before, where places move late": (
        step_with(CartPole, cart_before),
        r"the observation is of the state before the step: entry 0 is always a number that the state had before",
    ),
    "the reward of the place before, in a maze": (
        step_with(Maze, maze_before),
        "the reward is of the state before the step: it answers an action 1 env steps later, the state within 0",
    ),
    "the reward of a remembered state": (
        reward_before_with_memory(Reach),
        "the reward is of the state before the step: it answers an action 1 env steps later, the state within 0",
    ),
    "the reward of the state before": (
        step_with(Reach, reward_before),
        r"the reward is of the state before the step: it answers an action 1 env steps later, the state within 0, "
        r"at time step \d, copy \d of task \d {'goal': .*}: -\d.\d+ or -\d",
    ),
    "the same with noise": (step_with(Sound, noisy_reward_before), "the reward is of the state before the step"),
    "the same where places move late": (
        wrong(Spring, step=reward_long_before),
        "the reward is of the state before the step: it answers an action 2 env steps later, the state within 1",
    ),
    "the reward of the step before": (reward_of_the_last_step(Reach), "the reward is of the state before the step"),
    "the observation of the state before": (
        step_with(Reach, obs_before),
        "the observation is of the state before the step",
    ),
}


# ----------------------------------------------------------------------------------------------------- what can be seen
def two_numbers(base):
    """Return a family that observes a second number, 0 at reset."""

    def observe(self, x, second=0.0):
        return np.stack([x, np.broadcast_to(second, x.shape)], axis=-1).astype(np.float32)

    return declared_class(wrong(base, observe=observe), observation_space=Box(-20, 20, (2,), np.float32))


def declared_class(base, **attributes):
    def __init__(self):
        base.__init__(self)
        for name, value in attributes.items():
            setattr(self, name, value)

    return type(base.__name__, (base,), {"__init__": __init__})


def shows_the_goal(step, tasks, state, actions, self):
    return step._replace(obs=self.observe(step.state["x"], tasks["goal"][:, None]))


def shows_the_way(step, tasks, state, actions, self):
    return step._replace(obs=self.observe(step.state["x"], tasks["goal"][:, None] - step.state["x"]))


def shows_the_goal_late(step, tasks, state, actions, self):
    return step._replace(obs=self.observe(step.state["x"], np.where(at(state, 12), tasks["goal"][:, None], 0.0)))


def notes_the_goal(base):
    def reset(self, tasks, rngs, n_envs):
        state, obs = self.right.reset(tasks, rngs, n_envs)
        return {**state, "goal": np.repeat(tasks["goal"][:, None], n_envs, axis=1)}, obs

    def step(self, tasks, state, actions, rngs, active=None):
        step = self.right.step({"goal": state["goal"][:, 0]}, state, actions, rngs, active)
        return step._replace(
            state={**step.state, "goal": state["goal"]}, obs=self.observe(step.state["x"], state["goal"])
        )

    return wrong(two_numbers(base), reset=reset, step=step)


def shows_the_price(step, tasks, state, actions, self):
    seen = np.stack([step.state["x"][..., 0], step.state["x"][..., 1] + tasks["price"][:, None]], axis=-1)
    return step._replace(obs=seen.astype(np.float32))


def shows_its_stiffness(step, tasks, state, actions, self):
    seen = np.stack([step.state["x"], np.broadcast_to(tasks["stiffness"][:, None], step.reward.shape)], axis=-1)
    return step._replace(obs=seen.astype(np.float32))


SEEN = {
    "the goal, after the first step": (
        step_with(two_numbers(Reach), shows_the_goal),
        r"an observation tells tasks apart in equal states \(set observes_task if it should\): entry \[1\] is -?0.\d+, "
        r"for task 0 it is -?0.\d+, at time step 1, copy 0 of task 1 {'goal'",
    ),
    "the way to the goal": (step_with(two_numbers(Reach), shows_the_way), r"an observation tells tasks apart in equal"),
    "the goal, after twelve steps": (
        step_with(two_numbers(Reach), shows_the_goal_late),
        "an observation tells tasks apart in equal states .* at time step 13",
    ),
    "the goal, from a note in the state": (notes_the_goal(Reach), "an observation tells tasks apart in equal states"),
    "the price, mixed with a place, where the drift moves things": (
        step_with(Sound, shows_the_price),
        r"an observation tells tasks apart in equal states .* at time step 1, copy 0 of task 1 {.*'price'",
    ),
    "the stiffness, where it moves things too": (
        step_with(Spring, shows_its_stiffness),
        r"entry \[1\] of observations tells tasks apart whatever happens .*: \d.\d+ for task 0, \d.\d+ at time step 1",
    ),
}


# --------------------------------------------------------------------------------------------------------- declarations
def grows(step, tasks, state, actions, self):
    if at(state, 8).any():
        self.observation_space = Box(-30, 30, (1,), np.float32)
    return step


def moves_its_bounds(step, tasks, state, actions, self):
    self.action_space.high[:] = 2.0
    return step


def own_action_space(base):
    return declared(base, action_space=copy.deepcopy(base().action_space))


def horizon_by_the_draw(self, rng, n):
    self.horizon += 1
    return self.right.sample_tasks(rng, n)


def spaces_by_the_call(self, task):
    self.calls = getattr(self, "calls", 0) + 1
    return Box(-20 - self.calls, 20, (1,), np.float32), self.action_space


def spaces_by_the_task(self, task):
    return self.observation_space, Discrete(3 if task["goal"] > 0 else 5)


def wide_spaces(self, task):
    return (Box(-20, 20, (1 if task["goal"] > 0 else 2,), np.float32), self.action_space)


def tasks_by_the_day(self):
    return {"drift": np.roll(np.arange(12), getattr(self, "day", 0))}


def day_breaks(step, tasks, state, actions, self):
    self.day = 1
    return step


DECLARED = {
    "an observation space that changes": (
        step_with(Reach, grows),
        r"observation_space changes from Box\(-20.0, 20.0, .* to Box\(-30.0, 30.0, \(1,\), .* at time step 9",
    ),
    "bounds that change in place": (
        own_action_space(step_with(Reach, moves_its_bounds)),
        r"action_space changes from Box\(-1.0, 1.0, \(1,\), float32\) to Box\(-1.0, 2.0, .* at time step 1",
    ),
    "a horizon that grows with every draw": (
        wrong(Reach, sample_tasks=horizon_by_the_draw),
        r"horizon changes from 30 to \d+",
    ),
    "spaces by the call": (
        wrong(Reach, spaces=spaces_by_the_call),
        r"spaces\(task\) changes from call to call for task {",
    ),
    "spaces that are nobody's": (
        wrong(Reach, spaces=spaces_by_the_task),
        r"spaces\(task\) \(.*Discrete.* are not the family's own .* for any training task",
    ),
    "observations unlike spaces(task)": (
        wrong(Reach, spaces=wide_spaces),
        r"reset observes \[\d, 2, 1\] float32, not \[\d, 2, 2\] float32 in Box\(-20.0, 20.0, \(2,\), float32\)",
    ),
    "finite tasks that change": (
        step_with(wrong(Finite, finite_tasks=tasks_by_the_day), day_breaks),
        "finite_tasks changes from call to call",
    ),
    "a scalar observation": (
        declared(Reach, observation_space=Box(-20, 20, (), np.float32)),
        r"observation_space Box\(-20.0, 20.0, \(\), float32\) is a scalar: give it shape \(1,\)",
    ),
    "an observation of nothing": (
        declared(Reach, observation_space=Box(-1, 1, (0,), np.float32)),
        r"observation_space Box\(.*\) has no entries",
    ),
    "a scalar action": (
        declared(Reach, action_space=Box(-1, 1, (), np.float32)),
        r"action_space Box\(-1.0, 1.0, \(\), float32\) is not a Box of one axis: give it shape \(1,\)",
    ),
    "an action of two axes": (
        declared(Reach, action_space=Box(-1, 1, (2, 3), np.float32)),
        r"is not a Box of one axis: give it shape \(6,\)",
    ),
    "a horizon of half a step": (declared(Reach, horizon=20.5), "horizon=20.5: an int"),
    "a horizon that is a float": (declared(Reach, horizon=20.0), "horizon=20.0: an int"),
}


# ---------------------------------------------------------------------------------------------------------------- tasks
def same_lists(self, split, n=40):
    return Reach.tasks(self, "test" if split == "validation" else split, n)


def trains_on_test(self, rng, n):
    return {"goal": Reach().tasks("test", 20)["goal"][rng.permutation(200)[:n] % 20]}


def shares_one(self, split, n=40):
    tasks = {"goal": Reach.tasks(self, split, n)["goal"].copy()}
    tasks["goal"][2:3] = 0.123
    return tasks


def ignores_rng(self, rng, n):
    return {"goal": np.random.default_rng(n).uniform(-1, 1, n)}


def takes_anything(self, tasks):
    return {name: np.asarray(value, self.task_space[name].dtype) for name, value in tasks.items()}


TASKS = {
    "validation of anything": (
        wrong(Reach, validate_tasks=takes_anything),
        r"validate_tasks takes goal=3, outside the task space: {'goal': \[3.0\]}",
    ),
    "one list for validation and test": (
        wrong(Reach, tasks=same_lists),
        "the validation split and the test split hold the same tasks",
    ),
    "one task in both": (
        wrong(Reach, tasks=shares_one),
        r"the validation split and the test split share task {'goal': 0.123}",
    ),
    "draws that ignore their generator": (
        wrong(Reach, sample_tasks=ignores_rng, tasks=lambda self, split, n=40: Reach().tasks(split, n)),
        "sample_tasks ignores its generator: two streams draw the same tasks, {'goal': ",
    ),
}

MISTAKES = {
    f"{kind}: {name}": mistake
    for kind, group in {
        "action": ACTIONS,
        "copies": COPIES,
        "generators": GENERATORS,
        "keeps": KEPT,
        "numbers": NUMBERS,
        "late": LATE,
        "seen": SEEN,
        "declared": DECLARED,
        "tasks": TASKS,
    }.items()
    for name, mistake in group.items()
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_refused_in_one_line(name):
    make, message = MISTAKES[name]
    with pytest.raises(FamilyCheckError) as error:
        check_family(make())
    said = str(error.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert len(said) < 500


def test_a_sparse_reward_proves_no_lateness():
    """Paid at the exit of a maze only; most actions change nothing in it."""
    check_family(Maze(), n_steps=15)


def test_the_check_leaves_no_trace():
    """It takes no number from a global generator, and draws no action from the family's own space."""
    family = Sound()
    before, space = random.getstate(), family.action_space.np_random.bit_generator.state
    check_family(family, n_steps=5)
    assert family.action_space.np_random.bit_generator.state == space
    assert random.getstate() == before


def test_dicts_of_tasks_keep_their_space():
    family = Reach()
    family.task_space = Dict({"goal": Box(-1.0, 1.0, (), np.float64), "mass": Box(1.0, 2.0, (), np.float64)})
    with pytest.raises(
        FamilyCheckError, match=r"task parameter 'mass' changes neither dynamics nor reward within 30 env"
    ):
        check_family(family)
