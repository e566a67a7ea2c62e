"""Intervals: coverage on simulated data, closed forms, strata, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.errors import ConfigError
from metarl.meta.evaluation import statistics
from metarl.meta.evaluation.statistics import Interval, bootstrap_bands, bootstrap_interval, paired_interval

N_SETS = 300


def covers(interval: statistics.Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def clustered(rng: np.random.Generator, n_tasks: int = 40, n_episodes: int = 20) -> np.ndarray:
    """Episode returns ``[task, episode]`` of mean 0: tasks differ more than the episodes of one task."""
    return rng.normal(0.0, 3.0, (n_tasks, 1)) + rng.normal(0.0, 2.0, (n_tasks, n_episodes))


def test_coverage_with_the_task_as_unit() -> None:
    rng = np.random.default_rng(0)
    hits = sum(covers(bootstrap_interval(clustered(rng).mean(1), n_resamples=600, rng=rng), 0.0) for _ in range(N_SETS))
    assert 0.90 <= hits / N_SETS <= 0.98


def test_pooled_episodes_are_too_narrow() -> None:
    rng = np.random.default_rng(1)
    hits, ratios = 0, []
    for _ in range(60):
        episodes = clustered(rng)
        by_task = bootstrap_interval(episodes.mean(1), n_resamples=400, rng=rng)
        pooled = bootstrap_interval(episodes.ravel(), n_resamples=400, rng=rng)
        hits += covers(pooled, 0.0)
        ratios.append((pooled.high - pooled.low) / (by_task.high - by_task.low))
    assert hits / 60 < 0.7
    assert np.mean(ratios) < 0.5


def test_coverage_with_runs_and_shared_tasks() -> None:
    """Eight runs with effects of their own on shared tasks: a task-only interval would miss the runs."""
    rng = np.random.default_rng(2)
    both = tasks_only = 0
    for _ in range(N_SETS):
        values = rng.normal(0, 1.5, (8, 1)) + rng.normal(0, 3.0, (1, 40)) + rng.normal(0, 0.5, (8, 40))
        both += covers(bootstrap_interval(values, n_resamples=600, rng=rng), 0.0)
        tasks_only += covers(bootstrap_interval(values.mean(0), n_resamples=600, rng=rng), 0.0)
    assert 0.90 <= both / N_SETS <= 0.98
    assert tasks_only < both


def test_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    interval = bootstrap_interval(values, n_resamples=40_000)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.04 * half)


def test_variance_of_few_runs_is_unbiased() -> None:
    """Three runs that all tasks agree on: the resampled mean has variance s²/3 exactly, not 2/3 of it."""
    runs = np.array([0.0, 1.0, 5.0])
    weights = statistics._weights(np.random.default_rng(4), 200_000, 3)
    assert (weights @ runs).var() == pytest.approx(runs.var(ddof=1) / 3, rel=0.02)


def test_strata_take_the_difference_between_tasks_out() -> None:
    rng = np.random.default_rng(5)
    strata = np.repeat([0, 1], 20)
    values = np.where(strata == 0, -100.0, 100.0) + rng.normal(0, 1.0, 40)
    stratified = bootstrap_interval(values, strata=strata)
    half = 1.96 * np.sqrt(sum(values[strata == s].var(ddof=1) / 20 for s in (0, 1))) / 2
    assert (stratified.high - stratified.low) / 2 == pytest.approx(half, rel=0.05)
    plain = bootstrap_interval(values)
    assert plain.high - plain.low > 20 * (stratified.high - stratified.low)


def test_unequal_strata_keep_their_weight() -> None:
    values = np.array([0.0, 0.0, 0.0, 8.0])
    interval = bootstrap_interval(values, strata=np.array([0, 0, 0, 1]))
    assert interval == (2.0, 2.0, 2.0)


def test_pairing_removes_what_tasks_share() -> None:
    rng = np.random.default_rng(6)
    tasks = rng.normal(0, 50.0, 40)
    a, b = tasks + 1.0 + rng.normal(0, 1.0, (3, 40)), tasks + rng.normal(0, 1.0, (2, 40))
    paired = paired_interval(a, b)
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    assert paired.low > 0.0
    assert paired.excludes_zero
    unpaired = bootstrap_interval(a)
    assert unpaired.high - unpaired.low > 10 * (paired.high - paired.low)


def test_paired_coverage() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(N_SETS):
        tasks = rng.normal(0, 20.0, 20)
        a, b = tasks + 2.0 + rng.normal(0, 3.0, 20), tasks + rng.normal(0, 3.0, 20)
        hits += covers(paired_interval(a, b, n_resamples=600, rng=rng), 2.0)
    assert 0.90 <= hits / N_SETS <= 0.98


def test_deterministic_and_independent_of_the_order_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(8).normal(size=(2, 30, 4))
    first, second = bootstrap_bands(values, n_resamples=500), bootstrap_bands(values, n_resamples=500)
    np.testing.assert_array_equal(first.low, second.low)
    turned = bootstrap_bands(values[..., ::-1], n_resamples=500)
    np.testing.assert_allclose(turned.low[::-1], first.low, rtol=1e-12)
    other = bootstrap_bands(values, n_resamples=500, rng=np.random.default_rng(1))
    assert not np.array_equal(first.low, other.low)
    # Smaller chunks are another order of draws, with the same distribution.
    monkeypatch.setattr(statistics, "CHUNK", 1200)
    chunked = bootstrap_bands(values, n_resamples=20_000)
    np.testing.assert_allclose(chunked.low, bootstrap_bands(values, n_resamples=20_000).low, atol=0.02)
    np.testing.assert_allclose(chunked.mean, first.mean)


def test_the_numbers_of_recorded_results_stay() -> None:
    """Pinned at version 0.1.0: intervals in ``benchmarks/results`` come from the same draws."""
    values = np.add.outer(np.arange(3.0) ** 2, np.sqrt(np.arange(40.0)))
    plain, paired = bootstrap_interval(values), paired_interval(values, np.cos(values[:2]))
    stratified = bootstrap_interval(values, strata=np.arange(40) % 4)
    assert plain == pytest.approx((5.798947483770763, 3.93849590254985, 8.318565086691809), rel=1e-13)
    assert paired == pytest.approx((5.653749074488067, 3.812166267314237, 8.172930908665888), rel=1e-13)
    assert stratified == pytest.approx((5.798947483770763, 3.9307593782565267, 8.332595711764144), rel=1e-13)


def test_many_tasks_are_drawn_with_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(9).normal(5.0, 2.0, statistics.MANY + 100)
    interval = bootstrap_interval(values)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)
    # Five units, where drawing one too few or too many would show.
    monkeypatch.setattr(statistics, "MANY", 1)
    few = np.array([0.0, 1.0, 5.0, 2.0, 4.0])
    weights = statistics._weights(np.random.default_rng(4), 200_000, len(few))
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(weights.mean(0), 0.2, atol=0.002)
    assert (weights @ few).var() == pytest.approx(few.var(ddof=1) / 5, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(np.array([1.0, np.nan])), "nan at run 0, task 1"),
        (lambda: bootstrap_interval(np.zeros((2, 2, 2))), r"shape \(2, 2, 2\)"),
        (lambda: bootstrap_interval(np.zeros(0)), "none of them empty"),
        (lambda: bootstrap_interval(np.zeros(3), level=95), "level=95"),
        (lambda: bootstrap_interval(np.zeros(3), n_resamples=0), "n_resamples=0"),
        (lambda: bootstrap_interval(np.zeros(3), strata=np.zeros(2)), "each of the 3 tasks"),
        (lambda: paired_interval(np.zeros(3), np.zeros(4)), "same tasks"),
    ],
)
def test_bad_input_is_one_line(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_an_interval_around_zero_is_shown_without_a_minus_before_it() -> None:
    assert str(Interval(-0.001, -0.004, 0.002)) == "0.00 [0.00, 0.00]"
    assert str(Interval(-0.001, -0.001, -0.001)) == "0.00"
    assert str(Interval(-123.04, -200.0, -0.04)) == "-123.0 [-200.0, 0.0]"
