"""Collecting: masks, returns, streams, batches counted in transitions, single environments, packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from threading import Barrier
from time import sleep
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling import collect as collecting
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes, split_streams
from metarl.agents.sampling.one_env import clip_actions, collect_env
from metarl.agents.sampling.samples import Samples, mean_weights, pack
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks, take_tasks
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, NonFiniteError
from metarl.params import Params
from metarl.streams import seed_sequence
from tests.agents.toys import HORIZON, Staircase, make_policy, make_seeds, make_stack, make_tasks

TASKS = make_tasks([1.0, -0.5, 2.0], [0, 2, 5])


def run(
    family: Staircase, tasks: Tasks = TASKS, seeds: list[np.random.SeedSequence] | None = None, **amount: int
) -> Episodes:
    n = len(tasks["gain"])
    policy = make_policy(family)
    return collect(family, policy, make_stack(policy, n), tasks, seeds or make_seeds(n), **amount)


def lengths_of(offset: int, n_envs: int) -> np.ndarray:
    return 1 + (3 * np.arange(n_envs) + offset) % HORIZON


def assert_same(a: Episodes, b: Episodes, index: Any = slice(None)) -> None:
    """Compare what the mask shows."""
    time = min(a.mask.shape[2], b.mask.shape[2])
    assert not a.mask[:, :, time:].any()
    assert not b.mask[:, :, time:].any()
    np.testing.assert_array_equal(a.mask[index, :, :time], b.mask[:, :, :time])
    mask = b.mask[:, :, :time]
    for name in ("obs", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(a, name)[index, :, :time][mask], getattr(b, name)[:, :, :time][mask])
    np.testing.assert_array_equal(a.terminated[index], b.terminated)


@pytest.mark.parametrize("discrete", [False, True])
def test_episodes_are_prefixes_with_the_known_returns(discrete: bool) -> None:
    episodes = run(Staircase(discrete=discrete, start=4 if discrete else 0), n_episodes=9)
    for task, (gain, offset) in enumerate(zip(TASKS["gain"], TASKS["offset"], strict=True)):
        expected = lengths_of(offset, 9)
        np.testing.assert_array_equal(episodes.lengths[task], expected)
        np.testing.assert_array_equal(episodes.mask[task], np.arange(HORIZON) < expected[:, None])
        np.testing.assert_array_equal(episodes.terminated[task], expected < HORIZON)
        np.testing.assert_allclose(episodes.returns[task], gain * expected * (expected + 1) / 2)
        assert episodes.mean_returns[task] == pytest.approx(np.mean(gain * expected * (expected + 1) / 2))
        assert episodes.task_steps[task] == expected.sum()
    assert episodes.n_steps == episodes.mask.sum()
    assert np.isfinite(episodes.obs[episodes.mask]).all()


def test_a_batch_ends_with_its_longest_episode() -> None:
    episodes = run(Staircase(), make_tasks([1.0], [2]), n_episodes=1)
    assert episodes.mask.shape == (1, 1, 3)
    assert episodes.mask.all()


def test_actions_are_kept_as_the_policy_chose_them() -> None:
    # A deviation of 1 leaves the Box often: the learner must see the action before clipping.
    episodes = run(Staircase(), n_episodes=20)
    actions = episodes.actions[episodes.mask]
    assert actions.dtype == np.float32
    assert np.abs(actions).max() > 1.5
    assert actions.std() == pytest.approx(1.0, abs=0.1)
    assert run(Staircase(discrete=True, start=3), n_episodes=5).actions.dtype == np.int64


@pytest.mark.parametrize("amount", [{"n_episodes": 6}, {"n_transitions": 40}])
@pytest.mark.parametrize("discrete", [False, True])
def test_a_task_does_not_depend_on_the_others(amount: dict[str, int], discrete: bool) -> None:
    family = Staircase(random=True, discrete=discrete)
    seeds = make_seeds(3)
    together = run(family, TASKS, seeds, **amount)
    for index in ([0], [2], [2, 0]):
        part = run(family, take_tasks(TASKS, np.array(index)), [seeds[i] for i in index], **amount)
        together_part = together.map(lambda axes, each, index=index: each[index])
        kept = int((part.mask.any(2)).sum(1).max())
        cut = together_part.map(lambda axes, each, kept=kept: each[:, :kept])
        assert cut.n_steps == together_part.n_steps
        assert_same(cut, part)


def test_the_final_observation_follows_the_last_step() -> None:
    episodes = run(Staircase(), n_episodes=9)
    # The first entry of the observation counts steps.
    np.testing.assert_allclose(episodes.final_obs[..., 0], episodes.lengths / HORIZON)


def test_copies_that_ended_are_left_out_without_changing_the_others() -> None:
    # One task whose copies end one after another, beside one whose copies all go on: there nobody is left out.
    short, long = make_tasks([1.0], [2]), make_tasks([1.0, 1.0], [2, 6])
    policy = make_policy(Staircase())
    alone = collect(Staircase(), policy, make_stack(policy, 1), short, make_seeds(2)[:1], n_episodes=40)
    beside = collect(Staircase(), policy, make_stack(policy, 2), long, make_seeds(2), n_episodes=40)
    assert (alone.mask.sum(1) < 30).any()
    assert_same(beside, alone, slice(0, 1))


def test_blocks_on_threads_change_nothing() -> None:
    family = make_family("AntVel-v0", horizon=12)
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space)
    tasks = family.sample_tasks(np.random.default_rng(0), 5)
    batches = []
    for n_threads, physics in ((1, 1), (2, 2), (2, 3), (3, 1)):
        family.n_threads = physics  # type: ignore[attr-defined]
        parallel = Parallel(n_threads)
        batches.append(
            collect(family, policy, make_stack(policy, 5), tasks, make_seeds(5), n_episodes=3, parallel=parallel)
        )
        parallel.close()
    for batch in batches[1:]:
        for field in fields(Episodes):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(batches[0], field.name))
    family.close()


@pytest.mark.parametrize(("id", "falls"), [("AntVel-v0", {"min_z": 0.52}), ("HalfCheetahVel-v0", {})])
@pytest.mark.parametrize(("n_episodes", "width"), [(16, 64), (9, 20), (5, 64), (40, 13)])
def test_the_copies_of_one_task_in_two_blocks_change_nothing(
    id: str, falls: dict[str, float], n_episodes: int, width: int
) -> None:
    family = make_family(id, horizon=25, **falls)
    kwargs = {"net_arch": [width, width]}
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs)
    tasks, info = family.sample_tasks(np.random.default_rng(0), 1), ("reward_ctrl",)
    whole, parts = (
        collect(
            family, policy, make_stack(policy, 1), tasks, make_seeds(1), n_episodes=n_episodes, info=info, parallel=each
        )
        for each in (Parallel(1), Parallel(2))
    )
    assert_same(whole, parts)
    np.testing.assert_array_equal(whole.final_obs, parts.final_obs)
    np.testing.assert_array_equal(whole.info["reward_ctrl"], parts.info["reward_ctrl"])
    assert bool(falls) != bool(whole.mask.all())


class Slow(FunctionalPolicy):
    """Calls ``meanwhile`` in every evaluation, and counts how many of them go on at once."""

    def of(self, meanwhile: Callable[[], object]) -> Slow:
        self.meanwhile, self.inside, self.most = meanwhile, 0, 0
        return self

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        act = super().actor(params)

        def slow(obs: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.meanwhile()
            self.inside -= 1
            return act(obs, noise)

        return slow


def in_two_blocks(meanwhile: Callable[[], object]) -> int:
    """Collect two tasks side by side; return how many evaluations of the policy went on at once."""
    family = make_family("HalfCheetahVel-v0", horizon=20, n_threads=1)
    policy = Slow("MlpPolicy", family.observation_space, family.action_space).of(meanwhile)
    tasks, parallel = family.sample_tasks(np.random.default_rng(0), 2), Parallel(2)
    collect(family, policy, make_stack(policy, 2), tasks, make_seeds(2), n_episodes=4, parallel=parallel)
    parallel.close()
    return policy.most


def test_blocks_evaluate_small_policies_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "PATIENCE", 60.0)
    assert in_two_blocks(lambda: sleep(0.002)) == 1


def test_blocks_do_not_wait_for_large_policies() -> None:
    both = Barrier(2)
    assert in_two_blocks(lambda: both.wait(60.0)) == 2


def test_streams_differ_by_task_and_repeat() -> None:
    family = Staircase(random=True)
    same = make_tasks([1.0, 1.0], [0, 0])
    episodes = run(family, same, n_episodes=6)
    assert not np.array_equal(episodes.lengths[0], episodes.lengths[1])
    assert not np.array_equal(episodes.actions[0, :, 0], episodes.actions[1, :, 0])
    assert_same(run(family, same, n_episodes=6), episodes)
    env, action = split_streams(seed_sequence(0, "test", 1))
    again, _ = split_streams(seed_sequence(0, "test", 1))
    numbers = env.random(4)
    np.testing.assert_array_equal(numbers, again.random(4))
    assert not np.array_equal(numbers, action.random(4))


@pytest.mark.parametrize("n_transitions", [1, 5, 17, 40])
def test_transitions_are_the_fewest_whole_episodes_that_suffice(n_transitions: int) -> None:
    episodes = run(Staircase(), n_transitions=n_transitions)
    for task, offset in enumerate(TASKS["offset"]):
        # Every wave repeats the copies' lengths: 1 + (3 j + offset) % 7.
        n_envs = -(-n_transitions // HORIZON)
        order = np.tile(lengths_of(offset, n_envs), 60)
        count = int(np.searchsorted(np.cumsum(order), n_transitions)) + 1
        kept = episodes.lengths[task][episodes.lengths[task] > 0]
        np.testing.assert_array_equal(kept, order[:count])
        assert kept.sum() >= n_transitions > kept[:-1].sum()
        gain = TASKS["gain"][task]
        assert episodes.mean_returns[task] == pytest.approx(np.mean(gain * kept * (kept + 1) / 2))
    # Empty rows come last and hold nothing.
    present = episodes.mask.any(2)
    assert (np.diff(present.astype(int), axis=1) <= 0).all()
    assert present.any(0).all()
    assert np.isnan(episodes.returns[~present]).all()


def test_transitions_prefer_no_length() -> None:
    # Stopping when a task has enough must not prefer short episodes: all but the last are plain draws.
    family = Staircase(random=True)
    n = 400
    tasks = make_tasks([1.0] * n, [0] * n)
    episodes = run(family, tasks, n_transitions=60)
    lengths = episodes.lengths
    first = lengths[:, 0]
    assert first.mean() == pytest.approx(4.0, abs=3 * 2.0 / np.sqrt(n))
    # Per step the mean reward is that of the stationary mix of steps, Σ t P(L ≥ t) / E[L] = 3.
    rate = episodes.rewards[episodes.mask].sum() / episodes.n_steps
    assert rate == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(("n_transitions", "percent"), [(20, 4.4), (60, 1.7)])
def test_transitions_keep_episodes_that_are_a_little_too_long(n_transitions: int, percent: float) -> None:
    # The figures of collect's docstring.
    n = 1000
    tasks = make_tasks([1.0] * n, [0] * n)
    lengths = run(Staircase(random=True), tasks, n_transitions=n_transitions).lengths
    mean = lengths.sum(1) / (lengths > 0).sum(1)
    error = float(mean.std()) / np.sqrt(n)
    assert mean.mean() / 4.0 == pytest.approx(1.0 + percent / 100.0, abs=error)
    assert mean.mean() > 4.0 + 2.5 * error


def test_give_one_amount() -> None:
    for amount in ({}, {"n_episodes": 1, "n_transitions": 1}):
        with pytest.raises(ConfigError, match="either n_episodes or n_transitions"):
            run(Staircase(), **amount)


@pytest.mark.parametrize("amount", [{"n_episodes": 3}, {"n_transitions": 21}])
def test_a_nan_reward_names_the_task(amount: dict[str, int]) -> None:
    with pytest.raises(NonFiniteError, match=r"reward in Staircase-v0 task 1 .*'gain': -0.5.*copy 1, time step 1") as e:
        run(Staircase(bad_offset=2), **amount)
    assert "\n" not in str(e.value)


def test_a_nan_in_the_policy_names_the_task() -> None:
    family = Staircase()
    policy = make_policy(family)
    params = make_stack(policy, 3)
    params["log_std"][2] = float("nan")
    with pytest.raises(NonFiniteError, match="action in Staircase-v0 task 2"):
        collect(family, policy, params, TASKS, make_seeds(3), n_episodes=2)


# --------------------------------------------------------------------------------------------- single environments
def wrapped(family: Staircase, gain: float = 2.0, offset: int = 5) -> gym.Env[Any, Any]:
    return SingleEnv(family, gain=gain, offset=offset)


def alone(policy: Any) -> Params:
    return {name: tensor[0] for name, tensor in make_stack(policy, 1).items()}


def test_a_single_environment_gives_the_known_returns() -> None:
    family = Staircase()
    policy = make_policy(family)
    episodes = collect_env(wrapped(family, offset=2), policy, alone(policy), seed_sequence(0, "adapt"), 4)
    # The single view has copy 0 only: 3 steps each.
    assert episodes.mask.shape == (1, 4, 3)
    assert episodes.terminated.all()
    np.testing.assert_allclose(episodes.returns, 12.0)
    batched = run(family, make_tasks([2.0], [2]), n_episodes=4)
    for name, value in batched.present().items():
        if name != "info":
            assert getattr(episodes, name).dtype == value.dtype
    cut = collect_env(wrapped(family, offset=6), policy, alone(policy), seed_sequence(0, "adapt"), 2)
    assert cut.lengths.tolist() == [[7, 7]]
    assert not cut.terminated.any()


@pytest.mark.parametrize("discrete", [False, True])
def test_a_single_environment_equals_the_batch_in_distribution(discrete: bool) -> None:
    family = Staircase(random=True, discrete=discrete, start=2 if discrete else 0)
    policy = make_policy(family)
    params = make_stack(policy, 1)
    n = 1500
    one = collect_env(wrapped(family), policy, alone(policy), seed_sequence(1, "adapt"), n)
    many = collect(family, policy, params, make_tasks([2.0], [5]), make_seeds(1), n_episodes=n)
    assert one.lengths.mean() == pytest.approx(many.lengths.mean(), abs=4 * 2.0 * np.sqrt(2 / n))
    shares = [(e.lengths[0] == 1).mean() for e in (one, many)]
    assert shares[0] == pytest.approx(shares[1], abs=0.04)
    for name, tolerance in (("actions", 0.06), ("obs", 0.03)):
        a, b = (getattr(e, name)[e.mask].astype(float) for e in (one, many))
        np.testing.assert_allclose(a.mean(0), b.mean(0), atol=tolerance)
        np.testing.assert_allclose(a.std(0), b.std(0), atol=tolerance)


def test_a_single_environment_gives_the_fewest_whole_episodes_that_suffice() -> None:
    family = Staircase(random=True)
    policy = make_policy(family)
    settings = policy, alone(policy), seed_sequence(2, "adapt")
    lengths = collect_env(wrapped(family), *settings, n_episodes=40).lengths[0].tolist()
    for n in (1, 2, 7):
        enough = sum(lengths[:n])
        for n_transitions, expected in ((enough, n), (enough + 1, n + 1)):
            episodes = collect_env(wrapped(family), *settings, n_transitions=n_transitions)
            assert episodes.lengths.tolist() == [lengths[:expected]]


def test_a_single_environment_repeats_with_its_seed() -> None:
    family = Staircase(random=True)
    policy = make_policy(family)
    first, again, other = (
        collect_env(wrapped(family), policy, alone(policy), seed_sequence(seed, "adapt"), 5) for seed in (0, 0, 1)
    )
    assert_same(again, first)
    assert not np.array_equal(first.lengths, other.lengths) or not np.array_equal(first.actions, other.actions)


class Endless(gym.Env[np.ndarray, np.ndarray]):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, obs: float = 0.0, reward: float = 0.0, end: bool = False) -> None:
        self.obs, self.pay, self.end = np.full(2, obs, np.float32), reward, end

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.obs, self.pay, self.end, False, {}


def test_an_episode_that_never_ends_is_an_error() -> None:
    policy = make_policy(Staircase())
    with pytest.raises(ConfigError, match="did not end within 50 env steps"):
        collect_env(Endless(), policy, alone(policy), seed_sequence(0, "x"), 1, max_steps=50)


@pytest.mark.parametrize(
    ("what", "env"), [("reward", Endless(0, np.inf, True)), ("observation", Endless(np.nan, 0, True))]
)
def test_a_single_environment_with_nan_is_named(what: str, env: Endless) -> None:
    policy = make_policy(Staircase())
    with pytest.raises(NonFiniteError, match=f"non-finite {what}"):
        collect_env(env, policy, alone(policy), seed_sequence(0, "x"), 1)


def test_clipping() -> None:
    box = Staircase().action_space
    np.testing.assert_array_equal(clip_actions(box, np.array([[-3.0, 0.5]])), [[-1.0, 0.5]])
    discrete = Staircase(discrete=True, start=4).action_space
    np.testing.assert_array_equal(clip_actions(discrete, np.array([6])), [6])


class InPlace(Endless):
    """Writes every observation to the same array, and has float64 bounds that float32 numbers just miss."""

    action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)

    def __init__(self) -> None:
        super().__init__()
        self.obs, self.n = np.zeros(2, dtype=np.float32), 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.obs += 1
        self.n += 1
        return super().step(action)[0], 1.0, self.n == 5, False, {}


def test_a_single_environment_may_reuse_its_arrays_and_have_float64_bounds() -> None:
    policy = make_policy(Staircase())
    episodes = collect_env(InPlace(), policy, alone(policy), seed_sequence(0, "x"), 1)
    np.testing.assert_array_equal(episodes.obs[0, 0, :, 0], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(episodes.final_obs[0, 0], [5, 5])


class Double(Staircase):
    """Its space says float32, its observations are float64."""

    def reset(self, *args: Any) -> Any:
        state, obs = super().reset(*args)
        return state, obs.astype(np.float64)


def test_float64_observations_are_refused_by_name() -> None:
    policy = make_policy(Double())
    with pytest.raises(
        ConfigError,
        match=r"Staircase-v0: reset observes \[1, 2, 2\] float64, not \[1, 2, 2\] float32 in .*check_family",
    ):
        collect(Double(), policy, make_stack(policy, 1), make_tasks([1.0], [0]), make_seeds(1), n_episodes=2)


# ---------------------------------------------------------------------------------------------------- packing
@pytest.mark.parametrize("discrete", [False, True])
def test_packing_keeps_the_order_and_pads_with_zeros(discrete: bool) -> None:
    episodes = run(Staircase(random=True, discrete=discrete), n_episodes=5)
    advantages = np.random.default_rng(0).standard_normal(episodes.mask.shape)
    samples = pack(episodes, advantages)
    counts = episodes.task_steps
    np.testing.assert_array_equal(samples.counts, counts)
    assert samples.obs.shape[1] == counts.max()
    assert len(samples) == 3
    for task in range(3):
        mask, n = episodes.mask[task], counts[task]
        np.testing.assert_array_equal(samples.obs[task, :n], episodes.obs[task][mask])
        np.testing.assert_array_equal(samples.actions[task, :n], episodes.actions[task][mask])
        np.testing.assert_array_equal(samples.advantages[task, :n], advantages[task][mask].astype(np.float32))
        np.testing.assert_array_equal(samples.episode_ends[task], np.cumsum(episodes.lengths[task]))
        for tensor in (samples.obs, samples.actions, samples.advantages, samples.weights):
            assert not tensor[task, n:].any()
        np.testing.assert_allclose(samples.weights[task, :n], 1 / n, rtol=1e-6)
    assert samples.weights.sum(1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)


def test_packing_full_episodes_equals_packing_with_a_mask() -> None:
    full = run(Staircase(), make_tasks([1.0, 2.0], [6, 6]), n_episodes=1)
    assert full.mask.all()
    advantages = np.arange(14.0).reshape(2, 1, 7)
    longer = full.map(lambda axes, v: np.concatenate([v, v[:, :, :1]], axis=2) if "time" in axes else v)
    longer.mask[:, :, -1] = False
    quick, slow = pack(full, advantages), pack(longer, np.concatenate([advantages, advantages[..., :1]], 2))
    for name in ("obs", "actions", "advantages", "weights"):
        assert torch.equal(getattr(quick, name), getattr(slow, name))


def make_samples(lengths: list[list[int]]) -> Samples:
    ends = np.cumsum(lengths, axis=1)
    counts, n = ends[:, -1], int(ends[:, -1].max())
    steps = torch.arange(n, dtype=torch.float32).expand(len(lengths), n)
    return Samples(steps[..., None], steps[..., None], steps, mean_weights(counts, n), counts, ends)


def test_a_fraction_is_of_whole_episodes_of_each_task() -> None:
    # The second task has two episodes only; empty rows come last, as collecting leaves them.
    samples = make_samples([[3, 1, 2, 4], [5, 2, 0, 0]])
    for fraction, counts in ((0.25, [3, 5]), (0.5, [4, 5]), (0.75, [6, 7]), (1.0, [10, 7]), (0.01, [3, 5])):
        part = samples.episodes(fraction)
        assert part.counts.tolist() == counts
        assert part.obs.shape[1] == max(counts)
        assert part.weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
        assert (part.weights > 0).sum(1).tolist() == counts
        assert part.episode_ends.max(1).tolist() == counts
    # 0.07 · 100 is a little more than 7 in floating point.
    assert make_samples([[1] * 100]).episodes(0.07).counts.tolist() == [7]


def test_a_slice_of_tasks_is_cut_to_its_longest() -> None:
    samples = replace(make_samples([[3, 1], [5, 2], [1, 1]]), log_prob=torch.zeros(3, 7))
    part = samples.tasks(slice(2, 3))
    assert part.obs.shape[1] == 2
    assert part.log_prob is not None
    assert part.log_prob.shape == (1, 2)
    assert part.weights.tolist() == [[0.5, 0.5]]
    assert part.to(torch.float64).log_prob.dtype == torch.float64  # type: ignore[union-attr]
