"""Leap: the meta-gradient on quadratics and around real learners, and what holds for training with it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from metarl.agents.learners.base import Learner
from metarl.agents.sampling.collect import collect
from metarl.envs.registry import make_family
from metarl.errors import MetaRLError
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.leap_watcher import LeapWatcher
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.base import load
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream
from tests.meta.quadratics import Quadratics, flat, on_quadratics
from tests.meta.small import copy, equal, run_iterations, small

SGD: dict[str, Any] = {"outer": "sgd", "outer_kwargs": {"learning_rate": 0.3}}
ENV: dict[str, Any] = {"horizon": 20, "termination": "none"}
PLAIN: dict[str, Any] = {"metric": "energy", "loss": False, "stabilizer": False}


# -------------------------------------------------------------------------------------------------- on quadratics
@pytest.mark.parametrize("metric", ["length", "energy"])
@pytest.mark.parametrize("stabilizer", [True, False])
@pytest.mark.parametrize("loss", [True, False])
def test_the_meta_gradient_is_equation_eight(metric: str, stabilizer: bool, loss: bool) -> None:
    # With rates up to 1.6 and curvatures up to 1.5 some steps overshoot, and their losses rise.
    rates = [1.6, 0.4, 1.6]
    model = on_quadratics(
        Leap, n_inner_steps=3, inner_lr=rates, metric=metric, stabilizer=stabilizer, loss=loss, meta_batch_size=8, **SGD
    )
    tasks = model.family.sample_tasks(stream(model.seed, "tasks", 0), 8)
    theta = flat(model.params)
    pull, distance, rises = torch.zeros_like(theta), 0.0, []
    for a, c in zip(*Quadratics.constants(tasks), strict=True):
        points = [theta]
        for rate in rates:
            points.append(points[-1] - rate * a * (points[-1] - c))
        for i, (start, end) in enumerate(pairwise(points)):
            gradient, move = a * (start - c), end - start
            rise = 0.5 * a * ((end - c).square().sum() - (start - c).square().sum())
            if i == 2:
                rise = gradient @ move
            rises.append(float(rise))
            rise = rise * loss
            norm = (move.square().sum() + rise.square()).sqrt()
            weight = 1.0 / norm if metric == "length" else 1.0
            pull -= ((-rise.abs() if stabilizer else rise) * gradient + move) * weight
            distance += float(norm if metric == "length" else norm.square())
    assert min(rises) < 0.0 < max(rises)
    stats = model.train()
    torch.testing.assert_close(flat(model.params), theta - 0.3 * pull / 8, rtol=1e-10, atol=1e-12)
    assert stats["meta/meta_loss"] == pytest.approx(distance / 8, rel=1e-10)


def test_excluded_parts_do_not_move() -> None:
    model = on_quadratics(Leap, n_inner_steps=2, inner_lr=0.2, exclude=["action_net", "log_std"], outer="adam")
    before = copy(model.params)
    run_iterations(model, 2)
    for name, tensor in model.params.items():
        assert torch.equal(tensor, before[name]) == name.startswith(("policy/action_net", "policy/log_std"))


# ------------------------------------------------------------------------------------------------- real learners
@pytest.mark.parametrize("learner", ["vpg", "a2c"])
def test_without_loss_norm_and_stabilizer_leap_is_reptile(learner: str) -> None:
    kwargs: dict[str, Any] = {"learner": learner, **SGD}
    leap = small(Leap, n_inner_steps=3, **PLAIN, **kwargs)
    short = small(Leap, n_inner_steps=3, drop_last=True, **PLAIN, **kwargs)
    reptile, shorter = (small(Reptile, n_inner_steps=n, **kwargs) for n in (3, 2))
    for model in (leap, short, reptile, shorter):
        run_iterations(model, 2)
    for one, other in ((leap, reptile), (short, shorter)):
        for name, tensor in other.params.items():
            torch.testing.assert_close(one.params[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learner", ["vpg", "ppo"])
def test_a_meta_iteration_by_hand(learner: str) -> None:
    """Every segment written down by a watcher of our own, then eq. 8 in float64."""
    kwargs: dict[str, Any] = {"inner_lr": 0.2} if learner == "vpg" else {"learner_kwargs": {"n_epochs": 2}}
    model = small(Leap, learner=learner, n_inner_steps=2, seed=3, env_kwargs=ENV, **kwargs, **SGD)
    theta, own = copy(model.policy_params), model.adaptation.learner
    run_iterations(model, 1)
    segments = walk(own, theta, model.rates)
    assert len(segments) == (2 if learner == "vpg" else 2 * 2 * 2)

    pull = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in theta.items()}
    for i, (start, end, gradient, losses) in enumerate(segments):
        for task in range(4):
            move = {name: end[name][task] - start[name][task] for name in theta}
            slope = {name: gradient[name][task] for name in theta}
            rise = sum((slope[name] * move[name]).sum() for name in theta)
            if i + 1 < len(segments):
                rise = segments[i + 1][3][task] - losses[task]
            norm = (sum(tensor.square().sum() for tensor in move.values()) + rise**2) ** 0.5
            for name in theta:
                pull[name] -= (-abs(rise) * slope[name] + move[name]) / norm / 4
    for name, tensor in theta.items():
        expected = tensor.double() - 0.3 * pull[name]
        torch.testing.assert_close(model.policy_params[name].double(), expected, rtol=1e-4, atol=1e-5)


class Notes:
    """A watcher that keeps everything."""

    def __init__(self) -> None:
        self.segments: list[tuple[Params, Params, Params, torch.Tensor]] = []

    def segment(self, start: Params, end: Params, gradient: Any, losses: Any, active: Any = None) -> None:
        assert active is None
        kept = tuple({name: t.double().clone() for name, t in params.items()} for params in (start, end, gradient))
        self.segments.append((*kept, losses.double().clone()))  # type: ignore[arg-type]


def walk(learner: Learner, theta: Params, rates: list[float]) -> list[tuple[Params, Params, Params, torch.Tensor]]:
    """Return the segments of the first meta-iteration of seed 3, from its documented streams."""
    family = make_family("PointMass-v0", **ENV)
    tasks = family.sample_tasks(stream(3, "tasks", 0), 4)
    state = learner.start({name: tensor.contiguous() for name, tensor in expand(theta, 4).items()})
    notes = Notes()
    for k, rate in enumerate(rates):
        seeds = [seed_sequence(3, "train", 0, task, k) for task in range(4)]
        episodes = collect(family, learner.policy, state.params, tasks, seeds, n_episodes=5)
        order = [seed_sequence(3, "train/update", 0, task, k) for task in range(4)]
        state = learner.update(state, learner.process(episodes, state.params), rate, order, notes)
    return notes.segments


def test_stopped_and_resumed_is_uninterrupted(tmp_path: Any) -> None:
    kwargs: dict[str, Any] = {"n_inner_steps": 2, "outer": "adam", "outer_kwargs": {"final_learning_rate": 0.0}}
    total = 4 * 4 * 2 * 5 * 20
    whole, stopped = small(Leap, **kwargs).learn(total), small(Leap, **kwargs)

    def stop(local: dict[str, Any], _: dict[str, Any]) -> bool:
        return stopped.n_iterations < 2

    stopped.learn(total, callback=stop)
    resumed = load(stopped.save(tmp_path / "half"))
    assert isinstance(resumed, Leap)
    assert resumed.metric == "length"
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    assert equal(resumed.params, whole.params)
    assert not equal(resumed.params, stopped.params)


@pytest.mark.parametrize("learner", ["vpg", "a2c", "ppo"])
def test_the_number_of_threads_changes_nothing(learner: str) -> None:
    models = [
        run_iterations(small(Leap, learner=learner, n_inner_steps=2, meta_batch_size=20, n_threads=n), 2)
        for n in (1, 3)
    ]
    assert equal(models[0].params, models[1].params)


def test_watching_changes_nothing() -> None:
    leap, reptile = (small(algorithm, learner="ppo", n_inner_steps=2) for algorithm in (Leap, Reptile))
    stats = [model.train() for model in (leap, reptile)]
    assert stats[0]["inner/return_after_1"] == stats[1]["inner/return_after_1"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"metric": "lenght"}, "unknown metric 'lenght': did you mean 'length'"),
        ({"loss": 1}, "loss=1"),
        ({"stabilizer": "yes"}, "stabilizer='yes'"),
        ({"drop_last": True, "n_inner_steps": 1}, "drop_last with n_inner_steps=1"),
        ({"outer": "trpo"}, "leap with outer='trpo'"),
        ({"n_inner_steps": 0}, "n_inner_steps=0"),
    ],
)
def test_bad_arguments_are_named_in_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        small(Leap, **kwargs)
    assert "\n" not in str(caught.value)


def test_leap_learns_pointmass() -> None:
    model = Leap(
        "MlpPolicy",
        "PointMass-v0",
        inner_lr=0.5,
        n_inner_steps=3,
        meta_batch_size=20,
        n_episodes=10,
        outer="adam",
        outer_kwargs={"learning_rate": 0.01},
        policy_kwargs={"net_arch": [32], "activation_fn": "relu"},
        n_threads=1,
    )
    model.learn(25 * model.steps_per_iteration)
    returns = model.evaluate(n_inner_steps=2, n_tasks=20).returns.mean((0, 1))
    # Measured over seeds 0 to 3: -42, -27, -16 after 0, 1, 2 inner steps; a random initialisation has -70.
    assert returns[0] > -50.0
    assert returns[2] > -21.0
    assert returns[2] - returns[0] > 20.0


def test_the_mean_loss_of_all_inner_steps_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"learner_kwargs": {"reuses_support": False}, "n_inner_steps": 4, "n_episodes": 3, "meta_batch_size": 2}
    model = Leap("MlpPolicy", "Sinusoid-v0", learner="supervised", policy_kwargs={"net_arch": [4]}, **kwargs)
    seen: list[torch.Tensor] = []
    segment = LeapWatcher.segment

    def noted(self: LeapWatcher, *args: Any) -> None:
        seen.append(args[3].clone())
        segment(self, *args)

    monkeypatch.setattr(LeapWatcher, "segment", noted)
    stats = model.train()
    assert len(seen) == 4
    assert stats["inner/mean_loss"] == pytest.approx(float(torch.stack(seen).mean()), rel=1e-6)
