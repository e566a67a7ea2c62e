"""OML: sequences of tasks that the head learns, and what is asked for afterwards; continual evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl import OML
from metarl.errors import MetaRLError, TaskError
from metarl.meta.progress import Timer
from metarl.params import Params
from metarl.streams import stream
from tests.agents.derivatives.problems import close
from tests.meta.small import equal, run_iterations
from tests.meta.two_levels.nested import Examples, error

NET = {"net_arch": [5, 4], "activation_fn": "tanh"}
HEAD = ("action_net.weight", "action_net.bias")
SMALL: dict[str, Any] = {
    "env_kwargs": {"n_slots": 6},
    "learner": "supervised",
    "policy_kwargs": NET,
    "inner_lr": 0.05,
    "meta_batch_size": 2,
    "n_tasks": 3,
    "n_inner_steps": 2,
    "n_episodes": 4,
    "n_threads": 1,
}


def make(policy: str = "MlpPolicy", **kwargs: Any) -> OML:
    return OML(policy, **{**SMALL, **kwargs})


def batches(samples: Any, row: int) -> Examples:
    assert samples.target is not None
    return samples.obs[row].double(), samples.target[row].double()


def by_hand(model: OML, theta: Params, support: Any, query: Any, n: int) -> torch.Tensor:
    """Return the mean over sequences and tasks of the error, by a loop over sequences, tasks and steps."""
    total = torch.zeros((), dtype=torch.float64)
    for family in range(2):
        params = theta
        for t in range(n):
            x, y = batches(support, family * n + t)
            for k in range(2):
                loss = error(params, (x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4]))
                slopes = torch.autograd.grad(loss, [params[name] for name in HEAD], create_graph=True)
                params = {
                    **params,
                    **{name: params[name] - 0.05 * slope for name, slope in zip(HEAD, slopes, strict=True)},
                }
        total = total + sum(error(params, batches(query, family * n + t)) for t in range(n)) / n
    return total / 2


@pytest.mark.parametrize("learns_head", [True, False])
def test_the_gradient_goes_through_all_tasks_that_were_met_one_after_another(learns_head: bool) -> None:
    model = make(learns_head=learns_head)
    (tasks,) = model._draw(sequence=3)
    assert all(len(set(tasks["slot"][i : i + 3])) == 3 for i in (0, 3))
    assert len(np.unique(tasks["frequency"])) == 2
    with model._whole():
        loss, gradient, (first, last) = model._learn(slice(0, 2), tasks, Timer())
    theta = {name: tensor.double().requires_grad_() for name, tensor in model.theta.items()}
    expected = by_hand(model, theta, first.support[0], last.query, 3)
    assert loss / 2 == pytest.approx(float(expected.detach()), rel=1e-5)
    slopes = dict(zip(theta, torch.autograd.grad(expected, list(theta.values()), materialize_grads=True), strict=True))
    for name, slope in slopes.items():
        found = gradient[f"policy/{name}"].double() / 2
        if name in model.stays or learns_head:
            close({name: found}, {name: slope}, 1e-4)
        else:
            assert not found.any()
    assert float(slopes["mlp_extractor.policy_net.0.weight"].norm()) > 0.0
    assert model.steps_per_iteration == first.n_steps + last.n_steps == 2 * 3 * (2 * 4 + 4)


def test_it_goes_on_from_a_file(tmp_path: Any) -> None:
    model = run_iterations(make(), 2)
    again = metarl.load(run_iterations(make(), 1).save(tmp_path / "model"))
    assert equal(run_iterations(again, 1, reset_num_timesteps=False).params, model.params)


def test_policies_of_a_family_that_drifts_are_asked_for_the_last_task() -> None:
    sizes = {"env": "PointMassFamilies-v0", "env_kwargs": {"horizon": 5}, "learner": "vpg", "n_episodes": 2}
    model = make(**sizes, asked="last")
    run_iterations(model, 1)
    assert model.num_timesteps == model.steps_per_iteration == 2 * (3 * 2 + 1) * 2 * 5
    report = model.evaluate_in_sequence(n_tasks=2, n_families=2)
    np.testing.assert_array_equal(report.env_steps, [0.0, 20.0, 40.0])
    assert report.table().columns[0] == "tasks met"


@pytest.mark.parametrize("drift", ["goal", "friction"])
def test_the_task_of_the_moment_is_learnt_better_in_a_family_that_drifts(drift: str) -> None:
    model = OML(
        "MlpPolicy",
        "PointMassFamilies-v0",
        env_kwargs={"drift": drift, "friction": 0.8, "horizon": 10, "termination": "none"},
        learner="vpg",
        asked="last",
        n_tasks=3,
        n_inner_steps=1,
        inner_lr=0.1,
        n_episodes=10,
        meta_batch_size=8,
        outer_kwargs={"learning_rate": 0.01},
        policy_kwargs={"net_arch": [16], "log_std_init": -1.0},
        n_threads=1,
    )

    def met() -> float:
        return float(np.mean(model.evaluate_in_sequence(n_tasks=3, n_families=20).meta["last_met"]))

    before = met()
    model.learn(30 * model.steps_per_iteration)
    assert met() > before + 0.2


def test_a_sequence_is_learnt_as_a_plain_loop_does_it() -> None:
    model = make()
    report = model.evaluate_in_sequence("validation", n_tasks=3, n_families=2, seed=5)
    assert report.returns.shape == (1, 2, 4)
    np.testing.assert_array_equal(report.env_steps, [0.0, 8.0, 16.0, 24.0])
    held_out = model.family.families("validation", 2)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(report.tasks["frequency"], held_out["frequency"])
    assert len(report.meta["last_met"]) == 3
    again = model.evaluate_in_sequence("validation", n_tasks=3, n_families=1, seed=5)
    np.testing.assert_allclose(again.returns[0, 0], report.returns[0, 0], rtol=1e-5)
    # A head that learns nothing forgets nothing, and the body is never moved.
    still = model.evaluate_in_sequence("validation", n_tasks=3, n_families=2, inner_lr=1e-12, seed=5)
    np.testing.assert_allclose(still.returns, np.repeat(report.returns[..., :1], 4, -1), rtol=1e-6)
    assert np.abs(report.returns[..., -1] - report.returns[..., 0]).max() > 1e-3
    other = metarl.MAML(
        "MlpPolicy", "ContinualSinusoid-v0", env_kwargs={"n_slots": 6}, learner="supervised", policy_kwargs=NET
    )
    assert other.evaluate_in_sequence(n_tasks=2, n_families=2, n_steps=2).returns.shape == (1, 2, 3)


def test_slots_are_for_one_task_each() -> None:
    family = metarl.make_family("ContinualSinusoid-v0", n_slots=4)
    metarl.envs.check_family(family, n=2)
    families = family.sample_families(stream(0, "families"), 30)  # type: ignore[attr-defined]
    tasks = family.sample_tasks(stream(0, "tasks"), 4, families=families)  # type: ignore[call-arg]
    assert all(sorted(tasks["slot"][i : i + 4]) == [0, 1, 2, 3] for i in range(0, 120, 4))
    with pytest.raises(TaskError, match=r"5 tasks of a family .* n_slots=4"):
        family.sample_tasks(stream(0, "tasks"), 5, families=families)  # type: ignore[call-arg]
    two, rngs = {name: value[:2] for name, value in tasks.items()}, [stream(0, "x", i) for i in range(2)]
    x, y = family.examples(two, rngs, 3)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(x[..., :4].argmax(-1), np.repeat(tasks["slot"][:2, None], 3, 1))
    amplitude, phase, frequency = (tasks[name][:2, None] for name in ("amplitude", "phase", "frequency"))
    np.testing.assert_allclose(y[..., 0], amplitude * np.sin(frequency * x[..., 4] + phase), rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"asked": "some"}, "asked='some'"),
        ({"n_tasks": 0}, "n_tasks=0"),
        ({"inner_modules": []}, "leaves nothing that adapts"),
        ({"inner_modules": ["action"]}, "action_net"),
        ({"learner": "sb3_ppo"}, "a stock algorithm learns one task at a time"),
        ({"n_inner_steps": 0}, "n_inner_steps=0"),
    ],
)
def test_what_it_does_not_take_is_one_line(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(MetaRLError, match=words):
        make(**kwargs)


def test_what_is_asked_of_classes_are_drawings_that_were_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(
        env="Omniglot-v0",
        env_kwargs={"protocol": "few-shot", "ways": 2, "size": 28},
        policy="FewShotCnnPolicy",
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 2}},
        n_inner_steps=1,
        n_episodes=2,
    )
    outcomes = []
    learn_block = model._learn_block
    monkeypatch.setattr(model, "_learn_block", lambda *a, **k: outcomes.append(learn_block(*a, **k)) or outcomes[-1])
    model.train()
    (shown,), asked = outcomes[0].support, outcomes[-1].query
    assert asked is not None
    for task in range(len(shown)):
        seen = {image.numpy().tobytes() for image in shown.obs[task]}
        assert not seen & {image.numpy().tobytes() for image in asked.obs[task]}
