"""check_family: registered families pass, and each broken promise is found by the check that is meant for it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from metarl.envs.checker.family import FamilyCheckError, check_family
from metarl.envs.registry import family_ids, make_family
from metarl.errors import MetaRLError
from metarl.streams import stream
from tests.envs.families import Finite, Sound, paying


def test_sound_families_pass():
    check_family(Sound())
    check_family(Finite())
    check_family(Finite(2))
    check_family(Sound(), n=2, n_envs=1, n_steps=1)


# Emulators take long to begin an episode.
IDS = [pytest.param(id, marks=pytest.mark.slow) if make_family(id).live else id for id in family_ids()]


@pytest.mark.parametrize("id", IDS)
def test_registered_families_pass(id):
    check_family(make_family(id), n=3, n_steps=10)


# --------------------------------------------------------------------------------------------------------- declarations
class UnboundedTask(Sound):
    def __init__(self):
        super().__init__()
        self.task_space = Dict({"drift": Box(-np.inf, np.inf, (2,)), "price": Box(0.0, 1.0, ())})


class Float64Space(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = Box(-99, 99, (2,), np.float64)


class NoHorizon(Sound):
    def __init__(self):
        super().__init__()
        self.horizon = 0


class OtherShifted(Sound):
    def __init__(self):
        super().__init__()
        self.shifted_space = Dict({"drift": Box(-1.0, 1.0, (2,), np.float64)})


# --------------------------------------------------------------------------------------------------------------- splits
class SplitByLength(Sound):
    def tasks(self, split, n=40):
        return self.sample_tasks(stream(0, split, n), n)


class SplitOutside(Sound):
    def tasks(self, split, n=40):
        tasks = super().tasks(split, n)
        return {**tasks, "price": tasks["price"] + 5.0}


class ShiftedInside(Sound):
    def sample_shifted_tasks(self, rng, n):
        return self.sample_tasks(rng, n)


class OverlappingSplits(Finite):
    def finite_split(self, split):
        return np.arange(5)


class ForeignSplit(Finite):
    def tasks(self, split, n=40):
        return {"drift": self.finite_split("train")[:n]}


class TrainsOnTest(Finite):
    def sample_tasks(self, rng, n):
        return {"drift": rng.integers(self.size, size=n)}


# ------------------------------------------------------------------------------------------------------- training draws
class DrawsOutside(Sound):
    def sample_tasks(self, rng, n):
        return {**super().sample_tasks(rng, n), "price": np.full(n, 3.0)}

    def tasks(self, split, n=40):
        return {name: value[:n] for name, value in Sound().tasks(split, 40).items()}


class DrawsFloat32(Sound):
    def sample_tasks(self, rng, n):
        return {name: value.astype(np.float32) for name, value in super().sample_tasks(rng, n).items()}

    def tasks(self, split, n=40):
        return Sound().tasks(split, n)


class DrawsTooFew(Sound):
    def sample_tasks(self, rng, n):
        return super().sample_tasks(rng, max(1, n - 1))


class DrawsFromElsewhere(Sound):
    def __init__(self):
        super().__init__()
        self.rng = stream(0, "elsewhere")

    def sample_tasks(self, rng, n):
        return super().sample_tasks(self.rng, n)

    def tasks(self, split, n=40):
        return Sound().tasks(split, n)


class DrawsTheSame(Sound):
    def sample_tasks(self, rng, n):
        return {"drift": np.zeros((n, 2)), "price": np.zeros(n)}


# ---------------------------------------------------------------------------------------------------- spaces and shapes
class SpacesDisagree(Sound):
    def spaces(self, task):
        return self.observation_space, Box(-2, 2, (2,), np.float32)


class ObservesFloat64(Sound):
    def reset(self, tasks, rngs, n_envs):
        state, obs = super().reset(tasks, rngs, n_envs)
        return state, obs.astype(np.float64)


class StepObservesFlat(Sound):
    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return step._replace(obs=step.obs[..., :1])


class LeavesItsSpace(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = Box(-5, 5, (2,), np.float32)

    def reset(self, tasks, rngs, n_envs):
        x = np.zeros((len(rngs), n_envs, 2))
        return {"x": x}, x.astype(np.float32)


class RewardFloat32(Sound):
    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return step._replace(reward=step.reward.astype(np.float32))


class TerminatedNumbers(Sound):
    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return step._replace(terminated=step.terminated.astype(int))


class InfoNotBatched(Sound):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)._replace(info={"reward_x": 0.5})


class StateNotBatched(Sound):
    def reset(self, tasks, rngs, n_envs):
        state, obs = super().reset(tasks, rngs, n_envs)
        return {**state, "t": np.zeros(1)}, obs


class StateGrows(Sound):
    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return step._replace(state={**step.state, "new": step.reward})


# ------------------------------------------------------------------------------------------------------------- dynamics
class OwnStream(Sound):
    def __init__(self):
        super().__init__()
        self.rng = stream(0, "own")

    def reset(self, tasks, rngs, n_envs):
        return super().reset(tasks, [self.rng] * len(rngs), n_envs)


class SharedStream(Sound):
    def reset(self, tasks, rngs, n_envs):
        return super().reset(tasks, [rngs[0]] * len(rngs), n_envs)


class CentredBatch(Sound):
    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        return paying(step, step.reward - step.reward.mean())


class FirstTaskFavoured(Sound):
    """Right for every task alone, and for tasks in one order: only the other order shows it."""

    def step(self, tasks, *args, **kwargs):
        step = super().step(tasks, *args, **kwargs)
        bonus = np.zeros_like(step.reward)
        if len(bonus) > 1 and tasks["price"][0] < tasks["price"][-1]:
            bonus[-1] = 1.0
        return paying(step, step.reward + bonus)


class StepsInPlace(Sound):
    def step(self, tasks, state, actions, rngs, active=None):
        step = super().step(tasks, state, actions, rngs, active)
        state["x"][:] = step.state["x"]
        return step


class ClipsActionsInPlace(Sound):
    def step(self, tasks, state, actions, rngs, active=None):
        np.clip(actions, -0.5, 0.5, out=actions)
        return super().step(tasks, state, actions, rngs, active)


class ReusesObservations(Sound):
    def reset(self, tasks, rngs, n_envs):
        state, self.obs = super().reset(tasks, rngs, n_envs)
        return state, self.obs

    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        self.obs[:] = step.obs
        return step


class ChangesTasks(Sound):
    def step(self, tasks, state, actions, rngs, active=None):
        np.minimum(tasks["price"], 0.1, out=tasks["price"])
        return super().step(tasks, state, actions, rngs, active)


class CountsActive(Sound):
    def step(self, tasks, state, actions, rngs, active=None):
        step = super().step(tasks, state, actions, rngs, active)
        return step if active is None else paying(step, step.reward + active.mean())


class Leaks(Sound):
    def reset(self, tasks, rngs, n_envs):
        state, obs = super().reset(tasks, rngs, n_envs)
        return state, obs + tasks["price"][:, None, None].astype(np.float32)


class IdleParameter(Sound):
    """One of its two parameters does nothing."""

    def step(self, tasks, *args, **kwargs):
        return super().step({**tasks, "price": np.zeros_like(tasks["price"])}, *args, **kwargs)


class IdleTask(Finite):
    def step(self, tasks, *args, **kwargs):
        return super().step({"drift": np.zeros_like(tasks["drift"])}, *args, **kwargs)


class SingleDiffers(Sound):
    """The single view validates its task; here that changes it."""

    def validate_tasks(self, tasks):
        valid = super().validate_tasks(tasks)
        return {**valid, "price": np.round(valid["price"], 1)}


class OutsideLater(Sound):
    """Observations that SB3's checker refuses although their batch looks right."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def reset(self, tasks, rngs, n_envs):
        state, obs = super().reset(tasks, rngs, n_envs)
        self.calls += len(rngs) == n_envs == 1
        return state, obs + (np.float32(1000) if self.calls > 2 else np.float32(0))


BROKEN = {
    UnboundedTask: "is not a Dict of bounded Box and Discrete spaces",
    Float64Space: "is not a float32 Box",
    NoHorizon: "horizon=0: at least 1 env step",
    OtherShifted: "shifted_space and task_space have different parameters",
    SplitByLength: "the first tasks of the train split change with n or from call to call",
    SplitOutside: "the train split gives a task outside the task space: price=",
    ShiftedInside: "the shifted split holds tasks of the training range",
    OverlappingSplits: "finite splits overlap",
    ForeignSplit: "the validation split is not the validation part of finite_tasks",
    TrainsOnTest: "training draws hold held-out tasks",
    DrawsOutside: "sample_tasks gives a task outside the task space: price=3.0",
    DrawsFloat32: "sample_tasks gives tasks of another dtype than the task space's",
    DrawsTooFew: r"sample_tasks\(rng, 4\) returned 3 tasks",
    DrawsFromElsewhere: "sample_tasks draws from something else than the generator it is given",
    DrawsTheSame: "sample_tasks draws the same task every time",
    SpacesDisagree: r"spaces\(task\) .* are not the family's own",
    ObservesFloat64: r"reset observes \[4, 2, 2\] float64, not \[4, 2, 2\] float32",
    StepObservesFlat: r"step observes \[4, 2, 1\] float32, not \[4, 2, 2\] float32",
    LeavesItsSpace: r"step observes 5\.\d+ \(entry 0\) outside Box\(-5.0, .* at time step \d+, copy \d of task \d {",
    RewardFloat32: r"reward is \[4, 2\] float32, not \[4, 2\] float64",
    TerminatedNumbers: r"terminated is \[4, 2\] int64, not \[4, 2\] bool",
    InfoNotBatched: r"info 'reward_x' is a float, not numbers \[4, 2\]",
    StateNotBatched: r"state 't' is \[1\] float64, not numbers \[task, env, ...\]",
    StateGrows: "the state after a step has other arrays than the state after reset",
    OwnStream: "the same tasks and streams start differently at reset, copy 0 of task 0",
    SharedStream: "the start of task 1 depends on the other tasks in the batch, at reset, copy 0 of task 1",
    CentredBatch: r"the trajectory of task \d depends on the other tasks in the batch, at time step 1, .*: reward ",
    FirstTaskFavoured: "trajectories depend on the order of the tasks in the batch",
    StepsInPlace: "step modifies the state it is given",
    ClipsActionsInPlace: "step modifies the actions it is given",
    ReusesObservations: "step modifies the observations returned before",
    ChangesTasks: "step modifies the tasks it is given at time step 1",
    CountsActive: "a copy that is active depends on which others are, at time step",
    Leaks: "the first observation tells tasks apart",
    IdleParameter: "task parameter 'price' changes neither dynamics nor reward",
    IdleTask: "the task changes neither dynamics nor reward",
    SingleDiffers: "the single view and the batched one step differently",
    OutsideLater: "Stable-Baselines3's check_env: The observation",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_each_broken_promise_is_found(broken):
    with pytest.raises(FamilyCheckError, match=BROKEN[broken]) as error:
        check_family(broken())
    assert str(error.value).startswith("Sound-v0: ")
    assert "\n" not in str(error.value)
    assert isinstance(error.value, MetaRLError)


def test_a_family_may_show_its_task_on_purpose():
    family = Leaks()
    family.observes_task = True
    check_family(family)


def test_observing_the_task_does_not_count_as_an_effect():
    family = IdleParameter()
    family.observes_task = True
    with pytest.raises(FamilyCheckError, match="'price' changes neither"):
        check_family(family)


# ------------------------------------------------------------------------------------------------- another process
def digest(id, kwargs):
    import hashlib

    from metarl.envs import make_family
    from metarl.streams import stream

    family = make_family(id, **kwargs)
    tasks, rngs = family.tasks("test", 2), [stream(0, "spawn", 0, task) for task in range(2)]
    state, obs = family.reset(tasks, rngs, 2)
    total, actions = hashlib.sha256(obs.tobytes()), stream(0, "actions")
    for _ in range(5):
        step = family.step(tasks, state, actions.uniform(-1, 1, (2, 2, *family.action_space.shape)), rngs)
        total.update(step.obs.tobytes() + step.reward.tobytes())
        state = step.state
    return total.hexdigest()


def test_a_family_rebuilt_in_another_process_is_the_same():
    arguments = [
        ("PointMass-v0", {"lineage": "s4", "horizon": 50}),
        ("PointMass-v0", {"oracle": True}),
        ("AntVel-v0", {}),
    ]
    code = f"{inspect.getsource(digest)}\nfor id, kwargs in {arguments!r}:\n    print(digest(id, kwargs))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(id, kwargs) for id, kwargs in arguments]
