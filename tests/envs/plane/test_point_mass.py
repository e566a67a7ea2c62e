"""PointMass against its definition, written out for one point at a time."""

import math

import numpy as np
import pytest
from gymnasium.spaces import Box

from metarl.envs.checker.family import check_family
from metarl.envs.plane.point_mass import LINEAGES, PointMass
from metarl.envs.registry import make_family
from metarl.envs.tasks import n_tasks
from metarl.errors import ConfigError, UnknownNameError
from metarl.streams import stream
from tests.envs.streams import task_streams


def definition(lineage: str, goal, start, actions):
    """Yield (observation, reward, terminated) of one episode, from the reference sheet's table."""
    (x, y), (vx, vy) = start["position"], start.get("velocity", (0.0, 0.0))
    corners = lineage.startswith("promp_")
    bound = 0.2 if lineage == "promp_corner" else 0.1
    unit = {"maml_rl": 0.1, "maml_paper": 0.1, "promp": 0.01, "garage": 0.01, "promp_corner": 0.02}.get(lineage, 1.0)
    unit = 0.01 if lineage == "promp_momentum" else unit
    for action in actions:
        ax, ay = (min(max(float(a) * unit, -bound), bound) for a in action)
        before = math.dist((x, y), goal)
        if lineage == "promp_momentum":
            vx, vy = vx + ax, vy + ay
            x, y = x + vx, y + vy
        else:
            x, y = x + ax, y + ay
        if lineage == "garage":
            x, y = (min(max(p, -5.0), 5.0) for p in (x, y))
        d = math.dist((x, y), goal)
        reward, done = -d, abs(x - goal[0]) < 0.01 and abs(y - goal[1]) < 0.01
        obs = [x, y]
        if lineage == "maml_paper":
            reward = -(d**2)
        elif lineage == "promp":
            done = abs(x) < 0.01 and abs(y) < 0.01
        elif lineage == "garage":
            done = d < math.hypot(0.1, 0.1)
            obs = [x, y, d]
        elif lineage == "promp_momentum":
            reward, done = max(2.0 - d, 0.0), False
            obs = [x, y, vx, vy]
        elif lineage == "promp_corner":
            nearest = min(math.dist((x, y), (2 * i, 2 * j)) for i in (-1, 1) for j in (-1, 1))
            reward, done = (before - d if abs(x) + abs(y) >= 0.5 and d <= nearest else 0.0), False
        assert corners == (abs(goal[0]) == abs(goal[1]) == 2.0)
        yield obs, reward, done


@pytest.mark.parametrize("lineage", LINEAGES)
def test_lineages_follow_their_definition(lineage):
    family = make_family("PointMass-v0", lineage=lineage)
    tasks = family.tasks("test", 6)
    rngs = task_streams(0, "point", 0, n_tasks(tasks))
    n_envs, n_steps = 3, 60
    state, _ = family.reset(tasks, rngs, n_envs)
    high = family.action_space.high[0]
    rng = stream(0, "actions")
    actions = rng.normal(0, high, (n_steps, n_tasks(tasks), n_envs, 2)).astype(np.float32)
    actions[:, :, 1] *= 0.01
    starts = {name: value.copy() for name, value in state.items()}
    steps = []
    for action in actions:
        # One copy makes for the goal, one hardly moves, one wanders.
        to_goal = tasks["goal"] - state["position"][:, 0]
        action[:, 0] = high * to_goal / family.constants.max_step
        steps.append(family.step(tasks, state, action, rngs))
        state = steps[-1].state
    paid = ended = 0
    for i in range(n_tasks(tasks)):
        for j in range(n_envs):
            start = {name: value[i, j] for name, value in starts.items()}
            expected = definition(lineage, tuple(tasks["goal"][i]), start, actions[:, i, j])
            for step, (obs, reward, done) in zip(steps, expected, strict=True):
                np.testing.assert_allclose(step.obs[i, j], obs, rtol=1e-6, atol=1e-6)
                assert step.reward[i, j] == pytest.approx(reward, abs=1e-12)
                assert step.terminated[i, j] == done
                assert step.info["reward_distance"][i, j] == step.reward[i, j]
                paid += reward != 0
                ended += done
    assert paid > 20
    assert (ended > 0) == (family.constants.termination != "none")


@pytest.mark.parametrize("lineage", LINEAGES)
def test_lineages_pass_the_checks(lineage):
    check_family(make_family("PointMass-v0", lineage=lineage))


# --------------------------------------------------------------------------------------------------- the reference
def returns(family, act, n=3000):
    """Mean return over ``n`` goals of a policy ``act(obs, goals, rng)``, whole episodes."""
    tasks = family.sample_tasks(stream(0, "goals"), n)
    rng, rngs = stream(0, "act"), [stream(0, "x")] * n
    state, obs = family.reset(tasks, rngs, 1)
    alive, total, length = np.ones((n, 1), bool), np.zeros((n, 1)), np.zeros((n, 1))
    for _ in range(family.horizon):
        step = family.step(tasks, state, act(obs, tasks["goal"][:, None], rng), rngs)
        total += step.reward * alive
        length += alive
        alive &= ~step.terminated
        state, obs = step.state, step.obs
    return total.mean(), length.mean()


def test_calibration_of_the_reference():
    family, unwrapped = PointMass(), PointMass("pmr")
    assert returns(family, lambda obs, goal, rng: np.zeros_like(obs))[0] == pytest.approx(-38.1, abs=0.6)
    best, length = returns(family, lambda obs, goal, rng: 10 * (goal - obs))
    assert best == pytest.approx(-0.50, abs=0.03)
    assert length == pytest.approx(3.7, abs=0.1)
    noise = lambda obs, goal, rng: rng.normal(size=obs.shape)  # noqa: E731
    assert returns(family, noise)[0] == pytest.approx(-71.2, abs=1.5)
    assert returns(unwrapped, noise)[0] == pytest.approx(-90.2, abs=2.0)


def test_defaults_are_the_reference():
    family = make_family("PointMass-v0")
    assert family.id == PointMass.id == "PointMass-v0"
    assert family.horizon == 100
    assert family.action_space == Box(-1, 1, (2,), np.float32)
    assert family.observation_space == Box(-10, 10, (2,), np.float32)
    assert family.task_space["goal"] == Box(-0.5, 0.5, (2,), np.float64)
    state, obs = family.reset(family.tasks("test", 3), task_streams(0, "r", 0, 3), 4)
    assert list(state) == ["position"]
    np.testing.assert_array_equal(obs, np.zeros((3, 4, 2), np.float32))


def test_the_paper_and_the_code_disagree_about_the_reward():
    tasks = {"goal": np.array([[0.3, 0.4]])}
    for lineage, reward in (("maml_rl", -0.5), ("maml_paper", -0.25)):
        family = PointMass(lineage)
        state, _ = family.reset(tasks, [stream(0, "r")], 1)
        step = family.step(tasks, state, np.zeros((1, 1, 2), np.float32), [stream(0, "r")])
        assert step.reward[0, 0] == pytest.approx(reward, abs=1e-12)


def test_goal_bonus_is_a_term_of_the_reward():
    tasks = {"goal": np.array([[0.05, 0.0], [0.5, 0.0]])}
    family = PointMass(goal_bonus=3.0)
    rngs = task_streams(0, "r", 0, 2)
    state, _ = family.reset(tasks, rngs, 1)
    step = family.step(tasks, state, np.full((2, 1, 2), [0.5, 0.0]), rngs)
    np.testing.assert_array_equal(step.info["reward_goal"], [[3.0], [0.0]])
    np.testing.assert_allclose(step.reward, [[3.0], [-0.45]], atol=1e-12)


def test_starts_are_drawn_where_the_lineage_says():
    for lineage, bound in (("s4", 0.5), ("promp_corner", 0.2), ("promp_momentum", 0.2)):
        family = PointMass(lineage)
        tasks = family.tasks("test", 4)
        state, obs = family.reset(tasks, task_streams(0, "r", 0, n_tasks(tasks)), 500)
        assert np.abs(state["position"]).max() == pytest.approx(bound, rel=0.01)
        np.testing.assert_array_equal(obs[..., :2], state["position"].astype(np.float32))
    assert np.abs(state["velocity"]).max() == pytest.approx(0.1, rel=0.01)


def test_shifted_goals_come_from_the_generator_alone():
    family, goals = PointMass(), []
    for garbage in (0.6, -40.0, 0.0):
        # NumPy hands small pieces of memory out again as they were left.
        used = np.full((2, 2), garbage)
        del used
        goals.append(family.sample_shifted_tasks(np.random.default_rng(0), 2)["goal"])
    np.testing.assert_array_equal(goals[0], goals[2])
    np.testing.assert_array_equal(goals[1], goals[2])


@pytest.mark.parametrize(("goal_range", "low"), [(0.5, 0.5), (2.0, 2.0)])
def test_shifted_goals_fill_the_ring(goal_range, low):
    goals = PointMass(goal_range=goal_range).tasks("shifted", 400)["goal"]
    outer = np.abs(goals).max(1)
    assert outer.min() > low
    assert outer.max() <= 1.5 * low
    # Inside one band but outside the other along the second axis: the corners are not all there is.
    assert (np.abs(goals).min(1) < low / 2).mean() == pytest.approx(0.3, abs=0.1)


def test_corners_are_a_finite_family():
    family = PointMass("promp_corner")
    assert family.splits_coincide
    assert family.shifted_space is None
    assert {tuple(goal) for goal in family.tasks("test")["goal"]} == {(-2, -2), (2, -2), (-2, 2), (2, 2)}


def test_observation_bounds_hold_at_full_speed():
    for lineage in LINEAGES:
        family = PointMass(lineage)
        tasks = family.tasks("test", 4)
        rngs = task_streams(0, "r", 0, n_tasks(tasks))
        state, obs = family.reset(tasks, rngs, 2)
        actions = np.full((n_tasks(tasks), 2, 2), [[1e3, 1e3], [-1e3, 1e3]], np.float32)
        for _ in range(family.horizon):
            step = family.step(tasks, state, actions, rngs)
            state, obs = step.state, step.obs
            assert (obs >= family.observation_space.low).all()
            assert (obs <= family.observation_space.high).all()


def test_not_a_number_is_passed_on():
    family = PointMass()
    tasks = family.tasks("test", 1)
    state, _ = family.reset(tasks, [stream(0, "r")], 1)
    assert np.isnan(family.step(tasks, state, np.full((1, 1, 2), np.nan, np.float32), []).reward).all()


# ----------------------------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"lineage": "maml"}, UnknownNameError, "unknown lineage 'maml': did you mean 'maml_rl'?"),
        (
            {"wrap_action": False},
            UnknownNameError,
            "unknown argument of PointMass 'wrap_action': did you mean 'wrap_actions'?",
        ),
        ({"horizon": 1.5}, ConfigError, "horizon=1.5 is not a whole number"),
        ({"horizon": True}, ConfigError, "horizon=True is not a whole number"),
        ({"wrap_actions": 1}, ConfigError, "wrap_actions=1 is not true or false"),
        ({"horizon": -1}, ConfigError, "horizon=-1 is not an integer in"),
        ({"goal_range": -1.0}, ConfigError, "goal_range=-1.0 is not a number in (0, ∞]"),
        *(
            ({name: value}, ConfigError, f"{name}={value} is not a finite number")
            for name in ("goal_range", "goal_bonus", "arena")
            for value in (math.nan, math.inf, -math.inf)
        ),
        ({"max_step": 10**400}, ConfigError, " is not a finite number"),
        ({"start_range": -0.1}, ConfigError, "start_range=-0.1 is not a number in [0, ∞)"),
        ({"reward": "dense"}, ConfigError, "reward='dense' is not one of 'distance', 'squared', 'corner', 'near'"),
        ({"termination": "off"}, ConfigError, "termination='off' is not one of"),
        ({"goals": "ring"}, ConfigError, "goals='ring' is not one of 'square', 'corners'"),
        ({"reward": "corner"}, ConfigError, "reward='corner' needs goals='corners'"),
        ({"start_speed": 0.1}, ConfigError, "start_speed needs momentum=True"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error) as caught:
        make_family("PointMass-v0", **kwargs)
    assert message in str(caught.value)


def test_whole_numbers_do_for_real_ones():
    assert PointMass(goal_range=2).task_space["goal"].high[0] == 2.0


@pytest.mark.parametrize("momentum", [False, True])
def test_friction_shortens_moves_or_takes_a_share_of_the_velocity(momentum):
    family = PointMass(friction=0.8, momentum=momentum, termination="none", horizon=6)
    tasks = {"goal": np.array([[0.3, -0.2], [0.1, 0.4]]), "friction": np.array([0.25, 0.8])}
    state, _ = family.reset(tasks, [stream(0, "start", task) for task in range(2)], 1)
    actions, place, speed = [(1.0, -0.5), (0.2, 0.7), (-3.0, 0.0)], np.zeros((2, 2)), np.zeros((2, 2))
    for action in actions:
        step = family.step(tasks, state, np.tile(np.float32(action), (2, 1, 1)), [])
        kept = 1.0 - tasks["friction"][:, None]
        push = 0.1 * np.clip(np.float64(np.float32(action)), -1.0, 1.0)
        speed = kept * speed + push
        place = place + (speed if momentum else kept * push)
        np.testing.assert_allclose(step.state["position"][:, 0], place, rtol=1e-12)
        np.testing.assert_allclose(step.reward[:, 0], -np.linalg.norm(place - tasks["goal"], axis=1), rtol=1e-12)
        state = step.state
    check_family(family, n=2)


def test_without_friction_nothing_is_drawn_of_it():
    drawn = [PointMass(friction=friction).sample_shifted_tasks(stream(0, "x"), 4) for friction in (0.0, 0.5)]
    np.testing.assert_array_equal(drawn[0]["goal"], drawn[1]["goal"])
    assert (list(drawn[0]), list(drawn[1])) == (["goal"], ["goal", "friction"])


@pytest.mark.parametrize("drift", ["goal", "friction"])
def test_tasks_of_a_family_that_drifts_lie_evenly_between_two(drift):
    family = make_family("PointMassFamilies-v0", drift=drift, friction=0.6, horizon=5)
    check_family(family, n=2)
    families = family.sample_families(stream(0, "families"), 3)
    tasks = family.sample_tasks(stream(0, "tasks"), 5, families=families)
    other = "friction" if drift == "goal" else "goal"
    values, fixed = (tasks[name].reshape(3, 5, -1) for name in (drift, other))
    steps = np.diff(values, axis=1)
    np.testing.assert_allclose(steps, np.repeat(steps[:, :1], 4, 1), atol=1e-12)
    assert (np.abs(steps) > 1e-3).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(fixed, np.repeat(fixed[:, :1], 5, 1))
    goal, low, size = tasks["goal"].reshape(3, 5, 2), families["low"][:, None], families["size"][:, None]
    assert ((goal >= low) & (goal <= low + size)).all()
    assert family.sample_tasks(stream(0, "tasks"), 1, families=families)[drift].shape[0] == 3


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("PointMass-v0", {"friction": 1.0}, r"friction=1.0 is not a number in \[0, 1\)"),
        ("PointMass-v0", {"lineage": "promp_corner", "friction": 0.5}, "friction=0.5 with goals='corners'"),
        ("PointMassFamilies-v0", {"drift": "friction"}, "drift='friction' with friction=0.0"),
        ("PointMassFamilies-v0", {"drift": "sideways"}, "drift='sideways' is not"),
    ],
)
def test_what_cannot_drift_is_one_line(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        make_family(name, **kwargs)
