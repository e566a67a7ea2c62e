"""The path of a stock SB3 algorithm: every move is seen, whoever made it and however the watcher is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stable_baselines3 import A2C

from tests.agents.test_sb3 import GOAL, SEED, N, Recorder, make_learner, require_equal


class StepsRecorder(Recorder):
    """Keeps every segment, and is told of several in one call."""

    calls = 0

    def steps(self, start: Any, end: Any, gradient: Any) -> None:
        self.calls += 1
        for i in range(len(start.flat)):
            self.segment(*({n: t[i : i + 1] for n, t in part.items()} for part in (start, end, gradient)), None)


@pytest.mark.parametrize("recorder", [Recorder, StepsRecorder])
@pytest.mark.parametrize("how", ["copy", "data", "swap"])
def test_a_move_between_two_steps_is_a_segment_of_its_own(monkeypatch, how, recorder):
    def train(self):
        for turn in range(3):
            self.policy.optimizer.zero_grad()
            self.policy.value_net.bias.grad = torch.ones(1)
            self.policy.optimizer.step()
            if turn == 1:
                log_std = self.policy.log_std
                with torch.no_grad():
                    if how == "copy":
                        log_std.add_(0.25)
                    elif how == "data":
                        # Leaves no mark on the tensor, as TRPO's line search.
                        log_std.data.copy_(log_std.data + 0.25)
                    else:
                        log_std.data = log_std.data + 0.25

    monkeypatch.setattr(A2C, "train", train)
    learner, watcher = make_learner("a2c"), recorder()
    learner.run(learner.init(0), GOAL, SEED, 10, watcher=watcher)
    value = {"value_net.bias"}
    assert watcher.moved == [value, value, {"log_std"}, value] * 2
    assert [gradient is None for _, _, gradient in watcher.segments] == [False, False, True, False] * 2
    for before, after in zip(watcher.segments, watcher.segments[1:], strict=False):
        require_equal(before[1], after[0])


def test_steps_are_told_together_and_are_the_same():
    recorders = [Recorder(), StepsRecorder()]
    for watcher in recorders:
        learner = make_learner("ppo")
        learner.run(learner.init(3), GOAL, SEED, N, watcher=watcher)
    one_by_one, together = recorders
    assert together.calls < len(together.segments)
    for a, b in zip(one_by_one.segments, together.segments, strict=True):
        for own, other in zip(a, b, strict=True):
            require_equal(own, other)
