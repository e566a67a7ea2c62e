"""AntLegImitation and the expert that ships with it: its card, what it sees, files that are no such expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metarl
from metarl.envs.imitation.ant_leg import SHIPPED
from metarl.envs.imitation.demonstrations import Demonstrations, Show
from metarl.envs.imitation.network import NetworkExpert
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.errors import CheckpointError

SMALL: dict[str, Any] = {"n_tasks": 3, "real_kwargs": {"horizon": 20}}
SHORT, LONG = ({"upper_leg": np.array([length]), "ankle": np.array([length])} for length in (0.25, 0.55))


def test_the_card_says_what_the_expert_reaches() -> None:
    real = make_family("AntLeg-v0")
    expert = NetworkExpert(SHIPPED, real)
    card = expert.card
    assert (card.env, card.split, card.env_kwargs) == ("AntLeg-v0", "test", {})
    assert card.source["learner"] == "sb3_ppo"
    assert len(card.returns) == len(card.tasks["ankle"]) == 40
    tasks = real.tasks("test", 40)
    for name, value in tasks.items():
        np.testing.assert_array_equal(card.tasks[name], value)
    # One that stands still has 10.
    assert min(card.returns) > 100.0
    some = take_tasks(tasks, slice(0, 2))
    shown = Demonstrations(real, expert, Show(5, 1, 0.0), None, None).of(some)
    np.testing.assert_allclose([pairs.expert_return for pairs in shown], card.returns[:2], rtol=0.05)


def test_the_expert_is_told_the_lengths_and_its_pupils_are_not() -> None:
    family = make_family("AntLegImitation-v0", **SMALL)
    assert family.observation_space.shape == (27,)
    obs = np.zeros((1, 1, 27), np.float32)
    assert not np.allclose(family.expert.act(SHORT, obs), family.expert.act(LONG, obs), atol=1e-3)
    x, actions = family.examples(LONG, [np.random.default_rng(0)], 10)
    np.testing.assert_allclose(actions[0], family.expert.act(LONG, x)[0], rtol=0, atol=1e-6)


def test_tasks_and_scores_are_those_of_the_real_family() -> None:
    family, real = make_family("AntLegImitation-v0", **SMALL), make_family("AntLeg-v0")
    shifted = family.tasks("shifted", 3)
    np.testing.assert_array_equal(shifted["ankle"], real.tasks("shifted", 3)["ankle"])
    assert family.in_training_range(family.sample_tasks(np.random.default_rng(0), 3)).all()
    assert not family.in_training_range(shifted).any()
    options = {"net_arch": [8]}
    model = metarl.FOMAML(
        "MlpPolicy",
        family,
        learner="cloning",
        inner_lr=0.01,
        meta_batch_size=2,
        n_episodes=5,
        policy_kwargs=options,
        seed=0,
    )
    model.learn(1)
    report = model.evaluate("test", 1, n_tasks=2, n_episodes=5)
    # Episodes of 20 env steps: the survival bonus alone is 1.
    assert np.abs(report.returns - 1.0).max() < 40.0
    assert report.env_steps.tolist() == [0, 5]


def test_files_that_are_no_expert_of_ants_are_one_line(tmp_path: Path) -> None:
    content = bytearray(SHIPPED.read_bytes())
    content[-20] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(CheckpointError, match="its content does not match its checksum") as caught:
        make_family("AntLegImitation-v0", expert=tmp_path / "damaged")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="nowhere"):
        make_family("AntLegImitation-v0", expert="nowhere.safetensors")
    with pytest.raises(CheckpointError, match="is an expert of 'AntLeg-v0': PointMass-v0 needs one of its own"):
        make_family("PointMassImitation-v0", expert=SHIPPED)
    # Robots whose legs have lengths of their own are told eight numbers.
    with pytest.raises(CheckpointError, match="takes 29 inputs where there are 35"):
        make_family("AntLegImitation-v0", real_kwargs={"each_leg": True})
