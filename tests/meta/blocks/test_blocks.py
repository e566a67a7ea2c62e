"""Any partition of the work gives the same bits: threads, the order in which blocks are asked, stopping half-way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.learners.vpg import VPG
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.fields import PER_TASK
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import draw_tasks
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.adaptation.base import Outcome, Streams, Walk, finish
from metarl.meta.adaptation.batched import KEPT_BYTES
from metarl.meta.algorithms.anil import ANIL
from metarl.meta.algorithms.boil import BOIL
from metarl.meta.algorithms.cavia import CAVIA
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.blocks.cut import Block
from metarl.meta.outer.objective import BlockObjective
from metarl.meta.progress import Timer
from metarl.params import Params, inner_name
from metarl.streams import stream
from tests.contract.kinds import Slope
from tests.envs.families import Doors
from tests.meta.small import equal
from tests.meta.walk import Walk as Line

SIZES: dict[str, Any] = {
    "meta_batch_size": 5,
    "n_episodes": 3,
    "policy_kwargs": {"net_arch": [6]},
    "n_threads": 1,
    "seed": 2,
}
LEARNERS: dict[str, dict[str, Any]] = {
    "vpg": {},
    "a2c": {"inner_lr": 0.01},
    "ppo": {"inner_lr": 0.01, "learner_kwargs": {"n_epochs": 2, "batch_size": 8}},
    "supervised": {"inner_lr": 0.1, "learner_kwargs": {"n_query": 4, "n_eval": 5}},
    "sb3_ppo": {"inner_lr": 0.01, "learner_kwargs": {"n_epochs": 1, "batch_size": 12}},
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "line": Line,
    "three ways": lambda: Line(discrete=True),
    "doors": Doors,
    "slope": Slope,
}
"""Episodes of a line end early, so that batches are padded; doors have unequal spaces; a slope is supervised."""


def make(algorithm: Any, learner: str = "vpg", family: str = "line", **kwargs: Any) -> Any:
    own = {**LEARNERS[learner], "n_inner_steps": 2}
    if learner == "ppo" and not getattr(algorithm, "first_order", True):
        own = {"inner_lr": 0.05, "n_inner_steps": 2}
    return algorithm("MlpPolicy", FAMILIES[family](), learner=learner, **{**SIZES, **own, **kwargs})


# ------------------------------------------------------------------------------------------------------------- threads
@pytest.mark.parametrize(
    ("algorithm", "learner"),
    [
        *itertools.product([MAML, FOMAML, Reptile, Leap], ["vpg", "ppo"]),
        *((algorithm, "sb3_ppo") for algorithm in (FOMAML, Leap)),
        *((algorithm, "vpg") for algorithm in (ANIL, BOIL, CAVIA, MetaSGD)),
    ],
)
def test_threads_change_no_bit(algorithm: Any, learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # One task a chunk, two a block of a learner, three a block of the meta-batch: there is something to share.
    monkeypatch.setattr("metarl.agents.learners.descent.BLOCK_TASKS", 2)
    monkeypatch.setattr("metarl.meta.blocks.cut.BLOCK_TASKS", 3)
    learnt: list[Params] = []
    for n_threads in (1, 2, 4):
        model = make(algorithm, learner, n_threads=n_threads, chunk_size=1, meta_batch_size=4)
        model.train()
        model.n_iterations += 1
        if learner != "sb3_ppo":
            model.train()
        learnt.append(model.params)
    assert not equal(learnt[0], make(algorithm, learner).params)
    assert all(equal(learnt[0], other) for other in learnt[1:])


@pytest.mark.parametrize("algorithm", [MAML, Leap])
def test_threads_change_no_bit_where_physics_runs_on_them_too(algorithm: Any) -> None:
    learnt: list[Params] = []
    for n_threads in (1, 2, 4):
        sizes = {**SIZES, "n_threads": n_threads, "chunk_size": 2, "env_kwargs": {"horizon": 5}}
        model = algorithm("MlpPolicy", "HalfCheetahVel-v0", n_inner_steps=2, **sizes)
        model.train()
        learnt.append(model.params)
    assert all(equal(learnt[0], other) for other in learnt[1:])


# -------------------------------------------------------------------------------------------- the order of the answers
def reverse(question: Any, blocks: Sequence[Any]) -> list[Any]:
    return [question(block) for block in reversed(blocks)][::-1]


def shuffled(question: Any, blocks: Sequence[Any]) -> list[Any]:
    order = list(range(len(blocks)))
    random.Random(len(blocks)).shuffle(order)
    found = {i: question(blocks[i]) for i in order}
    return [found[i] for i in range(len(blocks))]


def in_threads(question: Any, blocks: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(question, blocks))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("family", ["line", "doors"])
@pytest.mark.parametrize(
    ("algorithm", "learner"), [(MAML, "vpg"), (FOMAML, "vpg"), (MAML, "a2c"), (FOMAML, "ppo"), (MetaSGD, "vpg")]
)
def test_blocks_may_be_asked_in_any_order(algorithm: Any, learner: str, family: str, size: int) -> None:
    model, rates = make(algorithm, learner, family), [0.1, 0.05]
    found: list[Any] = []
    with library_torch():
        blocks, outcomes = learnt_blocks(model, rates, size)
        assert len(blocks) > 2
        vector = {name: torch.sin(torch.arange(float(t.numel()))).view(t.shape) for name, t in model.params.items()}
        moved = {name: tensor + 0.01 * vector[name] for name, tensor in model.params.items()}
        for answer in (None, reverse, shuffled, in_threads):
            # Each of them is new: nothing that an earlier question found is at hand.
            derivatives = model._objective(blocks, outcomes, rates)._blocks
            objective = BlockObjective(derivatives, answer)  # type: ignore[arg-type]
            gradient = objective.gradient()
            found.append(
                (
                    gradient.gradient,
                    objective.curvature_product(vector),
                    {"gradient": torch.tensor([gradient.loss, gradient.second_order_share or 0.0])},
                    {"moved": torch.tensor(objective.evaluate(moved), dtype=torch.float64)},
                )
            )
    for other in found[1:]:
        assert all(equal(ours, theirs) for ours, theirs in zip(found[0], other, strict=True))
    assert all(bool(tensor.isfinite().all()) for part in found[0] for tensor in part.values())


def learnt_blocks(model: Any, rates: list[float], size: int) -> tuple[list[Block], list[Outcome]]:
    """Return the blocks of a meta-batch, cut small, and what came of learning them."""
    blocks = cut(model, rates, size)
    return blocks, [block.learn(model.theta, Timer(), query=True, keep=True) for block in blocks]


def cut(model: Any, rates: list[float], size: int) -> list[Block]:
    tasks = draw_tasks(model.family, stream(3, "tasks"), SIZES["meta_batch_size"])
    amount = model._amount(None, None)
    steps = model._rule(rates).steps(model.params)
    blocks: list[Block] = model.adaptations.cut(tasks, steps, Streams(3, "x"), amount, size)
    return blocks


@pytest.mark.parametrize("algorithm", [FOMAML, Reptile, Leap])
@pytest.mark.parametrize("learner", ["vpg", "sb3_ppo"])
def test_blocks_may_learn_in_any_order(algorithm: Any, learner: str) -> None:
    with library_torch():
        model = make(algorithm, learner)
        forwards, backwards = cut(model, model.rates, 2), cut(model, model.rates, 2)[::-1]
        first = [block.learn(model.theta, Timer()) for block in forwards]
        last = [block.learn(model.theta, Timer()) for block in backwards][::-1]
    for ours, theirs in zip(first, last, strict=True):
        assert_same(ours, theirs)


# --------------------------------------------------------------------------------------------------- stopping half-way
CASES = [
    *((learner, "line", watched, True, True) for learner in ("vpg", "a2c", "ppo") for watched in (None, True)),
    *(("ppo", family, LeapMetric("energy", drop_last=True), False, False) for family in ("line", "doors")),
    *((learner, "doors", watched, True, True) for learner in ("vpg", "ppo") for watched in (None, True)),
    ("vpg", "three ways", True, False, False),
    ("a2c", "three ways", None, True, False),
    ("supervised", "slope", None, True, False),
    ("supervised", "slope", True, False, True),
    ("sb3_ppo", "line", None, True, False),
    ("sb3_ppo", "line", True, False, False),
]


@pytest.mark.parametrize(("learner", "family", "watched", "query", "keep"), CASES)
def test_a_walk_goes_on_elsewhere_with_the_same_bits(
    learner: str, family: str, watched: Any, query: bool, keep: bool, tmp_path: Path
) -> None:
    model = make(FOMAML, learner, family)
    metric = LeapMetric() if watched is True else watched

    def begin(block: Block) -> tuple[Walk, LeapWatcher | None]:
        local = list(block.request.local)
        watcher = None if metric is None else LeapWatcher(metric, [*local, list(model.theta)[-1]])
        return block.adaptation.walk(model.theta, block.request, query=query, keep=keep, watcher=watcher), watcher

    with library_torch():
        blocks = cut(model, model.rates, 2)
        for block in blocks[: 1 if learner == "sb3_ppo" else 2]:
            walk, watcher = begin(block)
            whole, expected = finish(walk, Timer()), sums(watcher)
            for n_done in range(walk.n_units + 1) if block is blocks[0] else [1]:
                before, first = begin(block)
                going = [before.work(Timer()) for _ in range(n_done)]
                assert going == [k + 1 < walk.n_units for k in range(n_done)]
                save_checkpoint(tmp_path / "walk", before.state(), {})
                # The state is a copy: the walk that it is of goes on, and is not what the other one goes on from.
                assert_same(finish(before, Timer()), whole)
                assert equal(sums(first), expected)
                after, second = begin(block)
                after.load_state(load_checkpoint(tmp_path / "walk")[0])
                assert after.n_done == n_done
                assert_same(finish(after, Timer()), whole)
                assert equal(sums(second), expected)


@dataclass(frozen=True)
class Counted(Samples):
    """Samples with a field of NumPy's beside theirs."""

    best: np.ndarray = field(kw_only=True, metadata=PER_TASK)


class Counting(VPG):
    """A learner whose loss goes by it, and that says what its samples are."""

    samples_type = Counted

    def process(self, episodes: Episodes, params: Params) -> Samples:
        return Counted(**super().process(episodes, params).present(), best=episodes.rewards.max((1, 2)))

    def head_loss(self, distribution: Any, samples: Samples, values: Any = None) -> torch.Tensor:
        assert isinstance(samples, Counted)
        assert isinstance(samples.best, np.ndarray)
        return super().head_loss(distribution, samples, values) * torch.from_numpy(samples.best)


def test_fields_of_a_learner_s_own_go_on_with_a_walk(tmp_path: Path) -> None:
    model = make(MAML)
    model.adaptation.learner = Counting(model.policy)
    with library_torch():
        (block,) = cut(model, model.rates, 5)
        walk, other = (block.adaptation.walk(model.theta, block.request, query=True, keep=True) for _ in range(2))
        walk.work(Timer())
        save_checkpoint(tmp_path / "walk", walk.state(), {})
        other.load_state(load_checkpoint(tmp_path / "walk")[0])
        ours, theirs = finish(walk, Timer()), finish(other, Timer())
        assert_same(ours, theirs)
        assert isinstance(theirs.support[0], Counted)
        gradients = [model._objective([block], [learnt], model.rates).gradient().gradient for learnt in (ours, theirs)]
    assert equal(*gradients)


def sums(watcher: LeapWatcher | None) -> Params:
    """Return what a watcher added up."""
    if watcher is None:
        return {}
    counts = torch.tensor([watcher.distance, watcher.n_segments], dtype=torch.float64)
    assert watcher.n_segments > 0
    return {**watcher.gradient(), "counts": counts}


def assert_same(ours: Outcome, theirs: Outcome) -> None:
    """Assert that two outcomes have the same bits, batches included."""
    assert as_tensors(ours).keys() == as_tensors(theirs).keys()
    for name, tensor in as_tensors(ours).items():
        other = as_tensors(theirs)[name]
        assert tensor.dtype == other.dtype, name
        assert torch.equal(tensor.nan_to_num(7.0), other.nan_to_num(7.0)), name


def as_tensors(outcome: Outcome) -> Params:
    found = {f"params/{name}": tensor for name, tensor in outcome.params.items()}
    found |= {
        name: torch.from_numpy(getattr(outcome, name)) for name in ("returns", "env_steps", "n_episodes", "ep_lengths")
    }
    found |= {f"gradient/{name}": tensor for name, tensor in (outcome.gradient or {}).items()}
    for task, statistics in enumerate(outcome.statistics):
        found |= {f"{task}/{name}": tensor for name, tensor in statistics.items()}
    for k, batch in enumerate([*outcome.support, *([] if outcome.query is None else [outcome.query])]):
        found |= samples_as_tensors(f"batch/{k}", batch)
    return found


def samples_as_tensors(prefix: str, batch: Samples) -> Params:
    given = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return {
        f"{prefix}/{name}": torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
        if value is not None
    }


@pytest.mark.parametrize("family", ["line", "doors"])
@pytest.mark.parametrize(("algorithm", "learner"), [(MAML, "vpg"), (MAML, "ppo"), (FOMAML, "a2c")])
def test_a_block_that_was_saved_answers_the_same(algorithm: Any, learner: str, family: str, tmp_path: Path) -> None:
    model, rates = make(algorithm, learner, family), [0.1, 0.05]
    with library_torch():
        blocks, outcomes = learnt_blocks(model, rates, 3)
        again = []
        for i, block in enumerate(blocks):
            walk = block.adaptation.walk(model.theta, block.request, query=True, keep=True)
            walk.work(Timer())
            save_checkpoint(tmp_path / str(i), walk.state(), {"block": i})
            other = block.adaptation.walk(model.theta, block.request, query=True, keep=True)
            other.load_state(load_checkpoint(tmp_path / str(i))[0])
            again.append(finish(other, Timer()))
        gradients = [model._objective(blocks, learnt, rates).gradient().gradient for learnt in (outcomes, again)]
    assert {inner_name(name) for name in gradients[0]} == set(model.theta)
    assert equal(*gradients)


def test_an_evaluation_is_a_walk_too() -> None:
    model = make(FOMAML, "ppo")
    (block,) = cut(model, model.rates, 5)
    whole = block.evaluate(model.theta)
    assert whole.query is None
    assert not whole.support
    part = replace(block.request, rates=block.request.rates[:1])
    # The return after the first steps does not depend on how many follow.
    shorter = block.adaptation.evaluate(model.theta, part)
    np.testing.assert_array_equal(shorter.returns, whole.returns[:, :2])


@pytest.mark.parametrize("family", ["line", "doors"])
@pytest.mark.parametrize(("learner", "outer"), [("vpg", "trpo"), ("ppo", "adam"), ("supervised", "adam")])
def test_steps_that_were_kept_change_no_bit(
    learner: str, outer: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, learnt = "slope" if learner == "supervised" else family, []
    for n_bytes in (KEPT_BYTES, 0):
        monkeypatch.setattr("metarl.meta.adaptation.batched.KEPT_BYTES", n_bytes)
        model = make(MAML, learner, family, outer=outer)
        with library_torch():
            (block, *_) = cut(model, model.rates, 5)
            how = {"query": True, "keep": True}
            assert block.learn(model.theta, Timer(), **how).path is None
            path = block.learn(model.theta, Timer(), **how, second_order=True).path
            assert (path is None) == (n_bytes == 0)
            assert path is None or len(path.steps) == 2
        learnt.append([model.train(), model.params])
    assert equal(learnt[0][1], learnt[1][1])
    for name, value in learnt[0][0].items():
        assert name.startswith("time/") or value == learnt[1][0][name], name
