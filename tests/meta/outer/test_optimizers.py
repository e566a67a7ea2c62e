"""Outer optimisers on objectives with known answers."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import pytest
import torch

from metarl.errors import ConfigError, MetaRLError, MetaRLWarning, NonFiniteError, UnknownNameError
from metarl.meta.algorithms.maml import PATIENCE
from metarl.meta.outer import base
from metarl.meta.outer.adam import Adam
from metarl.meta.outer.base import Outer, OuterStep, make_outer, register_outer
from metarl.meta.outer.objective import MetaGradient, MetaObjective
from metarl.meta.outer.sgd import SGD
from metarl.meta.outer.trust_region import SMALLEST_KL, TrustRegion, conjugate_gradient
from metarl.params import Params, dot, norm
from metarl.registry import Registry
from tests.meta.problems import local_objective
from tests.meta.small import copy, equal, run_iterations, small


def flat(params: Params) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def named(vector: torch.Tensor) -> Params:
    return {"policy/a": vector[:6].reshape(2, 3).clone(), "policy/b": vector[6:].clone()}


class Quadratic:
    """Loss ``gᵀ d`` (plus ``½ dᵀ H d``) and KL ``½ dᵀ A d`` with ``d = θ − θ₀``: everything has a closed form."""

    def __init__(self, theta: Params, hessian: float = 0.0, kl_factor: float = 1.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(10, 10, generator=generator, dtype=torch.float64)
        self.a = root @ root.T / 10 + torch.diag(torch.linspace(0.5, 2.0, 10, dtype=torch.float64))
        self.g = torch.randn(10, generator=generator, dtype=torch.float64)
        self.theta = flat(theta).clone()
        self.hessian, self.kl_factor = hessian, kl_factor
        self.tried: list[torch.Tensor] = []

    def gradient(self) -> MetaGradient:
        return MetaGradient(1.5, named(self.g), None)

    def curvature_product(self, vector: Params) -> Params:
        return named(self.a @ flat(vector))

    def evaluate(self, params: Params) -> tuple[float, float]:
        d = flat(params) - self.theta
        self.tried.append(d)
        loss = 1.5 + float(self.g @ d) + 0.5 * self.hessian * float(d @ d)
        return loss, self.kl_factor * 0.5 * float(d @ self.a @ d)


def start(seed: int = 3) -> Params:
    return named(torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_conjugate_gradient_solves_a_linear_system() -> None:
    problem = Quadratic(start())
    x, ax = conjugate_gradient(problem.curvature_product, named(problem.g), 10)
    expected = torch.linalg.solve(problem.a, problem.g)
    torch.testing.assert_close(flat(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flat(ax), problem.a @ flat(x), rtol=1e-9, atol=1e-10)
    # Fewer steps minimise the quadratic over their Krylov space, and A x is kept up to date without a further product.
    calls: list[int] = []

    def counted(vector: Params) -> Params:
        calls.append(1)
        return problem.curvature_product(vector)

    x, ax = conjugate_gradient(counted, named(problem.g), 3)
    assert len(calls) == 3
    basis = torch.stack([problem.g, problem.a @ problem.g, problem.a @ problem.a @ problem.g], 1)
    best = basis @ torch.linalg.solve(basis.T @ problem.a @ basis, basis.T @ problem.g)
    torch.testing.assert_close(flat(x), best, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(flat(ax), problem.a @ flat(x), rtol=1e-9, atol=1e-10)


def test_conjugate_gradient_of_nothing_and_of_negative_curvature() -> None:
    zero = named(torch.zeros(10, dtype=torch.float64))
    x, ax = conjugate_gradient(lambda v: v, zero, 10)
    assert norm(x) == norm(ax) == 0.0
    target = named(torch.ones(10, dtype=torch.float64))
    x, _ = conjugate_gradient(lambda v: {n: -t for n, t in v.items()}, target, 10)
    assert norm(x) == 0.0


@pytest.mark.parametrize("max_kl", [0.01, 0.3])
def test_the_trust_region_takes_the_natural_gradient_to_its_boundary(max_kl: float) -> None:
    theta = start()
    # The exact step ends on the boundary, where rounding would decide: a KL a trifle smaller is accepted at once.
    problem = Quadratic(theta, kl_factor=1.0 - 1e-9)
    step = TrustRegion(max_kl=max_kl, cg_steps=20, cg_damping=0.0).step(problem, theta)
    solved = torch.linalg.solve(problem.a, problem.g)
    length = math.sqrt(2.0 * max_kl / float(problem.g @ solved))
    torch.testing.assert_close(flat(step.params) - flat(theta), -length * solved, rtol=1e-5, atol=1e-7)
    assert step.stats["train/kl_divergence_loss"] == pytest.approx(max_kl, rel=1e-6)
    assert step.stats["train/is_line_search_success"] == 1.0
    assert step.stats["train/line_search_steps"] == 1.0
    assert step.stats["meta/meta_loss"] == 1.5
    assert step.stats["meta/meta_grad_norm"] == pytest.approx(float(problem.g.norm()))
    assert step.stats["train/policy_objective"] == pytest.approx(
        -1.5 + math.sqrt(2 * max_kl * float(problem.g @ solved))
    )


def test_damping_is_added_to_the_curvature() -> None:
    theta = start()
    problem = Quadratic(theta, kl_factor=0.5)
    step = TrustRegion(max_kl=0.1, cg_steps=20, cg_damping=0.7).step(problem, theta)
    solved = torch.linalg.solve(problem.a + 0.7 * torch.eye(10, dtype=torch.float64), problem.g)
    length = math.sqrt(0.2 / float(problem.g @ solved))
    torch.testing.assert_close(flat(step.params) - flat(theta), -length * solved, rtol=1e-5, atol=1e-7)


def test_the_line_search_shrinks_until_the_kl_is_within_bounds() -> None:
    theta = start()
    problem = Quadratic(theta, kl_factor=3.0)
    step = TrustRegion(max_kl=0.1, cg_steps=20, cg_damping=0.0, line_search_shrink=0.8).step(problem, theta)
    attempts = len(problem.tried)
    assert attempts == math.floor(math.log(math.sqrt(1 / 3), 0.8)) + 2
    assert step.stats["train/line_search_steps"] == attempts
    assert step.stats["train/kl_divergence_loss"] <= 0.1 < step.stats["train/kl_divergence_loss"] / 0.64
    for i, d in enumerate(problem.tried):
        torch.testing.assert_close(d, problem.tried[0] * 0.8**i, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(step.params) - flat(theta), problem.tried[-1])


def test_the_line_search_shrinks_until_the_loss_falls() -> None:
    theta = start()
    problem = Quadratic(theta, hessian=60.0, kl_factor=1e-3)
    step = TrustRegion(max_kl=0.5, cg_steps=20, cg_damping=0.0, min_kl_share=0.0).step(problem, theta)
    assert step.stats["train/is_line_search_success"] == 1.0
    assert step.stats["train/line_search_steps"] > 1
    losses = [problem.evaluate(named(problem.theta + d))[0] for d in list(problem.tried)]
    assert all(loss >= 1.5 for loss in losses[:-1])
    assert losses[-1] < 1.5
    assert step.stats["train/policy_objective"] == pytest.approx(-losses[-1])


@pytest.mark.parametrize(("share", "tried"), [(0.25, 5), (0.9, 2), (0.0, 15)])
def test_a_direction_along_which_the_loss_does_not_fall_is_given_up(share: float, tried: int) -> None:
    theta = start()
    problem = Quadratic(theta, hessian=1e6)
    step = TrustRegion(max_kl=0.1, cg_steps=20, cg_damping=0.0, min_kl_share=share).step(problem, theta)
    assert len(problem.tried) == step.stats["train/line_search_steps"] == tried
    assert step.stats["train/is_line_search_success"] == 0.0
    assert step.params is theta


def test_a_step_however_short_on_which_the_loss_falls_is_taken() -> None:
    theta = start()
    problem = Quadratic(theta, kl_factor=1e-3)
    step = TrustRegion(max_kl=0.1, cg_steps=20, cg_damping=0.0, min_kl_share=0.9).step(problem, theta)
    assert step.stats["train/is_line_search_success"] == 1.0
    assert step.stats["train/kl_divergence_loss"] < 0.001


class Broken(Quadratic):
    """An objective whose evaluation or curvature is not what it should be."""

    def __init__(self, theta: Params, answer: tuple[float, float] | None, curvature: float = 1.0) -> None:
        super().__init__(theta)
        self.answer, self.curvature = answer, curvature

    def evaluate(self, params: Params) -> tuple[float, float]:
        value = super().evaluate(params)
        return value if self.answer is None else self.answer

    def curvature_product(self, vector: Params) -> Params:
        return {name: self.curvature * tensor for name, tensor in super().curvature_product(vector).items()}


@pytest.mark.parametrize(
    ("answer", "curvature", "tried"),
    [
        ((1.5, 0.0025), 1.0, 4),  # no better
        ((1.5, 0.0024), 1.0, 1),  # and too near for that to matter
        ((0.0, 0.0101), 1.0, 4),  # too far
        ((float("nan"), 0.01), 1.0, 4),
        ((0.0, float("nan")), 1.0, 4),
        ((0.0, float("inf")), 1.0, 4),
        (None, -1.0, 0),  # no descent direction
        (None, float("nan"), 0),
        (None, float("inf"), 0),
    ],
)
def test_where_no_step_is_accepted_the_parameters_stay(
    answer: tuple[float, float] | None, curvature: float, tried: int
) -> None:
    theta = start()
    before = {name: tensor.clone() for name, tensor in theta.items()}
    problem = Broken(theta, answer, curvature)
    step = TrustRegion(max_kl=0.01, line_search_steps=4).step(problem, theta)
    assert len(problem.tried) == tried
    assert step.stats["train/is_line_search_success"] == 0.0
    assert step.stats["train/line_search_steps"] == tried
    assert step.stats["train/kl_divergence_loss"] == 0.0
    assert step.stats["train/policy_objective"] == -1.5
    for name, tensor in step.params.items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(theta[name], before[name])


@pytest.mark.parametrize("outer", ["trpo", "adam", "sgd"])
def test_a_gradient_that_is_not_finite_is_named(outer: str) -> None:
    theta = start()
    problem = Quadratic(theta)
    problem.g[7] = float("nan")
    optimizer = make_outer(outer)
    with pytest.raises(NonFiniteError, match="meta-gradient in policy/b"):
        optimizer.step(problem, theta)
    assert not optimizer.state() or int(optimizer.state()["count"]) == 0


class Drifting(Quadratic):
    """A gradient that changes from step to step."""

    def gradient(self) -> MetaGradient:
        self.g = self.g.roll(1) * 1.1 - 0.3
        return super().gradient()


@pytest.mark.parametrize(("name", "max_norm"), list(itertools.product(("adam", "sgd"), (None, 0.5))))
def test_first_order_optimisers_equal_torchs(name: str, max_norm: float | None) -> None:
    kwargs: dict[str, Any] = {"learning_rate": 0.05, "max_grad_norm": max_norm}
    if name == "adam":
        kwargs |= {"beta1": 0.8, "beta2": 0.95, "eps": 1e-4}
    ours, theta = make_outer(name, kwargs), start()
    leaf = flat(theta).clone().requires_grad_()
    theirs: torch.optim.Optimizer
    if name == "adam":
        theirs = torch.optim.Adam([leaf], lr=0.05, betas=(0.8, 0.95), eps=1e-4)
    else:
        theirs = torch.optim.SGD([leaf], lr=0.05)
    problem, twin = Drifting(theta), Drifting(theta)
    for _ in range(10):
        step = ours.step(problem, theta)
        theta = step.params
        leaf.grad = flat(twin.gradient().gradient)
        assert step.stats["meta/meta_grad_norm"] == pytest.approx(float(leaf.grad.norm()))
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([leaf], max_norm)
        theirs.step()
        # torch adds 1e-6 to the norm it divides by.
        torch.testing.assert_close(flat(theta), leaf.detach(), rtol=1e-5 if max_norm else 1e-12, atol=1e-6)


def test_gradients_within_the_norm_are_left_alone() -> None:
    theta = start()
    problem = Quadratic(theta)
    step = SGD(learning_rate=1.0, max_grad_norm=100.0).step(problem, theta)
    torch.testing.assert_close(flat(theta) - flat(step.params), problem.g)


@pytest.mark.parametrize("outer", [SGD, Adam])
@pytest.mark.parametrize("final", [0, 0.05])
def test_step_sizes_fall_linearly_over_training(outer: type[SGD], final: float) -> None:
    theta = start()
    for remaining in (1.0, 0.6, 0.25):
        rate = final + (0.2 - final) * remaining
        annealed = outer(learning_rate=0.2, final_learning_rate=final).step(Quadratic(theta), theta, remaining)
        constant = outer(learning_rate=rate).step(Quadratic(theta), theta, 0.5)
        assert annealed.stats["train/learning_rate"] == pytest.approx(rate)
        torch.testing.assert_close(flat(annealed.params), flat(constant.params), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outer", [SGD, Adam])
def test_step_sizes_may_fall_along_a_cosine_as_pytorchs_do(outer: type[SGD]) -> None:
    theta, n = start(), 8
    ours = outer(learning_rate=0.2, final_learning_rate=0.05, schedule="cosine")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, n, eta_min=0.05)
    for k in range(n + 1):
        found = ours.step(Quadratic(theta), theta, 1.0 - k / n).stats["train/learning_rate"]
        assert found == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step(), schedule.step()


@pytest.mark.parametrize("final", [-0.1, "0", math.inf])
def test_bad_final_step_sizes(final: Any) -> None:
    with pytest.raises(ConfigError, match="final_learning_rate="):
        SGD(final_learning_rate=final)


@pytest.mark.parametrize("name", ["trpo", "adam", "sgd"])
def test_state_round_trip(name: str) -> None:
    theta = start()
    problem = Drifting(theta)
    first = make_outer(name)
    for _ in range(3):
        theta = first.step(problem, theta).params
    state = {key: tensor.clone() for key, tensor in first.state().items()}
    second = make_outer(name)
    second.load_state(state, theta)
    frozen = Quadratic(theta)
    a, b = first.step(frozen, theta), second.step(Quadratic(theta), theta)
    assert a.stats == b.stats
    for key in a.params:
        assert torch.equal(a.params[key], b.params[key])
    # A step replaces the state's tensors and leaves those handed in as they were.
    assert all(torch.equal(tensor, state[key]) for key, tensor in state.items())


def test_adam_starts_afresh_from_a_state_of_another_optimiser() -> None:
    theta = start()
    optimizer = Adam()
    optimizer.step(Quadratic(theta), theta)
    optimizer.load_state({}, theta)
    step, fresh = optimizer.step(Quadratic(theta), theta), Adam().step(Quadratic(theta), theta)
    for name in theta:
        assert torch.equal(step.params[name], fresh.params[name])


def test_the_second_order_share_is_reported() -> None:
    class Shared(Quadratic):
        def gradient(self) -> MetaGradient:
            return MetaGradient(1.5, named(self.g), named(0.75 * self.g))

    for name in ("trpo", "adam", "sgd"):
        theta = start()
        assert make_outer(name).step(Shared(theta), theta).stats["meta/second_order_share"] == pytest.approx(0.25)
        assert "meta/second_order_share" not in make_outer(name).step(Quadratic(theta), theta).stats


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("trop", {}, "unknown outer optimiser 'trop': did you mean 'trpo'"),
        ("trpo", {"max_kll": 0.1}, "did you mean 'max_kl'"),
        ("adam", {"max_kl": 0.1}, "unknown argument of outer optimiser 'adam'"),
        ("trpo", {"max_kl": 0.0}, "max_kl=0.0"),
        ("trpo", {"max_kl": "0.1"}, "max_kl='0.1'"),
        ("trpo", {"max_kl": True}, "max_kl=True"),
        ("trpo", {"max_kl": float("inf")}, "max_kl=inf"),
        ("trpo", {"cg_steps": 0}, "cg_steps=0"),
        ("trpo", {"cg_steps": 2.5}, "cg_steps=2.5"),
        ("trpo", {"cg_damping": -1.0}, "cg_damping=-1.0"),
        ("trpo", {"cg_damping": float("nan")}, "cg_damping=nan"),
        ("trpo", {"cg_damping": True}, "cg_damping=True"),
        ("trpo", {"line_search_steps": 0}, "line_search_steps=0"),
        ("trpo", {"line_search_shrink": 1.0}, "line_search_shrink=1.0"),
        ("trpo", {"min_kl_share": 1.0}, "min_kl_share=1.0"),
        ("sgd", {"learning_rate": -0.1}, "learning_rate=-0.1"),
        ("adam", {"beta1": 1.0}, "beta1=1.0"),
        ("adam", {"beta2": False}, "beta2=False"),
        ("adam", {"eps": 0}, "eps=0"),
        ("adam", {"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
    ],
)
def test_bad_optimisers_are_named_in_one_line(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        make_outer(name, kwargs)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (ConfigError, UnknownNameError))


def test_products_and_norms_are_over_all_tensors() -> None:
    a, b = start(1), start(2)
    assert dot(a, b) == pytest.approx(float(flat(a) @ flat(b)))
    assert norm(a) == pytest.approx(float(flat(a).norm()))


def test_optimisers_have_one_interface() -> None:
    outers: list[Outer] = [SGD(), Adam(), TrustRegion()]
    assert [sorted(outer.state()) for outer in outers] == [[], ["count"], []]


def test_an_optimiser_of_somebody_s_own_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "OUTER", Registry("outer optimiser"))

    @register_outer("sign")
    class Sign(SGD):
        def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
            gradient = objective.gradient().gradient
            return OuterStep(
                {name: tensor - self.learning_rate * gradient[name].sign() for name, tensor in params.items()}, {}
            )

    theta = start()
    step = make_outer("sign", {"learning_rate": 0.5}).step(Quadratic(theta), theta)
    assert torch.allclose((flat(step.params) - flat(theta)).abs(), torch.tensor(0.5, dtype=torch.float64))


def test_defaults_are_the_reference_s_and_pytorch_s() -> None:
    region = TrustRegion()
    assert (region.max_kl, region.cg_steps, region.cg_damping, region.line_search_steps) == (0.01, 10, 1e-5, 15)
    assert Adam().learning_rate == inspect.signature(torch.optim.Adam.__init__).parameters["lr"].default == 1e-3


@pytest.mark.parametrize("max_kl", [0.0, 1e-7, 9e-7, 1e-30])
def test_a_trust_region_that_float32_cannot_keep_to_is_refused(max_kl: float) -> None:
    with pytest.raises(ConfigError, match=r"max_kl=\S+ is not a number in \[1e-06, ∞\)"):
        TrustRegion(max_kl=max_kl)


def test_the_smallest_trust_region_is_kept_to() -> None:
    model = small(outer_kwargs={"max_kl": SMALLEST_KL})
    found: dict[str, Any] = {}
    derivatives = model._derivatives
    model._derivatives = lambda *args: found.setdefault("block", derivatives(*args))
    before = copy(model.policy_params)
    assert model.train()["train/is_line_search_success"] == 1.0
    own = found["block"]
    exact = local_objective(
        model.adaptation.learner,
        {name: tensor.double() for name, tensor in before.items()},
        [batch.to(torch.float64) for batch in own._support],
        own._query.to(torch.float64),
        model.rates,
    )
    _, kl = exact.evaluate({name: tensor.double() for name, tensor in model.policy_params.items()})
    assert 0.0 < kl < 1.05 * SMALLEST_KL


@pytest.mark.parametrize(
    ("log_std", "reason"),
    [(-14.0, "log_std is -14 to -14"), (60.0, "log_std is 60 to 60"), (-5.0, "a smaller inner_lr")],
)
def test_line_searches_that_fail_again_and_again_are_said(log_std: float, reason: str) -> None:
    model = small()
    model.params["policy/log_std"].fill_(log_std)
    before = copy(model.params)
    run_iterations(model, PATIENCE - 1)
    with pytest.warns(MetaRLWarning, match=f"meta-iteration 5: the line search has found no step 5 times.*: {reason}"):
        run_iterations(model, 1)
    assert equal(model.params, before)
    assert model._n_failed_searches == PATIENCE
    model._tell_of_failed_searches({"train/is_line_search_success": 1.0})
    assert model._n_failed_searches == 0
    model._n_failed_searches = PATIENCE
    if log_std != -5.0:  # once is enough
        run_iterations(model, PATIENCE)
        assert equal(model.params, before)
