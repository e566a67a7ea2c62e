"""PPO against SB3's own ``train()``, on the same episodes in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import stable_baselines3 as sb3
import torch

from metarl.agents.learners.actor_critic import ActorCriticSamples
from metarl.agents.learners.ppo import PPO
from metarl.streams import seed_sequence
from tests.agents.sb3_twin import Twin, learn_beside, make_policy, stack

# 21 and 13 samples: minibatches of 8 leave a smaller last one, and one task has fewer of them.
LENGTHS = [(3, 7, 5, 6), (7, 4, 2)]
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tight": {"clip_range": 0.02, "clip_range_vf": 0.03, "max_grad_norm": 0.05},
    "raw": {"normalize_advantage": False, "ent_coef": 0.05, "vf_coef": 0.8, "gamma": 0.9, "gae_lambda": 0.7},
    "stops": {"target_kl": 0.02, "clip_range": 0.5},
    "whole": {"batch_size": 64},
    # Both tasks have a last minibatch of one sample.
    "single": {"batch_size": 4, "normalize_advantage": False},
}


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("case", CASES)
def test_two_updates_equal_sb3s(kind: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"n_epochs": 4, "batch_size": 8, **CASES[case]}
    rate = 3e-2 if case == "stops" else 5e-3
    twins = [Twin(sb3.PPO, kind, n, seed, learning_rate=rate, **options) for seed, n in enumerate(LENGTHS)]
    state = learn_beside(PPO(make_policy(kind), **options), twins, rate, monkeypatch, "exp_avg_sq")
    steps = state.optimizer["step"].tolist()
    assert steps == {"whole": [8, 8], "single": [48, 32]}.get(case, [24, 16]) or case == "stops"
    assert case != "stops" or (2 < steps[0] < 24 and 2 < steps[1] < 16)


def test_a_minibatch_of_one_keeps_the_advantage_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SB3 takes it raw, on another scale than all the others of the epoch."""
    seen: list[torch.Tensor] = []

    class Watched(PPO):
        def actor_loss(self, log_prob: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
            seen.append(samples.advantages)
            return super().actor_loss(log_prob, samples)

    twin = Twin(sb3.PPO, "gaussian", (5, 4), 0, n_epochs=1, batch_size=8)
    learner = Watched(make_policy("gaussian"), n_epochs=1, batch_size=8)
    params = stack([twin.params])
    samples = learner.process(twin.learn(monkeypatch, seed_sequence(0, "order")), params)
    learner.update(learner.start(params), samples, 3e-4, [seed_sequence(0, "order")])
    assert [len(advantages[0]) for advantages in seen] == [8, 1]
    assert float(seen[0].mean()) == pytest.approx(0.0, abs=1e-6)
    assert (samples.advantages == seen[1]).any()
