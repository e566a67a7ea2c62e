"""Optimisers of stacks against torch's, task by task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from metarl.agents.learners import optimizers
from metarl.agents.learners.optimizers import Layout, clip_norms, make_optimizer, take_step
from metarl.agents.parallel import Parallel
from metarl.errors import UnknownNameError

TASKS, SIZE = 3, 11
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.02, eps=1e-5),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.02, alpha=0.99, eps=1e-5),
    "rmsprop_tf_like": lambda params: RMSpropTFLike(params, lr=0.02, alpha=0.99, eps=1e-5),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.02),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", TORCH)
def test_steps_equal_torchs_whoever_else_steps(name: str) -> None:
    optimizer, flat = make_optimizer(name), normal(TASKS, SIZE)
    state = optimizer.start(flat)
    rows = [row.clone().requires_grad_() for row in flat]
    theirs = [TORCH[name]([row]) for row in rows]
    for turn, who in enumerate(
        [None, [True, False, True], [True, False, False], [False] * 3, None, [False, True, True]]
    ):
        gradient = normal(TASKS, SIZE, seed=turn + 1) * 10.0 ** (turn - 3)
        active = None if who is None else torch.tensor(who)
        before = flat.clone(), {key: tensor.clone() for key, tensor in state.items()}
        take_step(optimizer, flat, gradient, state, 0.02, active)
        for task in range(TASKS):
            if who is None or who[task]:
                rows[task].grad = gradient[task].clone()
                theirs[task].step()
            else:
                assert torch.equal(flat[task], before[0][task])
                assert all(torch.equal(state[key][task], tensor[task]) for key, tensor in before[1].items())
            torch.testing.assert_close(flat[task], rows[task].detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop_tf_like"])
@pytest.mark.parametrize("rate", [0.1, torch.linspace(0.0, 0.2, 2 * 1000).view(2, 1000)], ids=["one", "each"])
def test_a_large_matrix_is_stepped_in_pieces_to_the_same_bits(
    name: str, rate: float | torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size, parallel in ((1 << 18, None), (128, None), (128, Parallel(2))):
        monkeypatch.setattr(optimizers, "CHUNK", size)
        optimizer, flat = make_optimizer(name), normal(2, 1000).float()
        state = optimizer.start(flat)
        for turn in range(3):
            take_step(optimizer, flat, normal(2, 1000, seed=turn + 1).float(), state, rate, parallel=parallel)
        found.append((flat, state["square_avg"]))
    assert all(map(torch.equal, found[0], each) for each in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-3, 1.9e-5, 1e-8, 1e-30])
def test_roots_that_eps_swallows_change_no_bit(eps: float, dtype: torch.dtype) -> None:
    exponents = torch.linspace(-45.0, 3.0, 20_000, dtype=torch.float64)
    square = torch.cat([torch.zeros(7, dtype=dtype), (10.0**exponents).to(dtype)])
    found = optimizers._root_plus(square, eps)
    for added in (eps, 3.7 * eps):
        assert torch.equal(found.clone().add_(added), square.sqrt().add_(added))
    assert (found != square.sqrt()).any() == (eps > 1e-14 or dtype == torch.float64)  # it is not an idle question


@pytest.mark.parametrize("name", TORCH)
def test_a_rate_may_be_one_for_each_entry(name: str) -> None:
    optimizer, gradient = make_optimizer(name), normal(TASKS, SIZE, seed=1)
    results = []
    for rate in (0.1, torch.full((TASKS, SIZE), 0.1, dtype=torch.float64)):
        flat = normal(TASKS, SIZE)
        take_step(optimizer, flat, gradient, optimizer.start(flat), rate, torch.tensor([True, False, True]))
        results.append(flat)
    assert torch.equal(*results)
    flat = normal(TASKS, SIZE)
    frozen = torch.full((TASKS, SIZE), 0.1, dtype=torch.float64)
    frozen[:, 4:] = 0.0
    take_step(optimizer, flat, gradient, optimizer.start(flat), frozen)
    assert torch.equal(flat[:, 4:], normal(TASKS, SIZE)[:, 4:])
    assert (flat[:, :4] != normal(TASKS, SIZE)[:, :4]).all()


def test_norms_are_clipped_task_by_task() -> None:
    gradient = normal(TASKS, SIZE) * torch.tensor([[0.001], [1.0], [100.0]])
    expected = []
    for row in gradient:
        parameter = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        expected.append(parameter.grad)
    clip_norms(gradient, 0.5)
    torch.testing.assert_close(gradient, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_a_layout_finds_tensors_again() -> None:
    params = {"b": normal(TASKS, 2, 3), "a": normal(TASKS, 4, seed=1)}
    layout = Layout(params)
    flat = layout.flatten(dict(reversed(params.items())))
    assert flat.shape == (TASKS, 10)
    views = layout.views(flat)
    assert list(views) == ["b", "a"]
    assert all(torch.equal(views[name], tensor) for name, tensor in params.items())
    flat[1] = 0.0
    assert not views["a"][1].any()
    assert params["a"].all()


def test_unknown_optimizers_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rmsprop'"):
        make_optimizer("rmspropp")
