"""Who wins: paired intervals, sentences, and how many tasks a verdict needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from metarl.envs.score import SCORES, Score
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import Interval, paired_interval
from metarl.zoo.experiments import comparison, testing
from metarl.zoo.experiments.comparison import Verdict
from metarl.zoo.experiments.jobs import jobs, load_experiment
from tests.zoo.experiments.smoke import read, reports


def test_verdicts_are_paired_intervals_and_the_oracle_stays_as_it_is(smoke: Path) -> None:
    record = read(smoke / "results")
    found = reports(record)
    labels = ["maml, last", "maml, best", "fomaml, last", "fomaml, best", "random, last", "random, best"]
    labels += ["oracle, last", "oracle, best"]
    assert sorted(found) == sorted((env, label) for env in ("AntVel-v0", "PointMass-v0") for label in labels)
    assert found["PointMass-v0", "oracle, last"].returns.shape == (2, 4, 1)
    verdicts = [item for item in record["verdicts"] if not item["cell"]]
    assert len(verdicts) == 2 * 6 * 2 * 2  # families, pairs, checkpoints, inner steps
    for item in verdicts:
        a, b = (found[item["env"], f"{algo}, {item['checkpoint']}"].returns for algo in (item["a"], item["b"]))
        step = item["step"]
        expected = paired_interval(a[..., step], b[..., 0 if item["b"] == "oracle" else step])
        np.testing.assert_allclose(item["interval"], expected, atol=2e-3)
        assert item["winner"] is None  # on four tasks nothing is clear
    pairs = {(item["a"], item["b"]) for item in verdicts}
    assert len(record["sentences"]["AntVel-v0"]) == len(pairs) == 6


@pytest.mark.parametrize("n_tasks", [19, 20])
def test_a_verdict_needs_tasks(n_tasks: int) -> None:
    rng = np.random.default_rng(0)
    items = []
    for algo, ahead in (("maml", 9.0), ("fomaml", 0.0)):
        returns = ahead + rng.standard_normal((1, n_tasks, 2))
        report = Report(algo, "PointMass-v0", "test", returns, [0, 1], {"x": np.arange(n_tasks)}, [0])
        items.append(testing.Tested(algo, "last", report, [1]))
    for verdict in comparison.verdicts(items, 1):
        assert verdict.winner == ("maml" if n_tasks == 20 else None)


def test_sentences_say_who_wins() -> None:
    ahead, behind, neither = Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(0.5, -1.0, 2.0)
    found = [
        Verdict("maml", "leap", "last", 1, ahead),
        Verdict("maml", "leap", "last", 3, behind),
        Verdict("maml", "leap", "best", 1, ahead),
        Verdict("maml", "leap", "best", 3, neither),
    ]
    assert [item.winner for item in found] == ["maml", "leap", "maml", None]
    assert [dataclasses.replace(item, supported=False).winner for item in found] == [None] * 4
    assert "supported" not in found[0].to_dict()
    (line,) = comparison.sentences([dataclasses.replace(item, supported=False) for item in found])
    assert "after 1 step too few tasks for a verdict (last and best)" in line
    # An interval is of returns: where minus an error is the return, the one that is ahead has the lower error.
    (line,) = comparison.sentences(found, Score("mean squared error", -1))
    assert "maml wins (last and best)" in line
    assert "maml below leap by: last 2.00 [1.00, 3.00]" in line
    assert comparison.sentences(found) == [
        "maml against leap: after 1 step maml wins (last and best); after 3 steps leap wins (last), no clear "
        "difference (best). maml minus leap: last 2.00 [1.00, 3.00], -2.00 [-3.00, -1.00]; best 2.00 [1.00, 3.00], "
        "0.50 [-1.00, 2.00]."
    ]
    cells = [({"n_episodes": i}, item) for i in (5, 10) for item in found]
    assert comparison.ablation_sentences(cells)[1] == (
        "Ablation, last checkpoints after 3 steps: of 2 settings maml wins 0 and leap 2; 0 show no clear difference."
    )
    assert comparison.ablation_sentences(cells[:4])[1:4:2] == [
        "Ablation, last checkpoints after 3 steps: maml against leap: leap wins.",
        "Ablation, best checkpoints after 3 steps: maml against leap: no clear difference.",
    ]


def test_what_stays_as_it_is_has_both_returns_of_imitation() -> None:
    items = []
    for algo, n_points in (("fomaml", 3), ("oracle", 1)):
        values = np.arange(20.0)[None, :, None].repeat(n_points, 2)
        report = Report(algo, "MazeImitation-v0", "test", values, range(n_points), {"x": np.arange(20)}, [0])
        items.append(testing.Tested(algo, "last", dataclasses.replace(report, learning_returns=-values), [1]))
    assert [tuple(item.interval) for item in comparison.verdicts(items, 2)] == [(0.0, 0.0, 0.0)] * 2


def test_an_ablation_shows_errors_as_errors_and_algorithms_side_by_side() -> None:
    experiment = load_experiment("sinusoid", "smoke")
    (job, *_) = [job for job in jobs(experiment) if job.cell]
    runs = []
    for algo, shift in (("leo", 0.0), ("maml", 1.0)):
        returns = -np.arange(20.0)[None, :, None].repeat(3, 2) - shift
        score = SCORES["squared_error"]
        tasks, meta = {"x": np.arange(20)}, {"num_timesteps": 1}
        report = Report(algo, "Sinusoid-v0", "test", returns, [0, 1, 2], tasks, [0], meta=meta, score=score)
        runs.append(testing.Trained(dataclasses.replace(job, algo=algo), None, {"last": report, "best": report}))
    table = comparison.ablation_table(runs, "last", 2)
    assert table.rows[0][1].startswith("9.50 [")
    assert table.notes[-1] == "mean squared error, lower is better"
    first, second = comparison.ablation_figure(runs, "last", 2).axes
    assert first.get_ylabel().startswith("mean squared error, lower is better")
    assert [text.get_text() for text in second.get_xticklabels()] == ["3"]
    points = [container.lines[0] for container in first.containers]
    assert [line.get_ydata()[0] for line in points] == pytest.approx([9.5, 10.5])
    assert points[0].get_xdata()[0] < 0 < points[1].get_xdata()[0]
    assert len({line.get_color() for line in points}) == 2
