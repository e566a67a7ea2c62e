"""RL² by every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metarl
from metarl.zoo.__main__ import main
from tests.zoo.conftest import Refused

SMALL = ["meta_batch_size:3", "n_trials:1", "n_epochs:1", "policy_kwargs.lstm_hidden_size:4"]
TINY = ["--algo", "rl2", "--env", "PointMass-v0", "--env-kwargs", "horizon:4", "--seed", "1", "--n-eval-tasks", "2"]


def _run(*words: str) -> int:
    return main([*words, "--verbose", "0"]) if words[0] == "train" else main(list(words))


def test_a_run_goes_on_to_the_same_bits_and_is_evaluated_exported_and_plotted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    for folder, lengths in (("parts", (40, 80)), ("whole", (80,))):
        first, *later = lengths
        start = ["train", *TINY, "-f", str(tmp_path / folder), "-n", str(first), "--eval-freq", "40"]
        assert _run(*start, "-params", *SMALL) == 0
        for length in later:
            assert _run("train", "-i", str(tmp_path / folder / "rl2/PointMass-v0_1"), "-n", str(length)) == 0
    runs = [tmp_path / folder / "rl2/PointMass-v0_1" for folder in ("parts", "whole")]
    parts, whole = (metarl.load(run / "PointMass-v0").state()[0] for run in runs)
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())
    assert _run("evaluate", "-i", str(runs[0]), "--n-inner-steps", "1", "--n-eval-tasks", "2") == 0
    assert _run("export", "-i", str(runs[0])) == 0
    assert _run("plot", "-i", str(runs[0])) == 0
    assert "RecurrentPPO.load" in capsys.readouterr().out
    assert _run("finetune", "-i", str(runs[0]), "-n", "40", "--n-eval-tasks", "2") == 0
    assert "PPO_LSTM from rl2, adam" in capsys.readouterr().out
    memory = "rl2 adapts by its memory, which no export holds"
    assert memory in refused("export", "-i", runs[0], "--n-inner-steps", "1", "--task", "goal:[0.1,0.2]")
    assert memory in refused("finetune", "-i", runs[0], "-n", "40", "--n-inner-steps", "1")
    assert (runs[0] / "export/PointMass-v0.zip").is_file()
