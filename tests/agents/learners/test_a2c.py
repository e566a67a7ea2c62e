"""A2C against SB3's own ``train()``, on the same episodes."""

from __future__ import annotations

from typing import Any

import pytest
import stable_baselines3 as sb3

from metarl.agents.learners.a2c import A2C
from tests.agents.sb3_twin import Twin, learn_beside, make_policy

LENGTHS = [(3, 7, 5, 6), (7, 4, 2)]
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "clipped": {"max_grad_norm": 0.02, "ent_coef": 0.1, "vf_coef": 0.25},
    "normalized": {"normalize_advantage": True, "gae_lambda": 0.9, "max_grad_norm": 100.0},
}


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_two_updates_equal_sb3s(kind: str, case: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = {"learning_rate": 1e-2, "use_rms_prop": optimizer == "rmsprop", **CASES[case]}
    twins = [Twin(sb3.A2C, kind, lengths, seed, **stock) for seed, lengths in enumerate(LENGTHS)]
    learner = A2C(make_policy(kind), optimizer=optimizer, **CASES[case])
    learn_beside(learner, twins, 1e-2, monkeypatch, {"rmsprop": "square_avg", "adam": "exp_avg_sq"}[optimizer])
