"""Few-task few-shot evaluation: the same meta-finetuning from every initialisation, intervals over families."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl.agents.sampling.episodes import env_stream
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.report import Report
from metarl.meta.two_levels.evaluating import relative_changes
from metarl.meta.two_levels.finetuning import task_losses
from metarl.params import Params, expand
from metarl.streams import seed_sequence, stream
from tests.meta.two_levels.nested import adapted, error, stepped

SIZES: dict[str, Any] = {"learner": "supervised", "n_episodes": 4, "meta_batch_size": 2, "n_threads": 1}
NET = {"net_arch": [4, 3], "activation_fn": "tanh"}


def make(name: str = "maml", env: str = "SinusoidFamilies-v0", policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    cls = metarl.ALGORITHMS[name]
    return cls(policy, env, **{**SIZES, "policy_kwargs": NET, "inner_lr": 0.05, **kwargs})


def test_a_model_is_meta_finetuned_and_then_adapted_as_a_plain_loop_does_it() -> None:
    model = make(n_inner_steps=2)
    how = {"n_tasks": 3, "n_meta_steps": 2, "meta_lr": 0.02, "n_families": 2, "n_goal_tasks": 3, "seed": 4}
    report = model.evaluate_few_tasks("validation", 2, **how)
    family, found = model.family, []
    held_out = family.families("validation", 2)
    for j in range(2):
        own = {name: value[j : j + 1] for name, value in held_out.items()}

        def examples(what: str, tasks: Any, i: int, k: int, n: int, j: int = j, part: str = "") -> Any:
            one = {name: value[i : i + 1] for name, value in tasks.items()}
            place = j * 3 + i
            address = (0, place) if part else (0, place, k)
            rng = env_stream(seed_sequence(4, f"evaluate/validation/{what}{part}", *address))
            return [torch.from_numpy(np.asarray(a[0], np.float64)) for a in family.examples(one, [rng], n)]

        few, goals = (
            family.sample_tasks(stream(4, f"evaluate/validation/{what}/tasks", j), 3, families=own)
            for what in ("few", "goals")
        )
        np.testing.assert_array_equal(few["phase"], np.repeat(held_out["phase"][j], 3))
        theta = {name: tensor.double().requires_grad_() for name, tensor in model.theta.items()}
        for _ in range(2):
            queried = []
            for i in range(3):
                support, query = (examples("few", few, i, k, 4) for k in (0, 2))
                queried.append((adapted(theta, support, 0.05, 2, torch.tanh), query))
            theta = stepped(theta, sum(error(end, query) for end, query in queried), 0.02)
        scores = []
        for i in range(3):
            support = examples("goals", goals, i, 0, 4)
            scored = examples("goals", goals, i, 0, 100, part="/measured")
            ends = [adapted(theta, support, 0.05, k, torch.tanh) for k in range(3)]
            scores.append([float(-error(end, scored).detach()) for end in ends])
        found.append(np.mean(scores, axis=0))
    np.testing.assert_allclose(report.returns[0], found, rtol=1e-4)
    np.testing.assert_array_equal(report.tasks["phase"], held_out["phase"])
    assert report.meta["few_tasks"] == {
        "n_tasks": 3,
        "n_goal_tasks": 3,
        "n_steps": 2,
        "rate": 0.02,
        "update": "exact",
        "env_steps": 24.0,
    }


@pytest.mark.parametrize(
    "name", ["maml", "pretrain", "oracle", "random", "reptile", "meta_sgd", "cavia", "anil", "maltml"]
)
def test_every_initialisation_is_evaluated_alike_and_in_pairs(name: str) -> None:
    model = make(name, env_kwargs={"oracle": True} if name == "oracle" else {})
    before, after = (model.evaluate_few_tasks(n_inner_steps=1, n_tasks=n, n_families=3, n_goal_tasks=2) for n in (0, 3))
    assert before.returns.shape == after.returns.shape == (1, 3, 2)
    assert np.abs(after.returns - before.returns).max() > 1e-4
    assert compare(after, before).returns.n_points == 2
    assert set(before.meta["moved"]) == {"finetuning"}
    assert set(after.meta["moved"]) == {"meta_finetuning", "finetuning"}
    if name == "anil":
        still = {layer for layer, change in after.meta["moved"]["finetuning"].items() if change == 0.0}
        assert still == {"mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"}
        assert all(change > 0.0 for change in after.meta["moved"]["meta_finetuning"].values())
    again = Report.from_json(after.to_json())
    assert again.meta["moved"] == after.meta["moved"]


def test_goal_tasks_do_not_depend_on_how_many_tasks_or_families_there_are() -> None:
    model = make()
    few, many = (model.evaluate_few_tasks(n_tasks=0, n_families=n, n_goal_tasks=2, n_inner_steps=1) for n in (2, 70))
    np.testing.assert_allclose(few.returns[0], many.returns[0, :2], rtol=1e-5)
    told: list[tuple[int, int]] = []
    model.evaluate_few_tasks(n_families=70, n_goal_tasks=2, n_inner_steps=1, progress=lambda *n: told.append(n))
    assert told[-1] == (70, 70)
    assert len(told) > 1


@pytest.mark.parametrize("name", ["meta_curvature", "imaml"])
def test_steps_that_are_no_plain_gradient_steps_are_not_differentiated_as_if_they_were(name: str) -> None:
    model = make(name, n_inner_steps=2)
    model.params = {key: 3.0 * value if key.startswith("rates/") else value for key, value in model.params.items()}
    how = {"n_inner_steps": 0, "n_tasks": 2, "n_families": 2, "n_goal_tasks": 2, "meta_lr": 0.2}
    found, first = (model.evaluate_few_tasks(update=update, **how) for update in (None, "first_order"))
    assert found.meta["few_tasks"]["update"] == "first_order"
    assert np.array_equal(found.returns, first.returns)
    with pytest.raises(ConfigError, match="update='exact'"):
        model.evaluate_few_tasks(update="exact", **how)


def test_policies_are_meta_finetuned_by_episodes() -> None:
    sizes = {"env_kwargs": {"horizon": 5}, "learner": "vpg", "n_episodes": 2, "inner_lr": 0.1}
    model = make(env="PointMassFamilies-v0", **sizes)
    how = {"n_inner_steps": 1, "n_tasks": 2, "n_families": 2, "n_goal_tasks": 2}
    updates = [None, "first_order", "difference"]
    found = [model.evaluate_few_tasks(update=update, n_meta_steps=2, meta_lr=0.2, **how) for update in updates]
    assert found[0].meta["few_tasks"]["update"] == "exact"
    assert found[0].meta["few_tasks"]["env_steps"] == 2 * 2 * 2 * 2 * 5
    returns = [report.returns for report in found]
    assert not np.allclose(returns[0], returns[1])
    assert not np.allclose(returns[1], returns[2])


def test_a_layer_moves_by_its_own_measure() -> None:
    before: Params = {
        "a.weight": torch.tensor([[3.0], [0.0]]),
        "a.bias": torch.tensor([[4.0], [1.0]]),
        "log_std": torch.zeros(2, 1),
        "statistics/b": torch.ones(2, 1),
    }
    after = {**before, "a.weight": torch.tensor([[3.0], [2.0]]), "a.bias": torch.tensor([[5.0], [1.0]])}
    (layer,) = relative_changes(before, after).items()
    assert layer[0] == "a"
    np.testing.assert_allclose(layer[1], [0.2, 2.0])


def test_what_cannot_be_meta_finetuned_is_one_line() -> None:
    stock = {"learner": "sb3_a2c", "policy_kwargs": {}, "n_episodes": 2}
    for model, kwargs, words in (
        (make(env="Sinusoid-v0"), {}, "Sinusoid-v0 has tasks of one level"),
        (make("reptile", "PointMassFamilies-v0", **stock), {}, "batched over tasks"),
        (make("reptile", task_local=["action_net"]), {}, "tensors of each task's own"),
        (make(), {"n_tasks": -1}, "n_tasks=-1"),
        (make(), {"meta_lr": 0.0}, "meta_lr=0"),
        (make(), {"update": "leap"}, "update='leap'"),
        (make(), {"split": "shifted"}, "unknown split of families 'shifted'"),
    ):
        with pytest.raises(MetaRLError, match=words) as caught:
            model.evaluate_few_tasks(**kwargs)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        make().evaluate_few_tasks(n_families=0)


@pytest.mark.parametrize("name", ["maltml", "oml"])
def test_the_path_that_is_differentiated_ends_where_adaptation_does_with_running_statistics_too(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = make(
        name,
        "OmniglotFewShot-v0",
        policy="FewShotCnnPolicy",
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 8, "batch_statistics": "running"}},
        env_kwargs={"ways": 2},
        n_tasks=2,
        n_inner_steps=2,
    )
    start, outcomes, learn_block = dict(model.theta), [], model._learn_block
    monkeypatch.setattr(model, "_learn_block", lambda *a, **k: outcomes.append(learn_block(*a, **k)) or outcomes[-1])
    model.train()
    statistics = [key for key in start if key.startswith("statistics/")]
    assert statistics
    if name == "oml":  # what is asked for is asked of what was reached
        for key in statistics:
            assert not torch.equal(outcomes[-1].params[key], expand(start, 4)[key])
        return
    few, learner = outcomes[0], model.adaptation.learner
    assert few.query is not None
    found = task_losses(learner, few, model._rule(model.rates).steps(model.params))(expand(start, 4))
    expected = learner.loss(few.params, few.query)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_goal_tasks_may_be_fine_tuned_in_another_way() -> None:
    model, how = make(), {"n_tasks": 2, "n_families": 2, "n_goal_tasks": 2}
    plain = model.evaluate_few_tasks("test", 2, **how)
    frozen = model.evaluate_few_tasks("test", 2, tuning={"freeze": "body"}, **how)
    assert frozen.label == "maml, 2 tasks, body frozen"
    assert frozen.meta["tuning"]["freeze"] == ["body"]
    np.testing.assert_array_equal(frozen.returns[..., 0], plain.returns[..., 0])
    assert not np.array_equal(frozen.returns[..., 1:], plain.returns[..., 1:])
    moved = frozen.meta["moved"]
    assert {name for name, far in moved["finetuning"].items() if far} == {"action_net"}
    assert moved["meta_finetuning"] == plain.meta["moved"]["meta_finetuning"]
    with pytest.raises(ConfigError, match="new_head=True: goal tasks start from what few tasks came to"):
        model.evaluate_few_tasks("test", 2, tuning={"new_head": True}, **how)
