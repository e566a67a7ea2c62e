"""Deliberate mistakes of a step: each is refused in one line that names promise, time step, task and value."""

import random
import threading
import time

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from metarl.envs.checker.family import check_family
from tests.envs.breaking import at, declared, require_refused, reset_with, step_with, wrong
from tests.envs.families import CartPole, Maze, Pendulum, Reach, Sound, paying


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
        r"step raises IndexError: index 10 is out of bounds .* \(breaking.py, line \d+\) at time step 1",
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

MISTAKES = {
    f"{kind}: {name}": mistake
    for kind, group in {
        "action": ACTIONS,
        "copies": COPIES,
        "generators": GENERATORS,
        "keeps": KEPT,
        "numbers": NUMBERS,
    }.items()
    for name, mistake in group.items()
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_refused_in_one_line(name):
    require_refused(*MISTAKES[name])


def test_the_check_leaves_no_trace():
    """It takes no number from a global generator, and draws no action from the family's own space."""
    family = Sound()
    before, space = random.getstate(), family.action_space.np_random.bit_generator.state
    check_family(family, n_steps=5)
    assert family.action_space.np_random.bit_generator.state == space
    assert random.getstate() == before
