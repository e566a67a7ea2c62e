"""Collecting: against the physical limit, against Stable-Baselines3, and in env steps per second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mujoco
import numpy as np
from mujoco.rollout import Rollout
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.measure import SEED, Row, interleave, judged, paired_ratio
from benchmarks.problems import RELU_100, collector, make_policy
from metarl.agents.networks.arguments import sb3_policy_kwargs
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes, split_streams
from metarl.agents.sampling.one_env import collect_env
from metarl.envs.family import Family
from metarl.envs.mujoco.ant import ant_spec
from metarl.envs.mujoco.physics import MujocoFamily
from metarl.envs.registry import make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.streams import seed_sequence, stream

STAGES = 4
"""Dynamics evaluations in a Runge-Kutta step."""


class Replay:
    """The physical limit: the same initial states, controls and lengths, and nothing but ``mujoco.rollout``.

    All episodes of full length are one call. Those that ended early are cut into pieces of 1, 2, 4, … env steps from
    the states they went through, so that each length is one call too and no step more is computed than was collected.

    :param family: whose collection is replayed.
    :param models: with what: one model, or one for each copy.
    :param episodes: as collected.
    :param initial: the physics states they started from, ``[copy, n]``.
    :param hidden: positions, the first ones, that are not observed.
    """

    def __init__(
        self,
        family: MujocoFamily,
        models: mujoco.MjModel | Sequence[mujoco.MjModel],
        episodes: Episodes,
        initial: np.ndarray,
        hidden: int = 0,
    ) -> None:
        n_threads = family.n_threads
        self._models = [models] * len(initial) if isinstance(models, mujoco.MjModel) else list(models)
        self._model = self._models[0]
        self._rollout = Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._data = [mujoco.MjData(self._model) for _ in range(n_threads)]
        self._skip = family.frame_skip
        self._seen = slice(1 + hidden, 1 + self._model.nq + self._model.nv)
        low, high = self._model.actuator_ctrlrange.T
        bound = cast("np.ndarray", getattr(family.action_space, "high")).astype(np.float64)  # noqa: B009
        actions = episodes.actions.reshape(len(initial), -1, len(low))
        controls = (high + low) / 2 + (high - low) / 2 * np.clip(actions / bound, -1.0, 1.0)
        self._controls = np.where(episodes.mask.reshape(*controls.shape[:2], 1), controls, 0.0)
        lengths = episodes.lengths.ravel()
        states = self._run(initial, self._controls)[:, self._skip - 1 :: self._skip]
        self.exact = self._agrees(states, episodes)
        before = np.concatenate([initial[:, None], states[:, :-1]], axis=1)
        self._calls: list[tuple[list[mujoco.MjModel], np.ndarray, np.ndarray, np.ndarray]] = []
        longest = states.shape[1]
        self._add(before, np.flatnonzero(lengths == longest), 0, longest)
        early = np.flatnonzero(lengths < longest)
        for bit in range(longest.bit_length()):
            piece = 1 << bit
            rows = early[lengths[early] & piece > 0]
            # The larger pieces of an episode come first.
            self._add(before, rows, (lengths[rows] >> (bit + 1)) << (bit + 1), piece)
        self.evaluations = int(lengths.sum()) * STAGES * self._skip

    def _add(self, before: np.ndarray, rows: np.ndarray, start: np.ndarray | int, n_steps: int) -> None:
        if not rows.size:
            return
        start = np.broadcast_to(start, rows.shape)
        controls = self._controls[rows[:, None], start[:, None] + np.arange(n_steps)]
        held = np.repeat(controls, self._skip, axis=1)
        models = [self._models[row] for row in rows.tolist()]
        self._calls.append((models, before[rows, start], held, np.empty((*held.shape[:2], before.shape[2]))))

    def _run(self, initial: np.ndarray, controls: np.ndarray) -> np.ndarray:
        held = np.repeat(controls, self._skip, axis=1)
        out = np.empty((*held.shape[:2], initial.shape[1]))
        self._call(self._models, initial, held, out)
        return out

    def _call(self, models: list[mujoco.MjModel], initial: np.ndarray, controls: np.ndarray, out: np.ndarray) -> None:
        self._rollout.rollout(
            models, self._data, initial, controls, skip_checks=True, nstep=controls.shape[1], state=out
        )

    def _agrees(self, states: np.ndarray, episodes: Episodes) -> bool:
        """Whether the states replayed are the ones that were observed, to the last bit of float32."""
        obs = episodes.obs.reshape(*states.shape[:2], -1)
        mask = episodes.mask.reshape(states.shape[:2])[:, 1:]
        own = states[:, :-1, self._seen].astype(np.float32)
        return bool(np.array_equal(obs[:, 1:, : own.shape[-1]][mask], own[mask]))

    def __call__(self) -> None:
        for call in self._calls:
            self._call(*call)

    def close(self) -> None:
        """End the threads."""
        self._rollout.close()


def stock_ant(physics: str) -> mujoco.MjModel:
    """Return the Ant as its file compiles, but for what bit-equality takes: cold solver starts and no resets."""
    spec = ant_spec(physics)
    for flag in (mujoco.mjtDisableBit.mjDSBL_AUTORESET, mujoco.mjtDisableBit.mjDSBL_WARMSTART):
        spec.option.disableflags |= int(flag)
    return spec.compile()


def ant_collect(quick: bool) -> list[Row]:
    """AntVel with policy, rewards, contact terms, masks and storage, against the physical limit.

    The limit is taken twice, with the Ant as its file compiles and with the family's own step model, which computes the
    same bits faster.
    """
    parallel = Parallel()
    rows: list[Row] = []
    for physics in ("reference", "gymnasium"):
        for n_tasks, n_episodes in ((4, 2),) if quick else ((40, 10), (40, 20)):
            horizon = 10 if quick else 200
            family = cast("MujocoFamily", make_family("AntVel-v0", physics=physics, horizon=horizon))
            run = collector(family, n_tasks, n_episodes, parallel)
            episodes = run()
            tasks = family.sample_tasks(stream(SEED, "tasks"), n_tasks)
            streams = [split_streams(seed_sequence(SEED, "benchmark", task))[0] for task in range(n_tasks)]
            state, _ = family.reset(tasks, streams, n_episodes)
            initial = state["physics"].reshape(n_tasks * n_episodes, -1)
            models = {"stock model": stock_ant(physics), "the family's model": family.model.step}
            limits = {name: Replay(family, model, episodes, initial) for name, model in models.items()}
            timings = interleave({"metarl": run, **limits}, rounds=1 if quick else 5)
            ours = timings["metarl"]
            evaluations = episodes.n_steps * (STAGES * family.frame_skip + 1)
            for name, limit in limits.items():
                theirs = timings[name]
                work = evaluations / limit.evaluations
                ratio, low, high = (work * value for value in _inverse(paired_ratio(ours, theirs)))
                rows.append(
                    {
                        "case": f"AntVel-v0, {physics} physics, {n_tasks * n_episodes} copies, limit of {name}",
                        "metarl_evaluations_per_s": evaluations / ours.seconds,
                        "limit_evaluations_per_s": limit.evaluations / theirs.seconds,
                        **judged(ratio, 0.9, at_least=True),
                        "ratio_range": [low, high],
                        "ratio_of_cpu_time": work * theirs.cpu_seconds / ours.cpu_seconds,
                        "env_steps_per_s": episodes.n_steps / ours.seconds,
                        "env_steps": episodes.n_steps,
                        "replayed_bit_for_bit": limit.exact,
                    }
                )
                limit.close()
            family.close()
    parallel.close()
    return rows


def _inverse(values: tuple[float, float, float]) -> tuple[float, float, float]:
    middle, low, high = values
    return 1.0 / middle, 1.0 / high, 1.0 / low


def pointmass_collect(quick: bool) -> list[Row]:
    """PointMass with the 2x100 policy and storage, through the code that collects AntVel."""
    parallel = Parallel()
    sizes = ((4, 5),) if quick else ((40, 10), (40, 20), (40, 40))
    runs: dict[str, Callable[[], Episodes]] = {}
    family = make_family("PointMass-v0")
    for n_tasks, n_episodes in sizes:
        runs[f"PointMass-v0, {n_tasks * n_episodes} copies"] = collector(family, n_tasks, n_episodes, parallel)
    steps = {name: run().n_steps for name, run in runs.items()}
    timings = interleave(runs, rounds=2 if quick else 15)
    parallel.close()
    return [
        {
            "case": name,
            "env_steps_per_s": steps[name] / timing.seconds,
            "goal_env_steps_per_s": 1_000_000,
            **judged(steps[name] / timing.seconds / 1e6, 1.0, at_least=True),
            "env_steps_per_cpu_s": steps[name] / timing.cpu_seconds,
            "env_steps": steps[name],
        }
        for name, timing in timings.items()
    ]


# --------------------------------------------------------------------------------------------------------------- peers
class _NoCallback(BaseCallback):
    def _on_step(self) -> bool:
        return True


class StockRollouts:
    """Rollouts as a stock SB3 ``PPO`` collects them.

    :param env: the environments.
    :param n_steps: env steps in each.
    """

    def __init__(self, env: VecEnv, n_steps: int) -> None:
        self.n_steps = n_steps * env.num_envs
        kwargs = sb3_policy_kwargs(RELU_100)
        self._model = PPO("MlpPolicy", env, n_steps=n_steps, batch_size=self.n_steps, policy_kwargs=kwargs, seed=SEED)
        _, self._callback = self._model._setup_learn(10**9, _NoCallback(), progress_bar=False)

    def __call__(self) -> None:
        model = self._model
        assert model.env is not None
        model.collect_rollouts(model.env, self._callback, model.rollout_buffer, n_rollout_steps=model.n_steps)


def sb3(quick: bool) -> list[Row]:
    """Collecting with stock Stable-Baselines3, and with a plain Python loop, against the batched collection."""
    parallel = Parallel()
    rows: list[Row] = []
    for name in ("PointMass-v0", "AntVel-v0"):
        n_tasks, n_episodes, n_steps = (2, 2, 10) if quick else (40, 10, 100)
        horizon = 10 if quick else 100
        family = make_family(name, horizon=horizon)
        tasks = family.sample_tasks(stream(SEED, "tasks"), n_tasks)
        run = collector(family, n_tasks, n_episodes, parallel)
        singles = _singles(name, horizon, n_tasks)
        dummy = StockRollouts(DummyVecEnv(singles), n_steps)
        batched = StockRollouts(FamilyVecEnv(family, tasks, n_envs=1, seed=SEED), n_steps)
        loop, loop_steps = _plain_loop(family, name, n_episodes)
        sides = {"metarl": run, "FamilyVecEnv": batched, "DummyVecEnv": dummy, "plain loop": loop}
        steps = {
            "metarl": run().n_steps,
            "FamilyVecEnv": batched.n_steps,
            "DummyVecEnv": dummy.n_steps,
            "plain loop": loop_steps,
        }
        timings = interleave(sides, rounds=1 if quick else 3)
        speed = {side: steps[side] / timing.seconds for side, timing in timings.items()}
        what = {
            "metarl": f"metarl collect, {n_tasks} tasks x {n_episodes} copies",
            "FamilyVecEnv": f"SB3 PPO on FamilyVecEnv, {n_tasks} copies",
            "DummyVecEnv": f"SB3 PPO on DummyVecEnv, {n_tasks} copies",
            "plain loop": "one environment, a plain Python loop",
        }
        rows += [
            {
                "case": f"{name}: {what[side]}",
                "env_steps_per_s": speed[side],
                "metarl_is_faster_by": speed["metarl"] / speed[side],
                "env_steps": steps[side],
            }
            for side in sides
        ]
        family.close()
    parallel.close()
    return rows


def _singles(name: str, horizon: int, n: int) -> list[Callable[[], Monitor]]:
    """Return what makes ``n`` environments of one task each; MuJoCo's on one thread, as they step one copy."""
    arguments = {} if name == "PointMass-v0" else {"n_threads": 1}
    family = make_family(name, horizon=horizon, **arguments)
    tasks = family.sample_tasks(stream(SEED, "tasks"), n)
    return [lambda i=i: Monitor(SingleEnv(family, **one_task(tasks, i))) for i in range(n)]  # type: ignore[misc]


def _plain_loop(family: Family, name: str, n_episodes: int) -> tuple[Callable[[], Episodes], int]:
    env = _singles(name, family.horizon, 1)[0]()
    policy = make_policy(family)
    params = policy.init(SEED)
    seed = seed_sequence(SEED, "benchmark")

    def run() -> Episodes:
        return collect_env(env, policy, params, seed, n_episodes)

    return run, run().n_steps
