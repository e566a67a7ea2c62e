"""What families call their returns."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.envs import Oracle, Score, make_family
from metarl.envs.family import evaluation_score, score_of
from metarl.envs.score import RETURN, SCORES, common_score, fixed
from metarl.envs.tasks import describe_task
from metarl.errors import ConfigError
from metarl.meta.algorithms.maml import MAML
from tests.envs.families import Sound
from tests.envs.supervised.test_one_step import Halves

ERROR = Score("mean squared error", -1, "examples")


class Far(Sound):
    """Its return is minus a distance."""

    score = Score("distance", sign=-1)


@pytest.mark.parametrize(
    ("env", "own", "shown"),
    [
        ("PointMass-v0", RETURN, RETURN),
        ("Sinusoid-v0", ERROR, ERROR),
        ("PointMassImitation-v0", Score(ERROR.name, -1, "expert's states"), Score(budget="expert's states")),
        ("MazeImitation-v0", Score("accuracy", 1, "expert's states"), Score(budget="expert's states")),
    ],
)
def test_a_family_says_what_its_returns_are(env: str, own: Score, shown: Score) -> None:
    for family in (make_family(env), make_family(env, oracle=True)):
        assert (score_of(family), evaluation_score(family)) == (own, shown)


def test_a_loss_says_it_and_a_class_may_overrule_it() -> None:
    assert score_of(Halves()) == Score("accuracy", 1, "examples")
    assert score_of(Oracle(Far())) == evaluation_score(Oracle(Far())) == Score("distance", -1)
    report = MAML("MlpPolicy", Far(), meta_batch_size=2, n_episodes=2).evaluate("test", 1, n_tasks=2)
    assert report.table().columns == ("inner steps", "env steps", "distance", "reduction")


def test_what_is_no_score_is_refused() -> None:
    class Wrong(Sound):
        score = "distance"

    with pytest.raises(ConfigError, match="score is a str, not None or a Score"):
        MAML("MlpPolicy", Wrong())
    for words in ({"name": ""}, {"budget": ""}, {"sign": 0}, {"name": 3}):
        with pytest.raises(ConfigError, match=f"{next(iter(words))}=.* of a Score"):
            Score(**words)


def test_unlike_scores_are_shown_as_returns() -> None:
    assert common_score([ERROR, ERROR]) == ERROR
    assert common_score([ERROR, RETURN]) == common_score([Score("distance", -1), ERROR]) == RETURN


def test_a_change_is_shown_under_its_name_and_sign() -> None:
    assert RETURN.change(-5.25, 1.0) == "return -5.25 → 1.00"
    assert ERROR.change(-3.0, -0.125) == "mean squared error 3.00 → 0.12"
    assert ERROR.change(-1.0, 0.0) == "mean squared error 1.00 → 0.00"


def test_what_is_spent_is_said_by_its_unit() -> None:
    assert RETURN.amount(1_000_000) == "1,000,000 env steps"
    assert SCORES["squared_error"].amount(6_000_000) == "6,000,000 examples"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-0.001, 2, "0.00"),
        (-0.0, 1, "0.0"),
        (-0.006, 2, "-0.01"),
        (1234.5, 1, "1234.5"),
        (np.float64(-1e-9), 3, "0.000"),
    ],
)
def test_a_rounded_zero_has_no_minus(value: float, digits: int, text: str) -> None:
    assert fixed(value, digits) == text


def test_a_task_is_described_in_few_digits() -> None:
    task = {"obstacles": np.array([1, 0]), "goal": np.array([-0.001, 0.456]), "speed": np.float64(2.0)}
    assert describe_task(task) == "obstacles [1, 0], goal [0.0, 0.46], speed 2.0"
