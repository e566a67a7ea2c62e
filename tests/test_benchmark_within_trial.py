"""Whether a memory adapts: the record of a tiny model, and one whose memory does not see rewards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import metarl
from benchmarks.within_trial import DECEIVED, EMPTIED, WAYS, main, play
from metarl.errors import ConfigError


def small(env: str = "HalfCheetahVel-v0") -> metarl.RL2:
    network = {"lstm_hidden_size": 4, "net_arch": []}
    return metarl.RL2("MlpLstmPolicy", env, env_kwargs={"horizon": 8}, n_episodes=2, policy_kwargs=network, seed=0)


def test_what_a_memory_makes_of_rewards_is_what_it_loses_by_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, model = tmp_path / "record.json", small()
    main([str(model.save(tmp_path / "rl2")), "-n", "4", "--copies", "2", "-o", str(output)])
    assert "rl2 on HalfCheetahVel-v0" in capsys.readouterr().out
    record = json.loads(output.read_text())
    rewards = {way: play(model, way, 4, 2).rewards for way in WAYS}
    for way in WAYS:
        np.testing.assert_allclose(record["rewards"][way], rewards[way].sum(-1), atol=1e-3)
    # A memory that is emptied is one until then, and one that sees other rewards acts otherwise.
    whole = rewards["as it is"]
    np.testing.assert_array_equal(rewards[EMPTIED][:, 0], whole[:, 0])
    for way in (EMPTIED, DECEIVED):
        assert (rewards[way][:, 1, 1:] != whole[:, 1, 1:]).all()
    # One that does not look at them does the same as ever.
    found = model.get_parameters()
    found["policy"]["lstm_actor.weight_ih_l0"][:, -2] = 0.0
    model.set_parameters(found)
    np.testing.assert_array_equal(play(model, DECEIVED, 4, 2).rewards, play(model, "as it is", 4, 2).rewards)


def test_tasks_of_other_dynamics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tasks of .* differ in more than their rewards"):
        play(small("AntLeg-v0"), DECEIVED, 2, 1)
