"""Learning single tasks with plain SB3: curves, pairing, and that a good initialisation shows."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaTransfer, Pretrain, RandomInit, Reptile
from metarl.envs import Score
from metarl.errors import ConfigError
from metarl.meta.evaluation.statistics import bootstrap_bands, paired_interval
from metarl.meta.export.finetune import (
    Finetuning,
    LearningCurves,
    compare_curves,
    finetune,
    finetune_sb3,
    learning_figure,
    learning_table,
    steps_saved,
)
from metarl.meta.export.sb3 import export_sb3
from metarl.streams import seed_sequence
from tests.drawn import fits
from tests.meta.walk import Walk


@pytest.fixture(scope="module")
def model() -> Pretrain:
    """Joint training that has learnt to stay near the origin, which helps on every task."""
    kwargs = {"net_arch": [16], "activation_fn": "tanh"}
    model = Pretrain(
        "MlpPolicy",
        Walk(),
        policy_kwargs=kwargs,
        meta_batch_size=20,
        outer="adam",
        seed=0,
        n_threads=1,
        outer_kwargs={"learning_rate": 0.03},
    )
    return model.learn(20 * 20 * 8 * 40)


def test_the_export_pays(model: Pretrain) -> None:
    seen: list[tuple[str, int, int]] = []
    found = finetune(
        *(model, 1280),
        optimizers=["adam"],
        n_tasks=6,
        progress=lambda *words: seen.append(words),
        **{"learning_rate": 3e-3, "n_epochs": 5},
    )
    (comparison,) = found.comparisons()
    a, b = comparison.a, comparison.b
    assert [curves.label for curves in found.curves] == ["PPO from pretrain, adam", "PPO from scratch, adam"]
    assert seen == [(curves.label, i, 6) for curves in (a, b) for i in range(1, 7)]
    assert a.returns.shape == b.returns.shape == (6, 8)
    np.testing.assert_array_equal(a.env_steps, np.arange(8) * 160)
    # The first point is the policy before any update: what the meta-learner itself gets on these tasks.
    own = model.evaluate("test", 0, n_tasks=6, n_episodes=50).returns[0, :, 0]
    assert a.returns[:, 0].mean() == pytest.approx(own.mean(), abs=1.0)
    assert comparison.mean.low > 0.5
    assert comparison.points.at(0).excludes_zero
    assert comparison.saved.interval.mean > 0
    assert b.returns[:, -1].mean() > b.returns[:, 0].mean() + 0.5, "PPO from scratch learns too"
    (table,) = found.tables()
    assert "env steps saved" in str(table)
    assert comparison.to_dict()["mean"] == list(comparison.mean)
    assert a.to_dict()["returns"][3][2] == a.returns[3, 2]


@pytest.fixture(scope="module")
def found(model: Pretrain) -> Finetuning:
    """Two tasks, from both starts with both optimisers."""
    return finetune(model, 320, n_tasks=2)


def test_exports_are_held_to_the_better_start_from_scratch(found: Finetuning) -> None:
    assert [curves.label for curves in found.curves] == [
        *("PPO from pretrain, sgd", "PPO from pretrain, adam"),
        *("PPO from scratch, sgd", "PPO from scratch, adam"),
    ]
    ends = [curves.returns[:, -1].mean() for curves in found.scratch]
    assert found.baseline is found.scratch[int(np.argmax(ends))]
    assert [comparison.b for comparison in found.comparisons()] == [found.baseline] * 2
    # the same seeds whatever the optimiser, so equal before the first update
    for pair in (found.exports, found.scratch):
        np.testing.assert_array_equal(pair[0].returns[:, 0], pair[1].returns[:, 0])
    whole, *paired = found.tables()
    assert whole.columns == ("env steps", *(curves.label for curves in found.curves))
    assert len(paired) == 2


def test_from_scratch_only(model: Pretrain, found: Finetuning) -> None:
    alone = finetune(model, 320, n_tasks=2, optimizers=["adam"], from_export=False)
    assert list(alone.exports) == alone.comparisons() == []
    np.testing.assert_array_equal(alone.baseline.returns, found.scratch[1].returns)
    assert [table.title for table in alone.tables()] == ["Return while a task is learnt, 2 tasks"]


def test_few_tasks_are_learnt_several_times() -> None:
    model = RandomInit(env="HalfCheetahDir-v0", n_episodes=2, env_kwargs={"horizon": 10}, n_threads=1)
    found = finetune(model, 40, n_tasks=5, optimizers=["adam"], from_export=False)
    (curves,) = found.scratch
    assert curves.strata is not None
    assert curves.strata.tolist() == [0, 1, 0, 1, 0]
    assert curves.tasks["direction"].tolist() == curves.tasks["direction"][curves.strata].tolist()
    assert len(np.unique(curves.returns[:, 0])) == 5
    np.testing.assert_array_equal(curves.bands(), bootstrap_bands(curves.returns[None], strata=curves.strata))


def test_too_few_env_steps_are_refused(model: Pretrain) -> None:
    with pytest.raises(ConfigError, match=r"160 env steps are no more than a rollout \(160\)"):
        finetune(model, 160)


def test_a_table_and_a_figure_of_several_curves() -> None:
    curves = [make_curves("a", [[0, 1, 2], [4, 5, 6]]), make_curves("b", [[1, 1, 1], [2, 2, 2]])]
    table = learning_table(curves, n_rows=2)
    assert [row[0] for row in table.rows] == ["0", "200", "mean of all"]
    assert table.rows[1][1].startswith("4.00 [")
    assert table.rows[-1][1:] == ["3.00", "1.50"]
    assert table.notes[-1] == "2 of 3 points; the figure and the record have all"
    assert len(learning_table(curves).notes) == 1
    (axis,) = learning_figure(curves, "Walk-v0, test tasks").axes
    assert axis.get_title() == "Walk-v0, test tasks"
    assert [line.get_label() for line in axis.lines] == ["a", "b"]


def numpy_state() -> str:
    return str(np.random.get_state(legacy=False))  # noqa: NPY002  (SB3 draws from it)


def test_reproducible_and_leaves_the_global_generators_alone(model: Pretrain) -> None:
    exported = export_sb3(model, optimizer="adam", value_tasks=0, n_envs=4, n_steps=8, batch_size=16)
    tasks = model.family.tasks("test", 2)
    before = torch.get_rng_state().clone(), random.getstate(), numpy_state()
    seen: list[tuple[int, int]] = []
    first = finetune_sb3(exported.on, model.family, tasks, 96, 4, 3, progress=lambda done, of: seen.append((done, of)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == numpy_state()
    torch.rand(3)
    again = finetune_sb3(exported.on, model.family, tasks, 96, 4, 3)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert seen == [(1, 2), (2, 2)]
    other = finetune_sb3(exported.on, model.family, tasks, 96, 4, 4)
    assert not np.array_equal(first.returns, other.returns)


def test_a_rollout_must_end_an_episode(model: Pretrain) -> None:
    exported = export_sb3(model, optimizer="adam", value_tasks=0, n_envs=1, n_steps=2, batch_size=2)
    with pytest.raises(ConfigError, match="no episode ends in 2 env steps of a copy"):
        finetune_sb3(exported.on, model.family, model.family.tasks("test", 1), 8, 1)


def test_a_point_has_as_many_rollouts_as_an_inner_step_has_updates() -> None:
    model = Reptile(
        "MlpPolicy",
        "PointMass-v0",
        env_kwargs={"horizon": 10},
        learner="a2c",
        learner_kwargs={"n_steps": 5, "n_envs": 2},
        n_inner_steps=1,
        n_transitions=40,
        meta_batch_size=1,
        policy_kwargs={"net_arch": [4]},
    )
    found = finetune(model, 90, kind="a2c", optimizers=["adam"], n_tasks=1)
    (curves,) = found.exports
    assert curves.env_steps.tolist() == [0, 40]
    assert curves.returns.shape == (1, 2)


def make_curves(label: str, returns: list[list[float]], seed: int = 0) -> LearningCurves:
    array = np.array(returns)
    return LearningCurves(label, np.arange(array.shape[1]) * 100, array, {"side": np.linspace(-1, 1, len(array))}, seed)


def test_steps_saved_are_counted_to_the_other_methods_final_return() -> None:
    scratch = make_curves("scratch", [[0, 1, 2, 3, 4], [0, 0, 5, 5, 5], [0, 1, 2, 3, 9]])
    export = make_curves("export", [[3, 4, 5, 5, 5], [5, 5, 5, 5, 5], [4, 5, 6, 7, 8]])
    saved = steps_saved(export, scratch)
    np.testing.assert_array_equal(saved.by_task, [300, 200, 0])
    assert saved.not_reached == 1
    assert saved.budget == 400
    assert saved.interval.mean == pytest.approx(500 / 3)


def test_an_error_is_shown_as_what_it_is() -> None:
    error = Score("mean squared error", -1, "examples")
    a, b = (
        dataclasses.replace(make_curves(label, returns), score=error)
        for label, returns in (("export", [[-3, -1], [-3, -2]]), ("scratch", [[-9, -5], [-9, -4]]))
    )
    (table,) = Finetuning([a], [b]).tables()
    assert table.columns == ("examples", "export", "scratch", "lower by")
    assert [row[1][:4] for row in table.rows] == ["3.00", "1.50", "2.25"]
    assert [row[3][:4] for row in table.rows] == ["6.00", "3.00", "4.50"]
    assert "examples saved on the way to the final mean squared error of scratch" in str(table)
    assert "mean squared error, lower is better" in table.notes
    assert learning_table([a, b]).title == "Mean squared error while a task is learnt, 2 tasks"
    (axis,) = learning_figure([a, b]).axes
    assert axis.get_ylabel() == "mean squared error, lower is better\n(95% intervals by task)"
    assert fits(axis.yaxis.label)
    assert axis.get_xlabel() == "examples of learning, per task"
    assert list(axis.lines[0].get_ydata()) == [3.0, 1.5]
    assert a.to_dict()["score"]["sign"] == -1
    assert a.to_dict()["returns"][0] == [-3, -1]


def test_comparison_is_paired() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 50, (30, 1)) + np.arange(6)
    a = make_curves("a", (base + 2 + rng.normal(0, 1, base.shape)).tolist())
    b = make_curves("b", (base + rng.normal(0, 1, base.shape)).tolist())
    comparison = compare_curves(a, b)
    assert comparison.mean == paired_interval(a.returns.mean(1), b.returns.mean(1))
    assert comparison.points.at(3) == pytest.approx(paired_interval(a.returns[:, 3], b.returns[:, 3]))
    assert comparison.mean.low > 1.0
    with pytest.raises(ConfigError, match="tasks or seeds differ"):
        compare_curves(a, make_curves("b", base.tolist(), seed=1))
    with pytest.raises(ConfigError, match="different env steps"):
        compare_curves(a, dataclasses.replace(b, env_steps=b.env_steps + 1))


def test_a_comparison_says_the_same_as_a_table_and_as_json() -> None:
    a = make_curves("export", [[3, 4, 5, 5, 5], [5, 5, 5, 5, 5], [4, 5, 6, 7, 8]])
    b = make_curves("scratch", [[0, 1, 2, 3, 4], [0, 0, 5, 5, 5], [0, 1, 2, 3, 9]])
    comparison = compare_curves(a, b, level=0.5)
    points = [comparison.points.at(i) for i in range(5)]
    table = comparison.table(n_rows=2)
    assert table.columns == ("env steps", "export", "scratch", "difference")
    assert [row[0] for row in table.rows] == ["0", "400", "mean of all"]
    assert [row[-1] for row in table.rows] == [str(points[0]), str(points[4]), str(comparison.mean)]
    notes = " ".join(table.notes)
    assert "50% intervals" in notes
    assert "2 of 5 points" in notes
    assert f"final return of scratch: {comparison.saved.interval} of 400" in notes
    assert "1 of 3 tasks never got there" in notes
    assert comparison.to_dict() == {
        "a": "export",
        "b": "scratch",
        "level": 0.5,
        "points": [list(point) for point in points],
        "mean": list(comparison.mean),
        "steps_saved": {
            "interval": list(comparison.saved.interval),
            "by_task": [300, 200, 0],
            "not_reached": 1,
            "budget": 400,
        },
    }
    (axis,) = learning_figure([a, b], level=0.5).axes
    for line, band, curves in zip(axis.lines, axis.collections, (a, b), strict=True):
        bands = curves.bands(0.5)
        assert list(line.get_xdata()) == list(curves.env_steps)
        assert list(line.get_ydata()) == list(bands.mean)
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
        assert {*zip(a.env_steps, bands.low, strict=True), *zip(a.env_steps, bands.high, strict=True)} <= corners


def test_a_rollout_is_an_inner_steps_batch_and_adams_minibatch_a_quarter_of_it(
    model: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, tuple[int, int]] = {}

    def watched(*args: Any, **kwargs: Any) -> Any:
        sizes[kwargs["optimizer"]] = kwargs["n_steps"], kwargs["batch_size"]
        return export_sb3(*args, **kwargs)

    monkeypatch.setattr("metarl.meta.export.finetune.export_sb3", watched)
    finetune(model, 161, n_tasks=1, from_export=False)
    assert sizes == {"sgd": (8, 160), "adam": (8, 40)}


def test_curves_begin_where_adaptation_to_each_task_ends() -> None:
    sizes = {"meta_batch_size": 2, "n_support": 4, "n_query": 4, "policy_kwargs": {"net_arch": [8]}, "init": "naive"}
    model = MetaTransfer("MlpPolicy", "CosineSine-v0", encoder="mean", **sizes)
    kwargs: dict[str, Any] = {"optimizers": ["adam"], "n_tasks": 2, "n_envs": 2, "seed": 3}
    plain, seen = (finetune(model, 16, n_inner_steps=steps, **kwargs) for steps in (0, 2))
    assert [curves.label for curves in seen.curves] == [
        "PPO from meta_transfer after 2 steps, adam",
        "PPO from scratch, adam",
    ]
    assert np.array_equal(plain.scratch[0].returns, seen.scratch[0].returns)
    assert not np.array_equal(plain.exports[0].returns[:, 0], seen.exports[0].returns[:, 0])
    tasks = seen.exports[0].tasks
    reached = model.reached(tasks, 2, seed=int(seed_sequence(3, "finetune", 0).generate_state(1)[0]))
    stock = model.to_sb3(value_tasks=0, params={name: tensor[0] for name, tensor in reached.items()})
    assert torch.equal(stock.policy.state_dict()["action_net.bias"], reached["action_net.bias"][0])


def test_what_adapts_otherwise_than_by_its_tensors_starts_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^n_inner_steps=1 around 'sb3_a2c': its inner steps are what the stock"):
        finetune(Reptile("MlpPolicy", Walk(), learner="sb3_a2c", n_episodes=2), 200, kind="a2c", n_inner_steps=1)
