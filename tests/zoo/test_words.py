"""Hints at names: the words of SB3 and RL-Zoo3 lead to ours or to a sentence, and letters alone never mislead."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import pytest

from metarl import ALGORITHMS, synonyms
from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import LEARNERS
from metarl.agents.stock.learner import ALGORITHMS as STOCK
from metarl.errors import suggestion, unknown_name
from metarl.files.schema import constructor_hints
from metarl.meta.outer.base import OUTER
from metarl.zoo import cli
from metarl.zoo.config import RESERVED

PARSERS = cli.build_parser()[1]
HYPERPARAMETERS = {name for cls in ALGORITHMS.values() for name in constructor_hints(cls)} | {"n_timesteps"}


def arguments(classes: Iterable[type]) -> set[str]:
    return {name for cls in classes for name in inspect.signature(cls).parameters}  # type: ignore[arg-type]


def test_flags_of_rl_zoo_lead_somewhere() -> None:
    """Every flag in ``rl_zoo3 train`` and ``enjoy`` that a command of ours does not take."""
    flags = """vec-env truncate-last-trajectory save-replay-buffer n-eval-envs track wandb-project-name wandb-entity
        wandb-group wandb-tags tags optimize-hyperparameters optimize n-trials max-total-trials n-jobs sampler pruner
        n-startup-trials n-evaluations storage study-name trial-id optimization-log-path no-optim-plots"""
    for flag in flags.split():
        assert flag in synonyms.FLAGS, flag
        assert suggestion(f"--{flag}", PARSERS["train"].flags(), synonyms.FLAGS) is not None, flag
    enjoy = "n-timesteps n-envs deterministic stochastic norm-reward no-render reward-log device verbose P"
    for flag in enjoy.split():
        assert suggestion(f"--{flag}", PARSERS["evaluate"].flags(), synonyms.FLAGS) is not None, flag


def test_every_proposed_flag_and_command_exists() -> None:
    known = {flag for parser in PARSERS.values() for flag in parser.flags()}
    for table, names in (
        (synonyms.FLAGS, known),
        (synonyms.COMMANDS, set(cli.COMMANDS)),
        (synonyms.ALGORITHMS, set(ALGORITHMS)),
    ):
        for word, meant in table.items():
            assert isinstance(meant, str) or (meant and set(meant) <= names), word


def test_every_argument_of_sb3_leads_to_a_name_that_exists() -> None:
    """Whether it is a hyperparameter, or what a learner, an outer optimiser or SB3's policy takes."""
    inside = {
        "learner_kwargs": arguments(cls for cls in LEARNERS.values() if issubclass(cls, Learner))
        | arguments(STOCK.values()),
        "outer_kwargs": arguments(OUTER.values()),
        "policy_kwargs": {"net_arch", "activation_fn", "log_std_init", "ortho_init"},
    }
    inside["learner_kwargs"] |= {"n_envs", "normalize"}
    for word, meant in synonyms.HYPERPARAMETERS.items():
        for name in meant if isinstance(meant, tuple) else ():
            place, _, part = name.partition(".")
            own = name in HYPERPARAMETERS or any(name in names for names in inside.values())
            assert own or part in inside.get(place, ()), (word, name)
    of_sb3 = arguments(STOCK.values()) - {"_init_setup_model", "use_sde_at_warmup"}
    assert of_sb3 <= synonyms.HYPERPARAMETERS.keys() | HYPERPARAMETERS | RESERVED.keys()


@pytest.mark.parametrize(
    ("name", "known", "words", "hint"),
    [
        ("learning_rate", HYPERPARAMETERS, synonyms.HYPERPARAMETERS, "'inner_lr' or 'outer_kwargs.learning_rate'?"),
        ("target_kl", ["max_kl", "cg_steps"], synonyms.HYPERPARAMETERS, "did you mean 'max_kl'?"),
        ("clip_range", HYPERPARAMETERS, synonyms.HYPERPARAMETERS, "did you mean 'learner_kwargs.clip_range'?"),
        ("iner_lr", HYPERPARAMETERS, synonyms.HYPERPARAMETERS, "did you mean 'inner_lr'?"),
        ("--track", PARSERS["train"].flags(), synonyms.FLAGS, "metarl knows no Weights & Biases"),
        ("--rliable", PARSERS["plot"].flags(), synonyms.FLAGS, "95% intervals and paired differences"),
        ("--N-EVAL-TASK", PARSERS["train"].flags(), synonyms.FLAGS, "did you mean '--n-eval-tasks'?"),
        ("enjoy", cli.COMMANDS, synonyms.COMMANDS, "did you mean 'evaluate'?"),
        ("ppo", ALGORITHMS, synonyms.ALGORITHMS, "it is a learner, not a meta-algorithm: -params learner:ppo"),
        ("sdg", ["sgd", "adam"], {}, "did you mean 'sgd'?"),
        ("zzz", ["sgd", "adam"], {}, "known: adam, sgd"),
    ],
)
def test_hints(name: str, known: Iterable[str], words: synonyms.Words, hint: str) -> None:
    assert hint in str(unknown_name("name", name, known, words))


@pytest.mark.parametrize("flag", ["--x", "--tracking-uri", "--gamma-ray", "-z", "--", "--nothing", "--trials"])
def test_letters_alone_do_not_mislead(flag: str) -> None:
    assert suggestion(flag, PARSERS["train"].flags(), synonyms.FLAGS) is None
