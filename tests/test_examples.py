"""The examples in docstrings of public classes run: those that end a line with two colons and are indented."""

from __future__ import annotations

import ast
import importlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import metarl
from metarl import ALGORITHMS
from metarl.agents import LEARNERS, FunctionalPolicy, Learner, collect
from metarl.agents.networks.base import NETWORKS
from metarl.agents.stock.learner import SB3Learner
from metarl.envs import Family, Maze, OneStep, Oracle, PointMass, SingleEnv, Sinusoid, check_family
from metarl.envs.tasks import one_task
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.meta.outer import OUTER
from metarl.params import expand

ROOT = Path(__file__).resolve().parents[1]


def examples() -> Iterator[tuple[str, str, str]]:
    """Yield module, class and code of every example."""
    for path in sorted((ROOT / "metarl").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for code in blocks(ast.get_docstring(node) or ""):
                    yield ".".join(path.relative_to(ROOT).with_suffix("").parts), node.name, code


def blocks(docstring: str) -> list[str]:
    """Return the literal blocks of a docstring: what is indented after a line that ends with two colons."""
    found: list[str] = []
    lines = docstring.splitlines()
    for i, line in enumerate(lines):
        if not line.endswith("::"):
            continue
        margin = len(line) - len(line.lstrip())
        body = []
        for other in lines[i + 1 :]:
            if other.strip() and len(other) - len(other.lstrip()) <= margin:
                break
            body.append(other)
        found.append(textwrap.dedent("\n".join(body)).strip() + "\n")
    return found


EXAMPLES = [pytest.param(module, code, id=name) for module, name, code in examples()]
NAMES: dict[str, Any] = {
    "Box": spaces.Box,
    "Dict": spaces.Dict,
    "Discrete": spaces.Discrete,
    "FunctionalPolicy": FunctionalPolicy,
    "check_family": check_family,
    "collect": collect,
    "expand": expand,
    "gymnasium": gymnasium,
    "make_family": metarl.make_family,
    "metarl": metarl,
    "np": np,
    "one_task": one_task,
    "torch": torch,
}
"""What examples may take for granted, beside what their own module imports."""


def given() -> dict[str, Any]:
    """Return what stands for the reader's own environment, batch and losses."""
    env = metarl.make_family("PointMass-v0")
    generator = torch.Generator().manual_seed(0)
    obs, actions, target = (torch.randn(2, 5, 2, generator=generator) for _ in range(3))

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([tensor.flatten(1).pow(4).sum(1) for tensor in params.values()]).sum(0)

    losses = {f"{name}_loss": loss for name in ("support", "query", "test")}
    batch = {"obs": obs, "actions": actions, "target": target}
    return {"env": env, "n_tasks": 2, "params": {"w": torch.ones(2, 3, requires_grad=True)}, **batch, **losses}


@pytest.mark.parametrize(("module", "code"), EXAMPLES)
def test_examples_run(module: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    for registry in (LEARNERS, ALGORITHMS, OUTER, NETWORKS):
        monkeypatch.setattr(registry, "_items", dict(registry))
    space = {**NAMES, **given(), **vars(importlib.import_module(module))}
    exec(compile(code, module, "exec"), space)


def test_what_users_build_on_shows_how_it_is_used() -> None:
    wanted = {Learner, SB3Learner, FunctionalPolicy, *ALGORITHMS.values()}
    wanted |= {Family, Maze, SingleEnv, FamilyVecEnv, Oracle, PointMass, OneStep, Sinusoid}
    wanted |= {cls for cls in LEARNERS.values() if issubclass(cls, Learner)}
    shown = {(module, name) for module, name, _ in examples()}
    assert [cls.__name__ for cls in wanted if (cls.__module__, cls.__name__) not in shown] == []


def test_blocks_are_found() -> None:
    text = "Words::\n\n    a = 1\n\n    b = 2\n\n:param x: none.\n\nOthers.\n\n::\n\n    c = 3"
    assert blocks(text) == ["a = 1\n\nb = 2\n", "c = 3\n"]
