"""Episodes as pictures: which tasks are taken, and which env steps."""

from __future__ import annotations

import numpy as np

from metarl.zoo.experiments.pictures import apart, moments


def test_tasks_that_differ_most_are_taken() -> None:
    tasks = {"a": np.array([0.0, 0.1, 1.0, 0.9]), "b": np.array([[0.0], [0.1], [0.0], [5.0]])}
    assert [float(task["a"]) for task in apart(tasks, 3)] == [0.0, 0.9, 1.0]
    assert len(apart(tasks, 9)) == 4


def test_an_episode_is_shown_by_its_ends_and_what_lies_between() -> None:
    assert moments(200, 3) == [0, 100, 200]
    assert moments(24, 1) == [24]
    assert moments(1, 6) == [0, 1]
