"""iMAML: its gradient is the implicit one, and what it costs; closed forms on a quadratic, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from metarl.agents.learners.supervised import Supervised
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Streams, finish
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.algorithms.imaml import IMAML, ImplicitDerivatives, ProximalSteps, conjugate_gradients
from metarl.meta.algorithms.maml import MAML
from metarl.meta.algorithms.meta_curvature import MetaCurvature
from metarl.meta.base import load
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.meta.progress import Timer
from metarl.params import Params, expand, meta_name, norm, subtract
from tests.meta.problems import TASKS, make_samples
from tests.meta.small import equal, run_iterations, small

LAMBDA = 0.8


def make_learner(net_arch: list[int]) -> Supervised:
    kwargs = {"net_arch": net_arch, "activation_fn": "tanh"}
    return Supervised(FunctionalPolicy("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), kwargs))


def batch(learner: Supervised, seed: int) -> Samples:
    samples = make_samples(learner.policy, seed)
    return Samples(**{**samples.present(), "advantages": None, "log_prob": None, "target": samples.actions})


def start(learner: Supervised) -> Params:
    generator = torch.Generator().manual_seed(2)
    tensors = learner.policy.init(0).items()
    return {n: t.double() + 0.3 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in tensors}


def solve(learner: Supervised, theta: Params, support: Samples, n_steps: int, rate: float) -> Params:
    """Return where inner steps lead."""
    steps = ProximalSteps(learner, LAMBDA)
    state = steps.start({name: tensor.contiguous() for name, tensor in expand(theta, TASKS).items()})
    for _ in range(n_steps):
        state = steps.update(state, support, rate, [])
    return state.params


def implicit(learner: Supervised, theta: Params, support: Samples, query: Samples, phi: Params, **how: Any) -> Params:
    meta = {meta_name(name): tensor for name, tensor in theta.items()}
    kwargs = {"reached": phi, "first_order": True, "proximal": LAMBDA, "cg_steps": 30, **how}
    found = ImplicitDerivatives(learner, meta, [support], query, InnerRule([0.1]), **kwargs).gradient()
    assert found.first_order is None
    return found.gradient


def flat(params: Params, task: int | None = None) -> torch.Tensor:
    return torch.cat([(tensor if task is None else tensor[task]).flatten() for tensor in params.values()])


def quadratic(learner: Supervised, theta: Params, support: Samples) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each task's gradient and Hessian at θ, by autograd."""
    for i in range(TASKS):
        own = support.tasks(slice(i, i + 1))

        def loss(vector: torch.Tensor, own: Samples = own) -> torch.Tensor:
            parts = torch.split(vector, [tensor.numel() for tensor in theta.values()])
            params = {n: part.view(1, *t.shape) for (n, t), part in zip(theta.items(), parts, strict=True)}
            return learner.loss(params, own).sum()

        at = flat(theta)
        yield torch.func.grad(loss)(at), torch.autograd.functional.hessian(loss, at)


def test_steps_and_gradient_converge_to_the_implicit_ones_of_a_quadratic() -> None:
    learner = make_learner([])
    theta, support, query = start(learner), batch(learner, 1), batch(learner, 9)
    # Closed forms: φ* = θ − (H + λ I)⁻¹ ∇L(θ), and ∂φ*/∂θ = (I + H/λ)⁻¹.
    expected, ends = torch.zeros(len(flat(theta)), dtype=torch.float64), []
    for i, (slope, hessian) in enumerate(quadratic(learner, theta, support)):
        eye = torch.eye(len(slope), dtype=torch.float64)
        ends.append(flat(theta) - torch.linalg.solve(hessian + LAMBDA * eye, slope))
        parts = torch.split(ends[-1], [tensor.numel() for tensor in theta.values()])
        phi = {n: part.view(1, *t.shape).requires_grad_() for (n, t), part in zip(theta.items(), parts, strict=True)}
        losses = learner.loss(phi, query.tasks(slice(i, i + 1))).sum()
        at_phi = torch.autograd.grad(losses, list(phi.values()), materialize_grads=True)
        expected += torch.linalg.solve(eye + hessian / LAMBDA, torch.cat([part.flatten() for part in at_phi]))
    errors = []
    for n_steps in (2, 10, 50, 300):
        phi = solve(learner, theta, support, n_steps, 0.1)
        errors.append(float((flat(implicit(learner, theta, support, query, phi)) - expected).norm()))
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]
    assert errors[3] < 1e-9
    for i, end in enumerate(ends):
        torch.testing.assert_close(flat(phi, i), end, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_query_loss_at_the_solution() -> None:
    learner = make_learner([4])
    theta, support, query = start(learner), batch(learner, 1), batch(learner, 9)
    gradient = implicit(learner, theta, support, query, solve(learner, theta, support, 400, 0.2))
    generator = torch.Generator().manual_seed(4)
    v = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in theta.items()}

    def value(size: float) -> float:
        moved = {name: tensor + size * v[name] for name, tensor in theta.items()}
        return float(learner.loss(solve(learner, moved, support, 400, 0.2), query).sum())

    numeric = (value(-2e-3) - 8 * value(-1e-3) + 8 * value(1e-3) - value(2e-3)) / 12e-3
    assert float(flat(gradient) @ flat(v)) == pytest.approx(numeric, rel=1e-6)


def test_it_is_maml_in_the_limit_of_short_steps() -> None:
    # One step of length α with λ = 1/α: (I + α H)⁻¹ is I − α H up to α², while FOMAML leaves α H out.
    learner = make_learner([4])
    theta, support, query = start(learner), batch(learner, 1), batch(learner, 9)
    meta = {meta_name(name): tensor for name, tensor in theta.items()}
    far, first = [], []
    for rate in (0.02, 0.01):
        maml = BlockDerivatives(learner, meta, [support], query, InnerRule([rate])).gradient()
        assert maml.first_order is not None
        phi = solve(learner, theta, support, 1, rate)
        ours = implicit(learner, theta, support, query, phi, proximal=1.0 / rate)
        far.append(norm(subtract(ours, maml.gradient)))
        first.append(norm(subtract(maml.first_order, maml.gradient)))
    assert far[0] / far[1] == pytest.approx(4.0, rel=0.1)
    assert first[0] / first[1] == pytest.approx(2.0, rel=0.1)
    assert far[0] < 0.1 * first[0]


# ---------------------------------------------------------------------------------------------------- the linear system
def test_each_task_s_system_is_solved_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    matrices = roots @ roots.mT + torch.eye(5, dtype=torch.float64)
    b = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    b[2] = 0.0

    def product(v: torch.Tensor) -> torch.Tensor:
        return (matrices @ v.unsqueeze(-1)).squeeze(-1)

    x = conjugate_gradients(product, b, 20)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b), rtol=1e-6, atol=1e-8)
    one = conjugate_gradients(product, b, 1)
    torch.testing.assert_close(one[0], b[0] * (b[0] @ b[0]) / (b[0] @ matrices[0] @ b[0]))
    # Where a matrix is not positive definite the first-order gradient is taken, and others are solved as ever.
    matrices[1] = -matrices[1]
    mixed = conjugate_gradients(product, b, 20)
    assert torch.equal(mixed[1], b[1])
    assert torch.equal(mixed[0], x[0])


def test_damping_is_added_to_the_identity() -> None:
    learner = make_learner([])
    theta, support, query = start(learner), batch(learner, 1), batch(learner, 9)
    phi = solve(learner, theta, support, 3, 0.1)
    plain, damped = (implicit(learner, theta, support, query, phi, cg_damping=damping) for damping in (0.0, 1.0))
    stiffer = implicit(learner, theta, support, query, phi, proximal=2.0 * LAMBDA)
    # (2 I + H/λ)⁻¹ = ½ (I + H/(2 λ))⁻¹.
    torch.testing.assert_close(flat(damped), 0.5 * flat(stiffer), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(flat(damped), flat(plain), rtol=0.1)


# ------------------------------------------------------------------------------------------------------- as a wrapper
SUPERVISED: dict[str, Any] = {"learner": "supervised", "n_inner_steps": 3, "inner_lr": 0.1}


def test_inner_steps_stay_near_the_start_and_nothing_of_them_is_kept() -> None:
    model, plain = small(IMAML, **SUPERVISED), small(MAML, **SUPERVISED, outer="adam")
    far, free = (norm(subtract(each.adapt("Sinusoid-v0", 30).params, each.theta)) for each in (model, plain))
    assert 0.0 < far < free
    tight = small(IMAML, **SUPERVISED, proximal=9.0)
    assert norm(subtract(tight.adapt("Sinusoid-v0", 30).params, tight.theta)) < far
    tasks, streams = model._sample_tasks(), Streams(0, "train")
    block = model._blocks(tasks, model.rates, streams, model._amount(None, None))[0]
    outcome = block.learn(model.theta, Timer(), query=True, keep=True)
    assert outcome.path is None
    assert all(batch is outcome.support[0] for batch in outcome.support)


@pytest.mark.parametrize("algorithm", [IMAML, MetaCurvature])
def test_a_walk_goes_on_from_its_state_with_the_same_bits(algorithm: Any) -> None:
    model = small(algorithm, **SUPERVISED)
    block = model._blocks(model._sample_tasks(), model.rates, Streams(0, "train"), model._amount(None, None))[0]

    def fresh() -> Any:
        return block.adaptation.walk(model.theta, block.request, query=True, keep=True)

    expected = finish(fresh(), Timer())
    for n_done in range(fresh().n_units):
        walk, again = fresh(), fresh()
        for _ in range(n_done):
            walk.work(Timer())
        again.load_state({name: tensor.clone() for name, tensor in walk.state().items()})
        found = finish(again, Timer())
        assert equal(found.params, expected.params), n_done


def test_threads_and_files_change_no_bit(tmp_path: Path) -> None:
    learnt = []
    for n_threads in (1, 3):
        model = small(IMAML, **SUPERVISED, chunk_size=1, **{"n_threads": n_threads})
        run_iterations(model, 1)
        again = load(model.save(tmp_path / "model"))
        run_iterations(again, 1)
        learnt.append(again.params)
    assert equal(*learnt)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learner": "vpg"}, "imaml around 'vpg': its gradient is at the minimum of one loss, .*'cloning' or 'superv"),
        ({"learner": "sb3_ppo"}, "imaml around 'sb3_ppo': a stock algorithm's steps cannot be differentiated"),
        (
            {"learner_kwargs": {"reuses_support": False}},
            "reuses_support=False: the gradient of imaml is",
        ),
        ({"proximal": 0.0}, "proximal=0.0 is not"),
        ({"cg_steps": 0}, "cg_steps=0 is not"),
        ({"cg_damping": -1.0}, "cg_damping=-1.0 is not"),
        ({"outer": "trpo"}, "imaml with outer='trpo': a trust region bends along the path"),
        ({"env": "PointMass-v0"}, "learner 'supervised' does not learn PointMass-v0: it takes families that declare"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        small(IMAML, **{"learner": "supervised", **kwargs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_is_not_taken_for_none(value: float) -> None:
    targets = torch.tensor([[1.0, 2.0], [value, 1.0]])
    found = conjugate_gradients(lambda vectors: 2.0 * vectors, targets, 3)
    torch.testing.assert_close(found[0], torch.tensor([0.5, 1.0]))
    alone = conjugate_gradients(lambda vectors: 2.0 * vectors, targets[1:], 3)
    assert not torch.isfinite(found[1]).all()
    assert not torch.isfinite(alone).all()
