"""Records that say which axes their fields have: one map serves every field, also those that subclasses add."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from metarl.agents.learners.actor_critic import ActorCriticSamples
from metarl.agents.learners.ppo import PPO
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.fields import PER_EPISODE, PER_SAMPLE, PER_STEP, PER_TASK, Fields
from metarl.agents.sampling.samples import Samples, mean_weights, pack
from metarl.envs.registry import make_family


@dataclass(frozen=True)
class Marked(Samples):
    marks: torch.Tensor | None = field(default=None, kw_only=True, metadata=PER_SAMPLE)
    levels: np.ndarray | None = field(default=None, kw_only=True, metadata=PER_TASK)


def marked() -> Marked:
    counts = np.array([4, 2, 3])
    steps = torch.arange(12.0).reshape(3, 4)
    ends = np.array([[2, 4], [1, 2], [1, 3]])
    arguments: dict[str, Any] = {"marks": steps[..., None] + 0.5, "levels": np.array([7.0, 8.0, 9.0])}
    return Marked(steps[..., None], steps[..., None], steps, mean_weights(counts, 4), counts, ends, **arguments)


def test_every_field_of_the_records_says_its_axes() -> None:
    for record in (Samples, ActorCriticSamples, Episodes):
        for each in fields(record):
            assert each.metadata in (PER_TASK, PER_EPISODE, PER_STEP, PER_SAMPLE), f"{record.__name__}.{each.name}"


def test_a_field_of_a_subclass_is_cut_and_cast_like_the_others() -> None:
    samples = marked()
    some = samples.tasks(slice(1, 3))
    assert isinstance(some, Marked)
    assert some.marks is not None
    assert some.levels is not None
    torch.testing.assert_close(some.marks, some.obs + 0.5)
    assert some.marks.shape == (2, 3, 1)
    assert some.levels.tolist() == [8.0, 9.0]
    assert some.log_prob is None
    first = samples.episodes(0.5)
    assert first.marks is not None
    assert first.levels is not None
    torch.testing.assert_close(first.marks, first.obs + 0.5)
    assert first.counts.tolist() == [2, 1, 1]
    assert first.obs.shape[1] == 2
    assert first.levels.shape == (3,)
    exact = samples.to(torch.float64)
    assert exact.marks is not None
    assert exact.marks.dtype == exact.obs.dtype == torch.float64
    assert exact.levels is samples.levels


def test_absent_fields_stay_absent_and_several_records_are_mapped_together() -> None:
    samples = replace(marked(), marks=None)
    assert "marks" not in samples.present()
    assert list(samples.present(PER_TASK)) == ["counts", "levels"]
    twice = samples.map(lambda axes, *parts: parts[0] + parts[1] if axes == ("task",) else parts[0], samples)
    assert twice.marks is None
    assert twice.counts.tolist() == [8, 4, 6]
    assert twice.obs is samples.obs


@dataclass(frozen=True)
class MarkedEpisodes(Episodes):
    log_prob: np.ndarray | None = field(default=None, metadata=PER_STEP)


def test_what_episodes_and_samples_both_have_is_packed() -> None:
    mask = np.array([[[True, True], [True, False]], [[True, False], [True, False]]])
    steps = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    arrays = steps[..., None], steps[..., None], steps, mask, np.zeros((2, 2), bool), np.zeros((2, 2, 1), np.float32)
    samples = pack(MarkedEpisodes(*arrays, log_prob=-steps), steps)
    assert samples.log_prob is not None
    assert samples.log_prob.tolist() == [[0.0, -1.0, -2.0], [-4.0, -6.0, 0.0]]
    assert pack(Episodes(*arrays), steps).log_prob is None


def test_minibatches_carry_the_fields_of_a_subclass(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Noted(ActorCriticSamples):
        notes: torch.Tensor = field(kw_only=True, metadata=PER_SAMPLE)

    family = make_family("PointMass-v0")
    policy = FunctionalPolicy(
        "MlpPolicy", family.observation_space, family.action_space, {"net_arch": [4]}, critic=True
    )
    base = marked()
    values = torch.zeros(3, 4)
    obs, actions = torch.zeros(3, 4, 2), torch.zeros(3, 4, 2)
    plain = replace(base, obs=obs, actions=actions, log_prob=values, marks=None, levels=None).present()
    samples = Noted(**plain, values=values, returns=values, notes=base.advantages + 0.5)
    seen: list[Samples] = []
    learner = PPO(policy, n_epochs=1, batch_size=2)
    head_loss = learner.head_loss

    def looked_at(distribution: Any, samples: Samples, values: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(samples)
        return head_loss(distribution, samples, values)

    vars(learner)["head_loss"] = looked_at
    params = {name: torch.stack([tensor] * 3) for name, tensor in policy.init(0).items()}
    learner.update(learner.start(params), samples, 1e-3, [np.random.SeedSequence(i) for i in range(3)])
    assert len(seen) == 2
    for batch in seen:
        assert isinstance(batch, Noted)
        assert batch.notes.shape == batch.advantages.shape


def test_the_base_shows_how_it_is_used() -> None:
    @dataclass(frozen=True)
    class Small(Fields):
        marks: np.ndarray = field(metadata=PER_TASK)

    assert Small(np.array([1, 2])).map(lambda axes, array: array[:1]).marks.tolist() == [1]
