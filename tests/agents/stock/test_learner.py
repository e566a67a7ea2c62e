"""Stock SB3 algorithms as learners: watching changes nothing, starting over is starting fresh."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from metarl.agents.stock.arguments import ALLOWED, LEARNT, check_values
from metarl.agents.stock.learner import ALGORITHMS, OWN, LearningRun, SB3Learner, learning_seed
from metarl.agents.stock.reuse import load_initialisation, merge_statistics, read_initialisation
from metarl.envs.checker.family import check_family
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, DivergedError, MetaRLError, NonFiniteError
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.streams import seed_sequence
from tests.agents.toys import Staircase


class Lane(Family):
    """A point on a line that is paid for being near ``goal``; far out an episode ends early.

    :param discrete: three actions (left, stay, right) instead of a speed.
    :param bad: what is NaN from the third env step on: ``"reward"``, ``"observation"`` or nothing; ``"reset"``: the
        first observation.
    """

    id = "Lane-v0"

    def __init__(self, discrete: bool = False, bad: str = "") -> None:
        self.task_space = spaces.Dict({"goal": spaces.Box(-1.0, 1.0, (), np.float64)})
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(3) if discrete else box
        self.horizon = 8
        self.bad = bad

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.stack([rng.normal(0.0, 0.5, n_envs) for rng in rngs])
        state = {"x": x, "t": np.zeros(x.shape)}
        return state, self._observe(state) + np.float32(np.nan if self.bad == "reset" else 0.0)

    def _observe(self, state: State) -> np.ndarray:
        x = state["x"] + self._spoil("observation", state)
        return np.stack([x, state["t"] / self.horizon], axis=-1).astype(np.float32)

    def _spoil(self, what: str, state: State) -> np.ndarray:
        return np.where((state["t"] >= 3) & (self.bad == what), np.nan, 0.0)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        speed = actions - 1.0 if isinstance(self.action_space, spaces.Discrete) else np.clip(actions[..., 0], -1, 1)
        noise = np.stack([rng.normal(0.0, 0.1, speed.shape[1]) for rng in rngs])
        state = {"x": state["x"] + 0.5 * speed + noise, "t": state["t"] + 1}
        reward = -np.abs(state["x"] - tasks["goal"][:, None]) + self._spoil("reward", state)
        return Step(state, self._observe(state), reward, np.abs(state["x"]) > 1.5, {"reward": reward})


OFF_POLICY = {"buffer_size": 200, "learning_starts": 20, "batch_size": 8}
SMALL: dict[str, tuple[type, dict[str, Any]]] = {
    "ppo": (PPO, {"n_steps": 16, "batch_size": 8, "n_epochs": 2}),
    "a2c": (A2C, {}),
    "trpo": (TRPO, {"n_steps": 16, "batch_size": 8, "n_critic_updates": 2}),
    "sac": (SAC, OFF_POLICY),
    "td3": (TD3, OFF_POLICY),
    "ddpg": (DDPG, {**OFF_POLICY, "n_steps": 2}),
    "tqc": (TQC, OFF_POLICY),
    "crossq": (CrossQ, OFF_POLICY),
    "dqn": (DQN, {**OFF_POLICY, "target_update_interval": 10}),
    "qrdqn": (QRDQN, {**OFF_POLICY, "target_update_interval": 10, "n_envs": 2}),
}
POLICY_KWARGS = {"net_arch": [6, 5]}
N = 48
GOAL = {"goal": 0.5}
SEED = seed_sequence(0, "task", 7)


def family_of(name: str) -> Lane:
    return Lane(discrete=name in ("dqn", "qrdqn"))


def make_learner(name: str, **kwargs: Any) -> SB3Learner:
    return SB3Learner(family_of(name), name, policy_kwargs=POLICY_KWARGS, **{**SMALL[name][1], **kwargs})


def by_hand(name: str, normalize: bool = False, **kwargs: Any) -> Any:
    """Learn a task in plain SB3, from the initialisation of seed 3."""
    cls, arguments = SMALL[name]
    arguments = {**arguments, **kwargs}
    env: Any = FamilyVecEnv(family_of(name), {"goal": [GOAL["goal"]]}, n_envs=arguments.pop("n_envs", 1))
    if normalize:
        env = VecNormalize(env)
    model = cls("MlpPolicy", env, seed=3, device="cpu", policy_kwargs=dict(POLICY_KWARGS), **arguments)
    model.set_random_seed(learning_seed(SEED))
    return model.learn(N)


def learnt_by(model: Any) -> dict[str, torch.Tensor]:
    tensors = {name: p.detach() for name, p in model.policy.named_parameters() if "_target." not in name}
    log_ent_coef = getattr(model, "log_ent_coef", None)
    return tensors if log_ent_coef is None else {**tensors, "log_ent_coef": log_ent_coef.detach()}


def require_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


class Recorder:
    """Keeps every segment."""

    def __init__(self) -> None:
        self.segments: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]] = []

    def segment(self, start: Any, end: Any, gradient: Any, losses: Any, active: Any = None) -> None:
        assert losses is None
        assert active is None
        keep = [None if tensors is None else {n: t.clone() for n, t in tensors.items()} for tensors in (start, end)]
        self.segments.append((*keep, None if gradient is None else {n: t.clone() for n, t in gradient.items()}))

    @property
    def moved(self) -> list[set[str]]:
        """Names of the tensors that each segment moved."""
        return [{n for n in start if not torch.equal(start[n], end[n])} for start, end, _ in self.segments]


def test_the_family_keeps_its_promises():
    check_family(Lane(), n=3)
    check_family(Lane(discrete=True), n=3)


# ------------------------------------------------------------------------------------------------------------- watching
@cache
def watched(name: str) -> tuple[SB3Learner, Recorder, LearningRun]:
    learner, watcher = make_learner(name), Recorder()
    run = learner.run(learner.init(3), GOAL, SEED, N, watcher=watcher, n_evaluations=3, n_eval_episodes=2)
    return learner, watcher, run


@pytest.mark.parametrize("name", SMALL)
def test_watching_changes_nothing(name):
    learner, _, run = watched(name)
    model = by_hand(name)
    require_equal({n: run.params[n] for n in learner.parameters}, learnt_by(model))
    assert run.env_steps == model.num_timesteps
    assert run.episode_returns == [info["r"] for info in model.ep_info_buffer]


@pytest.mark.parametrize("name", ["ppo", "sac", "trpo"])
@pytest.mark.parametrize("metric", [LeapMetric(), LeapMetric("energy", drop_last=True)])
def test_leap_changes_nothing(name, metric):
    learner, watcher = make_learner(name), LeapWatcher(metric)
    for _ in range(2):
        run = learner.run(learner.init(3), GOAL, SEED, N, watcher=watcher)
        watcher.close()
        require_equal({n: run.params[n] for n in learner.parameters}, learnt_by(by_hand(name)))
    assert watcher.distance > 0.0


@pytest.mark.parametrize("name", SMALL)
def test_segments_are_a_chain_from_start_to_end(name):
    learner, watcher, run = watched(name)
    theta, phi = learner.init(3), run.params
    parameters = learner.parameters
    require_equal({n: t[0] for n, t in watcher.segments[0][0].items()}, {n: theta[n] for n in parameters})
    require_equal({n: t[0] for n, t in watcher.segments[-1][1].items()}, {n: phi[n] for n in parameters})
    for before, after in zip(watcher.segments, watcher.segments[1:], strict=False):
        require_equal(before[1], after[0])
    for n in parameters:
        total = sum(end[n].double() - start[n].double() for start, end, _ in watcher.segments)
        torch.testing.assert_close(total[0], phi[n].double() - theta[n].double(), rtol=0, atol=1e-6)
    assert any(not torch.equal(theta[n], phi[n]) for n in parameters)


def test_each_optimizer_has_its_own_segments():
    learner, watcher = make_learner("sac"), Recorder()
    learner.run(learner.init(0), GOAL, SEED, 24, watcher=watcher)
    parts = {
        part: {n for n in learner.parameters if n.startswith(part)} for part in ("log_ent_coef", "critic", "actor")
    }
    assert len(watcher.segments) == 3 * 4
    for index, (moved, (_, _, gradient)) in enumerate(zip(watcher.moved, watcher.segments, strict=True)):
        own = parts[("log_ent_coef", "critic", "actor")[index % 3]]
        assert moved <= own
        assert {n for n, tensor in gradient.items() if tensor.any()} <= own
        assert moved


def test_the_line_search_of_trpo_is_a_segment_without_a_gradient():
    learner, watcher = make_learner("trpo"), Recorder()
    learner.run(learner.init(0), GOAL, SEED, N, watcher=watcher)
    actor = {n for n in learner.parameters if "value" not in n}
    searches = [moved for moved, segment in zip(watcher.moved, watcher.segments, strict=True) if segment[2] is None]
    assert searches
    assert all(moved == actor for moved in searches)
    critics = [moved for moved, segment in zip(watcher.moved, watcher.segments, strict=True) if segment[2] is not None]
    assert len(critics) == 3 * 2 * 2
    assert all(moved == set(learner.parameters) - actor for moved in critics)


def test_a_move_after_the_last_step_is_seen(monkeypatch):
    def train(self):
        with torch.no_grad():
            self.policy.log_std.add_(0.25)

    monkeypatch.setattr(A2C, "train", train)
    learner, watcher = make_learner("a2c"), Recorder()
    learner.run(learner.init(0), GOAL, SEED, 10, watcher=watcher)
    assert watcher.moved == [{"log_std"}, {"log_std"}]
    assert all(gradient is None for _, _, gradient in watcher.segments)


def test_gradients_are_what_the_optimizer_got():
    kwargs = {"policy_kwargs": {**POLICY_KWARGS, "optimizer_class": torch.optim.SGD}, "learning_rate": 0.25}
    learner = SB3Learner(Lane(), "a2c", max_grad_norm=0.1, **kwargs)
    watcher = Recorder()
    learner.run(learner.init(0), GOAL, SEED, 20, watcher=watcher)
    for start, end, gradient in watcher.segments:
        norm = torch.sqrt(sum(tensor.square().sum() for tensor in gradient.values()))
        torch.testing.assert_close(norm, torch.tensor(0.1), rtol=1e-4, atol=0)
        for n, tensor in gradient.items():
            torch.testing.assert_close(end[n], start[n] - 0.25 * tensor)


# -------------------------------------------------------------------------------------------------------- starting over
@pytest.mark.parametrize("name", SMALL)
def test_the_third_task_is_as_if_it_were_the_first(name):
    used, fresh = make_learner(name), make_learner(name)
    params = used.init(3)
    phi = used.run(params, {"goal": -1.0}, seed_sequence(0, "task", 1), 30).params
    used.run(phi, {"goal": 1.0}, seed_sequence(0, "task", 2), 30, watcher=Recorder(), n_evaluations=1)
    used.query_gradient(phi, {"goal": 1.0}, seed_sequence(0, "query", 2), 16)
    third, first = (learner.run(params, GOAL, SEED, N, n_evaluations=2) for learner in (used, fresh))
    require_equal(third.params, first.params)
    assert third.eval_returns == first.eval_returns
    assert third.episode_returns == first.episode_returns
    queries = [x.query_gradient(params, GOAL, SEED, 16) for x in (used, fresh)]
    require_equal(queries[0].gradient, queries[1].gradient)
    assert queries[0].episode_returns == queries[1].episode_returns


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ppo", {"use_sde": True, "sde_sample_freq": 4, "learning_rate": lambda left: 1e-2 * left, "n_envs": 2}),
        ("sac", {"use_sde": True, "use_sde_at_warmup": True, "normalize": True}),
        ("td3", {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1)), "n_envs": 2}),
    ],
)
def test_noise_and_schedules_start_over(name, kwargs):
    used, fresh = make_learner(name, **kwargs), make_learner(name, **kwargs)
    params = used.init(3)
    used.run(params, {"goal": -1.0}, seed_sequence(0, "task", 1), 30, n_evaluations=1)
    third, first = (learner.run(params, GOAL, SEED, N, n_evaluations=2) for learner in (used, fresh))
    require_equal(third.params, first.params)
    assert third.eval_returns == first.eval_returns


def test_what_sb3_writes_into_its_arguments_stays_with_one_algorithm():
    learner = make_learner("qrdqn")
    # QR-DQN derives Adam's epsilon from the batch size, and writes it into policy_kwargs.
    for batch_size in (4, 16):
        model = learner.build(FamilyVecEnv(Lane(discrete=True), {"goal": [0.0]}), batch_size=batch_size)
        assert model.policy.optimizer.defaults["eps"] == 0.01 / batch_size


def test_targets_start_at_the_online_networks():
    learner = make_learner("sac")
    params = learner.run(learner.init(0), GOAL, SEED, N).params
    model = learner.build(FamilyVecEnv(Lane(), {"goal": [0.0]}))
    load_initialisation(model, params)
    require_equal(model.policy.critic_target.state_dict(), model.policy.critic.state_dict())
    require_equal(read_initialisation(model), params)
    assert not any("target" in name for name in params)


# ------------------------------------------------------------------------------------------------ statistics that carry
@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_vec_normalize_is_that_of_plain_sb3(name):
    learner = make_learner(name, normalize=True)
    run = learner.run(learner.init(3), GOAL, SEED, N, watcher=Recorder(), n_evaluations=2)
    model = by_hand(name, normalize=True)
    require_equal({n: run.params[n] for n in learner.parameters}, learnt_by(model))
    normalize = model.get_vec_normalize_env()
    for what, moments in (("obs", normalize.obs_rms), ("return", normalize.ret_rms)):
        for field in ("mean", "var", "count"):
            found = run.params[f"statistics/{what}_{field}"]
            assert found.dtype == torch.float64
            np.testing.assert_array_equal(found, getattr(moments, field))


def test_statistics_of_vec_normalize_are_carried():
    learner = make_learner("ppo", normalize={"clip_obs": 5.0})
    params = learner.init(0)
    assert params["statistics/obs_count"] == 1e-4
    first = learner.run(params, GOAL, SEED, N).params
    second = learner.run(first, GOAL, seed_sequence(0, "task", 8), N).params
    # One observation of the reset, and one of each env step.
    assert first["statistics/obs_count"] == pytest.approx(1e-4 + N + 1)
    assert second["statistics/obs_count"] == pytest.approx(1e-4 + 2 * (N + 1))
    again = learner.run(params, GOAL, SEED, N).params
    require_equal(again, first)


def test_merged_statistics_are_those_of_everything_seen():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(size, 2)) * scale + scale for size, scale in ((50, 1.0), (30, 2.0), (70, 0.5))]

    def params(*seen: np.ndarray) -> dict[str, torch.Tensor]:
        moments = RunningMeanStd(shape=(2,))
        for part in seen:
            moments.update(part)
        return {
            f"statistics/obs_{field}": torch.tensor(np.asarray(getattr(moments, field)))
            for field in ("mean", "var", "count")
        }

    start = {**params(parts[0]), "weight": torch.zeros(1)}
    merged = merge_statistics(start, [params(parts[0], parts[1]), params(parts[0], parts[2])])
    expected = params(*parts)
    assert merged.keys() == expected.keys()
    for n, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[n], rtol=1e-9, atol=1e-12)
    require_equal(merge_statistics(start, []), params(parts[0]))
    still = merge_statistics(start, [start, start])
    require_equal(still, params(parts[0]))


def test_buffers_of_normalisation_layers_are_carried_and_merged():
    learner = make_learner("crossq")
    params = learner.init(0)
    reached = [learner.run(params, GOAL, seed_sequence(0, "task", task), N - 8 * task).params for task in (0, 1)]
    merged = merge_statistics(params, reached)
    mean, steps = (f"statistics/policy/critic.qf0.0.{what}" for what in ("ra_mean", "steps"))
    assert merged.keys() == {name for name in params if name.startswith("statistics/policy/")}
    torch.testing.assert_close(merged[mean], (reached[0][mean] + reached[1][mean]) / 2)
    assert merged[steps] == reached[0][steps] > reached[1][steps] > params[steps] == 0


# ---------------------------------------------------------------------------------------------------------- evaluation
def test_evaluations_are_of_the_policy_and_not_of_exploration():
    learner = SB3Learner(Staircase(), "ppo", policy_kwargs=POLICY_KWARGS, n_steps=8, batch_size=8)
    params = learner.init(0)
    task = {"gain": 1.5, "offset": 3}
    # Episodes of 4 steps pay 1.5 + 3 + 4.5 + 6.
    assert learner.evaluate(params, task, SEED, 3) == pytest.approx((15.0, 4.0))
    run = learner.run(params, task, SEED, 32, n_evaluations=2)
    assert run.eval_returns == pytest.approx([15.0] * 3)
    assert run.eval_lengths == pytest.approx([4.0] * 3)
    assert run.eval_env_steps == [0, 16, 32]
    assert run.episode_returns == pytest.approx([15.0] * 8)


def test_evaluations_see_what_the_policy_sees():
    plain, normalized = make_learner("ppo"), make_learner("ppo", normalize=True)
    params, shifted = plain.init(0), normalized.init(0)
    expected, _ = plain.evaluate(params, GOAL, SEED, 4, deterministic=True)
    assert normalized.evaluate(shifted, GOAL, SEED, 4, deterministic=True)[0] == pytest.approx(expected, rel=1e-5)
    shifted["statistics/obs_mean"] = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert abs(normalized.evaluate(shifted, GOAL, SEED, 4, deterministic=True)[0] - expected) > 0.01


def test_evaluations_follow_learning():
    learner = make_learner("ppo", n_envs=2)
    params = learner.init(0)
    run = learner.run(params, GOAL, SEED, 64, n_evaluations=4, n_eval_episodes=3)
    assert run.env_steps == 64
    # A rollout has 32 env steps: the first part ends inside one, and shares the evaluation after it.
    assert run.eval_env_steps == [0, 32, 32, 64, 64]
    assert run.eval_returns[1] == run.eval_returns[2] != run.eval_returns[0]
    seed = np.random.SeedSequence(0)
    drawn = [learner.evaluate(params, GOAL, seed, 3, deterministic)[0] for deterministic in (False, True, False)]
    assert drawn[0] == drawn[2] != drawn[1]


# ------------------------------------------------------------------------------------------------------ query gradients
def test_the_query_gradient_of_ppo_is_that_of_its_loss():
    learner = make_learner("ppo", n_envs=2, ent_coef=0.1, clip_range_vf=0.2)
    params = learner.run(learner.init(3), GOAL, SEED, N).params
    query = learner.query_gradient(params, GOAL, SEED, 40)
    assert query.env_steps == 40

    env = FamilyVecEnv(Lane(), {"goal": [GOAL["goal"]]}, n_envs=2)
    model = PPO("MlpPolicy", env, n_steps=20, policy_kwargs=dict(POLICY_KWARGS), device="cpu", batch_size=40)
    with torch.no_grad():
        for n, tensor in model.policy.named_parameters():
            tensor.copy_(params[n])
    model.set_random_seed(learning_seed(SEED))
    _, callback = model._setup_learn(40, ConvertCallback(None))
    model.collect_rollouts(env, callback, model.rollout_buffer, 20)
    (batch,) = model.rollout_buffer.get()
    values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    loss = -(advantages * torch.exp(log_prob - batch.old_log_prob)).mean()
    loss = loss - 0.1 * entropy.mean() + 0.5 * (values.flatten() - batch.returns).square().mean()
    expected = torch.autograd.grad(loss, list(model.policy.parameters()))
    assert torch.sqrt(sum(tensor.square().sum() for tensor in expected)) > 0.5  # what PPO would clip to
    for (n, _), tensor in zip(model.policy.named_parameters(), expected, strict=True):
        torch.testing.assert_close(query.gradient[n], tensor, rtol=1e-4, atol=1e-6)


def test_the_query_gradient_of_trpo_is_that_of_surrogate_and_value_loss():
    queries = []
    for name in ("trpo", "ppo"):
        learner = make_learner(name)
        queries.append(learner.query_gradient(learner.init(3), GOAL, SEED, 32).gradient)
    assert list(queries[0]) == list(queries[1])
    for n, tensor in queries[1].items():
        # Not yet clipped, PPO's surrogate has the same gradient; its value loss counts half.
        factor = 2.0 if "value" in n else 1.0
        assert tensor.any()
        torch.testing.assert_close(queries[0][n], factor * tensor, rtol=1e-4, atol=1e-6)


def test_the_query_gradient_of_trpo_is_that_of_all_samples():
    whole, half = (make_learner("trpo", sub_sampling_factor=factor) for factor in (1, 2))
    queries = [learner.query_gradient(learner.init(3), GOAL, SEED, 32).gradient for learner in (whole, half)]
    assert all(torch.equal(queries[0][n], tensor) for n, tensor in queries[1].items())


def test_the_query_gradient_of_dqn_is_that_of_its_loss(monkeypatch):
    batches = []
    sample = ReplayBuffer.sample

    def recorded(self, *args, **kwargs):
        batches.append(sample(self, *args, **kwargs))
        return batches[-1]

    learner = make_learner("dqn", gamma=0.9, max_grad_norm=1e-3)
    params = learner.run(learner.init(3), GOAL, SEED, N).params
    monkeypatch.setattr(ReplayBuffer, "sample", recorded)
    query = learner.query_gradient(params, GOAL, SEED, 24)
    (batch,) = batches
    assert len(batch.rewards) == 24
    model = learner.build(FamilyVecEnv(Lane(discrete=True), {"goal": [0.0]}))
    load_initialisation(model, params)
    with torch.no_grad():
        best = model.q_net(batch.next_observations).max(1, keepdim=True).values
        target = batch.rewards + 0.9 * (1 - batch.dones) * best
    error = model.q_net(batch.observations).gather(1, batch.actions) - target
    loss = torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5).mean()
    parameters = dict(model.q_net.named_parameters())
    for n, tensor in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        torch.testing.assert_close(query.gradient[f"q_net.{n}"], tensor, rtol=1e-4, atol=1e-6)


def test_queries_follow_the_policy(monkeypatch):
    actions = []
    add = ReplayBuffer.add

    def recorded(self, obs, next_obs, action, *rest):
        actions.extend(action.ravel().tolist())
        add(self, obs, next_obs, action, *rest)

    monkeypatch.setattr(ReplayBuffer, "add", recorded)
    learner = make_learner("dqn", exploration_initial_eps=1.0, exploration_final_eps=0.0)
    params = learner.init(0)
    params["q_net.q_net.4.bias"] = torch.tensor([0.0, 0.0, 9.0])
    learner.query_gradient(params, GOAL, SEED, 24)
    assert actions == [2] * 24


@pytest.mark.parametrize("name", SMALL)
def test_a_query_keeps_no_change_and_reaches_every_network(name):
    learner = make_learner(name)
    params = learner.init(3)
    query = learner.query_gradient(params, GOAL, SEED, 16)
    require_equal(
        {n: p.detach() for n, p in learner._queries[16 // learner.n_envs].parameters.items()},
        {n: params[n] for n in learner.parameters},
    )
    assert tuple(query.gradient) == learner.parameters
    heads = {n.split(".")[0] for n in learner.parameters}
    assert {n.split(".")[0] for n, tensor in query.gradient.items() if tensor.any()} == heads
    other = learner.query_gradient(params, GOAL, seed_sequence(0, "task", 8), 16)
    assert any(not torch.equal(other.gradient[n], query.gradient[n]) for n in query.gradient)


# ---------------------------------------------------------------------------------------------------- global generators
def test_global_generators_and_the_family_are_left_alone():
    family = Lane()
    family.action_space.seed(5)

    def states() -> list[Any]:
        numpy = np.random.get_state()  # noqa: NPY002
        space = family.action_space.np_random.bit_generator.state
        return [random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist(), space]

    before = states()
    learner = SB3Learner(family, "sac", policy_kwargs=POLICY_KWARGS, **OFF_POLICY)
    params = learner.init(0)
    learner.run(params, GOAL, SEED, 30, watcher=Recorder(), n_evaluations=1)
    learner.evaluate(params, GOAL, SEED, 2)
    learner.query_gradient(params, GOAL, SEED, 16)
    assert states() == before


def test_no_folders_are_left_behind(tmp_path):
    learner = make_learner("a2c")
    learner.run(learner.init(0), GOAL, SEED, 10)
    assert not (tmp_path / "logs").exists()


# ------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("family", "name", "kwargs", "message"),
    [
        (Lane(), "dqn", {}, "'dqn' takes Discrete actions, Lane-v0 has Box"),
        (
            Lane(discrete=True),
            "sac",
            {},
            r"takes Box actions, Lane-v0 has Discrete\(3\): use a2c, dqn, ppo, qrdqn",
        ),
        (Lane(), "tcq", {}, "unknown algorithm 'tcq': did you mean 'tqc'"),
        (Lane(), "ppo_lstm", {}, "'ppo_lstm' is not supported: recurrent"),
        (Lane(), "ppo", {"n_step": 5}, "unknown argument of PPO: 'n_step': did you mean 'n_steps'"),
        (Lane(), "ppo", {"seed": 5}, "seed is set by the learner"),
        (Lane(), "ppo", {"policy": "MlpPolice"}, "unknown policy of PPO 'MlpPolice': did you mean 'MlpPolicy'"),
        (Lane(), "ppo", {"policy_kwargs": {"net": [4]}}, "unknown policy keyword 'net'"),
        (Lane(), "ppo", {"policy_kwargs": {"activation_fn": "rely"}}, "did you mean 'relu'"),
        (Lane(), "ppo", {"policy": ["MlpPolicy"]}, r"unknown policy of PPO \['MlpPolicy'\]"),
        (Lane(), "ppo", {"policy_kwargs": {"action_space": 1}}, "unknown policy keyword 'action_space'"),
        (Lane(), "ppo", {"policy_kwargs": {"net_arch": [-1]}}, "PPO: Trying to create tensor with negative dimension"),
        (Lane(), "ppo", {"policy_kwargs": {"net_arch": {"pi": [4], "qf": [4]}}}, "of PPO in net_arch 'qf'"),
        (Lane(), "sac", {"policy_kwargs": {"net_arch": {"pi": [4], "vf": [4]}}}, "of SAC in net_arch 'vf'"),
        (Lane(), "ppo", {"normalize": {"clip": 1.0}}, "unknown argument of VecNormalize: 'clip'"),
        (Lane(), "ppo", {"normalize": {"norm_obs_keys": ["a"]}}, "argument of VecNormalize: 'norm_obs_keys'"),
        (Lane(), "ppo", {"batch_size": 1}, "PPO: `batch_size` must be greater than 1"),
        (Lane(), "ppo", {"n_envs": 0}, "n_envs=0 is not an integer in"),
        (Staircase(discrete=True, start=1), "ppo", {}, "starts at 1"),
    ],
)
def test_bad_arguments_are_one_line(family, name, kwargs, message):
    with pytest.raises(MetaRLError, match=message) as caught:
        SB3Learner(family, name, **kwargs)
    assert "\n" not in str(caught.value)


INTEGER = "an integer in [1, 1e+12]"
NUMBER = "a number in [0, ∞)"
COPIES = "an integer in [1, 10000]"
ROUNDS = "an integer in [1, 100000]"
FRACTION = "a number in [0, 1]"
SWITCH = "true or false"
BAD_VALUES: list[tuple[str, str, Any, str]] = [
    ("ppo", "n_envs", "2", COPIES),
    ("ppo", "n_envs", 2.5, COPIES),
    ("ppo", "n_envs", True, COPIES),
    ("ppo", "n_steps", -4, INTEGER),
    ("ppo", "n_epochs", 0, ROUNDS),
    ("ppo", "n_epochs", -1, ROUNDS),
    ("ppo", "n_epochs", "3", ROUNDS),
    ("ppo", "batch_size", 4.5, INTEGER),
    ("ppo", "stats_window_size", -1, INTEGER),
    ("ppo", "ent_coef", "auto", NUMBER),
    ("ppo", "vf_coef", None, NUMBER),
    ("ppo", "vf_coef", float("inf"), NUMBER),
    ("ppo", "max_grad_norm", None, "a number in (0, ∞]"),
    ("ppo", "target_kl", "x", "a number in (0, ∞] or None"),
    ("ppo", "gamma", "x", FRACTION),
    ("ppo", "gamma", 2.0, FRACTION),
    ("ppo", "gamma", float("nan"), FRACTION),
    ("ppo", "gae_lambda", 7, FRACTION),
    ("ppo", "clip_range", -1, "a number in (0, ∞] or a schedule"),
    (
        *("ppo", "clip_range", "lin_0.2"),
        "a number in (0, ∞] or a schedule: SB3 takes a function from the share of training left to a number",
    ),
    ("ppo", "clip_range_vf", 0, "a number in (0, ∞] or a schedule or None"),
    ("ppo", "learning_rate", -1.0, "a number in [0, ∞) or a schedule"),
    ("ppo", "use_sde", "x", SWITCH),
    (
        "ppo",
        "rollout_buffer_class",
        5,
        "a subclass of RolloutBuffer that holds arrays, as observations of families are or None",
    ),
    ("ppo", "policy_kwargs", "x", "a mapping or None"),
    ("ppo", "normalize", 5, "true, false or a mapping"),
    ("ppo", "normalize", "yes", "true, false or a mapping"),
    ("trpo", "target_kl", None, "a number in (0, ∞]"),
    ("sac", "batch_size", 0, INTEGER),
    ("sac", "buffer_size", 0, INTEGER),
    ("sac", "learning_starts", -1, "an integer in [0, 1e+12]"),
    ("sac", "gradient_steps", "x", "an integer in [1, 100000] or -1"),
    ("sac", "gradient_steps", 0, "an integer in [1, 100000] or -1"),
    ("sac", "ent_coef", "auto_x", "a number in [0, ∞), 'auto' or 'auto_<first value>'"),
    ("sac", "ent_coef", "auto_0", "a number in [0, ∞), 'auto' or 'auto_<first value>'"),
    ("sac", "target_entropy", "x", "a finite number or 'auto'"),
    *(
        ("sac", "train_freq", value, "an integer in [1, 1e+12] or [such an integer, 'step' or 'episode']")
        for value in (0, "x", [1], [0, "step"], [1, "week"], ["episode", 1], [1, ["step"]])
    ),
    ("td3", "action_noise", 0.1, "an ActionNoise or None"),
    ("dqn", "exploration_fraction", 0.0, "a number in (0, 1]"),
]


@pytest.mark.parametrize(("name", "argument", "value", "allowed"), BAD_VALUES)
def test_bad_values_are_one_line(name, argument, value, allowed):
    with pytest.raises(ConfigError) as caught:
        SB3Learner(family_of(name), name, **{argument: value})
    assert str(caught.value) == f"{argument}={value!r} is not {allowed}"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("tqc", {"top_quantiles_to_drop_per_net": 25}, "=25 is not less than a critic's n_quantiles, 25"),
        ("tqc", {"top_quantiles_to_drop_per_net": 4, "policy_kwargs": {"n_quantiles": 4}}, "n_quantiles, 4"),
        ("trpo", {"n_steps": 10, "sub_sampling_factor": 50}, "=50 is not at most the env steps of a rollout, 10"),
        ("crossq", {"batch_size": 1}, "batch_size=1 is not more than 1"),
    ],
)
def test_values_that_learn_nothing_together_are_one_line(name, kwargs, message):
    with pytest.raises(ConfigError) as caught:
        SB3Learner(family_of(name), name, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        ({"gamma": "x"}, "normalize.gamma='x' is not a number in [0, 1]"),
        ({"norm_obs": 1}, "normalize.norm_obs=1 is not true or false"),
        ({"clip_obs": 0.0}, "normalize.clip_obs=0.0 is not a number in (0, ∞]"),
    ],
)
def test_bad_values_of_normalize_are_one_line(normalize, message):
    with pytest.raises(ConfigError) as caught:
        make_learner("ppo", normalize=normalize)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "argument", "value", "allowed"),
    [
        ("crossq", "batch_norm_eps", "x", NUMBER),
        ("crossq", "batch_norm_momentum", 1.5, FRACTION),
        ("crossq", "renorm_warmup_steps", "x", "an integer in [0, 1e+12]"),
        ("crossq", "batch_norm", "yes", SWITCH),
        ("ppo", "log_std_init", "x", "a finite number"),
        ("ppo", "ortho_init", 1, SWITCH),
        ("sac", "n_critics", 0, COPIES),
        ("sac", "clip_mean", "x", "a finite number"),
        ("tqc", "n_quantiles", 2.5, COPIES),
        ("ppo", "optimizer_kwargs", 3, "a mapping or None"),
    ],
)
def test_bad_values_of_a_policy_are_one_line(name, argument, value, allowed):
    with pytest.raises(ConfigError) as caught:
        SB3Learner(family_of(name), name, policy_kwargs={argument: value})
    assert str(caught.value) == f"policy_kwargs.{argument}={value!r} is not {allowed}"


WRONG: list[Any] = ["nonsense", "", [1, 2], (1, 2, 3), {1}, b"x", 1j, object(), float("nan"), float("-inf")]
WRONG += [lambda: 1, lambda left: "x", lambda left: left / 0]
"""What no argument of a stock algorithm may be."""


@pytest.mark.parametrize("name", SMALL)
def test_every_argument_is_checked(name):
    parameters = inspect.signature(ALGORITHMS[name].__init__).parameters
    assert parameters.keys() - {"self", *OWN} <= ALLOWED.keys() | LEARNT.keys()
    for argument, parameter in parameters.items():
        if argument not in ("self", *OWN):
            check_values(ALGORITHMS[name].__init__, {argument: parameter.default})
            for wrong in WRONG:
                with pytest.raises(ConfigError, match=f"^{argument}=.* is not ") as caught:
                    check_values(ALGORITHMS[name].__init__, {argument: wrong})
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ppo", {"learning_rate": 0, "clip_range": lambda left: 0.2 * left, "clip_range_vf": 1, "gamma": 1}),
        ("ppo", {"max_grad_norm": float("inf"), "target_kl": None, "rollout_buffer_class": RolloutBuffer}),
        ("qrdqn", {"max_grad_norm": None}),
        ("sac", {"ent_coef": "auto_0.1", "target_entropy": -1, "gradient_steps": -1, "train_freq": (2, "step")}),
        ("sac", {"ent_coef": 0.2, "replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    ],
)
def test_whatever_sb3_takes_is_taken(name, kwargs):
    learner = make_learner(name, **kwargs)
    assert {argument: learner.kwargs[argument] for argument in kwargs} == kwargs


@pytest.mark.parametrize(("name", "kind"), [("ppo", "rollout_buffer_class"), ("sac", "replay_buffer_class")])
def test_a_class_of_buffers_of_the_other_kind_is_one_line(name, kind):
    other = ReplayBuffer if name == "ppo" else RolloutBuffer
    for value in (other, dict):
        with pytest.raises(ConfigError, match=f"{kind}=.* is not a subclass of"):
            make_learner(name, **{kind: value})


@pytest.mark.parametrize("name", SMALL)
def test_every_number_of_a_policy_is_checked(name):
    for policy in ALGORITHMS[name].policy_aliases.values():
        for argument, parameter in inspect.signature(policy.__init__).parameters.items():
            if isinstance(parameter.default, (bool, int, float)):
                check_values(policy.__init__, {argument: parameter.default})
                with pytest.raises(ConfigError, match=f"{argument}="):
                    check_values(policy.__init__, {argument: "nonsense"})


def test_a_list_is_a_training_frequency():
    listed, paired = (make_learner("sac", train_freq=freq) for freq in ([1, "episode"], (1, "episode")))
    runs = [learner.run(learner.init(0), GOAL, SEED, N).params for learner in (listed, paired)]
    require_equal(*runs)
    with pytest.raises(ConfigError, match=r"train_freq=\(1, 'episode'\) counts episodes: n_envs=2 is not 1"):
        make_learner("sac", train_freq=[1, "episode"], n_envs=2)


def test_bad_calls_are_one_line():
    learner = make_learner("sac")
    params = learner.init(0)
    with pytest.raises(ConfigError, match="n_timesteps=20: SAC learns after learning_starts=20"):
        learner.run(params, GOAL, SEED, 20)
    with pytest.raises(ConfigError, match="n_eval_episodes=0 is not an integer in"):
        learner.run(params, GOAL, SEED, N, n_eval_episodes=0)
    with pytest.raises(MetaRLError, match="outside the task space of Lane-v0"):
        learner.run(params, {"goal": 7.0}, SEED, N)
    with pytest.raises(ConfigError, match=r"tensor 'log_ent_coef' is missing: this SAC takes \[1\]"):
        learner.run({n: t for n, t in params.items() if n != "log_ent_coef"}, GOAL, SEED, N)
    with pytest.raises(ConfigError, match=r"tensor 'mine' is \[2\]: this SAC takes no tensor of that name"):
        learner.run({**params, "mine": torch.zeros(2)}, GOAL, SEED, N)


@pytest.mark.parametrize("name", ["ppo", "sac", "td3"])
def test_divergence_is_named(name):
    learner = make_learner(name, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"is not finite, on the task \{'goal': 0.5\}") as caught:
        learner.run(learner.init(0), GOAL, SEED, N)
    assert "\n" not in str(caught.value)


def test_a_distribution_that_finite_parameters_spoil_is_named():
    learner = make_learner("ppo")
    params = learner.init(0)
    params["log_std"] = torch.tensor([-1e30])
    with pytest.raises(DivergedError, match=r"^PPO reached .* whose scale is not valid, on the task") as caught:
        learner.run(params, GOAL, SEED, N)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("what", "time"), [("reward", 2), ("observation", 3)])
def test_what_a_family_spoils_is_named(name, what, time):
    family = family_of(name)
    family.bad = what
    learner = SB3Learner(family, name, policy_kwargs=POLICY_KWARGS, **SMALL[name][1])
    message = rf"^non-finite {what} in Lane-v0 task \{{'goal': 0.5\}}, copy [01], time step {time}$"
    params = learner.init(0)
    with pytest.raises(NonFiniteError, match=message) as caught:
        learner.run(params, GOAL, SEED, N, watcher=Recorder())
    assert not isinstance(caught.value, DivergedError)
    with pytest.raises(NonFiniteError, match=message):
        learner.query_gradient(params, GOAL, SEED, 16)
    with pytest.raises(NonFiniteError, match=message):
        learner.evaluate(params, GOAL, SEED, 1)


def test_plain_sb3_is_told_what_is_not_finite():
    def env(bad: str) -> FamilyVecEnv:
        return FamilyVecEnv(Lane(bad=bad), {"goal": [0.0, 0.5]}, n_envs=2)

    with pytest.raises(NonFiniteError, match=r"^non-finite observation in Lane-v0 .*, copy \d, time step 3$"):
        PPO("MlpPolicy", env("observation"), n_steps=8, batch_size=8, seed=0, device="cpu").learn(8)
    with pytest.raises(NonFiniteError, match=r"^non-finite observation in Lane-v0 .*, copy 0, time step 0$"):
        env("reset").reset()
    still = env("")
    still.reset()
    actions = np.zeros((4, 1), dtype=np.float32)
    actions[2] = np.inf
    with pytest.raises(DivergedError, match=r"^non-finite action in Lane-v0 task .* 0.5\}, copy 2, time step 0$"):
        still.step(actions)


def test_every_algorithm_is_tested():
    assert SMALL.keys() == ALGORITHMS.keys()
