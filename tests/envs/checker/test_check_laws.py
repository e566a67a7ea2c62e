"""Deliberate mistakes that many steps show, of declarations and of tasks: each is refused in one line."""

import copy

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.checker.family import FamilyCheckError, check_family
from tests.envs.breaking import at, declared, require_refused, step_with, wrong
from tests.envs.families import CartPole, Finite, Maze, Reach, Sound, Spring, paying


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
    for kind, group in {"late": LATE, "seen": SEEN, "declared": DECLARED, "tasks": TASKS}.items()
    for name, mistake in group.items()
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_refused_in_one_line(name):
    require_refused(*MISTAKES[name])


def test_a_sparse_reward_proves_no_lateness():
    """Paid at the exit of a maze only; most actions change nothing in it."""
    check_family(Maze(), n_steps=15)


def test_dicts_of_tasks_keep_their_space():
    family = Reach()
    family.task_space = Dict({"goal": Box(-1.0, 1.0, (), np.float64), "mass": Box(1.0, 2.0, (), np.float64)})
    with pytest.raises(
        FamilyCheckError, match=r"task parameter 'mass' changes neither dynamics nor reward within 30 env"
    ):
        check_family(family)
