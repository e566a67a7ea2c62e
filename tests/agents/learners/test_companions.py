"""A task's numbers do not depend on which tasks are beside it, bit for bit, nor on how many copies still go on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.ppo import PPO
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.networks.products import add_outer_, add_product_, chain, linear, outer, product
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks, take_tasks
from metarl.meta.algorithms.reptile import Reptile
from metarl.params import Params
from tests.agents.toys import make_seeds, make_stack

N_TASKS = 7
TASKS: Tasks = {"end": np.linspace(0.4, 0.0, N_TASKS)}
LEARNERS = {"vpg": VPG, "a2c": A2C, "ppo": PPO}
SIZES = [("box", 1), ("box", 2), ("box", 3), ("box", 4), ("discrete", 3)]


class Drift(Family):
    """A point that actions push; with ``ends`` an episode ends by itself, in the first tasks more often.

    :param kind: of the actions, ``"box"`` or ``"discrete"``.
    :param size: dimensions of them, or how many there are.
    :param concurrent: collect two blocks of tasks side by side.
    """

    id = "Drift-v0"
    horizon = 6

    def __init__(self, kind: str, size: int, ends: bool, concurrent: bool = False) -> None:
        self.task_space = spaces.Dict({"end": spaces.Box(0.0, 1.0, (), np.float64)})
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        box = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space: spaces.Space[Any] = box if kind == "box" else spaces.Discrete(size)
        self.ends = ends
        self.concurrent = concurrent

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.stack([rng.standard_normal((n_envs, 5)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        push = np.clip(actions, -1.0, 1.0).sum(-1) if isinstance(self.action_space, spaces.Box) else actions - 1.0
        x = state["x"] + 0.1 * push[..., None]
        drawn = np.stack([rng.random(x.shape[1]) for rng in rngs])
        terminated = (drawn < tasks["end"][:, None]) & self.ends
        return Step({"x": x}, x.astype(np.float32), -np.abs(x).sum(-1), terminated, {})


def make_policy(family: Family, critic: bool, width: int = 64) -> FunctionalPolicy:
    kwargs = {"net_arch": [width, width]}
    return FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs, critic=critic)


def make_params(policy: FunctionalPolicy) -> Params:
    """Return tensors that differ by task."""
    stack = make_stack(policy, N_TASKS)
    layout = Layout(stack)
    flat = layout.flatten(stack)
    flat += 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    # Views of one matrix, as an update returns them: tasks begin anywhere in memory.
    return layout.views(flat)


def take(params: Params, part: slice) -> Params:
    return {name: tensor[part].clone() for name, tensor in params.items()}


def parts() -> list[slice]:
    """Return tasks alone, and a few together."""
    return [slice(0, 1), slice(6, 7), slice(0, 2), slice(1, 6)]


def assert_same_episodes(whole: Episodes, some: Episodes, part: slice) -> None:
    """Compare what masks show; padding is as long as the longest of a batch."""
    assert np.array_equal(whole.lengths[part].sum(1), some.lengths.sum(1))
    n_env, n_time = some.mask.shape[1:]
    mask = some.mask
    assert np.array_equal(whole.mask[part, :n_env, :n_time], mask)
    for name in ("obs", "actions", "rewards"):
        assert np.array_equal(getattr(whole, name)[part, :n_env, :n_time][mask], getattr(some, name)[mask]), name


@pytest.mark.parametrize(("kind", "size"), SIZES)
@pytest.mark.parametrize("ends", [False, True])
def test_collected_bits_depend_on_no_other_task(kind: str, size: int, ends: bool) -> None:
    for concurrent, width in ((False, 64), (True, 12)):
        family = Drift(kind, size, ends, concurrent)
        policy = make_policy(family, critic=False, width=width)
        params, seeds, parallel = make_params(policy), make_seeds(N_TASKS), Parallel(2)
        for n, what in itertools.product((1, 3, 24), ("n_episodes", "n_transitions")):
            amount = {what: n if what == "n_episodes" else 5 * n}
            whole = collect(family, policy, params, TASKS, seeds, parallel=parallel, **amount)
            for part in parts():
                own, tasks = take(params, part), take_tasks(TASKS, part)
                some = collect(family, policy, own, tasks, seeds[part], parallel=parallel, **amount)
                assert_same_episodes(whole, some, part)
        parallel.close()


def learn(name: str, family: Family, n: int) -> tuple[Any, Params, Episodes]:
    policy = make_policy(family, critic=name != "vpg")
    params = make_params(policy)
    return LEARNERS[name](policy), params, collect(family, policy, params, TASKS, make_seeds(N_TASKS), n_episodes=n)


def rows(episodes: Episodes, part: slice) -> Episodes:
    """Return the episodes of some tasks, cut to the longest as a batch of them would be."""
    own = episodes.map(lambda axes, each: each[part])
    longest = int(own.lengths.max())
    cut = {name: getattr(own, name)[:, :, :longest] for name in ("obs", "actions", "rewards", "mask")}
    return Episodes(**cut, terminated=own.terminated, final_obs=own.final_obs)


def derivatives(learner: Any, params: Params, samples: Samples) -> tuple[Params, Params]:
    """Return the gradient of every task's loss and a product with its Hessian."""

    def loss(distribution: Any, values: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = learner.head_loss(distribution, samples, values)
        return result

    found = learner.policy.differentiate(params, samples.obs, loss, second_order=True)
    return found.gradient, found.product(found.gradient)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_updates_depend_on_no_other_task_where_episodes_are_equally_long(name: str, kind: str, size: int) -> None:
    for n in (1, 3, 5):
        learner, params, episodes = learn(name, Drift(kind, size, ends=False), n)
        samples, seeds = learner.process(episodes, params), make_seeds(N_TASKS, "update")
        whole = learner.update(learner.start(params), samples, 0.05, seeds).params
        bent = derivatives(learner, params, samples)
        for part in parts():
            own = take(params, part)
            batch = learner.process(rows(episodes, part), own)
            for entry in ("obs", "advantages", "log_prob", "values", "returns"):
                if getattr(batch, entry, None) is not None:
                    assert torch.equal(getattr(batch, entry), getattr(samples, entry)[part]), entry
            some = learner.update(learner.start(own), batch, 0.05, seeds[part]).params
            bent_alone = derivatives(learner, own, batch)
            for key in own:
                assert torch.equal(some[key], whole[key][part]), (n, part, key)
                for ours, alone in zip(bent, bent_alone, strict=True):
                    assert torch.equal(alone[key], ours[key][part]), (n, part, key)


@pytest.mark.parametrize("name", LEARNERS)
def test_updates_with_padding_agree_to_rounding(name: str) -> None:
    # A batch is padded to its longest task, and sums over more zeros are grouped otherwise.
    worst = 0.0
    for n in (5, 20):
        learner, params, episodes = learn(name, Drift("box", 2, ends=True), n)
        gradient, _ = derivatives(learner, params, learner.process(episodes, params))
        for task in range(N_TASKS):
            part = slice(task, task + 1)
            own = take(params, part)
            alone, _ = derivatives(learner, own, learner.process(rows(episodes, part), own))
            gaps = torch.cat([(alone[key] - gradient[key][part]).flatten() for key in own])
            length = torch.cat([tensor.flatten() for tensor in alone.values()]).norm()
            worst = max(worst, float(gaps.norm() / length))
    assert worst < 1e-6


def test_an_evaluation_of_fewer_tasks_has_the_same_first_ones() -> None:
    # One action dimension and fewer than four copies of a task were another path of BLAS.
    family = Drift("box", 1, ends=False)
    model = Reptile("MlpPolicy", family, learner="a2c", n_episodes=3, meta_batch_size=2)
    few, many = (model.evaluate("test", n_inner_steps=2, n_tasks=n).returns for n in (1, 9))
    assert np.array_equal(few, many[:, :1])


def test_few_rows_keep_the_bits_of_more() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, width in ((1, 16), (2, 64), (4, 100)):
        policy = make_policy(Drift("box", size, ends=False), critic=False, width=width)
        obs = torch.randn((3, 200, 5), generator=generator)
        params = {name: tensor[:3] for name, tensor in make_params(policy).items()}
        mean = policy.distribution(params, obs).mode()
        for n in (1, 3, 9, policy.network.min_rows, policy.network.min_rows + 1, 50):
            assert torch.equal(policy.distribution(params, obs[:, :n].contiguous()).mode(), mean[:, :n]), (size, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_output_of_one_task_has_the_bits_of_a_stack(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 9, 64), (3, 1, 64), (3, 1), (3, 9, 1)
    x, weight, bias, out = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    one, row = x[:1].clone(), weight[:1].clone()
    assert torch.equal(linear(one, row, bias[:1]), linear(x, weight, bias)[:1])
    assert torch.equal(product(one, row.mT), product(x, weight.mT)[:1])
    assert torch.equal(add_product_(out[:1].clone(), one, row.mT), add_product_(out.clone(), x, weight.mT)[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_input_of_one_task_has_the_bits_of_a_stack(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 18, 1), (3, 64, 1), (3, 64), (3, 18, 64), (3, 1, 64), (3, 64, 1)
    x, weight, bias, out, row, column = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    for computed in (
        lambda part: linear(x[part], weight[part], bias[part]),
        lambda part: add_product_(out[part].clone(), x[part], weight[part].mT),
        lambda part: outer(x[part], out[part]),
        lambda part: outer(out[part], x[part]),
        lambda part: add_outer_(row[part].clone(), x[part], out[part]),
        lambda part: add_outer_(column[part].clone(), out[part], x[part]),
    ):
        assert torch.equal(computed(slice(0, 1)), computed(slice(None))[:1])


def test_one_task_with_one_input_has_the_bits_of_a_stack_and_of_more_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 24, 24, 1)
    layers = [
        (torch.randn((3, b, a), generator=generator), torch.randn((3, b), generator=generator))
        for a, b in itertools.pairwise(sizes)
    ]
    x = torch.randn((3, 40, 1), generator=generator)
    whole = chain(layers, [torch.tanh] * 2)(x)
    alone = chain([(weight[:1], bias[:1]) for weight, bias in layers], [torch.tanh] * 2)
    for n in (1, 3, 9, 40):
        assert torch.equal(alone(x[:1, :n].contiguous()), whole[:1, :n])
