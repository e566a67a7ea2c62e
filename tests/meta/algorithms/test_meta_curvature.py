"""Meta-Curvature: with the identity it is MAML, and gradients of θ and of all matrices equal finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.agents.learners.vpg import VPG
from metarl.meta.algorithms.maml import MAML
from metarl.meta.algorithms.meta_curvature import CurvedRule, CurvedStep, CurvedSteps, MetaCurvature, mode_product
from metarl.meta.base import load
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.meta.outer.objective import BlockObjective
from metarl.params import RATES, Params, dot, expand, group, grouped, meta_name
from tests.agents.pictures import Pictures
from tests.meta.problems import TASKS, make_params, make_policy, make_samples
from tests.meta.small import copy, equal, run_iterations, small


def meta_params(kind: str, spread: float = 0.1) -> Params:
    theta = make_params(make_policy(kind))
    generator = torch.Generator().manual_seed(3)
    matrices = {
        f"{name}/{mode}": torch.eye(n, dtype=torch.float64)
        + spread * torch.randn(n, n, generator=generator, dtype=torch.float64)
        for name, tensor in theta.items()
        for mode, n in zip(("out", "in"), tensor.shape, strict=False)
    }
    return {meta_name(name): tensor for name, tensor in theta.items()} | grouped(matrices, RATES)


def objective(kind: str, params: Params, n_steps: int) -> BlockObjective:
    learner = CurvedSteps(VPG(make_policy(kind)))
    support = [make_samples(learner.policy, seed) for seed in range(1, n_steps + 1)]
    query = replace(make_samples(learner.policy, 99), log_prob=None)
    rule = CurvedRule([0.3, 0.2, 0.1][:n_steps])
    return BlockObjective([BlockDerivatives(learner, params, support, query, rule)])


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_meta_gradients_equal_finite_differences(kind: str, n_steps: int) -> None:
    params = meta_params(kind)
    gradient = objective(kind, params, n_steps).gradient().gradient
    assert list(gradient) == list(params)
    generator = torch.Generator().manual_seed(5)
    for part in ("policy/", RATES):
        v = {
            n: torch.randn(t.shape, generator=generator, dtype=torch.float64) * float(n.startswith(part))
            for n, t in params.items()
        }

        def value(size: float, v: Params = v) -> float:
            moved = {name: tensor + size * v[name] for name, tensor in params.items()}
            return objective(kind, params, n_steps).evaluate(moved)[0]

        numeric = (value(-2e-4) - 8 * value(-1e-4) + 8 * value(1e-4) - value(2e-4)) / 12e-4
        assert dot(gradient, v) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_curvature_is_that_of_the_divergence() -> None:
    params = meta_params("gaussian")
    own = objective("gaussian", params, 2)
    generator = torch.Generator().manual_seed(7)
    v = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in params.items()}
    kl = [own.evaluate({n: t + k * 1e-3 * v[n] for n, t in params.items()})[1] for k in (-2, -1, 0, 1, 2)]
    numeric = (-kl[0] + 16 * kl[1] - 30 * kl[2] + 16 * kl[3] - kl[4]) / 12e-6
    assert dot(own.curvature_product(v), v) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("learner", ["supervised", "vpg"])
def test_with_the_identity_it_is_maml(learner: str) -> None:
    sizes: dict[str, Any] = {"learner": learner, "outer": "sgd", "n_inner_steps": 2}
    ours, theirs = small(MetaCurvature, **sizes), small(MAML, **sizes)
    env = ours.family.id
    assert equal(ours.adapt(env, 2).params, theirs.adapt(env, 2).params)
    ours.train(), theirs.train()
    for name, tensor in theirs.params.items():
        torch.testing.assert_close(ours.params[name], tensor, rtol=1e-6, atol=1e-8)
    moved = group(ours.params, RATES)
    assert all(
        not torch.equal(matrix, torch.eye(len(matrix))) for name, matrix in moved.items() if "log_std" not in name
    )


def test_a_convolution_has_a_matrix_for_outputs_inputs_and_places() -> None:
    shape = (TASKS, 4, 2, 3, 3)
    generator = torch.Generator().manual_seed(1)
    g, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    matrices = {
        f"w/{mode}": torch.randn(n, n, generator=generator, dtype=torch.float64)
        for mode, n in (("out", 4), ("in", 2), ("filter", 9))
    }
    curved = CurvedStep._multiplied({"w": g}, matrices)["w"]
    out, into, places = matrices.values()
    expected = torch.einsum("ao,bi,cf,toif->tabc", out, into, places, g.flatten(3)).view(shape)
    torch.testing.assert_close(curved, expected)
    back = CurvedStep._multiplied({"w": c}, {name: matrix.T for name, matrix in matrices.items()})["w"]
    assert float((c * curved).sum()) == pytest.approx(float((back * g).sum()))
    torch.testing.assert_close(mode_product(g, into, 2), torch.einsum("bi,toixy->tobxy", into, g))

    step = CurvedStep.__new__(CurvedStep)
    step._rate, step.gradient = {"w": torch.tensor(0.5), **matrices}, {"w": g}
    slopes = step.rate_gradient({"w": c})
    tangents = {name: torch.randn(m.shape, generator=generator, dtype=torch.float64) for name, m in matrices.items()}
    moved = step._moved_by(tangents)["w"]
    assert sum(float((slopes[n] * t).sum()) for n, t in tangents.items()) == pytest.approx(-float((c * moved).sum()))


def test_steps_of_learners_are_those_that_are_differentiated() -> None:
    params = meta_params("gaussian")
    learner, rule = CurvedSteps(VPG(make_policy("gaussian"))), CurvedRule([0.3])
    start = {name: tensor.contiguous() for name, tensor in expand(rule.start(params), TASKS).items()}
    samples, rate = make_samples(learner.policy, 1), rule.steps(params)[0]
    end = learner.update(learner.start(start), samples, rate, []).params
    assert equal(end, CurvedStep(learner, start, samples, rate).end)


def test_it_learns_from_images_and_is_saved(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"features_extractor_kwargs": {"n_filters": 4}}
    sizes: dict[str, Any] = {"policy_kwargs": kwargs, "meta_batch_size": 2, "n_episodes": 3, "outer": "adam"}
    model = MetaCurvature("FewShotCnnPolicy", Pictures(), **sizes, n_threads=1)
    before = copy(model.params)
    filters = [name for name in before if name.endswith("/filter")]
    assert {before[name].shape for name in filters} == {(9, 9)}
    run_iterations(model, 1)
    assert all(not torch.equal(before[name], model.params[name]) for name in filters)
    again = load(model.save(tmp_path / "model"), env=Pictures())
    run_iterations(model, 1), run_iterations(again, 1)
    assert equal(again.params, model.params)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.agents.learners.descent.SMALL_BYTES", 0)
    monkeypatch.setattr("metarl.agents.learners.descent.BLOCK_TASKS", 2)
    learnt = []
    for n_threads in (1, 3):
        model = small(MetaCurvature, n_inner_steps=2, chunk_size=1, **{"n_threads": n_threads})
        run_iterations(model, 2)
        learnt.append(model.params)
    assert equal(*learnt)
