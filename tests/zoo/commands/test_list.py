"""``metarl list``, on a tiny run and without docstrings."""

from __future__ import annotations

from pathlib import Path

import pytest

import metarl
from metarl.agents.learners.registry import LEARNERS
from metarl.meta.outer import OUTER
from metarl.zoo.__main__ import main


def test_list_without_docstrings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -OO`` has it: nothing is said rather than the words of a class that ours inherit from."""
    for cls in metarl.ALGORITHMS.values():
        monkeypatch.setattr(cls, "__doc__", None)
    assert main(["list", "algos"]) == 0
    assert "elper" not in capsys.readouterr().out


def test_list(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "fomaml" / "PointMass-v0_1" / "checkpoint.safetensors").write_bytes(b"short")
    assert main(["list", "-f", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "``" not in out
    for word in (
        *metarl.ALGORITHMS,
        *LEARNERS,
        *OUTER,
        "Adam (Kingma",
        *metarl.family_ids(),
        "goal [-0.5, 0.5]",
        "damaged",
    ):
        assert word in out
    (logs / "none").mkdir()
    assert main(["list", "runs", "-f", str(logs / "none")]) == 0
    assert "No runs under" in capsys.readouterr().out
