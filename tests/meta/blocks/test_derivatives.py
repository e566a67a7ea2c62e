"""Derivatives of blocks whose tasks have tensors of their own, tensors that stay, and rates that are meta-learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.meta.outer.objective import BlockObjective
from metarl.params import POLICY, RATES, Params, dot, group, grouped
from tests.meta.problems import TASKS, make_learner, make_params, make_samples

HEAD = ("action_net.weight", "action_net.bias")


def objective(
    stays: tuple[str, ...], has_rates: bool, has_local: bool, surrogate: str = "likelihood_ratio"
) -> tuple[BlockObjective, Params]:
    """Return the meta-objective of a block in float64, and its meta-parameters."""
    learner = make_learner("gaussian", surrogate)
    theta = make_params(learner.policy)
    local: Params = {}
    if has_local:
        fresh = [make_params(learner.policy, seed) for seed in range(TASKS)]
        local = {name: torch.stack([each[name] for each in fresh]) for name in HEAD}
        theta = {name: tensor for name, tensor in theta.items() if name not in HEAD}
    meta = grouped(theta, POLICY)
    if has_rates:
        meta |= grouped({n: 0.2 + 0.1 * t.cos() for n, t in theta.items() if n not in stays}, RATES)
    rule = InnerRule((0.3, 0.15), frozenset(stays), 0.3, tuple(local))
    support = [make_samples(learner.policy, seed) for seed in (1, 2)]
    query = replace(make_samples(learner.policy, 99), log_prob=None)
    return BlockObjective([BlockDerivatives(learner, meta, support, query, rule, local=local, chunk_size=2)]), meta


CASES = [
    ((), False, True),
    ((), True, True),
    (("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"), False, True),
    (("mlp_extractor.policy_net.0.weight", "log_std"), True, True),
    (HEAD, False, True),
    (HEAD, True, False),
]


@pytest.mark.parametrize(("stays", "has_rates", "has_local"), CASES)
def test_gradient_and_curvature_equal_finite_differences(
    stays: tuple[str, ...], has_rates: bool, has_local: bool
) -> None:
    block, meta = objective(stays, has_rates, has_local)
    generator = torch.Generator().manual_seed(4)
    vector = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in meta.items()}
    found, curved = block.gradient(), dot(block.curvature_product(vector), vector)
    assert list(found.gradient) == list(meta)

    def at(eps: float) -> tuple[float, float]:
        return block.evaluate({name: tensor + eps * vector[name] for name, tensor in meta.items()})

    eps = 1e-4
    assert at(0.0) == pytest.approx((found.loss, 0.0), rel=1e-12, abs=1e-14)
    slope = (8.0 * (at(eps)[0] - at(-eps)[0]) - (at(2 * eps)[0] - at(-2 * eps)[0])) / (12.0 * eps)
    assert dot(found.gradient, vector) == pytest.approx(slope, rel=1e-6)
    # The divergence is ½ ε² vᵀ F v + O(ε³).
    assert curved == pytest.approx((at(eps)[1] + at(-eps)[1]) / eps**2, rel=1e-4)
    assert curved > 0.0
    if has_rates:
        assert all(bool(tensor.any()) for tensor in group(found.gradient, RATES).values())


def test_own_tensors_go_down_with_the_plain_rate_unless_they_stay() -> None:
    meta: Params = {"policy/body": torch.ones(2), "policy/other": torch.ones(1), "rates/body": torch.full((2,), 0.6)}
    (first, second) = InnerRule((0.3, 0.1), frozenset({"bias"}), 0.3, ("head", "bias")).steps(meta)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert list(first) == ["body", "other", "head", "bias"]
    torch.testing.assert_close(second["body"], torch.full((2,), 0.2))
    assert (float(first["head"]), float(second["head"]), float(first["bias"])) == (0.3, 0.1, 0.0)
    assert float(first["other"]) == 0.0
