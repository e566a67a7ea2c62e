"""Updates: first against second order, memory, where an iteration's time goes, and the peers' published work."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import SEED, Row, interleave, judged, paired_ratio
from benchmarks.problems import RELU_100, TANH_64, Update
from metarl.agents.learners.vpg import VPG
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.samples import Samples
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.outer.base import Outer, OuterStep
from metarl.meta.outer.objective import MetaGradient, MetaObjective
from metarl.meta.outer.trust_region import TrustRegion
from metarl.meta.progress import Timer
from metarl.params import Params

SETTINGS = {"all episodes in the Fisher": (1.0, 0.01), "a quarter of them, as in the YAML": (0.25, 0.02)}
"""Of the trust region: share of the episodes in the Fisher information, and its size."""


def update(quick: bool) -> list[Row]:
    """One trust region step of FOMAML and of MAML on the same batches."""
    sizes = {
        "PointMass-sized: 40 x 20 x 100, observation 2": (40, 20, 100, 2, 2),
        "Ant-sized: 40 x 20 x 200, observation 125": (40, 20, 200, 125, 8),
    }
    if quick:
        sizes = {"4 x 2 x 10, observation 2": (4, 2, 10, 2, 2)}
    parallel = Parallel()
    rows = [
        {"case": f"{case}, {settings}", **_orders(Update(*size, parallel), *SETTINGS[settings], quick)}
        for case, size in sizes.items()
        for settings in SETTINGS
    ]
    parallel.close()
    return rows


def _orders(problem: Update, fisher_fraction: float, max_kl: float, quick: bool) -> Row:
    """Time both orders on one problem."""
    steps: dict[str, OuterStep] = {}

    def run(name: str) -> None:
        objective = problem.objective(first_order=name == "FOMAML", fisher_fraction=fisher_fraction)
        steps[name] = TrustRegion(max_kl=max_kl).step(objective, problem.theta)

    sides = {name: lambda name=name: run(name) for name in ("FOMAML", "MAML")}  # type: ignore[misc]
    timings = interleave(sides, rounds=1 if quick else 3, warm_up=0 if quick else 1)
    ratio, low, high = paired_ratio(timings["MAML"], timings["FOMAML"])
    return {
        "fomaml_s": timings["FOMAML"].seconds,
        "maml_s": timings["MAML"].seconds,
        **judged(ratio, 1.5, at_least=True),
        "ratio_range": [low, high],
        "ratio_of_cpu_time": timings["MAML"].cpu_seconds / timings["FOMAML"].cpu_seconds,
        "line_search_tries": [int(steps[name].stats["train/line_search_steps"]) for name in ("FOMAML", "MAML")],
        "second_order_share": steps["MAML"].stats["meta/second_order_share"],
    }


# -------------------------------------------------------------------------------------------------------------- memory
def memory(quick: bool) -> list[Row]:
    """Peak memory of one update in a fresh process, without its data, for more and more tasks."""
    counts = (4, 8) if quick else (20, 40, 80, 160)
    rows: list[Row] = []
    for name in ("fomaml", "maml"):
        for n_tasks in counts:
            command = [sys.executable, "-m", "benchmarks.memory", name, str(n_tasks), *(["--quick"] if quick else [])]
            root = Path(__file__).parents[1]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            rows.append(
                {
                    "case": f"{name}, {n_tasks} tasks",
                    "peak_mb": found["peak"] / 1e6,
                    "data_mb": found["data"] / 1e6,
                }
            )
        last, before = rows[-1], rows[-2]
        ratio = last["peak_mb"] / max(before["peak_mb"], 1e-9)
        # What is kept between products is full by then; twice the tasks add their adapted parameters, no activations.
        last.update(judged(ratio, 1.1, at_least=False))
    return rows


# ----------------------------------------------------------------------------------------------------------- iteration
class _TimedObjective:
    def __init__(self, objective: MetaObjective, timer: Timer) -> None:
        self._objective, self._timer = objective, timer

    def gradient(self) -> MetaGradient:
        with self._timer("gradient"):
            return self._objective.gradient()

    def curvature_product(self, vector: Params) -> Params:
        with self._timer("curvature"):
            return self._objective.curvature_product(vector)

    def evaluate(self, params: Params) -> tuple[float, float]:
        with self._timer("line search"):
            return self._objective.evaluate(params)


class _TimedOuter:
    def __init__(self, outer: Outer, timer: Timer) -> None:
        self._outer, self._timer = outer, timer

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        return self._outer.step(_TimedObjective(objective, self._timer), params, remaining)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)


class _TimedVPG(VPG):
    timer: Timer

    def process(self, episodes: Episodes, params: Params) -> Samples:
        with self.timer("advantages"):
            return super().process(episodes, params)


PHASES = ("sampling", "advantages", "inner step", "gradient", "curvature", "line search", "rest")


def phases(model: MAML) -> Callable[[], dict[str, float]]:
    """Return a function that does a meta-iteration and says how many seconds each of ``PHASES`` took."""
    timer = Timer()
    learner = model.adaptation.learner
    assert isinstance(learner, VPG)
    timed = _TimedVPG(model.policy, gamma=learner.gamma, gae_lambda=learner.gae_lambda, parallel=model.parallel)
    timed.timer = timer
    model.adaptation.learner = timed
    vars(model)["outer_optimizer"] = _TimedOuter(model.outer_optimizer, timer)

    def run() -> dict[str, float]:
        timer.seconds.clear()
        started, cpu = time.perf_counter(), time.process_time()
        stats = model.train()
        model.n_iterations += 1
        total, cpu = time.perf_counter() - started, time.process_time() - cpu
        seconds = {"sampling": stats["time/sampling"], **timer.seconds}
        outer = sum(seconds.get(name, 0.0) for name in ("gradient", "curvature", "line search"))
        # The algorithm's own clock has the support batch's advantages under "inner", the query's under "outer".
        seconds["inner step"] = stats["time/inner"] + stats["time/outer"] - outer - seconds["advantages"]
        seconds["rest"] = total - stats["time/sampling"] - stats["time/inner"] - stats["time/outer"]
        return {name: seconds.get(name, 0.0) for name in PHASES} | {"total": total, "cpu": cpu}

    return run


def iteration(quick: bool) -> list[Row]:
    """Where the time of one meta-iteration goes, as shipped."""
    cases = [("PointMass-v0", 20), ("HalfCheetahVel-v0", 10), ("AntVel-v0", 20)]
    rows: list[Row] = []
    for env, n_episodes in cases[:1] if quick else cases:
        for algorithm in (FOMAML, MAML):
            model = algorithm(
                env=env,
                meta_batch_size=4 if quick else 40,
                n_episodes=2 if quick else n_episodes,
                policy_kwargs=RELU_100,
                seed=SEED,
            )
            run = phases(model)
            rounds = 2 if quick or env != "PointMass-v0" else 4
            found = [run() for _ in range(rounds)][1:]
            middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
            size = f"{model.meta_batch_size} x {model.n_episodes} x {model.family.horizon}"
            rows.append(
                {
                    "case": f"{algorithm.name}, {env}, {size}",
                    "seconds": middle["total"],
                    "cpu_seconds": middle["cpu"],
                    **{f"{name}_share": middle[name] / middle["total"] for name in PHASES},
                    "env_steps": model.num_timesteps // rounds,
                }
            )
            model.family.close()
            model.parallel.close()
    return rows


# --------------------------------------------------------------------------------------------------------------- peers
FULL_LENGTH = {"min_z": -1e9, "max_z": 1e9}
"""No copy ends early: the peers' figure is for 200 env steps an episode."""
PEERS: list[tuple[str, type[MAML], dict[str, Any], int, float, float]] = [
    ("2D navigation, first order, 20 x 20 x 100", FOMAML, {"lineage": "pmr", "termination": "none"}, 20, 2.88, 0.25),
    ("2D navigation, second order, 20 x 20 x 100", MAML, {"lineage": "pmr", "termination": "none"}, 20, 5.16, 0.4),
    (
        "AntVel, Gymnasium physics, second order, 10 x 20 x 200",
        MAML,
        {"lineage": "cavia", **FULL_LENGTH},
        10,
        18.3,
        0.6,
    ),
]
"""Case, algorithm, family's arguments, tasks, pytorch-maml-rl's seconds on two cores, target."""


def peers(quick: bool) -> list[Row]:
    """The work that pytorch-maml-rl was timed on: a whole meta-iteration, trust region, all episodes in the Fisher."""
    rows: list[Row] = []
    for case, algorithm, arguments, n_tasks, peer, target in PEERS[:2] if quick else PEERS:
        model = algorithm(
            env="AntVel-v0" if "AntVel" in case else "PointMass-v0",
            env_kwargs=arguments,
            policy_kwargs=TANH_64,
            meta_batch_size=2 if quick else n_tasks,
            n_episodes=2 if quick else 20,
            fisher_fraction=1.0,
            seed=SEED,
        )
        run = phases(model)
        rounds = 2 if quick else 3 if "AntVel" in case else 8
        found = [run() for _ in range(rounds)][1:]
        middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
        rows.append(
            {
                "case": case,
                "metarl_s": middle["total"],
                "peer_s": peer,
                **judged(middle["total"] / peer, target, at_least=False),
                "metarl_cpu_s": middle["cpu"],
                "sampling_s": middle["sampling"],
                "update_s": middle["total"] - middle["sampling"],
                "env_steps": model.num_timesteps // rounds,
            }
        )
        model.family.close()
        model.parallel.close()
    return rows
