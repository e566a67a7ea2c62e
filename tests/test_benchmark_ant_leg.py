"""What it is worth to see one's legs: the record of two tiny runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import metarl
from benchmarks.ant_leg import main, returns
from metarl.errors import ConfigError


def test_two_runs_are_compared_on_the_same_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for cls in (metarl.Oracle, metarl.Pretrain):
        sizes = {"n_steps": 10, "batch_size": 20}
        model = cls(
            "MlpPolicy",
            "AntLeg-v0",
            env_kwargs={"horizon": 10},
            learner="sb3_ppo",
            learner_kwargs=sizes,
            meta_batch_size=2,
            n_transitions=10,
            policy_kwargs={"net_arch": [4]},
        )
        files[cls.name] = str(model.save(tmp_path / cls.name))
    output = tmp_path / "record.json"
    small = ["--grid", "2", "--n-held-out", "3", "--episodes", "2", "-o", str(output)]
    main([files["oracle"], files["pretrain"], *small])
    record = json.loads(output.read_text())
    assert record["grid"]["tasks"] == {"upper_leg": [0.2, 0.6, 0.2, 0.6], "ankle": [0.2, 0.2, 0.6, 0.6]}
    for part, n in (("grid", 4), ("test", 3), ("shifted", 3)):
        told, blind = (np.array(record[part][name]["by_task"]) for name in ("told", "blind"))
        assert told.shape == blind.shape == (n,)
        assert record[part]["advantage"]["mean"] == pytest.approx((told - blind).mean())
        assert record[part]["advantage"]["share"] == pytest.approx((told - blind).mean() / abs(blind.mean()))
    # An untrained policy hardly moves its legs, and is paid for standing.
    assert np.abs(told - 0.5).max() < 5.0
    out = capsys.readouterr().out
    assert "ankle down, upper leg across" in out
    assert "leg lengths are worth" in out
    again = metarl.load(files["pretrain"])
    np.testing.assert_array_equal(
        returns(again, again.family, again.family.tasks("test", 3), 2), record["test"]["blind"]["by_task"]
    )
    with pytest.raises(ConfigError, match="TOLD is a run of `oracle` on AntLeg-v0"):
        main([files["pretrain"], files["oracle"], *small])
