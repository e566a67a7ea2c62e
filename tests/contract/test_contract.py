"""Every wrapper around every learner, on every kind of family, with one, two and three inner steps."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import FOMAML, Reptile
from metarl.agents import LEARNERS, Learner, register_learner
from metarl.agents.sampling.samples import pack
from metarl.errors import ConfigError, MetaRLError, NonFiniteError
from tests.contract.kinds import KINDS, TOYS
from tests.contract.suite import Case, cases, check, improvement, is_quick, make

CASES = [pytest.param(case, id=str(case), marks=[] if is_quick(case) else pytest.mark.slow) for case in cases()]
PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_contract_is_kept_or_refused_with_a_sentence(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# ---------------------------------------------------------------------------------------------------- known answers
IMPROVING = [
    # One step from a head that is drawn anew is no measure of a trunk.
    *(
        Case(name, "supervised", "supervised", 1)
        for name, cls in metarl.ALGORITHMS.items()
        if cls.learns and not getattr(cls, "has_heads", False)
    ),
    *(
        Case("fomaml", name, toy, 1)
        for name, cls in LEARNERS.items()
        for toy, kind in TOYS.items()
        if cls.differentiable and cls.misfit(kind.make()) is None
    ),
    *(Case("reptile", "vpg", toy, 2) for toy in TOYS),
]
STOCK = [
    Case("reptile", "sb3_ppo", "one shot", 1),
    Case("fomaml", "sb3_a2c", "one shot of three", 1),
    Case("leap", "sb3_trpo", "one shot", 1),
]
# No pair of DQN's: its first greedy action is the best one already.


@pytest.mark.parametrize("case", [*IMPROVING, *(pytest.param(case, marks=pytest.mark.slow) for case in STOCK)], ids=str)
def test_training_at_least_halves_what_is_missing(case: Case) -> None:
    before, after = improvement(case)
    assert before < -0.1
    assert after > 0.5 * before


def test_everything_goes_with_something() -> None:
    # Or the suite would be content with a wrapper that refuses all there is.
    def goes(case: Case) -> bool:
        try:
            return make(case) is not None
        except MetaRLError:
            return False

    has_steps = {name: "n_inner_steps" in cls.argument_names() for name, cls in metarl.ALGORITHMS.items()}
    chosen = [case for case in cases() if case.n_inner_steps == 1 + has_steps[case.algorithm]]
    for i, names in enumerate((metarl.ALGORITHMS, LEARNERS, KINDS)):
        for name in names:
            assert any(goes(case) for case in chosen if case[i] == name), name
    for name in KINDS:  # no kind is left to one wrapper
        assert sum(goes(Case(wrapper, "vpg", name, 2)) for wrapper in metarl.ALGORITHMS) > 5


# -------------------------------------------------------------------------------------------------------- newcomers
@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered is forgotten afterwards."""
    for registry in (LEARNERS, metarl.ALGORITHMS):
        monkeypatch.setattr(registry, "_items", dict(registry))


@pytest.fixture
def examples(registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The learner and the wrapper of docs/extending.md, registered by their files."""
    files = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [name for name, code in files.items() if "@register_learner" in code or "    name = " in code]
    for name in own:
        (tmp_path / f"{name}.py").write_text(files[name], encoding="utf-8")
        importlib.import_module(name)
    yield
    for name in own:
        sys.modules.pop(name, None)


def test_a_newcomer_is_held_to_the_contract_by_registering_itself(examples: None, tmp_path: Path) -> None:
    found = cases()
    for kind in KINDS:
        for n in (1, 2, 3):
            assert Case("decayed_reptile", "awr", kind, n) in found
    around = {name for name, cls in metarl.ALGORITHMS.items() if "learner" in cls.argument_names()}
    assert {case.algorithm for case in found if case.learner == "awr"} == around
    assert {case.learner for case in found if case.algorithm == "decayed_reptile"} == set(LEARNERS)
    for case in (
        Case("decayed_reptile", "awr", "continuous", 2),
        Case("decayed_reptile", "ppo", "unequal spaces", 1),
        Case("maml", "awr", "discrete", 3),
        Case("meta_sgd", "awr", "unequal spaces", 2),
    ):
        assert is_quick(case) or case.n_inner_steps != 2
        assert check(case, tmp_path) is None
    before, after = improvement(Case("decayed_reptile", "awr", "one shot", 1))
    assert after > 0.5 * before


def test_the_suite_finds_what_a_newcomer_gets_wrong(registries: None, tmp_path: Path) -> None:
    class Forgetful(Reptile):
        """It goes on from something that no file holds."""

        name = "forgetful"
        _shift = 0.0

        def train(self) -> dict[str, float]:
            stats = super().train()
            vars(self)["_shift"] = self._shift + 0.25
            self.params = {name: tensor + self._shift for name, tensor in self.params.items()}
            return stats

    class Still(FOMAML):
        """It learns nothing, and does not say so."""

        name = "still"

        def train(self) -> dict[str, float]:
            before = self.params
            stats = super().train()
            self.params = before
            return {**stats, "train/is_line_search_success": 1.0}

    @register_learner("endless")
    class Endless(Learner):
        """Its loss is no number."""

        default_rate = 0.1
        plain_steps = True

        def process(self, episodes: Any, params: Any) -> Any:
            return pack(episodes, episodes.rewards)

        def head_loss(self, distribution: Any, samples: Any, values: Any = None) -> torch.Tensor:
            return samples.weights.sum(-1) * distribution.log_prob(samples.actions).sum(-1) * torch.inf

    class Curt(FOMAML):
        """It refuses, and does not say why."""

        name = "curt"

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ConfigError("refused")

    with pytest.raises(AssertionError, match="policy/"):
        check(Case("forgetful", "vpg", "continuous", 1), tmp_path)
    with pytest.raises(AssertionError):
        check(Case("still", "vpg", "continuous", 1), tmp_path)
    with pytest.raises(NonFiniteError):
        check(Case("fomaml", "endless", "continuous", 1), tmp_path)
    with pytest.raises(AssertionError):
        check(Case("curt", "vpg", "continuous", 1), tmp_path)
