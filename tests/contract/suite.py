"""The contract that every meta-wrapper keeps around every learner, on every kind of family.

It is asked of whatever the registries hold: a learner or a wrapper that registers itself is held to it as well. Nothing
here knows one by its name.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import metarl
from metarl.agents import LEARNERS
from metarl.agents.stock.reuse import read_initialisation
from metarl.envs import Oracle
from metarl.envs.family import Family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.errors import MetaRLError
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.algorithms.on_families import FamilyAlgorithm
from tests.contract.kinds import KINDS, TOYS, Kind

SMALL: dict[str, Any] = {
    "n_epochs": 2,
    "learning_starts": 1,
    "train_freq": 4,
    "buffer_size": 100,
}
"""Arguments that make a learner quick, where it has them."""
STEPS = (1, 2, 3)
"""Inner steps."""
LONG = 10**6
"""Env steps of a training that nobody ends."""


class Case(NamedTuple):
    """A wrapper around a learner, on a kind of family."""

    algorithm: str
    learner: str | None
    kind: str
    n_inner_steps: int

    def __str__(self) -> str:
        return "-".join(str(part) for part in self if part is not None).replace(" ", "_")


def cases() -> list[Case]:
    """Return all cases of what is registered now."""
    found: list[Case] = []
    for name, cls in metarl.ALGORITHMS.items():
        arguments = cls.argument_names()
        learners = list(LEARNERS) if "learner" in arguments else [None]
        steps = STEPS if "n_inner_steps" in arguments else STEPS[:1]
        for learner in learners:
            found += [Case(name, learner, kind, n) for kind in KINDS for n in steps]
    return found


def is_quick(case: Case) -> bool:
    """Tell whether a case belongs to the default suite: all kinds with two inner steps, one kind with one and three.

    A stock algorithm takes all inner steps of a task in one go, so their number is but a number of env steps. Images
    take long, and one inner step. Imitation is for learners that take targets; of the others one wrapper is enough.
    What learners see of an environment of Gymnasium they see of any family: those without a critic are enough for them.
    Mazes end early, and list their tasks; the learner of the trust region is enough for them. A pair that is refused
    whatever the family is refused once. A wrapper that inherits from another one makes something else of inner steps,
    not of critics: that it takes them is looked at on one kind.
    """
    first = next(iter(KINDS))
    if case.learner is None:
        return True
    cls, learner = metarl.ALGORITHMS[case.algorithm], LEARNERS[case.learner]
    if cls.refusal(learner) is not None:  # type: ignore[attr-defined]
        return case.kind == first and case.n_inner_steps == 2
    if "n_inner_steps" not in cls.argument_names():
        # It sees a support, and learns by gradients of the learner's query loss: quick on each kind where it goes.
        # Where nobody says what to do, the learner of the trust region is enough.
        return "target" in learner.info or (case.kind in ("mazes", "seen at random") and learner.trust_region)
    inherits = any(cls is not other and issubclass(cls, other) for other in metarl.ALGORITHMS.values())
    if inherits and learner.differentiable and learner.needs_critic and (case.kind != first or case.n_inner_steps != 2):
        return False
    if not (learner.differentiable or getattr(cls, "adapts", True)) and case.kind != first:
        # Joint training by stock algorithms: what tasks show is all that differs.
        return False
    if case.kind.startswith("imitation"):
        takes_targets, of_box = "target" in learner.info, case.kind == "imitation"
        return case.n_inner_steps == 2 and (takes_targets == of_box) and (takes_targets or not cls.learns)
    if case.kind == "seen elsewhere":
        # To all that do not transfer it is a supervised family like others.
        return case.n_inner_steps == 2 and "target" in learner.info and not issubclass(cls, AdaptiveAlgorithm)
    if case.kind == "families of tasks":
        # To all that do not ask for families it is a supervised family like others.
        return case.n_inner_steps == 2 and "target" in learner.info and issubclass(cls, FamilyAlgorithm)
    if case.kind == "seen at random":
        # To all that do not transfer it is a family like the first one.
        return False
    if case.kind == "images":
        return case.n_inner_steps == 1
    if case.kind == "images of classes":
        # To learners that take no targets they are images like others.
        return case.n_inner_steps == 2 and "target" in learner.info
    if case.kind == "data sets":
        # Their heads are each task's own, as of tasks with unequal spaces; one wrapper is enough for the rest.
        return case.n_inner_steps == 2 and "target" in learner.info and not cls.learns
    if case.kind == "unequal spaces" and not learner.differentiable and case.learner not in ("sb3_a2c", "sb3_ppo"):
        return False
    if case.kind == "from gym":
        return case.n_inner_steps == 2 and learner.differentiable and not learner.needs_critic
    if case.kind == "mazes":
        return case.n_inner_steps == 2 and learner.trust_region
    return case.n_inner_steps == 2 or (learner.differentiable and case.kind == first)


def _kind_of(case: Case) -> Kind:
    return {**KINDS, **TOYS}[case.kind]


def family_of(case: Case) -> Family:
    """Return the family of a case; wrappers that are told the task get one that tells it."""
    family = _kind_of(case).make()
    return Oracle(family) if metarl.ALGORITHMS[case.algorithm].is_told_the_task else family


def make(case: Case, **kwargs: Any) -> Any:
    """Return a tiny model of a case.

    :raises MetaRLError: it is refused.
    """
    kind, cls = _kind_of(case), metarl.ALGORITHMS[case.algorithm]
    known = cls.argument_names()
    own: dict[str, Any] = {"n_inner_steps": case.n_inner_steps, "n_episodes": 2, "n_support": 2}
    if case.learner is not None:
        options = LEARNERS[case.learner].options()
        # MAML differentiates plain gradient steps, and refuses what says how a learner goes down its loss.
        refused = () if getattr(cls, "first_order", True) else LEARNERS[case.learner].update_options
        small = {name: value for name, value in SMALL.items() if name in options and name not in refused}
        own |= {"learner": case.learner, "learner_kwargs": small}
    sizes = {name: value for name, value in own.items() if name in known}
    common = {"policy_kwargs": kind.policy_kwargs, "meta_batch_size": 2, "n_threads": 1, "seed": 3}
    return cls(_policy_of(cls, kind), family_of(case), **{**common, **sizes, **kwargs})  # type: ignore[arg-type]


def _policy_of(cls: type[Any], kind: Kind) -> str:
    """Return the policy for a kind of family: a wrapper whose own has a memory takes those with a memory."""
    policy = inspect.signature(cls).parameters.get("policy")
    has_memory = policy is not None and "Lstm" in policy.default
    return kind.policy.replace("Policy", "LstmPolicy") if has_memory else kind.policy


def require_a_sentence(error: MetaRLError) -> str:
    """Return what an error says, which is one sentence that says something."""
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) < 400, text
    return text


def train(model: Any, n: int) -> list[dict[str, float]]:
    """Train for ``n`` meta-iterations more of a long training; return what each logged."""
    seen: list[dict[str, float]] = []

    def after(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(local["stats"])
        return len(seen) < n

    # In env steps that are left, so that what is annealed goes on where it was.
    model.learn(LONG - model.num_timesteps, callback=after, reset_num_timesteps=False)
    return seen


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return all that a model goes on from: parameters and the outer optimiser."""
    found: dict[str, torch.Tensor] = model.state()[0]
    return {name: tensor.clone() for name, tensor in found.items()}


def require_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Assert equal bits."""
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def check(case: Case, folder: Path) -> str | None:
    """Hold a case to the contract.

    :return: why it was refused; None where it keeps it.
    """
    try:
        model = make(case)
    except MetaRLError as error:
        return require_a_sentence(error)
    _training(model)
    _resuming(case, model, folder)
    _evaluating(model, case)
    _adapting(model, case)
    _exporting(model, case)
    return None


def improvement(case: Case) -> tuple[float, float]:
    """Return the mean return on held-out tasks after adaptation, before and after a short training; 0 is the best."""
    arguments = metarl.ALGORITHMS[case.algorithm].argument_names()
    # Wrappers that transfer see a support, where others have episodes, and all that they learn is a large network.
    size, rate = ({"n_episodes": 8}, 0.03) if "n_episodes" in arguments else ({"n_support": 8}, 0.003)
    outer = {"outer": "adam", "outer_kwargs": {"learning_rate": rate}}
    model = make(case, meta_batch_size=8, policy_kwargs={"net_arch": [16]}, **size, **outer)
    found = []
    for n in (0, 30):
        if n:
            train(model, n)
        report = model.evaluate("test", case.n_inner_steps, n_tasks=20, n_episodes=8, seed=1)
        found.append(float(report.returns[..., -1].mean()))
    return found[0], found[1]


def _training(model: Any) -> None:
    """Two meta-iterations move what is meta-learnt, and all stays finite."""
    before = tensors(model)
    if not model.learns:
        model.learn(10)
        require_equal(tensors(model), before)
        return
    stats, after = train(model, 2), tensors(model)
    assert model.n_iterations == 2
    assert [row["meta/n_meta_iterations"] for row in stats] == [1.0, 2.0]
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    assert not any(np.isinf(value) for row in stats for value in row.values())
    found_no_step = any(row.get("train/is_line_search_success") == 0.0 for row in stats)
    # Of two dozen classes few predictions are right by chance: where none was, a score function has nothing to go by.
    found_no_step |= not any(
        value for row in stats for name, value in row.items() if name.startswith("inner/return_after_")
    )
    assert found_no_step or any(not torch.equal(after[name], before[name]) for name in model.meta_params)


def _resuming(case: Case, model: Any, folder: Path) -> None:
    """Two meta-iterations in a row are one, a file, and one more, bit for bit."""
    first = make(case)
    if first.learns:
        train(first, 1)
    again = metarl.load(first.save(folder / "model"), env=model.family)
    require_equal(tensors(again), tensors(first))
    if again.learns:
        train(again, 1)
    require_equal(tensors(again), tensors(model))
    assert (again.n_iterations, again.num_timesteps) == (model.n_iterations, model.num_timesteps)


def _evaluating(model: Any, case: Case) -> None:
    n = case.n_inner_steps
    report = model.evaluate("test", n, n_tasks=2, n_episodes=2)
    assert report.returns.shape == (1, 2, n + 1)
    assert np.isfinite(report.returns).all()
    assert report.env_steps.shape == (n + 1,)
    again = model.evaluate("test", n, n_tasks=2, n_episodes=2)
    np.testing.assert_array_equal(report.returns, again.returns)


def _adapting(model: Any, case: Case) -> None:
    env = SingleEnv(model.family, **one_task(model.family.tasks("test", 1), 0))
    adapted = model.adapt(env, case.n_inner_steps, n_episodes=2)
    obs, _ = env.reset(seed=0)
    action, _ = adapted.predict(obs, deterministic=True)
    assert env.action_space.contains(action.item() if env.action_space.shape == () else action)
    assert adapted.env_steps > 0


def _exporting(model: Any, case: Case) -> None:
    fit = {} if case.learner is None or not LEARNERS[case.learner].differentiable else {"value_tasks": 0}
    try:
        stock = model.to_sb3(**fit)
    except MetaRLError as error:
        require_a_sentence(error)
        return
    if model.adaptations.has_local:
        # What is each task's own starts anew in a stock model too: the rest is what was learnt.
        held = read_initialisation(stock)
        learnt = model.theta if not fit else model.policy.fold(model.theta)
        shared = set(learnt) & set(held)
        assert 0 < len(shared) < len(held)
        assert all(torch.equal(held[name], learnt[name]) for name in shared)
        return
    obs = np.stack([model.observation_space.sample() for _ in range(3)])
    ours, theirs = (each.predict(obs, deterministic=True)[0] for each in (model, stock))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
